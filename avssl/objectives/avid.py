"""AVID: audio-visual instance discrimination.

Morgado, Vasconcelos, Misra, "Audio-Visual Instance Discrimination with Cross-Modal Agreement", CVPR 2021,
section 3.1. Each clip is told from all others by matching its video with the memory of its own sound and its
sound with the memory of its own video (Cross-AVID), each with its own modality (Self-AVID), or both (Joint).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl.memory import BankDtype, BankStorage, MemoryBank, Modality, draw_negatives, draw_pool
from avssl.models import DualEncoder
from avssl.objectives.base import Objective, TrunkOutputs
from avssl.objectives.collapse import embedding_health
from avssl.objectives.contrast import Negatives, contrast_pool, contrast_rows
from avssl.objectives.nce import (
    Contrast,
    Partition,
    PartitionRule,
    mean_over_samples,
    nce_losses,
    softmax_losses,
)
from avssl.types import Views


@dataclass(frozen=True)
class Direction:
    """One term of the loss: a query modality against the memory of a target modality."""

    name: str
    query: Modality
    target: Modality


CROSS = (Direction("v2a", "video", "audio"), Direction("a2v", "audio", "video"))
WITHIN = (Direction("v2v", "video", "video"), Direction("a2a", "audio", "audio"))


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
    partition : {"first_batch", "start_of_stage", "per_term"} or float > 0, optional
        Rule or value of Z, see `Partition`; None is ``"first_batch"``, or no Z at all with a softmax.
    shared_negatives : bool
        One pool of K negatives for the whole batch instead of K draws a sample: one matrix product, many
        times faster. Each sample leaves out of the pool what it may not be told from.
    bank_dtype : {"float32", "float16", "bfloat16"}
        How the memories are stored; they are computed with in float32.
    bank_storage : {"replicated", "sharded", "auto"}
        Whether each process holds the memories whole or a part of them, see `avssl.memory.MemoryBank`.
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

    needs_audio: ClassVar[bool] = True
    sync_trunks: ClassVar[bool] = False  # as the release
    memories: ClassVar[tuple[str, ...]] = ("bank.",)

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
        partition: PartitionRule | None = None,
        shared_negatives: bool = False,
        bank_dtype: BankDtype = "float32",
        bank_storage: BankStorage = "replicated",
        unseen_negatives: bool = False,
    ) -> None:
        super().__init__()
        _require(num_negatives >= 1, f"num_negatives must be at least 1; got {num_negatives}")
        _require(temperature > 0, f"temperature must be above 0; got {temperature}")
        _require(contrast in ("nce", "softmax"), f"contrast must be 'nce' or 'softmax'; got {contrast!r}")
        has_z = contrast == "nce"
        _require(has_z or partition is None, f"partition must be null with a softmax; got {partition!r}")
        self.encoders = encoders
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.contrast = contrast
        self.shared_negatives = shared_negatives
        self.unseen_negatives = unseen_negatives
        self.bank = MemoryBank(num_instances, encoders.embedding_dim, momentum, bank_dtype, bank_storage)
        self.weigh({"cross": cross, "within": within}, "first_batch" if partition is None else partition)

    def weigh(self, coefficients: dict[str, float], partition: PartitionRule) -> None:
        """Set the weight of each kind of term, and with it which terms there are to have a Z."""
        self.weights = normalised_weights(coefficients)
        names = [self.term_name(kind, d) for kind in self.weights for d in self.directions(kind)]
        self.partition = Partition(partition, names)

    def loss(self, features: TrunkOutputs) -> dict[str, Tensor]:
        """Loss of a batch; updates the bank when the module is in training mode.

        Parameters
        ----------
        features : TrunkOutputs
            One video view and one audio view a sample are used, of the samples that have sound.

        Returns
        -------
        dict of str to scalar Tensor
            ``loss``, one ``loss_*`` a direction, ``log_z``, and ``mean_norm_video`` / ``mean_norm_audio``:
            the norm of the mean unit embedding, which goes to 1 when all embeddings fall into one cone; and
            the `embedding_health` of both.
        """
        views = features.views
        z_video = self.encoders.video_head(views.with_sound(features.video()))
        z_audio = self.encoders.audio_head(features.audio())
        return self.contrast_embeddings(z_video, z_audio, views.with_sound(views.index))

    def contrast_embeddings(
        self, z_video: Tensor, z_audio: Tensor, index: Tensor, negatives: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Do the part of `loss` after the encoders, for embeddings from anywhere.

        Parameters
        ----------
        z_video, z_audio : Tensor, (B, D)
            Embeddings; normalised here.
        index : Tensor, (B,), int64
            Instance of each.
        negatives : Tensor, (B, K), int64, or (K,) with `shared_negatives`, optional
            Rows of the negatives; drawn when not given.
        """
        z = {"video": F.normalize(z_video.float(), dim=1), "audio": F.normalize(z_audio.float(), dim=1)}
        terms = self.terms(z, index, self.negatives_for(self.excluded(index), negatives))
        logs = {f"loss_{name}": value.detach() for _, name, value in terms}
        for modality, unit in z.items():
            logs[f"mean_norm_{modality}"] = unit.detach().mean(dim=0).norm()
            logs |= embedding_health(unit, f"_{modality}")
        if self.contrast == "nce":
            logs |= self.partition.numbers()
        if self.training:
            self.bank.update(index, z_video, z_audio)
        return {"loss": self.weighted_sum(terms), **logs}

    @torch.no_grad()
    def fill_memory(self, views: Views) -> None:
        """Put the embeddings of a batch into the memories and learn nothing: a pass to warm them up."""
        video, index = views.with_sound(views.video[0]), views.with_sound(views.index)
        self.bank.update(index, *self.encoders(video, views.audio[0]))

    def terms(
        self, z: Mapping[str, Tensor], index: Tensor, negatives: Negatives
    ) -> list[tuple[str, str, Tensor]]:
        """All terms of the loss as (kind, name, value)."""
        return [
            (kind, name, self.term(z, name, d, index[:, None], negatives))
            for kind in self.weights
            for d in self.directions(kind)
            for name in [self.term_name(kind, d)]
        ]

    def directions(self, kind: str) -> tuple[Direction, ...]:
        """Directions of a kind of term; none if its weight is 0."""
        both = CROSS if kind.endswith("cross") else WITHIN
        return both if self.weights[kind] > 0 else ()

    def term_name(self, kind: str, direction: Direction) -> str:
        """Name of a term in logs."""
        return direction.name

    def term(
        self,
        z: Mapping[str, Tensor],
        name: str,
        direction: Direction,
        positives: Tensor,
        negatives: Negatives,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Contrast of one direction: queries against positive and negative rows of the target's memory."""
        query, memory = z[direction.query], self.bank.vectors(direction.target)

        def loss(pos: Tensor, neg: Tensor) -> Tensor:
            if self.contrast == "softmax":
                return softmax_losses(pos, neg, valid, negatives.allowed)
            log_z = self.partition(neg, negatives.allowed, name)
            return nce_losses(pos, neg, log_z, valid, negatives.allowed)

        contrast = contrast_rows if negatives.rows.ndim == 2 else contrast_pool
        losses = contrast(query, memory, positives, negatives.rows, self.temperature, loss)
        return mean_over_samples(losses, valid)

    def weighted_sum(self, terms: list[tuple[str, str, Tensor]]) -> Tensor:
        """Sum over kinds of coefficient times the mean of the kind's directions."""
        kinds = {kind for kind, _, _ in terms}
        means = {kind: torch.stack([v for k, _, v in terms if k == kind]).mean() for kind in sorted(kinds)}
        return torch.stack([self.weights[kind] * mean for kind, mean in means.items()]).sum()

    def excluded(self, index: Tensor) -> Tensor:
        """Rows that are no negatives of a batch, (B, E): each instance itself; -1 stands for none."""
        return index[:, None]

    def negatives_for(self, exclude: Tensor, rows: Tensor | None = None) -> Negatives:
        """Negatives of a batch without those in `exclude`, (B, E); drawn unless `rows` are given."""
        bank = self.bank
        pool = bank.everything() if self.unseen_negatives else bank.pool()
        if self.shared_negatives:
            rows = draw_pool(pool, self.num_negatives) if rows is None else rows.sort().values
        elif rows is None:
            rows = draw_negatives(pool, exclude, self.num_negatives)
        return Negatives(rows, exclude)

    def start_from(self, state: dict[str, Tensor]) -> int:
        """Begin from another stage: encoders, each instance's memories and, by the rule of `partition`, Z."""
        super().start_from(state)
        if "partition.log_z" in state:
            self.partition.start_from(state["partition.log_z"])
        if "bank.video" not in state:
            return 0
        return int((self.bank.load_from(state) >= 0).sum())

    def name_instances(self, keys: Tensor, groups: Tensor) -> None:
        """Let the bank know its samples, so that its vectors can be found again in other data."""
        self.bank.keys.copy_(keys)


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
