"""Power of pairs of frequencies; on a processor compiled: steps of torch take as long as the transform."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


def paired_power(spectrum: Tensor) -> Tensor:
    """The constant term, then the mean power of neighbouring pairs of frequencies.

    Parameters
    ----------
    spectrum : Tensor, complex64 (B, frames, 1 + 2 P), contiguous

    Returns
    -------
    Tensor, float32 (B, frames, 1 + P)
    """
    if spectrum.device.type != "cpu":
        return pair_at_once(spectrum)
    batch, frames, size = spectrum.shape
    power = torch.empty(batch, frames, 1 + size // 2)
    _compiled_pair()(
        torch.view_as_real(spectrum).view(batch * frames, -1).numpy(), power.flatten(0, 1).numpy()
    )
    return power


def pair_at_once(spectrum: Tensor) -> Tensor:
    """The same for accelerators: few large operations."""
    squares = torch.view_as_real(spectrum).square().flatten(2)
    constant, pairs = squares[..., :2].sum(-1, keepdim=True), squares[..., 2:].unflatten(-1, (-1, 4))
    return torch.cat([constant, pairs.sum(-1).mul_(0.5)], -1)


@cache
def _compiled_pair() -> Any:
    from avssl.transforms.kernels import compiled

    return compiled(_pair)


def _pair(numbers, power):  # type: ignore[no-untyped-def]
    """Real and imaginary parts, float32 (rows, 2 + 4 P), to power, float32 (rows, 1 + P)."""
    for n in range(numbers.shape[0]):
        power[n, 0] = numbers[n, 0] * numbers[n, 0] + numbers[n, 1] * numbers[n, 1]
        parts, pairs = numbers[n, 2:], power[n, 1:]
        for i in range(pairs.size):
            a, b, c, d = parts[4 * i], parts[4 * i + 1], parts[4 * i + 2], parts[4 * i + 3]
            pairs[i] = (a * a + b * b + c * c + d * d) / 2
