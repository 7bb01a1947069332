"""The numbers of a line of the log: means, and shares of clips and time, since the line before."""

from __future__ import annotations

import time

from torch import Tensor

from avssl import dist
from avssl.train.lockstep import Agreement
from avssl.train.log import RunningMeans


class Meter:
    """Collects what steps did; processes that train together read it together."""

    def __init__(self) -> None:
        self.means = RunningMeans()
        self._begin_window()

    def _begin_window(self) -> None:
        self._began = time.monotonic()
        self._clips = self._mute = self._surplus = 0
        self._wait_seconds = 0.0

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for clips."""
        self._wait_seconds += seconds

    def leave_out(self, seconds: float) -> None:
        """Leave time that was spent on something else out of clips a second and of shares."""
        self._began += seconds

    def add_clips(self, agreed: Agreement) -> None:
        """Count the clips of a step, of all processes."""
        self._clips += agreed.clips
        self._mute += agreed.mute
        self._surplus += agreed.surplus

    def add(self, values: dict[str, Tensor]) -> None:
        """Add scalars of a step to the means."""
        self.means.add(values)

    def read(self, hears: bool) -> dict[str, float]:
        """Numbers since the last read.

        Parameters
        ----------
        hears : bool
            Whether the model has sound, so that clips without it are worth a number.
        """
        seconds = max(time.monotonic() - self._began, 1e-9)
        numbers = self.means.read() | {
            "clips_per_second": self._clips / seconds,
            "data_wait_share": self._wait_seconds / seconds,
        }
        if self._mute and hears:
            numbers["video_only_share"] = self._mute / self._clips
        if dist.world_size() > 1:
            numbers["surplus_clips"] = float(self._surplus)
        self._begin_window()
        return numbers
