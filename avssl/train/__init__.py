"""Training: the loop and what a run writes down."""

from avssl.train.position import LoopSettings, Position
from avssl.train.pretrain import pretrain
from avssl.train.trainer import Trainer

__all__ = ["LoopSettings", "Position", "Trainer", "pretrain"]
