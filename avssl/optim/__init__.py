"""Optimisers and schedules."""

from avssl.optim.layerwise import LARC, LARS
from avssl.optim.optimizers import OptimizerName, make_optimizer, set_learning_rate
from avssl.optim.schedules import ScheduleName, ema_momentum, learning_rate_factor, scaled_lr

__all__ = [
    "LARC",
    "LARS",
    "OptimizerName",
    "ScheduleName",
    "ema_momentum",
    "learning_rate_factor",
    "make_optimizer",
    "scaled_lr",
    "set_learning_rate",
]
