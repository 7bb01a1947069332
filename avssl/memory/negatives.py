"""Uniform negatives, drawn on the device, that exclude given rows without rejection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avssl import dist

MANY = 2**62
"""Draws below this modulo a few million are uniform to one part in a million million."""


@dataclass(frozen=True)
class Pool:
    """Rows of a bank that may be drawn.

    Parameters
    ----------
    rows : Tensor, (M,), int64
        The rows, ascending.
    position : Tensor, (N,), int64
        How many rows of the pool lie below each row; for a row of the pool its place in `rows`.
    member : Tensor, (N,), bool
        Which rows are in the pool.
    """

    rows: Tensor
    position: Tensor
    member: Tensor

    @classmethod
    def of(cls, member: Tensor) -> Pool:
        """Pool of the rows that a mask marks."""
        counts = member.long()
        return cls(member.nonzero().flatten(), counts.cumsum(0) - counts, member)

    def or_everything(self, least: int) -> Pool:
        """Return the pool if it has more than `least` rows, else one of all rows.

        Raises
        ------
        ValueError
            When not even all rows are more than `least`.
        """
        if len(self.rows) > least:
            return self
        if len(self.member) <= least:
            raise ValueError(
                f"{len(self.member)} instances leave no negative once {least} are excluded; "
                "use more samples or fewer positives"
            )
        return Pool.of(torch.ones_like(self.member))


def draw_negatives(pool: Pool, exclude: Tensor, num_negatives: int) -> Tensor:
    """Draw rows uniformly, with replacement, from a pool less some rows an instance.

    With the excluded positions sorted, e_0 < e_1 < ..., the r-th row that is left stands at r plus the
    number of j with e_j - j <= r. So one integer draw and one binary search replace the comparison of every
    draw with every excluded row, and no alias table is needed for what is a uniform law.

    Parameters
    ----------
    pool : Pool
        When it is too small for some instance (in the first steps, while almost no slot has been seen), all
        rows are drawn from instead.
    exclude : Tensor, (B, E), int64
        Rows an instance must not get (itself, its positives); -1 stands for none. No row twice.
    num_negatives : int >= 1
        Draws K an instance.

    Returns
    -------
    Tensor, (B, K), int64
    """
    pool = pool.or_everything(exclude.shape[1])
    size = len(pool.rows)
    outside = (exclude < 0) | ~pool.member[exclude.clamp_min(0)]
    excluded = pool.position[exclude.clamp_min(0)].masked_fill(outside, size).sort(dim=1).values
    left = size - (excluded < size).sum(dim=1, keepdim=True)
    number = dist.world_size() * len(
        exclude
    )  # ranks share a seed: each takes its rows of what one would draw
    draws = dist.own_rows(torch.randint(MANY, (number, num_negatives), device=exclude.device)) % left
    below = torch.arange(excluded.shape[1], device=exclude.device)
    shifted = torch.where(excluded < size, excluded - below, size)  # a filler is above every draw
    return pool.rows[draws + torch.searchsorted(shifted, draws, right=True)]


def draw_pool(pool: Pool, num_negatives: int) -> Tensor:
    """Draw rows uniformly, with replacement, for a whole batch: (K,), int64, ascending.

    What a sample must not use is left to the caller, who knows how to mask it. A pool of a single row is
    replaced by all rows.
    """
    rows = pool.or_everything(1).rows
    return rows[torch.randint(len(rows), (num_negatives,), device=rows.device)].sort().values
