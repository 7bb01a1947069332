"""Embeddings against rows of a memory, without ever holding those rows.

The rows a batch is contrasted with are (B, P + K, D) numbers, by far the largest tensor of the objective: 134
MB a direction at B = 256, K = 1024, D = 128. Both what the loss needs of them and what its gradient needs,

    s_ik = z_i . mem[r_ik] / T        and        dL/dz_i = (1 / T) sum_k (dL/ds_ik) mem[r_ik],

are sums over rows that an embedding bag computes while it reads them: the second is its forward pass with the
slopes as weights, the first the gradient of these weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avssl.memory import Vectors, lookup, take
from avssl.objectives.nce import LEFT_OUT, Allowed

LossOfScores = Callable[[Tensor, Tensor], Tensor]
"""Scores with positives (B, P) and negatives (B, K) -> loss of each sample (B,)."""


def contrast_rows(
    z: Tensor, vectors: Vectors, positives: Tensor, negatives: Tensor, temperature: float, loss: LossOfScores
) -> Tensor:
    """Loss of each sample against its own rows of a memory, differentiable in `z`.

    The gradient is computed along with the loss, so that the memory may be updated before the backward pass.
    Scores are float32, under autocast too.

    Parameters
    ----------
    z : Tensor, (B, D)
        Unit embeddings.
    vectors : Tensor or ShardedRows, (N, D)
        Memory of the target modality, in any floating type; gets no gradient.
    positives, negatives : Tensor, (B, P) and (B, K), int64
        Rows of each sample.
    temperature : float > 0
        T.
    loss : callable
        See `LossOfScores`.

    Returns
    -------
    Tensor, (B,), float32
    """
    rows = torch.cat([positives, negatives], dim=1)
    losses: Tensor = _ContrastRows.apply(z.float(), vectors, rows, positives.shape[1], temperature, loss)
    return losses


def contrast_pool(
    z: Tensor, vectors: Vectors, positives: Tensor, pool: Tensor, temperature: float, loss: LossOfScores
) -> Tensor:
    """As `contrast_rows` with the same negatives (K,) for the whole batch: one matrix product."""
    with torch.autocast(z.device.type, enabled=False):
        z = z.float() / temperature
        pos = torch.bmm(take(vectors, positives), z.unsqueeze(2)).squeeze(2)
        neg = z @ take(vectors, pool).T
        return loss(pos, neg)


@dataclass(frozen=True)
class Negatives:
    """Rows of the memories that a batch is told from.

    Parameters
    ----------
    rows : Tensor, (B, K) or (K,), int64
        Rows of each sample, or one pool for all of them, ascending.
    exclude : Tensor, (B, E), int64
        Rows that are no negatives of each sample, -1 for none; of a pool they are left out here.
    """

    rows: Tensor
    exclude: Tensor

    def first(self, number: int) -> Negatives:
        """Only the first `number` of them; of a pool, which is sorted, as many at equal steps."""
        if self.rows.ndim == 2:
            return Negatives(self.rows[:, :number], self.exclude)
        step = torch.arange(number, device=self.rows.device) * len(self.rows) // number
        return Negatives(self.rows[step], self.exclude)

    @cached_property
    def allowed(self) -> Allowed | None:
        """Which rows of a pool each sample may use; None without a pool."""
        return allowed_of(self.rows, self.exclude) if self.rows.ndim == 1 else None


def allowed_of(pool: Tensor, exclude: Tensor) -> Allowed:
    """Which rows of a shared pool each sample may use as negatives.

    Parameters
    ----------
    pool : Tensor, (K,), int64, ascending
        Rows, possibly some more than once.
    exclude : Tensor, (B, E), int64
        Rows a sample must not use, none twice; -1 stands for none.
    """
    # An excluded row covers a run of the sorted pool: marks where the run begins and, with the other sign,
    # behind its end have a running sum that is not 0 inside. That is (E log K + K) a sample, not the E K of
    # comparing all with all.
    exclude = exclude.contiguous()
    begin, end = torch.searchsorted(pool, exclude), torch.searchsorted(pool, exclude, right=True)
    change = torch.zeros(len(exclude), len(pool) + 1, device=pool.device)
    mark = torch.full(exclude.shape, LEFT_OUT, device=pool.device)
    change.scatter_add_(1, begin, mark).scatter_add_(1, end, -mark)
    count = len(pool) - (end - begin).sum(dim=1, keepdim=True)
    return Allowed(count.float(), change[:, :-1].cumsum(dim=1))


class _ContrastRows(torch.autograd.Function):
    """Computes the gradient along with the loss; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        vectors: Vectors,
        rows: Tensor,
        num_positives: int,
        temperature: float,
        loss: LossOfScores,
    ) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            found = lookup(vectors, rows)
            scores = found.products(z / temperature)
            with torch.enable_grad():
                scores.requires_grad_()
                losses = loss(scores[:, :num_positives], scores[:, num_positives:])
                (slope,) = torch.autograd.grad(losses.sum(), scores)
            ctx.save_for_backward(found.sums(slope) / temperature)
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream[:, None] * gradient, None, None, None, None, None
