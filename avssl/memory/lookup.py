"""Rows of a memory: their vectors, their products with embeddings, and sums of them.

A memory lies whole in a tensor, or is spread over the processes (`ShardedRows`). Spread out, no row travels
where a number does: for B samples with K rows each, embeddings go to all processes (B D numbers), the scores
come back (B K, not B K D), and for the gradient the slopes go out (B K) and sums of rows come back (B D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import dist
from avssl.memory.exchange import all_max, exchange, padded

CHUNK_BYTES = 2**21
"""Rows of a half-precision bank converted at a time: what fits a core's cache."""


@dataclass(frozen=True)
class ShardedRows:
    """A memory of which each process holds a run of rows of the same length; the last may have fewer.

    Parameters
    ----------
    own : Tensor, (L, D)
        Rows ``rank * L`` to ``(rank + 1) * L`` of the memory; those beyond the last row mean nothing.
    num_rows : int
        Rows N of the whole memory, at most ``L * world_size``.
    """

    own: Tensor
    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole memory."""
        return self.num_rows, int(self.own.shape[1])

    @property
    def ndim(self) -> int:
        """Axes, 2."""
        return self.own.ndim

    @property
    def device(self) -> torch.device:
        """Where this process's rows are."""
        return self.own.device


Vectors = Tensor | ShardedRows
"""A memory (N, D), whole or spread over the processes, in any floating type."""


def own_run(vectors: Vectors) -> tuple[Tensor, int]:
    """Rows that lie in this process, and the number of the first of them: all, and 0, of a whole memory."""
    if isinstance(vectors, Tensor):
        return vectors, 0
    first = min(dist.rank() * len(vectors.own), vectors.num_rows)
    return vectors.own[: vectors.num_rows - first], first


class Route:
    """Who holds which of the rows that the processes' samples ask for.

    Parameters
    ----------
    rows : Tensor, (B, M), int64
        Rows that each sample of this process asks for; B and M may differ between processes.
    length : int
        Rows L that each process holds.
    """

    def __init__(self, rows: Tensor, length: int) -> None:
        ranks, number = dist.world_size(), len(rows)
        owner = rows // length
        counts = rows.new_zeros(number, ranks).scatter_add_(1, owner, torch.ones_like(owner))
        order = owner.argsort(dim=1, stable=True)
        before = (counts.cumsum(dim=1) - counts).gather(1, owner)  # of a row's sample, held by lower ranks
        rank = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        place = torch.empty_like(rows).scatter_(1, order, rank)
        widest = int(counts.amax()) if counts.numel() else 0
        self.number = number
        self.samples, self.width = all_max(torch.tensor([number, widest], device=rows.device)).tolist()
        sample = torch.arange(number, device=rows.device)[:, None]
        self.at = (owner * self.samples + sample) * self.width + place - before
        self.shape = (ranks, self.samples, self.width)
        self.wanted = exchange(self.sent(rows - owner * length, torch.int32)).long().flatten(0, 1)

    def sent(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers (B, M), one a row, as they go to the holders of the rows: (world_size, samples, width)."""
        sent = torch.zeros(self.shape, dtype=dtype or values.dtype, device=values.device)
        sent.view(-1)[self.at] = values.to(sent.dtype)
        return sent


def take(vectors: Vectors, rows: Tensor) -> Tensor:
    """Rows as float32, (..., D); of a sharded memory all processes must ask, each for as many as it likes."""
    if isinstance(vectors, Tensor):  # `index_select` is several times faster than indexing with the tensor
        return vectors.index_select(0, rows.flatten()).float().view(*rows.shape, vectors.shape[1])
    route = Route(rows.reshape(1, -1), len(vectors.own))
    held = vectors.own.index_select(0, route.wanted.flatten()).view(*route.shape, -1)
    return exchange(held).flatten(0, 2)[route.at.flatten()].float().view(*rows.shape, vectors.shape[1])


class LocalLookup:
    """Rows (B, K) of a memory that lies whole in this process."""

    def __init__(self, vectors: Tensor, rows: Tensor) -> None:
        self.vectors, self.rows = vectors, rows

    def products(self, z: Tensor) -> Tensor:
        """``z_i . mem[r_ik]`` of embeddings (B, D), float32: (B, K)."""
        if self.vectors.dtype != torch.float32:
            parts = [torch.bmm(found, z[chunk].unsqueeze(2)) for chunk, found in self._float_rows()]
            return torch.cat(parts).squeeze(2)
        batch, number = self.rows.shape
        starts = torch.arange(0, batch * number, number, device=z.device)
        bag = torch.arange(batch, device=z.device).repeat_interleave(number, output_size=batch * number)
        mode_sum = 0
        products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            z.contiguous(), self.vectors, self.rows.flatten(), starts, bag, mode_sum
        )
        return products.view(batch, number)

    def sums(self, weights: Tensor) -> Tensor:
        """``sum over k of w_ik mem[r_ik]`` of weights (B, K), float32: (B, D)."""
        if self.vectors.dtype != torch.float32:
            parts = [torch.bmm(weights[chunk].unsqueeze(1), found) for chunk, found in self._float_rows()]
            return torch.cat(parts).squeeze(1)
        return F.embedding_bag(self.rows, self.vectors, mode="sum", per_sample_weights=weights)

    def _float_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows as float32, (b, K, D), for a few samples at a time."""
        size = max(1, CHUNK_BYTES // (4 * self.rows.shape[1] * self.vectors.shape[1]))
        for start in range(0, len(self.rows), size):
            chunk = slice(start, start + size)
            yield chunk, take(self.vectors, self.rows[chunk])


class ShardedLookup:
    """As `LocalLookup`, of a memory that is spread over the processes; all must ask, each for its samples."""

    def __init__(self, vectors: ShardedRows, rows: Tensor) -> None:
        self.route = Route(rows, len(vectors.own))
        self.held = LocalLookup(vectors.own, self.route.wanted)

    def products(self, z: Tensor) -> Tensor:
        """Of `LocalLookup`."""
        every = dist.all_gather(padded(z, self.route.samples))
        return exchange(self.held.products(every).view(self.route.shape)).view(-1)[self.route.at]

    def sums(self, weights: Tensor) -> Tensor:
        """Of `LocalLookup`."""
        theirs = exchange(self.route.sent(weights)).flatten(0, 1)
        held = self.held.sums(theirs).view(*self.route.shape[:2], -1)
        return exchange(held).sum(dim=0)[: self.route.number]


def lookup(vectors: Vectors, rows: Tensor) -> LocalLookup | ShardedLookup:
    """What is needed of rows (B, K), int64, of a memory."""
    return LocalLookup(vectors, rows) if isinstance(vectors, Tensor) else ShardedLookup(vectors, rows)
