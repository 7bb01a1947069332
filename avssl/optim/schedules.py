"""Schedules as pure functions of the position in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

ScheduleName = Literal["constant", "multistep", "cosine"]


def learning_rate_factor(
    epoch: float,
    epochs: int,
    schedule: ScheduleName = "constant",
    warmup_epochs: float = 0.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    warmup_start: float = 0.0,
    end_factor: float = 0.0,
) -> float:
    """Factor on the base learning rate.

    Parameters
    ----------
    epoch : float >= 0
        Epochs done, with fraction: the factor moves every step. A single pass over a large collection is
        ``epochs=1``, with a warm-up of a share of it.
    epochs : int >= 1
        Epochs in all.
    schedule : {"constant", "multistep", "cosine"}
        ``"multistep"`` multiplies by `gamma` at each milestone; ``"cosine"`` falls from 1 after warm-up to
        `end_factor` at the end, ``end + (1 - end) 0.5 (1 + cos(pi t))``.
    warmup_epochs : float >= 0
        Linear rise to 1, before any of the three.
    milestones : sequence of float
        Epochs of the steps of ``"multistep"``.
    gamma : float > 0
        Factor of a step of ``"multistep"``.
    warmup_start : float in [0, 1]
        Where the warm-up starts (SwAV: .3 / 4.8; BYOL and Barlow Twins: 0).
    end_factor : float in [0, 1]
        Where ``"cosine"`` ends (SwAV and Barlow Twins: .001; BYOL and SimSiam: 0).

    Returns
    -------
    float in [0, 1] (for gamma <= 1)
    """
    if epoch < warmup_epochs:
        return warmup_start + (1 - warmup_start) * epoch / warmup_epochs
    if schedule == "multistep":
        return float(gamma ** sum(epoch >= m for m in milestones))
    if schedule == "cosine":
        share = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
        return end_factor + (1 - end_factor) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return 1.0


def scaled_lr(base: float, batch_size: int, reference: int = 256) -> float:
    """Learning rate by the linear scaling rule, ``base * batch_size / reference``.

    Parameters
    ----------
    base : float > 0
        Rate for a batch of `reference`, as the recipes of image methods give it.
    batch_size : int >= 1
        Samples of one optimiser step, over all processes and accumulated parts.
    reference : int >= 1
        Batch that `base` is meant for.

    Notes
    -----
    Goyal et al., "Accurate, large minibatch SGD", 2017.
    """
    return base * batch_size / reference


def ema_momentum(base: float, step: int, total_steps: int) -> float:
    """Momentum tau of a moving-average teacher: from `base` to 1 by half a cosine.

    ``tau_k = 1 - (1 - base) (cos(pi k / K) + 1) / 2``, Grill et al. (BYOL), 2020.

    Parameters
    ----------
    base : float in [0, 1]
        Momentum at the first step (BYOL: .996 for 1000 epochs, .99 for 300 and 100, .97 for 40).
    step : int >= 0
        Optimiser steps done, k; from `total_steps` on the momentum is 1.
    total_steps : int >= 1
        Optimiser steps in all, K.
    """
    return 1 - (1 - base) * (math.cos(math.pi * min(step / total_steps, 1.0)) + 1) / 2
