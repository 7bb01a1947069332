"""BYOL: bootstrap your own latent.

Grill et al., "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS 2020. A student
predicts, from one view of a sample, what its teacher makes of another view; the teacher is a moving average
of the student. There are no negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.objectives.base import Objective, TrunkOutputs
from avssl.objectives.collapse import embedding_health
from avssl.objectives.siamese import (
    at_least_float32,
    byol_head,
    trunk_dim,
    weights_and_rest,
)
from avssl.objectives.teacher import Teacher
from avssl.optim import ema_momentum


def byol_loss(p1: Tensor, z2: Tensor, p2: Tensor, z1: Tensor) -> Tensor:
    """Squared distance of unit predictions from unit targets, summed over both directions (eq. 2 and below).

    ``L = mean_b (|p1 / |p1| - z2 / |z2||^2 + |p2 / |p2| - z1 / |z1||^2)``, each term being 2 - 2 cos.

    Parameters
    ----------
    p1, p2 : Tensor, (B, D)
        The student's predictions from views 1 and 2.
    z1, z2 : Tensor, (B, D)
        The teacher's projections of views 1 and 2; no gradient reaches them.

    Returns
    -------
    Tensor, scalar, in [0, 8]
        In float32, or in float64 for such inputs.
    """
    return _squared_distance(p1, z2) + _squared_distance(p2, z1)


def _squared_distance(p: Tensor, z: Tensor) -> Tensor:
    # the release divides by sqrt(max(|x|^2, 1e-12))
    p = F.normalize(at_least_float32(p), dim=1, eps=1e-6)
    z = F.normalize(at_least_float32(z.detach()), dim=1, eps=1e-6)
    return (p - z).square().sum(dim=1).mean()


class BYOL(Objective):
    """BYOL on a trunk, from two views that go through it one by one.

    The defaults are the release's for 1000 epochs of ImageNet on a ResNet-50, which has no zero-initialised
    residual branches in BYOL (SimSiam and Barlow Twins do initialise them so).

    Parameters
    ----------
    encoders : nn.Module
        Has the trunk `video`, which has the attribute `dim`.
    hidden_dim : int >= 1
        Length of the hidden layer of projector and predictor.
    dim : int >= 1
        Length D of projections and predictions.
    base_tau : float in [0, 1]
        Momentum of the teacher at the first step; it rises to 1 by half a cosine over the training,
        ``tau = 1 - (1 - base_tau) (cos(pi k / K) + 1) / 2`` after k of K steps (.99 for 100 and 300 epochs,
        .97 for 40).
    teacher_update : {"step", "epoch"}
        ``"step"`` is BYOL: the teacher moves after every step of the optimiser. ``"epoch"`` is the
        student-teacher variant of the distillation family: the teacher stays for an epoch and then becomes
        a copy of the student, as in rounds of self-distillation; `base_tau` then plays no part.

    Raises
    ------
    ConfigError
        When the encoders have no such trunk, or for another `teacher_update` or a `base_tau` out of range.

    Notes
    -----
    The teacher is a copy of the trunk that is handed in, so released weights belong into the trunk before.
    The loss is a mean over the samples of this process.

    Examples
    --------
    >>> objective = BYOL(encoders)
    >>> objective.set_progress(step, total_steps)
    >>> objective(views)["loss"].backward()
    >>> optimizer.step()
    >>> objective.after_step()
    """

    heads: ClassVar[tuple[str, ...]] = ("projector", "predictor", "teacher")

    def __init__(
        self,
        encoders: nn.Module,
        *,
        hidden_dim: int = 4096,
        dim: int = 256,
        base_tau: float = 0.996,
        teacher_update: Literal["step", "epoch"] = "step",
    ) -> None:
        super().__init__()
        if not 0 <= base_tau <= 1:
            raise ConfigError(f"base_tau is {base_tau}; it must lie in [0, 1], such as 0.996")
        if teacher_update not in ("step", "epoch"):
            raise ConfigError(f"teacher_update is {teacher_update!r}; it must be 'step' or 'epoch'")
        self.encoders = encoders
        self.projector = byol_head(trunk_dim(encoders), hidden_dim, dim)
        self.predictor = byol_head(dim, hidden_dim, dim)
        self.teacher = Teacher(self.encoders.video, self.projector)
        self.base_tau = base_tau
        self.teacher_update = teacher_update

    @property
    def tau(self) -> float:
        """Momentum of the teacher's next move, by the progress of the training."""
        return ema_momentum(self.base_tau, self.done_steps, self.total_steps)

    def loss(self, features: TrunkOutputs) -> dict[str, Tensor]:
        """Loss of a batch with two video views.

        Returns
        -------
        dict of str to scalar Tensor
            ``loss``; ``cosine`` in [-1, 1], of predictions with their targets; ``spread`` of the student's
            projections, which goes to 0 in a collapse; with ``teacher_update="step"`` also ``tau``.
        """
        z = [self.projector(features.video(view)) for view in (0, 1)]
        p1, p2 = self.predictor(z[0]), self.predictor(z[1])
        z1, z2 = (self.teacher(features.views.video[view]) for view in (0, 1))
        loss = byol_loss(p1, z2, p2, z1)
        logs = {"cosine": 1 - loss.detach() / 4, **embedding_health(z[0])}
        if self.teacher_update == "step":
            logs["tau"] = loss.new_full((), self.tau)
        return {"loss": loss, **logs}

    def after_step(self) -> None:
        """Let the teacher follow the parameters that have just moved."""
        if self.teacher_update == "step":
            self.teacher.follow(self.encoders.video, self.projector, self.tau)

    def before_epoch(
        self, epoch: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Make the teacher the student of the last epoch, if it moves between epochs."""
        if self.teacher_update == "epoch" and epoch > 0:
            self.teacher.follow(self.encoders.video, self.projector, momentum=0.0)
        return {}

    def start_from(self, state: dict[str, Tensor]) -> int:
        """Begin from another stage; unless its teacher fits, the teacher begins as this student."""
        remembered = super().start_from(state)
        if self.heads_in(state)["teacher"] is not None:
            self.teacher.start_from(self.encoders.video, self.projector)
        return remembered

    def param_groups(self) -> list[dict[str, Any]]:
        """Weights; biases and norms, which LARS neither adapts nor decays. The teacher is in neither."""
        return weights_and_rest(self)
