"""Synthetic videos in which what is seen and what is heard share a cause."""

from avssl.sounding_shapes.scenes import CLASSES, make_clip
from avssl.sounding_shapes.write import cache_folder, write_sounding_shapes

__all__ = ["CLASSES", "cache_folder", "make_clip", "write_sounding_shapes"]
