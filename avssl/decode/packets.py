"""Which packets of a video stream a window needs, and which of their frames it shows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.container import InputContainer

from avssl.decode.container import CannotReadError, demuxing, seek_attempts
from avssl.types import VideoWindow

# Containers round timestamps (Matroska to 1 ms): a frame due at t may be stamped half a tick later. The
# microsecond is for the rounding of the sum itself.
MAX_ROUNDING_SECONDS = 0.0005
MICROSECOND = 1e-6


class Stretch(NamedTuple):
    """Packets in the order of decoding, from a place where decoding can start.

    Parameters
    ----------
    packets : list of av.Packet
        Enough to decode every frame of the window.
    targets : list of int
        For each frame of the window the largest timestamp that is on time.
    is_first : bool
        Whether nothing earlier can be read.
    is_stamped : bool
        Whether the timestamps of the packets are those of the frames that will come out.
    """

    packets: list[Any]
    targets: list[int]
    is_first: bool
    is_stamped: bool

    def chosen(self) -> list[int]:
        """Timestamp of the frame that each target shows; only if `is_stamped`."""
        shown = sorted(packet.pts for packet in self.packets if not packet.is_discard)
        return on_screen(shown or [self.packets[0].pts], self.targets)


def find_stretches(
    container: InputContainer, stream: Any, window: VideoWindow, zero: Fraction
) -> Iterator[Stretch]:
    """Packets for a window, from ever earlier places; those after the first only matter if that fails.

    Time `zero` of the stream's clock is the start of the file.

    Raises
    ------
    CannotReadError
        The window ends before the file starts, starts after the last frame has gone, or no position is left.
    """
    if window.start_seconds + window.num_frames / window.fps <= 0:
        raise CannotReadError(f"the window at {window.start_seconds:g} s ends before the file starts")
    targets = _target_ticks(window, zero, stream.time_base)
    for is_first in seek_attempts(container, stream, targets[0]):
        packets, at_end = _demux(container, stream, targets[-1], is_first)
        stamps = [packet.pts for packet in packets]
        is_stamped = bool(stamps) and None not in stamps and not _lacks_display_times(container, stream)
        if is_stamped and stamps[0] > targets[0] and not is_first:
            continue
        if at_end and packets:
            _check_not_gone(stream, packets, targets[0], window)
        yield Stretch(packets, targets, is_first, is_stamped)
    raise CannotReadError(f"no frame can be decoded at {window.start_seconds:g} s")


def _target_ticks(window: VideoWindow, zero: Fraction, tick: Fraction) -> list[int]:
    """For each frame of the window the largest timestamp that is on time."""
    slack = min(float(tick) / 2, MAX_ROUNDING_SECONDS) + MICROSECOND
    start = float(zero) + window.start_seconds + slack
    return [math.floor((start + i / window.fps) / tick) for i in range(window.num_frames)]


def _demux(container: InputContainer, stream: Any, last_tick: int, is_first: bool) -> tuple[list[Any], bool]:
    """Packets from the next key frame on until every frame up to `last_tick` is in hand.

    Also tells whether the stream ended (or broke off) before that was certain.
    """
    packets: list[Any] = []
    with suppress(av.FFmpegError), demuxing(container, stream) as found:  # cut off: what came before counts
        for packet in found:
            wanted = packets or packet.is_keyframe or is_first
            if packet.size and wanted:  # an empty packet would tell the decoder that the stream is over
                packets.append(packet)
                if packet.dts is not None and packet.dts > last_tick:  # later packets are shown later still
                    return packets, False
    return packets, True


def _lacks_display_times(container: InputContainer, stream: Any) -> bool:
    """AVI stores no display times; for codecs that reorder freely FFmpeg's guesses are in coding order."""
    return container.format.name == "avi" and stream.codec_context.name in ("h264", "hevc")


def on_screen(times: list[int], targets: list[int]) -> list[int]:
    """For each target the latest of the sorted `times` that is not after it (the first if all are)."""
    return [times[max(bisect_right(times, target) - 1, 0)] for target in targets]


def _check_not_gone(stream: Any, packets: list[Any], first_target: int, window: VideoWindow) -> None:
    """The last frame is held for a window that overlaps the stream, not for one a frame beyond its end."""
    last = max(packets, key=lambda packet: packet.pts or 0)
    rate = stream.average_rate
    duration = last.duration or (round(1 / (rate * stream.time_base)) if rate else 1)
    if last.pts is not None and first_target > last.pts + 2 * duration:
        end = float((last.pts + duration - first_target) * stream.time_base) + window.start_seconds
        raise CannotReadError(
            f"the window starts at {window.start_seconds:g} s, the last frame ends at {end:.3f} s"
        )
