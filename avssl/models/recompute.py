"""Activation checkpointing (Chen et al., 2016) for stages of residual blocks, with batch norm done right.

Only the input of a block is kept for the backward pass; the rest is computed again there. PyTorch's own
function would let batch norm count every batch twice, once in each computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avssl.errors import ConfigError


class RecomputedStage(nn.Sequential):
    """`nn.Sequential` whose blocks are computed again in the backward pass; keys of weights are the same.

    Outputs, gradients and running statistics equal those of the plain one. Blocks must draw nothing at
    random: the generator's state is not kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks one after another on `x`, of any shape they take."""
        for block in self:
            x = checkpoint(
                block, x, use_reentrant=False, preserve_rng_state=False, context_fn=partial(_contexts, block)
            )
        return x


def recomputed(stages: nn.Module, names: Sequence[str], chosen: bool | Sequence[int]) -> None:
    """Replace stages, children of one module, by recomputed ones.

    Parameters
    ----------
    stages : nn.Module
        Owner of the stages.
    names : sequence of str
        Attribute names of the stages, each an `nn.Sequential` of blocks; they are numbered from 1.
    chosen : bool or sequence of int
        All, none, or the numbers of those to replace.

    Raises
    ------
    ConfigError
        When a number is not that of a stage.
    """
    numbers = range(1, len(names) + 1)
    picked = (list(numbers) if chosen else []) if isinstance(chosen, bool) else list(chosen)
    if wrong := [number for number in picked if number not in numbers]:
        raise ConfigError(
            f"checkpoint_stages: stages are numbered 1 to {len(names)}; got {', '.join(map(str, wrong))}. "
            "Give such numbers, or true for all stages"
        )
    for number in picked:
        name = names[number - 1]
        stage = RecomputedStage()
        for key, block in getattr(stages, name).named_children():
            stage.add_module(key, block)
        setattr(stages, name, stage)


class _BuffersKept:
    """Context in which a module's buffers are copies that are thrown away at the end; can be entered again.

    Momentum 0 would not do: it still counts the batch, and turns an infinite statistic into nan.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        for module in self.module.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                self.kept.append((module, name, buffer))
                setattr(module, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for module, name, buffer in self.kept:
            setattr(module, name, buffer)
        self.kept.clear()


def _contexts(block: nn.Module) -> tuple[nullcontext[None], _BuffersKept]:
    """Contexts of the first computation and of the second."""
    return nullcontext(), _BuffersKept(block)
