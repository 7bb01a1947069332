"""Optimisers and learning-rate schedules."""

from avssl.optim.optimizers import OptimizerName, make_optimizer, set_learning_rate
from avssl.optim.schedules import ScheduleName, learning_rate_factor

__all__ = ["OptimizerName", "ScheduleName", "learning_rate_factor", "make_optimizer", "set_learning_rate"]
