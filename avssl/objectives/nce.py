"""Noise-contrastive estimation and softmax over the same positives and negatives.

With scores s = z . mem / T and K negatives drawn from the uniform law, the probability that a sample comes
from the data (Wu et al. 2018, eq. 7; Morgado et al. 2021, eq. 1) is

    P(s) = exp(s) / (exp(s) + K Z),

Z being the mean of exp(s) over noise. All is computed in float32 log space: ``-log P = softplus(log KZ - s)``
and ``-log(1 - P) = softplus(s - log KZ)``, so neither exp(1 / 0.07) nor autocast can overflow.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl import dist

Contrast = Literal["nce", "softmax"]
PartitionRule = Literal["first_batch", "start_of_stage"]


def nce_loss(positives: Tensor, negatives: Tensor, log_z: Tensor, valid: Tensor | None = None) -> Tensor:
    """NCE: the mean over positives of ``-log P`` plus the sum over negatives of ``-log(1 - P)``.

    Parameters
    ----------
    positives : Tensor, (B, P)
        Scores of the positives, already divided by the temperature.
    negatives : Tensor, (B, K)
        Scores of the negatives, likewise.
    log_z : Tensor, scalar
        Logarithm of the partition constant Z.
    valid : Tensor, (B, P), bool, optional
        Positives that count; a sample without any is left out of the mean over the batch.

    Returns
    -------
    Tensor, scalar, float32
    """
    log_kz = math.log(negatives.shape[1]) + log_z.float()
    attract = F.softplus(log_kz - positives.float())
    repel = F.softplus(negatives.float() - log_kz).sum(dim=1)
    return _mean_over_samples(attract, repel, valid)


def softmax_loss(positives: Tensor, negatives: Tensor, valid: Tensor | None = None) -> Tensor:
    """InfoNCE: the mean over positives of ``-log(e^s / (e^s + sum of e^negatives))``.

    Each positive is contrasted with the negatives alone, the logarithm standing inside the mean (the "out"
    form of Khosla et al., "Supervised Contrastive Learning", 2020, eq. 2).

    Parameters and returns as for `nce_loss`.
    """
    noise = torch.logsumexp(negatives.float(), dim=1, keepdim=True)
    attract = F.softplus(noise - positives.float())
    return _mean_over_samples(attract, torch.zeros_like(noise[:, 0]), valid)


def _mean_over_samples(attract: Tensor, repel: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over positives, then over the samples that have any."""
    if valid is None:
        return (attract.mean(dim=1) + repel).mean()
    count = valid.sum(dim=1)
    has_any = (count > 0).to(attract.dtype)
    per_sample = (attract * valid).sum(dim=1) / count.clamp_min(1) + repel
    return (per_sample * has_any).sum() / has_any.sum().clamp_min(1)


class Partition(nn.Module):
    """The constant Z: the mean of exp(score) over the negatives of the first batch, then frozen.

    One constant serves all terms of an objective, as in the official release.

    Parameters
    ----------
    rule : {"first_batch", "start_of_stage"}
        What happens when a stage starts from another one's state: ``"first_batch"`` (official) inherits
        its Z, ``"start_of_stage"`` estimates Z again on the first batch of the new stage.
    """

    log_z: Tensor

    def __init__(self, rule: PartitionRule = "first_batch") -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("log_z", torch.tensor(math.nan))

    @torch.no_grad()
    def forward(self, negatives: Tensor) -> Tensor:
        """Log Z, estimated from these scores, (B, K), of all ranks if it is not known yet."""
        first = torch.logsumexp(negatives.float().flatten(), dim=0) - math.log(negatives.numel())
        if dist.is_distributed():
            first = dist.all_mean(first.exp()).log()
        # torch.where instead of `if`: reading a flag on a GPU would stall the step
        self.log_z.copy_(torch.where(self.log_z.isnan(), first, self.log_z))
        return self.log_z.clone()

    def start_from(self, log_z: Tensor) -> None:
        """Inherit the constant of another stage, or not, by the rule."""
        if self.rule == "first_batch":
            self.log_z.copy_(log_z)
