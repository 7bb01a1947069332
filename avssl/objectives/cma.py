"""AVID + CMA: instance discrimination with positives mined by cross-modal agreement.

Morgado, Vasconcelos, Misra (CVPR 2021), section 3.2. Instances that agree with a clip both in the video and
in the audio memory form its positive set, found anew every few epochs. Within-modal terms towards this set
calibrate the similarities inside a modality, which cross-modal discrimination alone does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from avssl.memory import Agreement, mine_positives
from avssl.models import DualEncoder
from avssl.objectives.avid import AVID, CROSS, WITHIN, normalised_weights
from avssl.objectives.nce import Contrast, PartitionRule


class CMA(AVID):
    """AVID with positive sets mined by agreement.

    ``loss = sum over kinds of coefficient * mean of both directions``, coefficients scaled to sum to one.
    Start from a trained AVID (`start_from`): its memories are where the first agreements are mined.

    Parameters
    ----------
    encoders, num_instances, num_negatives, temperature, momentum, contrast, partition, unseen_negatives
        As for `AVID`.
    num_positives : int >= 1
        Size k of a positive set.
    num_negatives_positive : int >= 1
        How many of the K negatives the terms on the positive set use (the first ones).
    agreement : {"consensus", "union", "video", "audio"}
        How the two similarities are combined; ``"consensus"`` (their minimum) is the paper's.
    refresh_epochs : int >= 1
        Agreements are mined before the first epoch of the stage and then every so many epochs.
    instance_cross, instance_within, positive_cross, positive_within : float >= 0
        Coefficients; the paper's are 1, 0, 0, 1. The official release computes the cross-modal scores again
        where it means the within-modal instance term; here it is that term.
    exclude_self : bool
        Whether an instance may not be its own negative. The official release excludes only the positives.
    """

    positive_set: Tensor

    def __init__(
        self,
        encoders: DualEncoder,
        num_instances: int,
        *,
        num_negatives: int = 1024,
        num_negatives_positive: int = 64,
        num_positives: int = 32,
        agreement: Agreement = "consensus",
        refresh_epochs: int = 5,
        temperature: float = 0.07,
        momentum: float = 0.5,
        instance_cross: float = 1.0,
        instance_within: float = 0.0,
        positive_cross: float = 0.0,
        positive_within: float = 1.0,
        contrast: Contrast = "nce",
        partition: PartitionRule = "start_of_stage",
        unseen_negatives: bool = False,
        exclude_self: bool = True,
    ) -> None:
        super().__init__(
            encoders,
            num_instances,
            num_negatives=num_negatives,
            temperature=temperature,
            momentum=momentum,
            contrast=contrast,
            partition=partition,
            unseen_negatives=unseen_negatives,
        )
        if not 1 <= num_positives < num_instances:
            raise ValueError(
                f"num_positives must be between 1 and num_instances - 1 = {num_instances - 1}; "
                f"got {num_positives}"
            )
        if agreement not in ("consensus", "union", "video", "audio"):
            raise ValueError(f"agreement must be consensus, union, video or audio; got {agreement!r}")
        if refresh_epochs < 1 or num_negatives_positive < 1:
            raise ValueError(
                "refresh_epochs and num_negatives_positive must be at least 1; "
                f"got {refresh_epochs} and {num_negatives_positive}"
            )
        self.num_negatives_positive = min(num_negatives_positive, num_negatives)
        self.agreement: Agreement = agreement
        self.refresh_epochs = refresh_epochs
        self.exclude_self = exclude_self
        self.weights = normalised_weights(
            {
                "instance_cross": instance_cross,
                "instance_within": instance_within,
                "positive_cross": positive_cross,
                "positive_within": positive_within,
            }
        )
        self.register_buffer(
            "positive_set", torch.full((num_instances, num_positives), -1, dtype=torch.int32)
        )

    def before_epoch(
        self, epoch: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Mine agreements when it is time; log how much of the old positive sets is kept."""
        if epoch % self.refresh_epochs:
            return {}
        before = self.positive_set.clone()
        self.positive_set.copy_(
            mine_positives(
                self.bank.video,
                self.bank.audio,
                self.positive_set.shape[1],
                self.agreement,
                self.bank.seen,
                progress=progress,
            )
        )
        both = torch.cat([before, self.positive_set], dim=1).sort(dim=1).values
        kept = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)
        return {
            "positives_kept_share": float(kept.sum() / (before >= 0).sum().clamp_min(1)),
            "instances_with_positives": float((self.positive_set[:, 0] >= 0).sum()),
        }

    def contrast_embeddings(
        self, z_video: Tensor, z_audio: Tensor, index: Tensor, negatives: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As `AVID.contrast_embeddings`; negatives also exclude the positive set."""
        if negatives is None:
            positives = self.positive_set[index].long()
            own = index[:, None] if self.exclude_self else torch.full_like(index[:, None], -1)
            negatives = self.draw(index, torch.cat([own, positives], dim=1))
        return super().contrast_embeddings(z_video, z_audio, index, negatives)

    def terms(
        self, z: Mapping[str, Tensor], index: Tensor, negatives: Tensor
    ) -> list[tuple[str, str, Tensor]]:
        """All terms as (kind, name, value): ``instance_*`` with K negatives, ``positive_*`` with fewer."""
        positives = self.positive_set[index].long()
        valid = positives >= 0
        few = negatives[:, : self.num_negatives_positive]
        terms = []
        for kind, weight in self.weights.items():
            if weight == 0:
                continue
            source, span = kind.split("_")
            for d in CROSS if span == "cross" else WITHIN:
                if source == "instance":
                    value = self.term(z, d, index[:, None], negatives)
                else:
                    value = self.term(z, d, positives.clamp_min(0), few, valid)
                terms.append((kind, f"{source}_{d.name}", value))
        return terms

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Begin from AVID (or an earlier CMA, whose positive sets come along)."""
        super().start_from(state)
        if "positive_set" in state and state["positive_set"].shape == self.positive_set.shape:
            self.positive_set.copy_(state["positive_set"])
