"""Views from clips: batched tensor code that runs on whatever device its module lies on.

A batch of uint8 frames goes through `VideoAugment` (training; several in a `MultiView`) or `VideoEval`, a
batch of waveforms through `AudioAugment` and `LogSpectrogram`; `ViewMaker` does both and hands an objective
its `avssl.types.Views`. `avssl.transforms.presets` holds the views of the image methods.
"""

from avssl.transforms.audio import AudioAugment, LogSpectrogram, spectrogram_statistics
from avssl.transforms.blur import GaussianBlur
from avssl.transforms.color import ColorJitter
from avssl.transforms.multi_view import CropSpec, MultiView, make_views
from avssl.transforms.video import IMAGENET_MEAN, IMAGENET_STD, VideoAugment, VideoEval
from avssl.transforms.views import ViewMaker

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AudioAugment",
    "ColorJitter",
    "CropSpec",
    "GaussianBlur",
    "LogSpectrogram",
    "MultiView",
    "VideoAugment",
    "VideoEval",
    "ViewMaker",
    "make_views",
    "spectrogram_statistics",
]
