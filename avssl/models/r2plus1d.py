"""The R(2+1)D video network of AVID and CMA.

Convolutions over space and over time alternate (Tran et al., "A Closer Look at Spatiotemporal Convolutions
for Action Recognition", CVPR 2018), in the variant of Morgado et al., "Audio-Visual Instance Discrimination
with Cross-Modal Agreement", CVPR 2021. It differs from torchvision's ``r2plus1d_18``: the stem is one full
3-D convolution, the spatial convolutions have no extra middle planes, and a block normalises the sum of its
branch and its shortcut.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.models.staged import StagedEncoder

BLOCKS_PER_STAGE = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class R2Plus1DBlock(nn.Module):
    """Residual block: space, time, space, time; batch norm and ReLU on the sum with the shortcut.

    Parameters
    ----------
    in_channels, out_channels : int
        Planes before and after; all four convolutions have `out_channels`.
    stride : int
        Stride in space and in time of the first pair of convolutions and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.spt_conv1 = _space(in_channels, out_channels, stride)
        self.spt_bn1 = nn.BatchNorm3d(out_channels)
        self.tmp_conv1 = _time(out_channels, out_channels, stride)
        self.tmp_bn1 = nn.BatchNorm3d(out_channels)
        self.spt_conv2 = _space(out_channels, out_channels, 1)
        self.spt_bn2 = nn.BatchNorm3d(out_channels)
        self.tmp_conv2 = _time(out_channels, out_channels, 1)
        self.out_bn = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        if stride != 1 or in_channels != out_channels:
            self.res_conv: nn.Module = nn.Conv3d(in_channels, out_channels, 1, stride, bias=False)
        else:
            self.res_conv = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, T, H, W) to (B, out_channels, T', H', W')."""
        branch = self.relu(self.spt_bn1(self.spt_conv1(x)))
        branch = self.relu(self.tmp_bn1(self.tmp_conv1(branch)))
        branch = self.relu(self.spt_bn2(self.spt_conv2(branch)))
        branch = self.tmp_conv2(branch)
        return self.relu(self.out_bn(branch + self.res_conv(x)))


class R2Plus1D(StagedEncoder):
    """R(2+1)D network with global max pooling; at width 64 exactly the official one, by names too.

    Its state dict has the keys of the official ``video_model.*`` without that prefix. Weights start from
    PyTorch's defaults, as in the official code. Any T, H and W of at least 1 work; T is halved (rounded up)
    by each of the last three stages, H and W also by the stem's convolution and its pool.

    Parameters
    ----------
    depth : {10, 18, 34}
        1, 2 or 3-4-6-3 blocks a stage.
    width : int >= 1
        Channels of stem and first stage; the stages have width, 2 width, 4 width, 8 width. Smaller than 64
        for CPUs.
    stem_pool : bool
        Pool to half size after the stem; False is the small-data variant for 112 pixel frames.

    Raises
    ------
    ConfigError
        When `depth` or `width` is not one of those.
    """

    stages: ClassVar[dict[str, tuple[str, ...]]] = {
        "conv1": ("conv1",),
        "conv2x": ("conv2x",),
        "conv3x": ("conv3x",),
        "conv4x": ("conv4x",),
        "conv5x": ("conv5x",),
    }
    axes: ClassVar[tuple[str, ...]] = ("B", "3", "T", "H", "W")

    def __init__(self, depth: int = 18, width: int = 64, stem_pool: bool = True) -> None:
        super().__init__()
        if depth not in BLOCKS_PER_STAGE:
            raise ConfigError(
                f"R2Plus1D: depth must be one of {', '.join(map(str, BLOCKS_PER_STAGE))}; got {depth!r}"
            )
        if width < 1:
            raise ConfigError(f"R2Plus1D: width must be at least 1 channel (official: 64); got {width!r}")
        stem: list[nn.Module] = [
            nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        ]
        if stem_pool:
            stem.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        self.conv1 = nn.Sequential(*stem)
        blocks = BLOCKS_PER_STAGE[depth]
        self.conv2x = _stage(width, width, 1, blocks[0])
        self.conv3x = _stage(width, 2 * width, 2, blocks[1])
        self.conv4x = _stage(2 * width, 4 * width, 2, blocks[2])
        self.conv5x = _stage(4 * width, 8 * width, 2, blocks[3])
        self.pool = nn.AdaptiveMaxPool3d(1)
        self.dim = 8 * width


def _stage(in_channels: int, out_channels: int, stride: int, num_blocks: int) -> nn.Module:
    """Blocks of one resolution; a single one stays bare, as the official key names at depth 10 have it."""
    first = R2Plus1DBlock(in_channels, out_channels, stride)
    if num_blocks == 1:
        return first
    rest = [R2Plus1DBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


def _space(in_channels: int, out_channels: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)


def _time(in_channels: int, out_channels: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
