"""The spectrogram network of AVID and CMA: a 7x7 stem and eight plain 3x3 convolutions.

Source: Morgado et al., "Audio-Visual Instance Discrimination with Cross-Modal Agreement", CVPR 2021.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.models.staged import StagedEncoder


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU; no shortcut.

    Parameters
    ----------
    in_channels, out_channels : int
        Planes before and after.
    stride : int
        Stride of the first convolution, in time and frequency.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, frames, bins) to (B, out_channels, frames', bins')."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class AudioConvNet(StagedEncoder):
    """Spectrogram network with global max pooling; at width 64 exactly the official one, by names too.

    Input is (B, 1, frames, bins). Its state dict has the keys of the official ``audio_model.*`` without that
    prefix; the feature maps are named after the stages of the video network, ``conv2x`` being the output of
    ``block1``. Weights start from PyTorch's defaults, as in the official code.

    Parameters
    ----------
    width : int >= 1
        Channels of stem and first block; the blocks have width, 2 width, 4 width, 8 width. Smaller than 64
        for CPUs.
    first_stride : {2, 1}
        Stride of the first block; 1 is the small-data variant for spectrograms of 100 x 129.

    Raises
    ------
    ConfigError
        When `width` or `first_stride` is not one of those.
    """

    stages: ClassVar[dict[str, tuple[str, ...]]] = {
        "conv2x": ("conv1", "block1"),
        "conv3x": ("block2",),
        "conv4x": ("block3",),
        "conv5x": ("block4",),
    }
    axes: ClassVar[tuple[str, ...]] = ("B", "1", "frames", "bins")

    def __init__(self, width: int = 64, first_stride: int = 2) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"AudioConvNet: width must be at least 1 channel (official: 64); got {width!r}")
        if first_stride not in (1, 2):
            raise ConfigError(f"AudioConvNet: first_stride must be 2 (official) or 1; got {first_stride!r}")
        self.conv1 = nn.Sequential(
            nn.Conv2d(1, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.block1 = ConvBlock(width, width, first_stride)
        self.block2 = ConvBlock(width, 2 * width, 2)
        self.block3 = ConvBlock(2 * width, 4 * width, 2)
        self.block4 = ConvBlock(4 * width, 8 * width, 1)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.dim = 8 * width
