"""Random numbers of the augmentations: few, one row a clip, known to the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operation = Callable[[Tensor, torch.Generator | None], Tensor]


def uniform(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Uniform numbers in [0, 1), on the CPU.

    Boxes, factors and orders are a handful of numbers a clip. Holding them on the host lets the code choose
    what to launch without asking the accelerator, and sends them there in one small copy that nothing waits
    for.

    Parameters
    ----------
    shape : tuple of int
        Shape of the result.
    generator : torch.Generator, optional
        Source of the numbers; the global CPU one if None. One that lives on an accelerator works too, at
        the price of waiting for it at each draw: prefer a CPU generator.

    Returns
    -------
    Tensor, `shape`, float64, on the CPU
    """
    device = torch.device("cpu") if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=device).cpu()


def choose(num_clips: int, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of the clips that something happens to, int64, on the CPU; at 0 and 1 nothing is drawn."""
    if probability in (0, 1):
        return torch.arange(num_clips if probability else 0)
    return (uniform((num_clips,), generator) < probability).nonzero().squeeze(1)


def apply_to(x: Tensor, chosen: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply an operation to the chosen clips of (B, ...), which is overwritten; the others cost nothing."""
    if len(chosen) == 0:
        return x
    if len(chosen) == len(x):
        return operation(x)
    chosen = chosen.to(x.device, non_blocking=True)
    return x.index_copy_(0, chosen, operation(x.index_select(0, chosen)))


def on_some(
    x: Tensor, probability: float, operation: Operation, generator: torch.Generator | None = None
) -> Tensor:
    """Apply an operation to each clip with a probability; the others cost nothing.

    Parameters
    ----------
    x : Tensor, (B, ...)
        Clips; overwritten.
    probability : float in [0, 1]
        At 0 and 1 nothing is drawn for the choice.
    operation : callable
        Maps (n, ...) and a generator to (n, ...).
    generator : torch.Generator, optional
        Source of the choice, then of the operation.

    Returns
    -------
    Tensor, (B, ...)
    """
    chosen = choose(len(x), probability, generator)
    return apply_to(x, chosen, lambda clips: operation(clips, generator))
