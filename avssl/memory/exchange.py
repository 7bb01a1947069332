"""What processes that each hold a part of the memories tell one another.

All are collectives: every process must call them in the same order. Without a process group each is the
identity, like those of `avssl.dist`.
"""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from torch import Tensor

from avssl import dist

PIECE_BYTES = 2**26
"""Bytes a process sends at once when whole memories are gathered."""


def exchange(x: Tensor) -> Tensor:
    """Send ``x[r]`` to each rank r; returns what they sent here, in rank order, shaped like `x`."""
    if not dist.is_distributed():
        return x
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch_dist.all_to_all_single(received, x.contiguous())
    return received


def all_max(x: Tensor) -> Tensor:
    """Largest of `x`, number by number, over ranks."""
    x = x.clone()
    if dist.is_distributed():
        torch_dist.all_reduce(x, op=torch_dist.ReduceOp.MAX)
    return x


def gather_uneven(x: Tensor) -> Tensor:
    """As `avssl.dist.all_gather`, of ranks that may have unequally many rows, or none."""
    counts = dist.all_gather(torch.tensor([len(x)], device=x.device)).tolist()
    parts = dist.all_gather(padded(x, max(counts))).split(max(counts)) if max(counts) else ()
    return torch.cat([x[:0], *(part[:count] for part, count in zip(parts, counts, strict=False))])


def padded(x: Tensor, length: int, value: float = 0) -> Tensor:
    """`x` with rows of `value` behind it, (length, ...)."""
    behind = x.new_full((length - len(x), *x.shape[1:]), value)
    return torch.cat([x.detach(), behind]) if len(behind) else x.detach()


def gather_on_first(x: Tensor) -> Tensor:
    """All ranks' (L, D), in rank order, on the CPU of the first, piece by piece; empty on the others.

    Parameters
    ----------
    x : Tensor, (L, D)
        Of the same shape on every rank.
    """
    if not dist.is_distributed():
        return x.detach().cpu()
    first, ranks = dist.rank() == 0, dist.world_size()
    whole = torch.empty((ranks, *x.shape) if first else (0,), dtype=x.dtype)
    rows = max(1, PIECE_BYTES // (x.element_size() * max(1, x.shape[1])))
    for start in range(0, len(x), rows):
        part = x[start : start + rows].detach().contiguous()
        parts = [torch.empty_like(part) for _ in range(ranks)] if first else None
        torch_dist.gather(part, parts, dst=0)
        for rank, theirs in enumerate(parts or ()):
            whole[rank, start : start + rows] = theirs.cpu()
    return whole.flatten(0, 1) if first else whole
