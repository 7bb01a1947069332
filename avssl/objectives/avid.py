"""AVID: audio-visual instance discrimination.

Morgado, Vasconcelos, Misra, "Audio-Visual Instance Discrimination with Cross-Modal Agreement", CVPR 2021,
section 3.1. Each clip is told from all others by matching its video with the memory of its own sound and its
sound with the memory of its own video (Cross-AVID), each with its own modality (Self-AVID), or both (Joint).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.memory import MemoryBank, Modality, draw_negatives
from avssl.models import DualEncoder
from avssl.objectives.base import Objective
from avssl.objectives.nce import Contrast, Partition, PartitionRule, nce_loss, softmax_loss
from avssl.types import Views


@dataclass(frozen=True)
class Direction:
    """One term of the loss: a query modality against the memory of a target modality."""

    name: str
    query: Modality
    target: Modality


CROSS = (Direction("v2a", "video", "audio"), Direction("a2v", "audio", "video"))
WITHIN = (Direction("v2v", "video", "video"), Direction("a2a", "audio", "audio"))


def memory_scores(z: Tensor, vectors: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Scores ``z . mem[rows] / T`` in float32; the memory gets no gradient.

    Parameters
    ----------
    z : Tensor, (B, D)
        Unit embeddings.
    vectors : Tensor, (N, D)
        Memory of the target modality.
    rows : Tensor, (B, K), int64
        Rows to compare each embedding with.
    temperature : float > 0
        T.

    Returns
    -------
    Tensor, (B, K)
    """
    targets = vectors[rows.flatten()].view(*rows.shape, -1)
    return torch.bmm(targets, z.float().unsqueeze(2)).squeeze(2) / temperature


class AVID(Objective):
    """Cross-, Self- or Joint-AVID on a pair of encoders.

    ``loss = cross * mean(v2a, a2v) + within * mean(v2v, a2a)``, the two coefficients scaled to sum to one:
    (1, 0) is Cross-AVID, the paper's choice, (0, 1) Self-AVID, (1, 1) Joint-AVID. When training, the bank is
    updated in `forward`, after its old entries have been used.

    Parameters
    ----------
    encoders : DualEncoder
        Video and audio networks with their projection heads.
    num_instances : int >= 2
        Number of samples N; `Views.index` counts them.
    num_negatives : int >= 1
        Negatives K a sample, drawn anew every step, the same rows for both modalities.
    temperature : float > 0
        T in the scores.
    momentum : float in [0, 1)
        Share of the old vector kept at an update of the bank.
    cross, within : float >= 0
        Coefficients of the cross-modal and the within-modal terms.
    contrast : {"nce", "softmax"}
        Official noise-contrastive estimation, or InfoNCE over the same positives and negatives.
    partition : {"first_batch", "start_of_stage"}
        See `Partition`; matters only to ``contrast="nce"`` when a stage starts from another.
    unseen_negatives : bool
        True draws negatives from all slots, never updated ones included, as the official release does.
        False leaves out slots of clips that have not been seen, such as those of unreadable files.

    Raises
    ------
    ValueError
        For coefficients that are negative or all zero, and other values outside their range.

    Examples
    --------
    >>> objective = AVID(DualEncoder.tiny(), num_instances=len(dataset))
    >>> loss = objective(views)["loss"]
    """

    def __init__(
        self,
        encoders: DualEncoder,
        num_instances: int,
        *,
        num_negatives: int = 1024,
        temperature: float = 0.07,
        momentum: float = 0.5,
        cross: float = 1.0,
        within: float = 0.0,
        contrast: Contrast = "nce",
        partition: PartitionRule = "first_batch",
        unseen_negatives: bool = False,
    ) -> None:
        super().__init__()
        _require(num_negatives >= 1, f"num_negatives must be at least 1; got {num_negatives}")
        _require(temperature > 0, f"temperature must be above 0; got {temperature}")
        _require(contrast in ("nce", "softmax"), f"contrast must be 'nce' or 'softmax'; got {contrast!r}")
        self.encoders = encoders
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.contrast = contrast
        self.unseen_negatives = unseen_negatives
        self.bank = MemoryBank(num_instances, encoders.embedding_dim, momentum)
        self.partition = Partition(partition)
        self.weights = normalised_weights({"cross": cross, "within": within})

    def forward(self, views: Views) -> dict[str, Tensor]:
        """Loss of a batch; updates the bank when the module is in training mode.

        Parameters
        ----------
        views : Views
            One video view and one audio view a sample.

        Returns
        -------
        dict of str to scalar Tensor
            ``loss``, one ``loss_*`` a direction, ``log_z``, and ``mean_norm_video`` / ``mean_norm_audio``:
            the norm of the mean unit embedding, which goes to 1 when all embeddings fall into one cone.
        """
        z_video, z_audio = self.encoders(views.video[0], views.audio[0])
        return self.contrast_embeddings(z_video, z_audio, views.index)

    def contrast_embeddings(
        self, z_video: Tensor, z_audio: Tensor, index: Tensor, negatives: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Do the part of `forward` after the encoders, for embeddings from anywhere.

        Parameters
        ----------
        z_video, z_audio : Tensor, (B, D)
            Embeddings; normalised here.
        index : Tensor, (B,), int64
            Instance of each.
        negatives : Tensor, (B, K), int64, optional
            Rows of the negatives; drawn when not given.
        """
        z = {"video": F.normalize(z_video.float(), dim=1), "audio": F.normalize(z_audio.float(), dim=1)}
        negatives = self.draw(index, index[:, None]) if negatives is None else negatives
        terms = self.terms(z, index, negatives)
        logs = {f"loss_{name}": value.detach() for _, name, value in terms}
        logs |= {f"mean_norm_{m}": z[m].detach().mean(dim=0).norm() for m in z}
        if self.contrast == "nce":
            logs["log_z"] = self.partition.log_z.clone()
        if self.training:
            self.bank.update(index, z_video, z_audio)
        return {"loss": self.weighted_sum(terms), **logs}

    def terms(
        self, z: Mapping[str, Tensor], index: Tensor, negatives: Tensor
    ) -> list[tuple[str, str, Tensor]]:
        """All terms of the loss as (kind, name, value); a kind with coefficient zero is not computed."""
        directions = {"cross": CROSS, "within": WITHIN}
        return [
            (kind, d.name, self.term(z, d, index[:, None], negatives))
            for kind, weight in self.weights.items()
            if weight > 0
            for d in directions[kind]
        ]

    def term(
        self,
        z: Mapping[str, Tensor],
        direction: Direction,
        positives: Tensor,
        negatives: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Contrast of one direction: queries against positive and negative rows of the target's memory."""
        query, memory = z[direction.query], self.bank.vectors(direction.target)
        pos = memory_scores(query, memory, positives, self.temperature)
        neg = memory_scores(query, memory, negatives, self.temperature)
        if self.contrast == "softmax":
            return softmax_loss(pos, neg, valid)
        return nce_loss(pos, neg, self.partition(neg), valid)

    def weighted_sum(self, terms: list[tuple[str, str, Tensor]]) -> Tensor:
        """Sum over kinds of coefficient times the mean of the kind's directions."""
        kinds = {kind for kind, _, _ in terms}
        means = {kind: torch.stack([v for k, _, v in terms if k == kind]).mean() for kind in sorted(kinds)}
        return torch.stack([self.weights[kind] * mean for kind, mean in means.items()]).sum()

    def draw(self, index: Tensor, exclude: Tensor) -> Tensor:
        """Negative rows for a batch, (B, K), without those in `exclude`, (B, E); -1 excludes nothing."""
        if self.unseen_negatives:
            everything = torch.arange(len(self.bank), device=index.device)
            seen = torch.ones_like(self.bank.seen)
            return draw_negatives((everything, everything), len(self.bank), exclude, self.num_negatives, seen)
        return draw_negatives(self.bank.pool(), len(self.bank), exclude, self.num_negatives, self.bank.seen)

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Begin from another stage: encoders, bank and, by the rule of `partition`, Z."""
        super().start_from(state)
        if "bank.video" in state:
            self.bank.load_from(state)
            self.partition.start_from(state["partition.log_z"])


def normalised_weights(coefficients: dict[str, float]) -> dict[str, float]:
    """Coefficients scaled to sum to one; refuses negative ones and all zero."""
    total = sum(coefficients.values())
    _require(
        min(coefficients.values()) >= 0 and total > 0,
        f"coefficients must be at least 0 and not all 0; got {coefficients}",
    )
    return {name: value / total for name, value in coefficients.items()}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
