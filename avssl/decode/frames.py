"""The frames of a window, exactly those a player shows, decoding as few others as the codec allows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from torch import Tensor

from avssl.decode.container import CannotReadError, seek_attempts
from avssl.types import VideoWindow

# Containers round timestamps (Matroska to 1 ms): a frame due at t may be stamped half a tick later. The
# microsecond is for the rounding of the sum itself.
MAX_ROUNDING_SECONDS = 0.0005
MICROSECOND = 1e-6


def read_frames(container: InputContainer, stream: Any, window: VideoWindow, zero: Fraction) -> Tensor:
    """Frames of `window`, uint8 (T, H, W, 3); time `zero` of the streams' clock is the start of the file.

    Raises
    ------
    CannotReadError
        The window ends before the file starts, starts after the last frame has gone, or nothing decodes.
    """
    if window.start_seconds + window.num_frames / window.fps <= 0:
        raise CannotReadError(f"the window at {window.start_seconds:g} s ends before the file starts")
    targets = _target_ticks(window, zero, stream.time_base)
    convert = FrameConverter(window.short_side)
    for is_first in seek_attempts(container, stream, targets[0]):
        packets, at_end = _demux(container, stream, targets[-1], is_first)
        pictures = _pictures(container, stream, packets, targets, convert, is_first)
        if pictures is not None:
            if at_end:
                _check_not_gone(stream, packets, targets[0], window)
            return torch.from_numpy(np.stack(pictures))
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
    try:
        for packet in container.demux(stream):
            wanted = packets or packet.is_keyframe or is_first
            if packet.size and wanted:  # an empty packet would tell the decoder that the stream is over
                packets.append(packet)
                if packet.dts is not None and packet.dts > last_tick:  # later packets are shown later still
                    return packets, False
    except av.FFmpegError:
        pass  # damaged or cut off here: what came before counts
    return packets, True


def _pictures(
    container: InputContainer,
    stream: Any,
    packets: list[Any],
    targets: list[int],
    convert: FrameConverter,
    is_first: bool,
) -> list[np.ndarray] | None:
    """One picture a target; None when the packets start too late for the first of them or do not decode."""
    stamps = [packet.pts for packet in packets]
    trusted = None not in stamps and not _avi_without_display_times(container, stream)
    if stamps and trusted:
        if stamps[0] > targets[0] and not is_first:
            return None
        chosen = _on_screen(sorted(stamps), targets)
        pictures = _decode_chosen(stream.codec_context, packets, set(chosen), convert)
        if pictures is not None:
            return [pictures[stamp] for stamp in chosen]
    return _decode_all(stream.codec_context, packets, targets, convert, is_first)


def _avi_without_display_times(container: InputContainer, stream: Any) -> bool:
    """AVI stores no display times; for codecs that reorder freely FFmpeg's guesses are in coding order."""
    return container.format.name == "avi" and stream.codec_context.name in ("h264", "hevc")


def _on_screen(times: list[int], targets: list[int]) -> list[int]:
    """For each target the latest of the sorted `times` that is not after it (the first if all are)."""
    return [times[max(bisect_right(times, target) - 1, 0)] for target in targets]


def _decode_chosen(
    context: Any, packets: list[Any], chosen: set[int], convert: FrameConverter
) -> dict[int, np.ndarray] | None:
    """Pictures with the `chosen` timestamps; None if one is missing or frames come out of order.

    Frames no other frame refers to are not decoded unless chosen; this leaves the others as they are.
    """
    pictures: dict[int, np.ndarray] = {}
    latest = -math.inf
    for packet in [*packets, None]:
        context.skip_frame = "DEFAULT" if packet is None or packet.pts in chosen else "NONREF"
        for frame in _decode(context, packet):
            if frame.pts is None or frame.pts <= latest:
                return None
            latest = frame.pts
            if frame.pts in chosen:
                pictures[frame.pts] = convert(frame)
        if len(pictures) == len(chosen):
            return pictures
    return None


def _decode_all(
    context: Any, packets: list[Any], targets: list[int], convert: FrameConverter, is_first: bool
) -> list[np.ndarray] | None:
    """Pictures where packets do not tell which frames will come out: damaged, or with doubtful timestamps.

    Decodes every frame, once for the times and once for the pictures, so that memory stays small. A decoder
    puts frames out in the order of display: sorting repairs times that are in coding order.
    """
    times = sorted(frame.pts for frame in _decode_in_order(context, packets) if frame.pts is not None)
    if not times or (times[0] > targets[0] and not is_first):
        return None
    chosen = _on_screen(times, targets)
    stamped = (frame for frame in _decode_in_order(context, packets) if frame.pts is not None)
    wanted = set(chosen)
    pictures = {time: convert(frame) for time, frame in zip(times, stamped, strict=False) if time in wanted}
    return [pictures[time] for time in chosen]


def _decode_in_order(context: Any, packets: list[Any]) -> Iterator[Any]:
    context.flush_buffers()
    context.skip_frame = "DEFAULT"
    for packet in [*packets, None]:
        yield from _decode(context, packet)


def _decode(context: Any, packet: Any | None) -> list[Any]:
    """Frames that come out for a packet (None: the last ones); none if the packet is damaged."""
    try:
        return context.decode(packet)
    except (av.InvalidDataError, av.EOFError):
        return []


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


class FrameConverter:
    """Turns decoded frames into upright RGB pictures, all of one size.

    Pixels are taken as square. The size is reduced by averaging areas (swscale) in the same pass that
    converts to RGB; colours are thus averaged before conversion, some grey levels away from resized RGB where
    hard colour edges meet.
    """

    def __init__(self, short_side: int | None) -> None:
        self._short_side = short_side
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        """Picture of a frame, uint8 (H, W, 3)."""
        if self._size is None:  # a stream that changes its size keeps that of its first frame
            self._size = shrunk_size(frame.width, frame.height, self._short_side)
        width, height = self._size
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1)
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90))


def shrunk_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Size with the given short side and the same shape, never larger than before."""
    short = min(width, height)
    if short_side is None or short_side >= short:
        return width, height
    return round(width * short_side / short), round(height * short_side / short)
