"""Uniform negatives, drawn on the device, that exclude given rows without rejection."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_negatives(
    pool: tuple[Tensor, Tensor], num_rows: int, exclude: Tensor, num_negatives: int, seen: Tensor
) -> Tensor:
    """Draw rows uniformly, with replacement, from a pool less some rows an instance.

    With the excluded positions sorted, e_0 < e_1 < ..., the r-th row that is left stands at r plus the
    number of j with e_j - j <= r. So one integer draw and one binary search replace the comparison of every
    draw with every excluded row, and no alias table is needed for what is a uniform law.

    Parameters
    ----------
    pool : (rows, position)
        As `MemoryBank.pool` gives it. When it is too small for some instance (in the first steps, while
        almost no slot has been seen), all `num_rows` rows are drawn from instead.
    num_rows : int
        Number of rows N of the bank.
    exclude : Tensor, (B, E), int64
        Rows an instance must not get (itself, its positives); -1 stands for none. No row twice.
    num_negatives : int >= 1
        Draws K an instance.
    seen : Tensor, (N,), bool
        Which rows are in the pool.

    Returns
    -------
    Tensor, (B, K), int64
    """
    rows, position = pool
    size = len(rows)
    outside = (exclude < 0) | ~seen[exclude.clamp_min(0)]
    if size <= exclude.shape[1]:
        rows, size = torch.arange(num_rows, device=exclude.device), num_rows
        position, outside = rows, exclude < 0
    if size <= exclude.shape[1]:
        raise ValueError(
            f"{num_rows} instances leave no negative once {exclude.shape[1]} are excluded; "
            "use more samples or fewer positives"
        )
    excluded = position[exclude.clamp_min(0)].masked_fill(outside, size).sort(dim=1).values
    left = size - (excluded < size).sum(dim=1, keepdim=True)
    draws = torch.randint(2**62, (len(exclude), num_negatives), device=exclude.device) % left
    below = torch.arange(excluded.shape[1], device=exclude.device)
    shifted = torch.where(excluded < size, excluded - below, size)  # a filler is above every draw
    return rows[draws + torch.searchsorted(shifted, draws, right=True)]
