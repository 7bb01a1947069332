"""Two-dimensional networks as video encoders, and the residual networks among them.

An image is a video of one frame. Module names are torchvision's, so a torchvision state dict fits apart from
its classifier ``fc``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.models.recompute import recomputed
from avssl.models.staged import StagedEncoder


class ImageEncoder(StagedEncoder):
    """Base of encoders that see every frame by itself.

    A clip goes through the network as B T images, so batch norm takes its statistics over all frames of the
    batch; pooled features are averaged over time. A subclass may name submodules of submodules in `stages`,
    and may have fewer stages than the table, in its order.
    """

    axes: ClassVar[tuple[str, ...]] = ("B", "3", "T", "H", "W")

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the feature maps this network has, in order."""
        return tuple(self.stages)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features, averaged over time: videos (B, 3, T, H, W) to (B, dim).

        Raises
        ------
        ValueError
            When `x` has another rank or number of channels.
        """
        self._check(x)
        frames = _frames(x)
        for name in self.stage_names:
            frames = self._stage(name, frames)
        return self._pooled(frames, x.shape[0])

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs of all stages by name, (B, channels, T, H', W'), and ``"pool"``, as `forward` returns.

        Parameters and errors are those of `forward`.
        """
        self._check(x)
        frames, batch, maps = _frames(x), x.shape[0], {}
        for name in self.stage_names:
            frames = self._stage(name, frames)
            maps[name] = frames.unflatten(0, (batch, -1)).transpose(1, 2)
        maps["pool"] = self._pooled(frames, batch)
        return maps

    def blocks(self) -> list[nn.Module]:
        """The blocks one after another, from first stage to last: what is sharded piece by piece."""
        parts = [self.get_submodule(path) for name in self.stage_names for path in self.stages[name]]
        return [block for part in parts if _has_blocks(part) for block in part.children()]

    def _stage(self, name: str, x: Tensor) -> Tensor:
        for path in self.stages[name]:
            x = self.get_submodule(path)(x)
        return x

    def _pooled(self, frames: Tensor, batch: int) -> Tensor:
        return self.pool(frames).flatten(1).unflatten(0, (batch, -1)).mean(1)


def _has_blocks(part: nn.Module) -> bool:
    """Whether a part of a stage is a sequence of residual blocks, and not a stem or a single layer."""
    return isinstance(part, nn.Sequential) and not isinstance(part[0], nn.Conv2d)


def _frames(video: Tensor) -> Tensor:
    """Images (B T, 3, H, W) of videos (B, 3, T, H, W), those of one video side by side."""
    return video.transpose(1, 2).flatten(0, 1)


class ResNetDesign(NamedTuple):
    """What distinguishes one residual network from another.

    Parameters
    ----------
    bottleneck : bool
        Blocks of 1x1, 3x3 and 1x1 convolutions rather than of two 3x3 ones.
    depths : tuple of four int
        Blocks a layer.
    width : int
        Factor to all numbers of channels, the stem's included. (torchvision's ``width_per_group`` widens
        only the 3x3 convolutions.)
    """

    bottleneck: bool
    depths: tuple[int, int, int, int]
    width: int = 1


RESNETS = {
    "resnet18": ResNetDesign(False, (2, 2, 2, 2)),
    "resnet34": ResNetDesign(False, (3, 4, 6, 3)),
    "resnet50": ResNetDesign(True, (3, 4, 6, 3)),
    "resnet50w2": ResNetDesign(True, (3, 4, 6, 3), 2),
    "resnet50w4": ResNetDesign(True, (3, 4, 6, 3), 4),
    "resnet50w5": ResNetDesign(True, (3, 4, 6, 3), 5),
    "resnet200w2": ResNetDesign(True, (3, 24, 36, 3), 2),
}
"""Networks of the released SwAV, SimSiam, Barlow Twins and BYOL weights, and small ones."""


class ResNetImage(ImageEncoder):
    """Residual network (He et al., CVPR 2016) on images or on the frames of clips; global average pooling.

    Takes (B, 3, T, H, W), where an image is T = 1; see `ImageEncoder` for T > 1. ``dim`` is 512, for
    bottleneck networks 2048, times the width. Feature maps ``conv2x`` to ``conv5x`` (layers 1 to 4).

    Parameters
    ----------
    architecture : {"resnet18", "resnet34", "resnet50", "resnet50w2", "resnet50w4", "resnet50w5",
            "resnet200w2"}
        Which network; after the ``w`` stands SwAV's and BYOL's factor to all widths.
    zero_init_residual : bool
        Start every block as the identity, by scale 0 in its last batch norm (Barlow Twins, SimSiam).
    small_stem : bool
        A 3x3 convolution of stride 1 and no max pool instead of 7x7, stride 2 and pool: for images of 32 to
        64 pixels, as recipes for CIFAR use.
    same_padding : bool
        Pad the convolutions of stride 2 and the max pool as TensorFlow and JAX do ("SAME"): what is odd goes
        to the right and to the bottom. BYOL's released weights lose some 4 points of accuracy without.
    checkpoint_stages : bool or sequence of int
        Layers (1 to 4) whose blocks are computed again in the backward pass; True is all. Saves memory and
        changes no result.

    Raises
    ------
    ConfigError
        When `architecture` or a number in `checkpoint_stages` is none of those.
    """

    stages: ClassVar[dict[str, tuple[str, ...]]] = {
        "conv2x": ("conv1", "bn1", "relu", "maxpool", "layer1"),
        "conv3x": ("layer2",),
        "conv4x": ("layer3",),
        "conv5x": ("layer4",),
    }

    def __init__(
        self,
        architecture: str = "resnet50",
        zero_init_residual: bool = False,
        small_stem: bool = False,
        same_padding: bool = False,
        checkpoint_stages: bool | Sequence[int] = False,
    ) -> None:
        super().__init__()
        check_architecture(type(self).__name__, architecture, RESNETS)
        from torchvision.models.resnet import BasicBlock, Bottleneck

        design = RESNETS[architecture]
        block = Bottleneck if design.bottleneck else BasicBlock
        channels = 64 * design.width
        stem = (3, 1, 1) if small_stem else (7, 2, 3)  # kernel, stride, padding
        self.conv1: nn.Module = nn.Conv2d(3, channels, *stem, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity() if small_stem else nn.MaxPool2d(3, 2, 1)
        layers = ("layer1", "layer2", "layer3", "layer4")
        for number, (layer, depth) in enumerate(zip(layers, design.depths, strict=True)):
            planes, stride = 64 * design.width * 2**number, 1 if number == 0 else 2
            setattr(self, layer, _layer(block, channels, planes, stride, depth))
            channels = planes * block.expansion
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dim = channels
        _initialise(self, zero_init_residual)
        if same_padding:
            _pad_same(self)
        recomputed(self, layers, checkpoint_stages)


class SameConv2d(nn.Conv2d):
    """Convolution whose input is padded as "SAME" asks: output size ceil(input size / stride)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        padding = _same_padding(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride)


class SameMaxPool2d(nn.MaxPool2d):
    """Max pool whose input is padded as "SAME" asks, with what never is a maximum."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = int(self.kernel_size), int(self.stride)  # type: ignore[arg-type]
        padded = F.pad(x, _same_padding(x, kernel, stride), value=-float("inf"))
        return F.max_pool2d(padded, kernel, stride)


def check_architecture(kind: str, name: str, names: Collection[str]) -> None:
    """Raise `ConfigError`, with the nearest of `names`, unless `name` is one of them."""
    if name in names:
        return
    nearest = get_close_matches(str(name), names, n=1, cutoff=0)[0]
    raise ConfigError(
        f"{kind}: architecture must be one of {', '.join(names)}; got {name!r}. Did you mean {nearest!r}?"
    )


def _layer(block: type, channels: int, planes: int, stride: int, depth: int) -> nn.Sequential:
    """Blocks of one resolution; the first has a convolution in its shortcut where shapes differ."""
    out: int = planes * block.expansion  # type: ignore[attr-defined]
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out, planes) for _ in range(depth - 1)))


def _initialise(network: nn.Module, zero_init_residual: bool) -> None:
    """Kaiming's normal distribution by fan out, as torchvision; batch norms already are 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual and hasattr(module, "downsample"):
            last = getattr(module, "bn3" if hasattr(module, "bn3") else "bn2")
            nn.init.zeros_(last.weight)


def _pad_same(network: nn.Module) -> None:
    """Replace what pads and has stride 2; at stride 1 with odd kernels both paddings are the same."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride[0] > 1 and child.kernel_size[0] > 1:
                kernel, stride = child.kernel_size[0], child.stride[0]
                same = SameConv2d(child.in_channels, child.out_channels, kernel, stride, bias=False)
                same.weight = child.weight
                setattr(module, name, same)
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, SameMaxPool2d(child.kernel_size, child.stride))


def _same_padding(x: Tensor, kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Padding left, right, top and bottom: max((ceil(size / stride) - 1) stride + kernel - size, 0) in all.

    Half of it, rounded down, goes in front, the rest behind.
    """
    height, width = (
        max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[-2], x.shape[-1])
    )
    return width // 2, width - width // 2, height // 2, height - height // 2
