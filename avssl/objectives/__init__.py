"""Training objectives: plain modules from views to a loss."""

from avssl.objectives.avid import AVID
from avssl.objectives.base import Objective
from avssl.objectives.cma import CMA
from avssl.objectives.nce import Partition, nce_loss, softmax_loss

__all__ = ["AVID", "CMA", "Objective", "Partition", "nce_loss", "softmax_loss"]
