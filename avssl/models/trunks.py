"""Residual networks of torchvision as encoders, without pretrained weights.

Module names are torchvision's, so a torchvision state dict fits apart from its classifier ``fc`` (and, for
sound, apart from the one-channel first convolution).
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import ClassVar

from torch import nn

from avssl.errors import ConfigError
from avssl.models.staged import StagedEncoder


class TorchvisionVideo(StagedEncoder):
    """Video network of torchvision (Tran et al., CVPR 2018) with global average pooling; ``dim`` is 512.

    Takes (B, 3, T, H, W). Feature maps ``conv1`` (stem) and ``conv2x`` to ``conv5x`` (layers 1 to 4).

    Parameters
    ----------
    architecture : {"r2plus1d_18", "r3d_18", "mc3_18"}
        Which network.

    Raises
    ------
    ConfigError
        When `architecture` is another.
    """

    names: ClassVar[tuple[str, ...]] = ("r2plus1d_18", "r3d_18", "mc3_18")
    stages: ClassVar[dict[str, tuple[str, ...]]] = {
        "conv1": ("stem",),
        "conv2x": ("layer1",),
        "conv3x": ("layer2",),
        "conv4x": ("layer3",),
        "conv5x": ("layer4",),
    }
    axes: ClassVar[tuple[str, ...]] = ("B", "3", "T", "H", "W")

    def __init__(self, architecture: str = "r2plus1d_18") -> None:
        super().__init__()
        _check_name(type(self).__name__, architecture, self.names)
        from torchvision.models import get_model

        network = get_model(architecture, weights=None)
        for part in ("stem", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, part, getattr(network, part))
        self.pool = network.avgpool
        self.dim = network.fc.in_features


class ResNetAudio(StagedEncoder):
    """Residual network (He et al., CVPR 2016) on spectrograms, with global average pooling.

    Takes (B, 1, frames, bins): the first convolution has one input channel. ``dim`` is 512, for resnet50
    2048. Feature maps ``conv2x`` to ``conv5x`` (layers 1 to 4).

    Parameters
    ----------
    architecture : {"resnet18", "resnet34", "resnet50"}
        Which network.

    Raises
    ------
    ConfigError
        When `architecture` is another.
    """

    names: ClassVar[tuple[str, ...]] = ("resnet18", "resnet34", "resnet50")
    stages: ClassVar[dict[str, tuple[str, ...]]] = {
        "conv2x": ("conv1", "bn1", "relu", "maxpool", "layer1"),
        "conv3x": ("layer2",),
        "conv4x": ("layer3",),
        "conv5x": ("layer4",),
    }
    axes: ClassVar[tuple[str, ...]] = ("B", "1", "frames", "bins")

    def __init__(self, architecture: str = "resnet18") -> None:
        super().__init__()
        _check_name(type(self).__name__, architecture, self.names)
        from torchvision.models import get_model

        network = get_model(architecture, weights=None)
        self.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        for part in ("bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, part, getattr(network, part))
        self.pool = network.avgpool
        self.dim = network.fc.in_features


def _check_name(kind: str, name: str, names: tuple[str, ...]) -> None:
    if name in names:
        return
    nearest = get_close_matches(str(name), names, n=1, cutoff=0)[0]
    raise ConfigError(
        f"{kind}: architecture must be one of {', '.join(names)}; got {name!r}. Did you mean {nearest!r}?"
    )
