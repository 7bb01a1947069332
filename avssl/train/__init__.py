"""Training: the loop and what a run writes down."""

from avssl.train.pretrain import pretrain
from avssl.train.trainer import LoopSettings, Position, Trainer

__all__ = ["LoopSettings", "Position", "Trainer", "pretrain"]
