"""Random numbers of the augmentations: few, one row a clip, known to the host."""

from __future__ import annotations

import torch
from torch import Tensor


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
