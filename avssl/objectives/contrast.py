"""Embeddings against rows of a memory, without ever holding those rows.

The rows a batch is contrasted with are (B, P + K, D) numbers, by far the largest tensor of the objective: 134
MB a direction at B = 256, K = 1024, D = 128. Both what the loss needs of them and what its gradient needs,

    s_ik = z_i . mem[r_ik] / T        and        dL/dz_i = (1 / T) sum_k (dL/ds_ik) mem[r_ik],

are sums over rows that an embedding bag computes while it reads them: the second is its forward pass with the
slopes as weights, the first the gradient of these weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from avssl.objectives.nce import LEFT_OUT, Allowed

LossOfScores = Callable[[Tensor, Tensor], Tensor]
"""Scores with positives (B, P) and negatives (B, K) -> loss of each sample (B,)."""

CHUNK_BYTES = 2**21
"""Rows of a half-precision bank converted at a time: what fits a core's cache."""


def contrast_rows(
    z: Tensor, vectors: Tensor, positives: Tensor, negatives: Tensor, temperature: float, loss: LossOfScores
) -> Tensor:
    """Loss of each sample against its own rows of a memory, differentiable in `z`.

    The gradient is computed along with the loss, so that the memory may be updated before the backward pass.
    Scores are float32, under autocast too.

    Parameters
    ----------
    z : Tensor, (B, D)
        Unit embeddings.
    vectors : Tensor, (N, D)
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
    z: Tensor, vectors: Tensor, positives: Tensor, pool: Tensor, temperature: float, loss: LossOfScores
) -> Tensor:
    """As `contrast_rows` with the same negatives (K,) for the whole batch: one matrix product."""
    with torch.autocast(z.device.type, enabled=False):
        z = z.float() / temperature
        pos = torch.bmm(_gather(vectors, positives), z.unsqueeze(2)).squeeze(2)
        neg = z @ _gather(vectors, pool).T
        return loss(pos, neg)


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
        vectors: Tensor,
        rows: Tensor,
        num_positives: int,
        temperature: float,
        loss: LossOfScores,
    ) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            scores = _inner_products(z / temperature, vectors, rows)
            with torch.enable_grad():
                scores.requires_grad_()
                losses = loss(scores[:, :num_positives], scores[:, num_positives:])
                (slope,) = torch.autograd.grad(losses.sum(), scores)
            ctx.save_for_backward(_weighted_sums(slope, vectors, rows) / temperature)
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream[:, None] * gradient, None, None, None, None, None


def _inner_products(z: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
    """``z_i . mem[r_ik]``, (B, K)."""
    if vectors.dtype != torch.float32:
        parts = [torch.bmm(found, z[chunk].unsqueeze(2)) for chunk, found in _float_rows(vectors, rows)]
        return torch.cat(parts).squeeze(2)
    batch, number = rows.shape
    starts = torch.arange(0, batch * number, number, device=rows.device)
    bag = torch.arange(batch, device=rows.device).repeat_interleave(number, output_size=batch * number)
    mode_sum = 0
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        z.contiguous(), vectors, rows.flatten(), starts, bag, mode_sum
    )
    return products.view(batch, number)


def _weighted_sums(weights: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
    """``sum over k of w_ik mem[r_ik]``, (B, D)."""
    if vectors.dtype != torch.float32:
        parts = [torch.bmm(weights[chunk].unsqueeze(1), found) for chunk, found in _float_rows(vectors, rows)]
        return torch.cat(parts).squeeze(1)
    return F.embedding_bag(rows, vectors, mode="sum", per_sample_weights=weights)


def _float_rows(vectors: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a half-precision memory as float32, (b, K, D), for a few samples at a time."""
    size = max(1, CHUNK_BYTES // (4 * rows.shape[1] * vectors.shape[1]))
    for start in range(0, len(rows), size):
        chunk = slice(start, start + size)
        yield chunk, _gather(vectors, rows[chunk])


def _gather(vectors: Tensor, rows: Tensor) -> Tensor:
    """Rows of a memory as float32; `index_select` is several times faster than indexing with the tensor."""
    return vectors.index_select(0, rows.flatten()).float().view(*rows.shape, vectors.shape[1])
