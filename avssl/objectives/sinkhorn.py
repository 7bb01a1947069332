"""Codes of SwAV: samples spread evenly over prototypes by Sinkhorn and Knopp's iterations.

Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NIPS 2013; Caron et al.,
"Unsupervised learning of visual features by contrasting cluster assignments", NeurIPS 2020, section 3.1.
"""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor

from avssl import dist
from avssl.objectives.siamese import at_least_float32


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft assignment of samples to prototypes that uses all prototypes about equally.

    Starting from ``Q = exp(scores / epsilon)``, each iteration divides by the sum over samples, then by the
    sum over prototypes::

        Q_bk <- Q_bk / (K sum_b' Q_b'k)        Q_bk <- Q_bk / (B sum_k' Q_bk')

    and B Q is returned. The release also divides by the sum of all Q at first. Like the constants K and B
    this cancels in the last step, so neither is computed here.

    Parameters
    ----------
    scores : Tensor, (B, K)
        Cosines of this process's samples with the prototypes. Sums over samples run over those of all
        processes, which exchange 2 K numbers an iteration and may hold different numbers of samples.
    epsilon : float > 0
        The smaller, the harder the codes.
    iterations : int >= 1
        How often both sums are made even; the second one, over prototypes, holds exactly at the end.

    Returns
    -------
    Tensor, (B, K)
        Non-negative, each row sums to 1; float32, or float64 for such scores, under autocast too.

    Raises
    ------
    ValueError
        For an `epsilon` or `iterations` out of range.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(
            f"epsilon is {epsilon} and iterations {iterations}; they must be above 0 and at least 1, such as "
            "0.05 and 3"
        )
    # exp(1 / epsilon) is infinite in float32 below 0.0113, so all is done on logarithms
    with torch.autocast(scores.device.type, enabled=False):
        log_q = at_least_float32(scores) / epsilon
        for _ in range(iterations):
            log_q = (log_q - _log_sum_over_samples(log_q)).log_softmax(dim=1)
        return log_q.exp()


def _log_sum_over_samples(log_q: Tensor) -> Tensor:
    """``log sum_b exp(log_q_bk)`` (K,) over the samples of all processes."""
    own = log_q.logsumexp(dim=0)
    if not dist.is_distributed():
        return own
    highest = own.clone()
    torch_dist.all_reduce(highest, torch_dist.ReduceOp.MAX)
    total = (own - highest).exp()
    torch_dist.all_reduce(total)
    return highest + total.log()


def hard_codes(codes: Tensor) -> Tensor:
    """All of each sample's weight on its likeliest prototype; (B, K) to (B, K), as VISSL does."""
    return F.one_hot(codes.argmax(dim=1), codes.shape[1]).to(codes.dtype)


@torch.no_grad()
def prototype_usage(codes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """How evenly samples use the prototypes, over the samples of all processes.

    Parameters
    ----------
    codes, scores : Tensor, (N, K)
        Of N samples, equally many on each process: what `sinkhorn` made of scores, and scores.

    Returns
    -------
    dict of str to scalar Tensor, in (0, 1]
        ``prototype_perplexity``: ``exp(entropy of the mean code) / K``, low when few prototypes get all the
        weight; `sinkhorn` keeps it up, even in a collapse. ``prototypes_used``: how many have the highest
        score of some sample, as a share of the most there can be, ``min(K, samples)``; low in a collapse.
    """
    used = codes.new_zeros(codes.shape[1]).index_fill_(0, scores.argmax(dim=1), 1.0)
    mean, used_by = dist.all_mean(torch.stack([codes.mean(dim=0), used]))
    possible = min(codes.shape[1], len(codes) * dist.world_size())
    return {
        "prototype_perplexity": torch.special.entr(mean).sum().exp() / codes.shape[1],
        "prototypes_used": used_by.count_nonzero() / possible,
    }
