"""The common cause of sight and sound: when the events happen, how large the object is, how high it sounds.

Everything in a `Cause` is both visible and audible; everything drawn elsewhere is a nuisance of one side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

DURATION_SECONDS = 3.0
FPS = 16
SAMPLE_RATE = 24_000
NUM_FRAMES = round(DURATION_SECONDS * FPS)
NUM_SAMPLES = round(DURATION_SECONDS * SAMPLE_RATE)

SIZE_RANGE = (0.26, 0.47)
RATE_RANGE_HZ = (1.5, 3.4)
HIGHEST_PITCH_HZ = 1000.0
PITCH_EXPONENT = 2.4
# Events are laid out over more than the clip, so that sounds and motions already run at time zero.
MARGIN_SECONDS = 2.5


@dataclass(frozen=True)
class Cause:
    """What one object does, shared by its drawing and its sound.

    Parameters
    ----------
    event_seconds : ndarray, (N,)
        Rising times of the events (strikes, bounces, turns); the first and last lie outside the clip.
    strength : ndarray, (N,), in [0.55, 1]
        Strength of each event: how far it moves and how loud it is.
    size : float, 0.18 to 0.47
        Half the extent of the figure as a share of the frame.
    pitch_hz : float
        Base frequency; large objects sound low.
    texture : float, in [0, 1]
        Contrast of the stripes on the object and brightness of the spectrum.
    """

    event_seconds: FloatArray
    strength: FloatArray
    size: float
    pitch_hz: float
    texture: float

    def phase(self, seconds: FloatArray) -> FloatArray:
        """Number of cycles done at each time; event number k happens where the phase passes k."""
        return np.interp(seconds, self.event_seconds, np.arange(len(self.event_seconds)))

    def last_event(self, seconds: FloatArray) -> NDArray[np.intp]:
        """Number of the latest event at each time."""
        return np.searchsorted(self.event_seconds, seconds, side="right") - 1

    def strength_at(self, seconds: FloatArray) -> FloatArray:
        """Strength of the cycle that each time lies in."""
        return self.strength[self.last_event(seconds)]

    @property
    def events_in_clip(self) -> FloatArray:
        """Times of the events inside the clip, in seconds."""
        inside = (self.event_seconds >= 0) & (self.event_seconds < DURATION_SECONDS)
        return self.event_seconds[inside]


def draw_causes(rng: np.random.Generator) -> list[Cause]:
    """Draw one object, or in a tenth of the clips two that differ in size and phase but keep one tempo."""
    rate_hz = float(np.exp(rng.uniform(*np.log(RATE_RANGE_HZ))))
    size = float(np.exp(rng.uniform(*np.log(SIZE_RANGE))))
    texture = float(rng.uniform())
    if rng.uniform() < 0.9:
        return [_draw_cause(rng, rate_hz, size, texture)]
    sizes = 0.9 * min(size, 0.30) * np.array([1.0, rng.uniform(0.7, 0.95)])
    return [_draw_cause(rng, rate_hz, float(each), texture) for each in sizes]


def _draw_cause(rng: np.random.Generator, rate_hz: float, size: float, texture: float) -> Cause:
    """Lay out the events of one object and set its pitch from its size."""
    event_seconds = _event_seconds(rng, rate_hz)
    strength = rng.uniform(0.55, 1.0, len(event_seconds))
    octaves_off = rng.normal(0.0, 0.06)
    pitch_hz = HIGHEST_PITCH_HZ * (SIZE_RANGE[0] / size) ** PITCH_EXPONENT * 2.0**octaves_off
    return Cause(event_seconds, strength, size, float(pitch_hz), texture)


def _event_seconds(rng: np.random.Generator, rate_hz: float) -> FloatArray:
    """Times of events at a tempo that drifts by up to a fifth over the clip, with a little jitter."""
    span = DURATION_SECONDS + 2 * MARGIN_SECONDS
    count = int(np.ceil(1.4 * rate_hz * span)) + 2
    share_of_clip = (np.arange(count) / rate_hz - MARGIN_SECONDS) / DURATION_SECONDS
    drift = rng.uniform(-0.2, 0.2) * (np.clip(share_of_clip, 0, 1) - 0.5)
    intervals = (1 + drift + rng.uniform(-0.06, 0.06, count)) / rate_hz
    start = -MARGIN_SECONDS - rng.uniform() / rate_hz
    return start + np.concatenate([[0.0], np.cumsum(intervals)])
