"""Barlow Twins: redundancy reduction.

Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: self-supervised learning via redundancy reduction", ICML
2021. Each feature of one view shall be correlated with the same feature of the other, and with no other.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.objectives.base import Objective, TrunkOutputs
from avssl.objectives.collapse import embedding_health
from avssl.objectives.siamese import (
    at_least_float32,
    barlow_twins_projector,
    trunk_dim,
    weights_and_rest,
)
from avssl.objectives.sync_norm import all_sum, batch_statistics


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """Correlation of every feature of one view with every feature of the other (eq. 2).

    ``C_ij = sum_b n(z1)_bi n(z2)_bj / N``, where n takes off the mean and divides by
    ``sqrt(variance + 1e-5)``, and mean, biased variance and the sum run over the N samples of all processes.
    (The paper's pseudo-code divides by the unbiased deviation: another loss, which the release does not use.)

    Parameters
    ----------
    z1, z2 : Tensor, (B, D)
        Projections of the two views; B may differ between processes.

    Returns
    -------
    Tensor, (D, D), in [-1, 1]
        In float32, or in float64 for such inputs, under autocast too; with gradient to all processes.
    """
    with torch.autocast(z1.device.type, enabled=False):
        n1, count = _standardised(at_least_float32(z1))
        n2, _ = _standardised(at_least_float32(z2))
        return all_sum(n1.T @ n2) / count


def _standardised(z: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance, count = batch_statistics(z)
    return (z - mean) * (variance + 1e-5).rsqrt(), count


def correlation_terms(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums of the loss: ``sum_i (C_ii - 1)^2`` and ``sum_{i != j} C_ij^2``."""
    on_diagonal = (correlation.diagonal() - 1).square().sum()
    off_diagonal = correlation.square().fill_diagonal_(0).sum()
    return on_diagonal, off_diagonal


def barlow_twins_loss(z1: Tensor, z2: Tensor, lambd: float = 0.0051) -> Tensor:
    """Distance of the `cross_correlation` of two views from the identity (eq. 1).

    ``L = sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2``

    Parameters
    ----------
    z1, z2 : Tensor, (B, D)
        Projections of the two views.
    lambd : float >= 0
        Weight of the redundancy between features.

    Returns
    -------
    Tensor, scalar, >= 0
        The loss of the samples of all processes, the same on each; see `all_sum` for its gradient.
    """
    on_diagonal, off_diagonal = correlation_terms(cross_correlation(z1, z2))
    return on_diagonal + lambd * off_diagonal


class BarlowTwins(Objective):
    """Barlow Twins on a trunk, from two views that go through it one by one.

    The defaults are the release's for a ResNet-50, whose residual branches start at zero
    (``zero_init_residual=True``: a matter of the trunk).

    Parameters
    ----------
    encoders : nn.Module
        Has the trunk `video`, which has the attribute `dim`.
    hidden_dim : int >= 1
        Length of the two hidden layers of the projector.
    dim : int >= 1
        Length D of the projections; the correlation is a matrix of D x D.
    lambd : float >= 0
        Weight of the redundancy between features.
    bias_lr_scale : float > 0
        Learning rate of biases and norms, which LARS does not adapt, as a share of that of the weights.

    Raises
    ------
    ConfigError
        When the encoders have no such trunk, or for a `lambd` or `bias_lr_scale` out of range.

    Notes
    -----
    The gradient, after DistributedDataParallel's mean, does not depend on the number of processes. In the
    release it is divided by that number W, which LARS hides for all but biases and norms: to train exactly
    as the release does on W GPUs, divide `bias_lr_scale` by W. Older forms of the release scale the loss by
    .024 instead of the rate; never do both.

    Examples
    --------
    >>> objective = BarlowTwins(encoders)
    >>> objective(views)["loss"].backward()
    """

    heads: ClassVar[tuple[str, ...]] = ("projector",)

    def __init__(
        self,
        encoders: nn.Module,
        *,
        hidden_dim: int = 8192,
        dim: int = 8192,
        lambd: float = 0.0051,
        bias_lr_scale: float = 0.0048 / 0.2,
    ) -> None:
        super().__init__()
        if lambd < 0:
            raise ConfigError(f"lambd is {lambd}; it must be at least 0, such as 0.0051")
        if bias_lr_scale <= 0:
            raise ConfigError(f"bias_lr_scale is {bias_lr_scale}; it must be above 0, such as 0.024")
        self.encoders = encoders
        self.projector = barlow_twins_projector(trunk_dim(encoders), hidden_dim, dim)
        self.lambd = lambd
        self.bias_lr_scale = bias_lr_scale

    def loss(self, features: TrunkOutputs) -> dict[str, Tensor]:
        """Loss of a batch with two video views.

        Returns
        -------
        dict of str to scalar Tensor
            ``loss``; its terms ``on_diagonal`` in [0, 4 D] and ``off_diagonal``, before `lambd`; ``spread``
            of the projections, which goes to 0 in a collapse.
        """
        z1, z2 = (self.projector(features.video(view)) for view in (0, 1))
        on_diagonal, off_diagonal = correlation_terms(cross_correlation(z1, z2))
        return {
            "loss": on_diagonal + self.lambd * off_diagonal,
            "on_diagonal": on_diagonal.detach(),
            "off_diagonal": off_diagonal.detach(),
            **embedding_health(z1),
        }

    def param_groups(self) -> list[dict[str, Any]]:
        """Weights; biases and norms, which LARS neither adapts nor decays, with a rate of their own."""
        return weights_and_rest(self, self.bias_lr_scale)
