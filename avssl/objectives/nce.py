"""Noise-contrastive estimation and softmax over the same positives and negatives.

With scores s = z . mem / T and K negatives drawn from the uniform law, the probability that a sample comes
from the data (Wu et al. 2018, eq. 7; Morgado et al. 2021, eq. 1) is

    P(s) = exp(s) / (exp(s) + K Z),

Z being the mean of exp(s) over noise. All is computed in float32 log space: ``-log P = softplus(log KZ - s)``
and ``-log(1 - P) = softplus(s - log KZ)``, so neither exp(1 / 0.07) nor autocast can overflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl import dist

Contrast = Literal["nce", "softmax"]
PartitionRule = Literal["first_batch", "start_of_stage", "per_term"] | float

LEFT_OUT = -1e4
"""Added to the score of a negative that does not count: its exponential and gradient become 0, not nan."""


@dataclass(frozen=True)
class Allowed:
    """Which negatives of a pool each sample may use.

    Parameters
    ----------
    count : Tensor, (B, 1), float32
        How many they are.
    offset : Tensor, (B, K), float32
        0 for those, `LEFT_OUT` for the others; added to the scores.
    """

    count: Tensor
    offset: Tensor


def nce_losses(
    positives: Tensor,
    negatives: Tensor,
    log_z: Tensor,
    valid: Tensor | None = None,
    allowed: Allowed | None = None,
) -> Tensor:
    """NCE of each sample: mean over positives of ``-log P`` plus sum over negatives of ``-log(1 - P)``.

    Parameters
    ----------
    positives : Tensor, (B, P)
        Scores of the positives, already divided by the temperature.
    negatives : Tensor, (B, K)
        Scores of the negatives, likewise.
    log_z : Tensor, scalar
        Logarithm of the partition constant Z.
    valid : Tensor, (B, P), bool, optional
        Positives that count; a sample without any has loss 0.
    allowed : Allowed, optional
        Negatives that count, all by default; K is their number, sample by sample.

    Returns
    -------
    Tensor, (B,), float32
    """
    if allowed is None:
        log_kz = math.log(negatives.shape[1]) + log_z.float()
        against = -log_kz
    else:
        log_kz = allowed.count.clamp_min(1).log() + log_z.float()
        against = allowed.offset - log_kz
    attract = F.softplus(log_kz - positives.float())
    repel = F.softplus(negatives.float() + against).sum(dim=1)
    return _mean_over_positives(attract, valid) + (repel if valid is None else repel * valid.any(dim=1))


def softmax_losses(
    positives: Tensor, negatives: Tensor, valid: Tensor | None = None, allowed: Allowed | None = None
) -> Tensor:
    """InfoNCE of each sample: mean over positives of ``-log(e^s / (e^s + sum of e^negatives))``.

    Each positive is contrasted with the negatives alone, the logarithm standing inside the mean (the "out"
    form of Khosla et al., "Supervised Contrastive Learning", 2020, eq. 2).

    Parameters and returns as for `nce_losses`.
    """
    scores = negatives.float() if allowed is None else negatives.float() + allowed.offset
    noise = torch.logsumexp(scores, dim=1, keepdim=True)
    return _mean_over_positives(F.softplus(noise - positives.float()), valid)


def nce_loss(positives: Tensor, negatives: Tensor, log_z: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of `nce_losses` over the samples that have a positive, a scalar."""
    return mean_over_samples(nce_losses(positives, negatives, log_z, valid), valid)


def softmax_loss(positives: Tensor, negatives: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of `softmax_losses` over the samples that have a positive, a scalar."""
    return mean_over_samples(softmax_losses(positives, negatives, valid), valid)


def mean_over_samples(losses: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of (B,) losses over the samples that have any of the positives `valid` (B, P); all by default.

    Ranks divide by the mean of their numbers of such samples, so that the mean of their losses, and of their
    gradients, is what one process would compute.
    """
    if valid is None:
        return losses.mean()
    has_any = valid.any(dim=1).to(losses.dtype)
    return (losses * has_any).sum() / dist.all_mean(has_any.sum()).clamp_min(1 / dist.world_size())


def _mean_over_positives(attract: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return attract.mean(dim=1)
    return (attract * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)


class Partition(nn.Module):
    """The constant Z: the mean of exp(score) over the negatives of the first batch, then frozen.

    In the official release one constant serves all terms of an objective: that of the term computed first.
    But scores within a modality may be far above those across modalities, and then a Z of the others makes
    every negative look like a sample of the data.

    Parameters
    ----------
    rule : {"first_batch", "start_of_stage", "per_term"} or float > 0
        ``"first_batch"`` (official): one Z, and a stage that starts from another one's state inherits it.
        ``"start_of_stage"``: one Z, estimated again on the first batch of a new stage. ``"per_term"``: as
        that, for each term on its own scores. A number is Z itself, whatever the scores are.
    terms : sequence of str
        Names of the terms, needed by ``"per_term"``.

    Attributes
    ----------
    log_z : Tensor, scalar, or (len(terms),) with "per_term"
        Logarithm of Z, nan until it is known.

    Raises
    ------
    ValueError
        For another name, or a number that is not above 0.
    """

    log_z: Tensor

    def __init__(self, rule: PartitionRule = "first_batch", terms: Sequence[str] = ()) -> None:
        super().__init__()
        named = rule in ("first_batch", "start_of_stage", "per_term")
        if not named and not (isinstance(rule, float | int) and 0 < rule < math.inf):
            raise ValueError(
                f"partition is {rule!r}; must be first_batch, start_of_stage, per_term or a number above 0, "
                "which is Z itself"
            )
        self.rule = rule
        self.terms = list(terms) if rule == "per_term" else []
        value = torch.tensor(math.nan if isinstance(rule, str) else math.log(rule))
        self.register_buffer("log_z", value.repeat(len(self.terms)) if self.terms else value)
        self._known: set[str] = set()

    def of(self, term: str = "") -> Tensor:
        """Log Z of a term, a scalar that lies in `log_z`."""
        return self.log_z[self.terms.index(term)] if self.terms else self.log_z

    def is_known(self, term: str = "") -> bool:
        """Whether Z has been estimated, given or loaded; asks the device until it has."""
        if term not in self._known and not bool(self.of(term).isnan()):
            self._known.add(term)
        return term in self._known

    @torch.no_grad()
    def forward(self, negatives: Tensor, allowed: Allowed | None = None, term: str = "") -> Tensor:
        """Log Z, if not known taken from these scores (B, K) of all ranks, or those of them `allowed`."""
        if not self.is_known(term):
            scores, count = negatives.float(), torch.tensor(float(negatives.numel()))
            if allowed is not None:
                scores, count = scores + allowed.offset, allowed.count.sum()
            total, count = torch.logsumexp(scores.flatten(), dim=0), count.to(scores.device)
            if dist.is_distributed():  # ranks may allow unequally many
                total, count = dist.all_mean(total.exp()).log(), dist.all_mean(count.float())
            self.of(term).copy_(total - count.clamp_min(1).log())
        return self.of(term).clone()

    def numbers(self) -> dict[str, Tensor]:
        """What to log: ``log_z``, or ``log_z_TERM`` of each term."""
        if not self.terms:
            return {"log_z": self.log_z.clone()}
        return {f"log_z_{term}": self.of(term).clone() for term in self.terms}

    def start_from(self, log_z: Tensor) -> None:
        """Inherit the constant of another stage, or not, by the rule."""
        if self.rule == "first_batch" and log_z.shape == self.log_z.shape:
            self.log_z.copy_(log_z)
            self._known.clear()

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known.clear()
