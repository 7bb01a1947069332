"""SimSiam: simple siamese representation learning.

Chen & He, "Exploring simple siamese representation learning", CVPR 2021. Each view predicts the projection of
the other, which takes no gradient. There are no negatives and no teacher.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from avssl.objectives.base import Objective, TrunkOutputs
from avssl.objectives.collapse import embedding_health
from avssl.objectives.siamese import (
    at_least_float32,
    simsiam_predictor,
    simsiam_projector,
    trunk_dim,
)


def simsiam_loss(p1: Tensor, z2: Tensor, p2: Tensor, z1: Tensor) -> Tensor:
    """Negative cosine of predictions with the other view's projections, mean of both directions (eq. 4).

    ``L = - mean_b (cos(p1, stopgrad(z2)) + cos(p2, stopgrad(z1))) / 2``

    Parameters
    ----------
    p1, p2 : Tensor, (B, D)
        Predictions from views 1 and 2.
    z1, z2 : Tensor, (B, D)
        Projections of views 1 and 2; no gradient reaches them.

    Returns
    -------
    Tensor, scalar, in [-1, 1]
        In float32, or in float64 for such inputs.
    """
    return -(_mean_cosine(p1, z2) + _mean_cosine(p2, z1)) / 2


def _mean_cosine(p: Tensor, z: Tensor) -> Tensor:
    return F.cosine_similarity(at_least_float32(p), at_least_float32(z.detach()), dim=1, eps=1e-8).mean()


class SimSiam(Objective):
    """SimSiam on a trunk, from two views that go through it one by one.

    The defaults are the release's for a ResNet-50, whose residual branches start at zero
    (``zero_init_residual=True``: a matter of the trunk).

    Parameters
    ----------
    encoders : nn.Module
        Has the trunk `video`, which has the attribute `dim`.
    hidden_dim : int >= 1
        Length of the two hidden layers of the projector; the release takes the trunk's, 2048.
    dim : int >= 1
        Length D of projections and predictions.
    predictor_dim : int >= 1
        Length of the predictor's hidden layer.

    Raises
    ------
    ConfigError
        When the encoders have no such trunk.

    Notes
    -----
    The loss is a mean over the samples of this process.

    Examples
    --------
    >>> objective = SimSiam(encoders)
    >>> objective(views)["loss"].backward()
    """

    heads: ClassVar[tuple[str, ...]] = ("projector", "predictor")

    def __init__(
        self, encoders: nn.Module, *, hidden_dim: int = 2048, dim: int = 2048, predictor_dim: int = 512
    ) -> None:
        super().__init__()
        self.encoders = encoders
        self.projector = simsiam_projector(trunk_dim(encoders), hidden_dim, dim)
        self.predictor = simsiam_predictor(dim, predictor_dim)

    def loss(self, features: TrunkOutputs) -> dict[str, Tensor]:
        """Loss of a batch with two video views.

        Returns
        -------
        dict of str to scalar Tensor
            ``loss``, and ``spread`` of the projections, which goes to 0 in a collapse while the loss goes
            to -1.
        """
        z1, z2 = (self.projector(features.video(view)) for view in (0, 1))
        loss = simsiam_loss(self.predictor(z1), z2, self.predictor(z2), z1)
        return {"loss": loss, **embedding_health(z1)}

    def param_groups(self) -> list[dict[str, Any]]:
        """Trunk and projector; the predictor, whose learning rate stays while the schedule falls.

        The predictor should keep up with the latest projections (section 4.2 of the paper). In the release
        it is the option that its 68.1 % (ResNet-50, 100 epochs) need.
        """
        predictor = list(self.predictor.parameters())
        known = set(predictor)
        others = [p for p in self.parameters() if p.requires_grad and p not in known]
        return [{"params": others}, {"params": predictor, "fixed_lr": True}]
