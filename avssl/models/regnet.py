"""RegNetY networks (Radosavovic et al., "Designing Network Design Spaces", CVPR 2020), SEER's included.

Module names are torchvision's. SEER (Goyal et al., 2021 and 2022) trained the sizes from 32 to 256 gigaflops
and one of 10 billion parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch

from avssl.errors import ConfigError
from avssl.models.image import ImageEncoder, check_architecture
from avssl.models.recompute import recomputed


class RegNetDesign(NamedTuple):
    """The paper's five numbers: block i of `depth` has width w_0 + w_a i, before rounding.

    Rounding is to a power of w_m times w_0, then to multiples of 8, then to multiples of the group width.
    """

    depth: int
    w_0: int
    w_a: float
    w_m: float
    group_width: int


REGNETS = {
    "regnet_y_400mf": RegNetDesign(16, 48, 27.89, 2.09, 8),
    "regnet_y_800mf": RegNetDesign(14, 56, 38.84, 2.4, 16),
    "regnet_y_1_6gf": RegNetDesign(27, 48, 20.71, 2.65, 24),
    "regnet_y_3_2gf": RegNetDesign(21, 80, 42.63, 2.66, 24),
    "regnet_y_8gf": RegNetDesign(17, 192, 76.82, 2.19, 56),
    "regnet_y_16gf": RegNetDesign(18, 200, 106.23, 2.48, 112),
    "regnet_y_32gf": RegNetDesign(20, 232, 115.89, 2.53, 232),
    "regnet_y_64gf": RegNetDesign(20, 352, 147.48, 2.4, 328),
    "regnet_y_128gf": RegNetDesign(27, 456, 160.83, 2.52, 264),
    "regnet_y_256gf": RegNetDesign(27, 640, 230.83, 2.53, 373),
    "regnet_y_10b": RegNetDesign(27, 1744, 620.83, 2.52, 1010),
}
"""Sizes by name; up to 32 and 128 gf they are torchvision's too, 64, 256 and 10b are SEER's alone."""

Stages = tuple[tuple[int, int, int], ...]
"""Number of blocks, width and group width of each stage."""

SQUEEZE = 0.25  # width of squeeze-and-excitation, as a share of the block's input
_STEM_WIDTH, _MOST_STAGES = 32, 4


def regnet_stages(design: RegNetDesign) -> Stages:
    """Stages that the five numbers stand for.

    Raises
    ------
    ConfigError
        When the numbers stand for no network of 1 to 4 stages.
    """
    from torchvision.models.regnet import BlockParams

    depth, w_0, w_a, w_m, group_width = design
    if min(depth, w_0, group_width) < 1 or w_0 % 8 or w_a < 0 or w_m <= 1:
        raise ConfigError(
            "RegNetY: depth and group_width must be at least 1, w_0 a multiple of 8, w_a at least 0 and w_m "
            f"above 1; got {_said(design)}"
        )
    with torch.device("cpu"):  # it computes with tensors, also while a model is built on "meta"
        params = BlockParams.from_init_params(**design._asdict(), se_ratio=SQUEEZE)
    return tuple(zip(params.depths, params.widths, params.group_widths, strict=True))


class RegNetY(ImageEncoder):
    """RegNet with squeeze-and-excitation on images or on the frames of clips; global average pooling.

    Takes (B, 3, T, H, W), where an image is T = 1; see `ImageEncoder` for T > 1. ``dim`` is the width of the
    last stage. Feature maps ``conv1`` (stem) and ``conv2x`` to ``conv5x`` (stages 1 to 4). Built under
    ``torch.device("meta")`` the largest costs no memory.

    Parameters
    ----------
    architecture : str or None
        A name in `REGNETS`: ``"regnet_y_"`` and one of ``400mf``, ``800mf``, ``1_6gf``, ``3_2gf``, ``8gf``,
        ``16gf``, ``32gf``, ``64gf``, ``128gf``, ``256gf``, ``10b``. None is ``"regnet_y_400mf"``, unless
        the network is given by numbers.
    depth, w_0, w_a, w_m, group_width : int, int, float, float, int
        The paper's numbers; all five or none. See `RegNetDesign`.
    stages_as : sequence of (blocks, width, group width)
        A network stage by stage, as the weights of a checkpoint show it.
    checkpoint_stages : bool or sequence of int
        Stages (1 to 4) whose blocks are computed again in the backward pass; True is all. Saves memory and
        changes no result.

    Raises
    ------
    ConfigError
        When two of name, numbers and stages are given, or not all numbers, or they stand for no network.
    """

    stages: ClassVar[dict[str, tuple[str, ...]]] = {
        "conv1": ("stem",),
        **{f"conv{number + 1}x": (f"trunk_output.block{number}",) for number in range(1, _MOST_STAGES + 1)},
    }

    def __init__(
        self,
        architecture: str | None = None,
        depth: int | None = None,
        w_0: int | None = None,
        w_a: float | None = None,
        w_m: float | None = None,
        group_width: int | None = None,
        stages_as: Sequence[tuple[int, int, int]] | None = None,
        checkpoint_stages: bool | Sequence[int] = False,
    ) -> None:
        super().__init__()
        table = _table(architecture, (depth, w_0, w_a, w_m, group_width), stages_as)
        _check_table(table)
        from torchvision.models.regnet import BlockParams, RegNet

        depths, widths, group_widths = (list(column) for column in zip(*table, strict=True))
        ones, twos = [1.0] * len(table), [2] * len(table)
        params = BlockParams(depths, widths, group_widths, ones, twos, SQUEEZE)
        network = RegNet(params, num_classes=1, stem_width=_STEM_WIDTH)
        self.stem, self.trunk_output = network.stem, network.trunk_output
        self.pool = network.avgpool
        self.dim = int(widths[-1])
        names = [name for name, _ in self.trunk_output.named_children()]
        recomputed(self.trunk_output, names, checkpoint_stages)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the feature maps this network has, in order."""
        return tuple(self.stages)[: 1 + len(self.trunk_output)]


def _table(
    architecture: str | None, numbers: tuple[Any, ...], stages: Sequence[tuple[int, int, int]] | None
) -> Stages:
    """Stages by the one way of three that was taken, or the default."""
    by_numbers = any(number is not None for number in numbers)
    ways = sum((architecture is not None, by_numbers, stages is not None))
    if ways > 1 or (by_numbers and None in numbers):
        names = ", ".join(RegNetDesign._fields)
        raise ConfigError(
            f"RegNetY takes one of: architecture (such as 'regnet_y_400mf'), all of {names}, or stages_as; "
            f"got architecture {architecture!r}, {_said(RegNetDesign(*numbers))}, stages_as {stages!r}"
        )
    if stages is not None:
        return tuple(stages)
    if by_numbers:
        return regnet_stages(RegNetDesign(*numbers))
    name = architecture or "regnet_y_400mf"
    check_architecture("RegNetY", name, REGNETS)
    return regnet_stages(REGNETS[name])


def _check_table(table: Stages) -> None:
    wrong = not 1 <= len(table) <= _MOST_STAGES or any(
        len(stage) != 3 or min(stage) < 1 or stage[1] % stage[2] for stage in table
    )
    if wrong:
        raise ConfigError(
            f"RegNetY: a network has 1 to {_MOST_STAGES} stages, each (blocks, width, group width), all at "
            f"least 1, the width a multiple of the group width; got {list(table)}"
        )


def _said(design: RegNetDesign) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in design._asdict().items())
