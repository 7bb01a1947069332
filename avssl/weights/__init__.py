"""Trained weights from anywhere: runs of this package and the authors' released checkpoints."""

from avssl.weights.published import PUBLISHED, Published, find_weights, weights_folder
from avssl.weights.reading import Memories, Pretrained, load, read_checkpoint
from avssl.weights.release import Variant, export_official

__all__ = [
    "PUBLISHED",
    "Memories",
    "Pretrained",
    "Published",
    "Variant",
    "export_official",
    "find_weights",
    "load",
    "read_checkpoint",
    "weights_folder",
]
