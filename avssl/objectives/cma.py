"""AVID + CMA: instance discrimination with positives mined by cross-modal agreement.

Morgado, Vasconcelos, Misra (CVPR 2021), section 3.2. Instances that agree with a clip both in the video and
in the audio memory form its positive set, found anew every few epochs. Within-modal terms towards this set
calibrate the similarities inside a modality, which cross-modal discrimination alone does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from avssl.memory import Agreement, BankDtype, BankStorage, Method, Mining, check_streamed, mine_positives
from avssl.models import DualEncoder
from avssl.objectives.avid import AVID, Direction
from avssl.objectives.contrast import Negatives
from avssl.objectives.nce import Contrast, PartitionRule


class CMA(AVID):
    """AVID with positive sets mined by agreement.

    ``loss = sum over kinds of coefficient * mean of both directions``, coefficients scaled to sum to one.
    Start from a trained AVID (`start_from`): its memories are where the first agreements are mined.

    Parameters
    ----------
    encoders, num_instances, num_negatives, temperature, momentum, contrast, partition, shared_negatives, \
    bank_dtype, bank_storage, unseen_negatives
        As for `AVID`, but a partition of None is ``"per_term"``.
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
    mining : {"auto", "exact", "clusters", "flat", "ivf", "hnsw", "ivfpq"}
        How agreements are searched for, see `avssl.memory.mine_positives`; ``"auto"`` goes by the size.
    exclude_self : bool
        Whether an instance may not be its own negative. The official release excludes only the positives.

    Attributes
    ----------
    positive_set : Tensor, (N, num_positives), int32
        Rows of the positives of each instance, ascending, -1 for none.
    last_mining : Mining or None
        How the present positive sets were found, if that was in this process.
    previous_positive_set : Tensor or None
        What they replaced.
    """

    memories: ClassVar[tuple[str, ...]] = ("bank.", "positive_set", "groups")
    positive_set: Tensor
    groups: Tensor

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
        partition: PartitionRule | None = None,
        shared_negatives: bool = False,
        bank_dtype: BankDtype = "float32",
        bank_storage: BankStorage = "replicated",
        unseen_negatives: bool = False,
        mining: Method = "auto",
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
            shared_negatives=shared_negatives,
            bank_dtype=bank_dtype,
            bank_storage=bank_storage,
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
        coefficients = {
            "instance_cross": instance_cross,
            "instance_within": instance_within,
            "positive_cross": positive_cross,
            "positive_within": positive_within,
        }
        self.weigh(coefficients, "per_term" if partition is None else partition)
        self.register_buffer(
            "positive_set", torch.full((num_instances, num_positives), -1, dtype=torch.int32)
        )
        self.register_buffer("groups", torch.arange(num_instances), persistent=False)
        if self.bank.is_sharded:
            check_streamed(mining)
        self.mining: Method = mining
        self.last_mining: Mining | None = None
        self.previous_positive_set: Tensor | None = None

    def before_epoch(
        self, epoch: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Mine agreements when it is time; return how it went, {} otherwise."""
        if epoch % self.refresh_epochs:
            return {}
        self.previous_positive_set = self.positive_set.clone()
        self.last_mining = mine_positives(
            self.bank.vectors("video"),
            self.bank.vectors("audio"),
            self.positive_set.shape[1],
            self.agreement,
            seen=self.bank.seen,
            groups=self.groups,
            method=self.mining,
            progress=progress,
        )
        self.positive_set.copy_(self.last_mining.positives)
        return {
            "instances_with_positives": float((self.positive_set[:, 0] >= 0).sum()),
            **self.last_mining.numbers(),
        }

    def excluded(self, index: Tensor) -> Tensor:
        """Rows that are no negatives of a batch: its positive sets and, unless told otherwise, itself."""
        own = index[:, None] if self.exclude_self else torch.full_like(index[:, None], -1)
        return torch.cat([own, self.positive_set[index].long()], dim=1)

    def terms(
        self, z: Mapping[str, Tensor], index: Tensor, negatives: Negatives
    ) -> list[tuple[str, str, Tensor]]:
        """All terms as (kind, name, value): ``instance_*`` with K negatives, ``positive_*`` with fewer."""
        positives = self.positive_set[index].long()
        valid = positives >= 0
        few = negatives.first(self.num_negatives_positive)
        terms = []
        for kind in self.weights:
            for d in self.directions(kind):
                name = self.term_name(kind, d)
                if kind.startswith("instance"):
                    value = self.term(z, name, d, index[:, None], negatives)
                else:
                    value = self.term(z, name, d, positives.clamp_min(0), few, valid)
                terms.append((kind, name, value))
        return terms

    def term_name(self, kind: str, direction: Direction) -> str:
        """``"instance_v2a"``, ``"positive_v2v"`` and so on."""
        return f"{kind.split('_')[0]}_{direction.name}"

    def name_instances(self, keys: Tensor, groups: Tensor) -> None:
        """As `AVID.name_instances`; copies of one clip are also never each other's positives."""
        super().name_instances(keys, groups)
        self.groups.copy_(groups)

    def start_from(self, state: dict[str, Tensor]) -> int:
        """Begin from AVID, or from an earlier CMA, whose positive sets come along instance by instance."""
        carried = super().start_from(state)
        if "positive_set" in state and state["positive_set"].shape[1] == self.positive_set.shape[1]:
            old = state["positive_set"].long().cpu()
            unknown = torch.zeros(len(old), dtype=torch.int64)
            from_old = self.bank.rows_in(state.get("bank.keys", unknown))
            to_new = torch.full((len(old) + 1,), -1)  # the last one: an empty place, -1, stays one
            here = (from_old >= 0).nonzero().flatten()
            to_new[from_old[here]] = here
            moved = to_new[old[from_old[here]]]
            moved = moved.masked_fill(moved < 0, len(self.bank)).sort(dim=1).values
            moved = moved.masked_fill(moved == len(self.bank), -1).int()
            self.positive_set[here.to(self.positive_set.device)] = moved.to(self.positive_set.device)
        return carried
