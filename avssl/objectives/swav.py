"""SwAV, and SEER, which is SwAV on large networks and uncurated images: swapped cluster assignments.

Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments", NeurIPS 2020;
Goyal et al., "Self-supervised pretraining of visual features in the wild", 2021. Each crop of a sample
predicts which prototypes the others are assigned to. There are no negatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl import dist
from avssl.errors import ConfigError
from avssl.objectives.base import Objective, TrunkOutputs
from avssl.objectives.collapse import embedding_health
from avssl.objectives.siamese import at_least_float32, trunk_dim
from avssl.objectives.sinkhorn import hard_codes, prototype_usage, sinkhorn
from avssl.objectives.sync_norm import BatchNorm1d


def swav_loss(scores: Sequence[Tensor], codes: Mapping[int, Tensor], temperature: float = 0.1) -> Tensor:
    """Cross-entropy of each crop's prediction with the codes of the others (eq. 2, multi-crop eq. 6).

    ``L = mean_i mean_{v != i} mean_b - sum_k q_i[b, k] log softmax_k(s_v[b] / T)``

    with i over the crops that have codes and v over all crops.

    Parameters
    ----------
    scores : sequence of V >= 2 Tensor, each (B, K)
        Cosines s of every crop's embeddings with the prototypes.
    codes : mapping of int to Tensor (B, K)
        Codes q by the number of their crop; take no gradient.
    temperature : float > 0
        T.

    Returns
    -------
    Tensor, scalar, >= 0
        In float32, or in float64 for such scores, under autocast too.
    """
    terms = []
    for v, score in enumerate(scores):
        others = [q for i, q in codes.items() if i != v]
        if others:  # cross-entropy is linear in the codes: one softmax a crop, not one a pair
            targets = torch.stack(others).sum(dim=0)
            terms.append(F.cross_entropy(at_least_float32(score) / temperature, targets))
    return torch.stack(terms).sum() / (len(codes) * (len(scores) - 1))


def swav_head(dim_in: int, dims: Sequence[int], batch_norm: bool) -> nn.Sequential:
    """Projector (B, dim_in) to (B, dims[-1]): Linear with bias, norm and ReLU between them, nothing after.

    Positions in the ``Sequential`` are those of the releases of SwAV (with norm) and SEER (mostly without).
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((dim_in, *dims)):
        norm = [BatchNorm1d(after)] if batch_norm else []
        layers += [nn.Linear(before, after), *norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[: -1 - batch_norm])


class EmbeddingQueue(nn.Module):
    """The latest embeddings of some crops, those of all processes, kept alike on each.

    So the state is valid on any number of processes. The release keeps a part a process, in files that only
    the same number can read, and rounds the length down to whole batches, which is not needed here.

    Parameters
    ----------
    num_crops, length, dim : int >= 1
        Crops, embeddings of each, and their length.
    """

    rows: Tensor

    def __init__(self, num_crops: int, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(num_crops, length, dim))
        self._full = False

    @property
    def is_full(self) -> bool:
        """Whether the last row has been reached; asks the device until it has."""
        self._full = self._full or bool(self.rows[:, -1].any())
        return self._full

    def own_share(self) -> Tensor:
        """The rows (num_crops, about length / processes, dim) that this process counts, each row once."""
        return self.rows[:, dist.rank() :: dist.world_size()]

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Put embeddings (num_crops, B, dim), B equal on all processes, in front; the oldest fall out."""
        new = dist.all_gather(embeddings.transpose(0, 1)).transpose(0, 1).to(self.rows.dtype)
        self.rows.copy_(torch.cat([new, self.rows], dim=1)[:, : self.rows.shape[1]])

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._full = False


class SwAV(Objective):
    """SwAV or SEER on a trunk, from any number of crops of any sizes.

    Neighbouring crops of one size go through the trunk together, and all crops through the projector, whose
    norm sees them as one batch. The defaults are the release's for a ResNet-50. SEER's are 16000 prototypes,
    ``head_dims=(8192, 8192, 256), head_batch_norm=False, sinkhorn_iterations=10`` (the smallest network has
    ``(4096, 4096, 256)`` with norm), for the largest network also ``epsilon=0.03``.

    Parameters
    ----------
    encoders : nn.Module
        Has the trunk `video`, which has the attribute `dim`.
    num_prototypes : int >= 2
        K.
    head_dims : sequence of int >= 1, not empty
        Lengths after each layer of the projector; the last is that of embeddings and prototypes.
    head_batch_norm : bool
        Batch norm after each layer of the projector but the last.
    temperature : float > 0
        T of the predictions.
    epsilon : float > 0
        Softness of the codes, see `sinkhorn`. A loss that stays at ln K asks for less.
    sinkhorn_iterations : int >= 1
        See `sinkhorn`.
    crops_for_assign : sequence of int >= 0
        The views, counted from 0, that get codes.
    queue_length : int >= 0
        Earlier embeddings, of all processes together, that get codes along with the batch, for batches that
        are small beside K (release: 3840 with batches of 256). Used once it is full.
    queue_start : float in [0, 1]
        Share of the training after which the queue begins to fill (release: epoch 15 of 200 or 400).
    freeze_prototypes_steps : int >= 0
        First steps in which the prototypes stay as they are (release: one epoch).
    hard_assignment_steps : int >= 0
        First steps in which codes are one-hot: a cure of VISSL for a loss that stays at ln K.

    Raises
    ------
    ConfigError
        When the encoders have no such trunk, or for another value out of its range.

    Notes
    -----
    Prototypes are set to unit length in place when the loss of a batch in training begins. The loss is a mean
    over the samples of this process: give all processes equally many.

    `queue_start` and the numbers of steps go by `set_progress`. The release decays and adapts (LARC) all
    parameters, biases and norms included; so does `param_groups`.

    Examples
    --------
    >>> objective = SwAV(encoders, freeze_prototypes_steps=313)
    >>> objective.set_progress(step, total_steps)
    >>> objective(views)["loss"].backward()
    >>> objective.before_step()
    >>> optimizer.step()
    """

    heads: ClassVar[tuple[str, ...]] = ("projector", "prototypes")

    def __init__(
        self,
        encoders: nn.Module,
        *,
        num_prototypes: int = 3000,
        head_dims: Sequence[int] = (2048, 128),
        head_batch_norm: bool = True,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        crops_for_assign: Sequence[int] = (0, 1),
        queue_length: int = 0,
        queue_start: float = 0.0,
        freeze_prototypes_steps: int = 0,
        hard_assignment_steps: int = 0,
    ) -> None:
        super().__init__()
        for name, value, fits, rule in (
            ("num_prototypes", num_prototypes, num_prototypes >= 2, "at least 2, such as 3000"),
            ("head_dims", head_dims, min(head_dims, default=0) >= 1, "lengths above 0, such as (2048, 128)"),
            ("temperature", temperature, temperature > 0, "above 0, such as 0.1"),
            ("epsilon", epsilon, epsilon > 0, "above 0, such as 0.05"),
            ("sinkhorn_iterations", sinkhorn_iterations, sinkhorn_iterations >= 1, "at least 1, such as 3"),
            (
                "crops_for_assign",
                crops_for_assign,
                _are_places(crops_for_assign),
                "different views, as (0, 1)",
            ),
            ("queue_length", queue_length, queue_length >= 0, "at least 0, which is no queue"),
            ("queue_start", queue_start, 0 <= queue_start <= 1, "a share of the training, in [0, 1]"),
            ("freeze_prototypes_steps", freeze_prototypes_steps, freeze_prototypes_steps >= 0, "at least 0"),
            ("hard_assignment_steps", hard_assignment_steps, hard_assignment_steps >= 0, "at least 0"),
        ):
            if not fits:
                raise ConfigError(f"{name} is {value}; it must be {rule}")
        self.encoders = encoders
        self.projector = swav_head(trunk_dim(encoders), head_dims, head_batch_norm)
        self.prototypes = nn.Linear(head_dims[-1], num_prototypes, bias=False)
        self.temperature = temperature
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.crops_for_assign = tuple(crops_for_assign)
        self.queue = (
            EmbeddingQueue(len(self.crops_for_assign), queue_length, head_dims[-1]) if queue_length else None
        )
        self.queue_start = queue_start
        self.freeze_prototypes_steps = freeze_prototypes_steps
        self.hard_assignment_steps = hard_assignment_steps

    def loss(self, features: TrunkOutputs) -> dict[str, Tensor]:
        """Loss of a batch; in training the queue takes its embeddings in.

        Returns
        -------
        dict of str to scalar Tensor
            ``loss``; ``loss_over_ln_k``, which stays at 1 or above when nothing is learnt; ``spread`` of the
            embeddings of the first crop, which goes to 0 in a collapse; and `prototype_usage`.
        """
        crops = features.views.video
        needed = max(1, *self.crops_for_assign)
        if len(crops) <= needed:
            raise ValueError(
                f"SwAV needs video view {needed} (counted from 0), the batch has {len(crops)}; add views to "
                "the recipe, or change crops_for_assign"
            )
        pooled = torch.cat([features.videos(group) for group in groups_of_one_size(crops)])
        return self.swap_predictions(self.projector(pooled), len(crops))

    def swap_predictions(self, embeddings: Tensor, num_crops: int) -> dict[str, Tensor]:
        """Do the part of `loss` after the projector, for embeddings (num_crops B, D), crop after crop."""
        if self.training:
            self._normalise_prototypes()
        with torch.autocast(embeddings.device.type, enabled=False):  # scores in float32, as in SEER
            z = F.normalize(at_least_float32(embeddings), dim=1)
            scores = self.prototypes(z).chunk(num_crops)
            codes = self._assign(z.detach().chunk(num_crops), [s.detach() for s in scores])
            loss = swav_loss(scores, codes, self.temperature)
        return {
            "loss": loss,
            "loss_over_ln_k": loss.detach() / math.log(self.prototypes.out_features),
            **embedding_health(z[: len(z) // num_crops]),
            **prototype_usage(torch.cat([*codes.values()]), torch.cat([scores[i].detach() for i in codes])),
        }

    @torch.no_grad()
    def _assign(self, z: Sequence[Tensor], scores: Sequence[Tensor]) -> dict[int, Tensor]:
        """Codes (B, K) of the crops that get them; puts their embeddings in the queue after its use."""
        assigned = [scores[i] for i in self.crops_for_assign]
        if self.queue is not None and self.queue.is_full:
            earlier = self.prototypes(self.queue.own_share())
            assigned = [torch.cat([q, s]) for q, s in zip(earlier, assigned, strict=True)]
        if self.queue is not None and self.training and self._queue_has_begun:
            self.queue.push(torch.stack([z[i] for i in self.crops_for_assign]))
        codes = [sinkhorn(s, self.epsilon, self.sinkhorn_iterations)[-len(z[0]) :] for s in assigned]
        if self.done_steps < self.hard_assignment_steps:
            codes = [hard_codes(q) for q in codes]
        return dict(zip(self.crops_for_assign, codes, strict=True))

    @property
    def _queue_has_begun(self) -> bool:
        return self.done_steps >= self.queue_start * self.total_steps

    def set_progress(self, done_steps: int, total_steps: int) -> None:
        """As every objective; also sets the prototypes to unit length: sharded, `loss` sees but a copy."""
        super().set_progress(done_steps, total_steps)
        if self.training:
            self._normalise_prototypes()

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def before_step(self) -> None:
        """Drop the prototypes' gradient while they are frozen: then neither decay nor momentum moves them."""
        if self.done_steps < self.freeze_prototypes_steps:
            self.prototypes.weight.grad = None


def groups_of_one_size(crops: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Numbers of the crops, neighbours of one shape together; in order."""
    runs = groupby(range(len(crops)), key=lambda i: crops[i].shape)
    return [tuple(group) for _, group in runs]


def _are_places(places: Sequence[int]) -> bool:
    return min(places, default=-1) >= 0 and len(set(places)) == len(places)
