"""Learning-rate schedules as pure functions of the position in training."""

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
) -> float:
    """Factor on the base learning rate.

    Parameters
    ----------
    epoch : float >= 0
        Epochs done, with fraction: the factor moves every step.
    epochs : int >= 1
        Epochs in all.
    schedule : {"constant", "multistep", "cosine"}
        ``"multistep"`` multiplies by `gamma` at each milestone; ``"cosine"`` falls from 1 after warm-up to 0
        at the end, ``0.5 (1 + cos(pi t))``.
    warmup_epochs : float >= 0
        Linear rise from 0, before any of the three.
    milestones : sequence of float
        Epochs of the steps of ``"multistep"``.
    gamma : float > 0
        Factor of a step of ``"multistep"``.

    Returns
    -------
    float in [0, 1] (for gamma <= 1)
    """
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    if schedule == "multistep":
        return float(gamma ** sum(epoch >= m for m in milestones))
    if schedule == "cosine":
        share = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return 1.0
