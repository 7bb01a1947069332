"""The few collectives the objectives need; without a process group each is the identity.

Objectives call these instead of `torch.distributed`, so one code path serves a laptop and many ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group is set up."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def world_size() -> int:
    """Number of processes that train together."""
    return torch_dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Number of this process, 0 to ``world_size() - 1``."""
    return torch_dist.get_rank() if is_distributed() else 0


def all_gather(x: Tensor) -> Tensor:
    """Concatenate `x` of all ranks along the first axis, in rank order, without gradient.

    Parameters
    ----------
    x : Tensor, (B, ...)
        Same shape on every rank.

    Returns
    -------
    Tensor, (world_size * B, ...)
    """
    x = x.detach().contiguous()
    if not is_distributed():
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    torch_dist.all_gather(parts, x)
    return torch.cat(parts)


def all_mean(x: Tensor) -> Tensor:
    """Mean of `x` over ranks, without gradient."""
    x = x.detach().clone()
    if is_distributed():
        torch_dist.all_reduce(x)
        x /= world_size()
    return x


def broadcast_(x: Tensor) -> Tensor:
    """Overwrite `x` on every rank by its value on rank 0."""
    if is_distributed():
        torch_dist.broadcast(x, src=0)
    return x
