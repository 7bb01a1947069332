"""Views from clips: batched tensor code that runs on whatever device its module lies on.

A batch of uint8 frames goes through `VideoAugment` (training) or `VideoEval`, a batch of waveforms through
`AudioAugment` and `LogSpectrogram`; `ViewMaker` does both and hands an objective its `avssl.types.Views`.
"""

from avssl.transforms.audio import AudioAugment, LogSpectrogram, spectrogram_statistics
from avssl.transforms.color import ColorJitter
from avssl.transforms.video import IMAGENET_MEAN, IMAGENET_STD, VideoAugment, VideoEval
from avssl.transforms.views import ViewMaker

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AudioAugment",
    "ColorJitter",
    "LogSpectrogram",
    "VideoAugment",
    "VideoEval",
    "ViewMaker",
    "spectrogram_statistics",
]
