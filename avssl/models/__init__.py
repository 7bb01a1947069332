"""Networks: video and audio encoders, projection heads, the pair of both, official names of weights."""

from avssl.models.audio import AudioConvNet
from avssl.models.dual import DualEncoder
from avssl.models.heads import ProjectionHead
from avssl.models.official import from_official, load_official_model, to_official
from avssl.models.r2plus1d import R2Plus1D
from avssl.models.staged import StagedEncoder
from avssl.models.trunks import ResNetAudio, TorchvisionVideo

__all__ = [
    "AudioConvNet",
    "DualEncoder",
    "ProjectionHead",
    "R2Plus1D",
    "ResNetAudio",
    "StagedEncoder",
    "TorchvisionVideo",
    "from_official",
    "load_official_model",
    "to_official",
]
