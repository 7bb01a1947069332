"""Networks: video, audio and image encoders, heads, what is trained together, names of released weights."""

from avssl.models.audio import AudioConvNet
from avssl.models.dual import DualEncoder, VisualEncoder
from avssl.models.heads import ProjectionHead
from avssl.models.image import ImageEncoder, ResNetImage
from avssl.models.official import from_official, load_official_model, to_official
from avssl.models.r2plus1d import R2Plus1D
from avssl.models.regnet import RegNetY
from avssl.models.staged import StagedEncoder
from avssl.models.trunks import ResNetAudio, TorchvisionVideo
from avssl.models.visual_weights import VisualWeights, read_visual_weights, recognise

__all__ = [
    "AudioConvNet",
    "DualEncoder",
    "ImageEncoder",
    "ProjectionHead",
    "R2Plus1D",
    "RegNetY",
    "ResNetAudio",
    "ResNetImage",
    "StagedEncoder",
    "TorchvisionVideo",
    "VisualEncoder",
    "VisualWeights",
    "from_official",
    "load_official_model",
    "read_visual_weights",
    "recognise",
    "to_official",
]
