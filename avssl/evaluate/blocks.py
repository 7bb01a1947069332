"""Outputs of the blocks of a frozen trunk, pooled to at most 9216 numbers each.

The sizes are those of the linear probes of Zhang, Isola and Efros, "Split-Brain Autoencoders", CVPR 2017, as
AVID's release has them: the largest square that keeps channels times positions within 9216, so 12, 8, 6 and 4
for 64, 128, 256 and 512 channels, and 3 and 2 for 1024 and 2048.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.errors import EvaluationError
from avssl.models import ImageEncoder, StagedEncoder

MOST_NUMBERS = 9216
"""Length of a pooled block, at most (unless it has more channels)."""

POOL = "pool"
"""Name of what a trunk returns."""

STEM = "conv1"


def block_names(trunk: nn.Module) -> tuple[str, ...]:
    """Names of the blocks that probes look at: all stages but the stem, in order.

    Empty for a trunk that is no `StagedEncoder`: name its submodules instead.
    """
    if not isinstance(trunk, StagedEncoder):
        return ()
    stages = trunk.stage_names if isinstance(trunk, ImageEncoder) else tuple(trunk.stages)
    return tuple(name for name in stages if name != STEM)


@torch.no_grad()
def block_features(trunk: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Pooled outputs of blocks, and what the trunk returns, from one pass in evaluation mode.

    Maps of video networks (B, C, T, H, W) are pooled by maximum to (1, n, n), maps of sound (B, C, frames,
    bins) by average to (n, n), and so are maps of images (B T, C, H, W), which are then averaged over T; n is
    the largest number with C n^2 <= 9216, and no axis is made longer than it is. The trunk is left as it was:
    parameters, buffers, modes and hooks.

    Parameters
    ----------
    trunk : nn.Module
        Maps `x` to (B, dim).
    x : Tensor
        Videos (B, 3, T, H, W) or spectrograms (B, 1, frames, bins).
    names : sequence of str, optional
        Stages of a `StagedEncoder`, or dotted names of submodules. Default: `block_names`.

    Returns
    -------
    dict of str to Tensor, float32
        (B, C n n) of each name, then ``"pool"``, (B, dim).

    Raises
    ------
    EvaluationError
        For a name that is none, and a submodule that does not give one map a pass.
    """
    paths = {name: _path(trunk, name) for name in (block_names(trunk) if names is None else names)}
    seen: dict[str, list[Tensor]] = {name: [] for name in paths}

    def keep(name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise EvaluationError(
                f"{name} of {type(trunk).__name__} gives a {type(output).__name__}; a block must give one "
                "tensor; name a module inside it"
            )
        # Pooled here and now: the next module may overwrite the map in place.
        seen[name].append(pool_map(output.float()))

    handles = []
    try:
        for name, path in paths.items():
            hook = lambda _, __, output, name=name: keep(name, output)  # noqa: E731
            handles.append(trunk.get_submodule(path).register_forward_hook(hook))
        with frozen(trunk):
            pooled = trunk(x).float()
    finally:
        for handle in handles:
            handle.remove()
    features = {name: _one_map(name, maps, len(pooled)) for name, maps in seen.items()}
    return features | {POOL: pooled}


def pool_map(x: Tensor) -> Tensor:
    """Pool a map to rows of at most 9216 numbers, as `block_features` says; rows (B, d) stay as they are.

    Parameters
    ----------
    x : Tensor, (B, C, T, H, W), (B, C, H, W) or (B, d)

    Returns
    -------
    Tensor, (B, C n_1 n_2) or (B, d)
    """
    if x.ndim == 2:
        return x.clone()
    if x.ndim not in (4, 5):
        raise EvaluationError(
            f"a block gives a tensor of shape {tuple(x.shape)}; must be (B, C, T, H, W), (B, C, H, W) or "
            "(B, d); name another module"
        )
    side = max(1, math.isqrt(MOST_NUMBERS // x.shape[1]))
    height, width = (min(side, length) for length in x.shape[-2:])
    if x.ndim == 5:
        return F.adaptive_max_pool3d(x, (1, height, width)).flatten(1)
    return F.adaptive_avg_pool2d(x, (height, width)).flatten(1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, so that batch norm learns nothing; afterwards each submodule is in its own again."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def _path(trunk: nn.Module, name: str) -> str:
    """Submodule whose output is the block of this name."""
    stages: dict[str, tuple[str, ...]] = {}
    if isinstance(trunk, StagedEncoder):
        there = trunk.stage_names if isinstance(trunk, ImageEncoder) else tuple(trunk.stages)
        stages = {stage: trunk.stages[stage] for stage in there}
    if name in stages:
        return stages[name][-1]
    modules = [path for path, _ in trunk.named_modules() if path]
    if name in modules:
        return name
    near = get_close_matches(name, [*stages, *modules], n=1, cutoff=0.0)
    raise EvaluationError(
        f"{type(trunk).__name__} has no block {name!r}; "
        + (f"its stages are {', '.join(stages)}; " if stages else "name one of its submodules; ")
        + f"did you mean {near[0]!r}?"
    )


def _one_map(name: str, maps: list[Tensor], batch: int) -> Tensor:
    """The only map of a block, (B, d); of images, which come frame by frame, the mean over time."""
    if len(maps) != 1 or len(maps[0]) % batch:
        got = "was not used" if not maps else f"gave {len(maps)} maps, the first of {len(maps[0])} rows"
        raise EvaluationError(
            f"block {name!r} {got} in a pass of a batch of {batch}; a block must give one map a pass; name "
            "another module"
        )
    return maps[0] if len(maps[0]) == batch else maps[0].unflatten(0, (batch, -1)).mean(1)
