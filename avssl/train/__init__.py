"""Training: the loop, checkpoints, what a run writes down."""

from avssl.train.checkpoint import load_checkpoint, save_checkpoint
from avssl.train.pretrain import pretrain
from avssl.train.trainer import LoopSettings, Position, Trainer

__all__ = ["LoopSettings", "Position", "Trainer", "load_checkpoint", "pretrain", "save_checkpoint"]
