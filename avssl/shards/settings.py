"""What a prepared copy holds; the same settings and the same source give the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

from avssl.errors import PrepareError

VERSION = 2
"""Raised whenever the same source and settings would give other bytes."""


@dataclass(frozen=True)
class ShardSettings:
    """How samples are written.

    Parameters
    ----------
    short_side : int or None
        Pixels of the short side, even; smaller pictures are not enlarged. None keeps the size.
    fps : float > 0
        Frames a second.
    sample_rate : int > 0
        Samples a second of the sound, in hertz.
    segment_seconds : float or None
        Cut what is longer than one and a half times this into pieces of this length; the last one takes the
        rest and is half as long to one and a half times as long.
    scenes : bool
        Cut where the scene changes, before that.
    shard_samples : int >= 1
        Samples a shard.
    """

    short_side: int | None = 128
    fps: float = 16.0
    sample_rate: int = 24000
    segment_seconds: float | None = None
    scenes: bool = False
    shard_samples: int = 500

    def __post_init__(self) -> None:
        if self.short_side is not None and (self.short_side < 16 or self.short_side % 2):
            raise PrepareError(f"short_side is {self.short_side}; must be even and at least 16 pixels")
        for name in ("fps", "sample_rate", "shard_samples"):
            if not getattr(self, name) > 0:
                raise PrepareError(f"{name} is {getattr(self, name)}; must be above 0")
        if self.segment_seconds is not None and not self.segment_seconds > 0:
            raise PrepareError(f"segment_seconds is {self.segment_seconds}; must be above 0")
