"""The frames of a window, exactly those a player shows, decoding as few others as the codec allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from torch import Tensor

from avssl.decode.container import CannotReadError
from avssl.decode.packets import Stretch, find_stretches, on_screen
from avssl.types import VideoWindow

# Decoders that take `skip_frame` packet by packet and leave other frames as they are. That of AV1 takes it
# once, and then puts out other frames under the timestamps of those it skipped.
SKIPPING_DECODERS = ("h264", "hevc", "mpeg2video", "mpeg4", "vp8", "vp9")

# Pixels that swscale turns into RGB faster than it scales others.
HALVED_COLOUR = ("yuv420p", "yuvj420p")


def read_frames(container: InputContainer, stream: Any, window: VideoWindow, zero: Fraction) -> Tensor:
    """Frames of `window`, uint8 (T, H, W, 3); time `zero` of the streams' clock is the start of the file.

    Raises
    ------
    CannotReadError
        The window ends before the file starts, starts after the last frame has gone, or nothing decodes.
    """
    pictures = Pictures(window.num_frames, window.short_side)
    is_probed = stream.codec_context.pix_fmt is not None  # else opened quickly: frames may get lost
    for stretch in find_stretches(container, stream, window, zero):
        context = stream.codec_context
        if stretch.is_stamped and _decode_chosen(context, stretch, pictures):
            break
        if not is_probed:
            raise CannotReadError("no picture is found in the video stream")
        if _decode_all(context, stretch, pictures):
            break
    return pictures.tensor()


def _decode_chosen(context: Any, stretch: Stretch, pictures: Pictures) -> bool:
    """Take the frames that packets promise; False if one is missing or frames come out of order.

    Frames no other frame refers to are not decoded unless chosen; this leaves the others as they are. After
    the last packet needed the decoder is told to put out what it holds back.
    """
    chosen = stretch.chosen()
    missing = set(chosen)
    last = max(i for i, packet in enumerate(stretch.packets) if packet.pts in missing)
    idle = "NONREF" if context.codec.name in SKIPPING_DECODERS else "DEFAULT"
    latest = -math.inf
    for packet in [*stretch.packets[: last + 1], None]:
        context.skip_frame = "DEFAULT" if packet is None or packet.pts in missing else idle
        for frame in _decode(context, packet):
            if frame.pts is None or frame.pts <= latest:
                return False
            latest = frame.pts
            if latest in missing:
                pictures.take(frame, chosen, latest)
                missing.remove(latest)
        if not missing:
            return True
    return False


def _decode_all(context: Any, stretch: Stretch, pictures: Pictures) -> bool:
    """Take frames where packets do not tell which will come out: damaged, or with doubtful timestamps.

    Decodes every frame, once for the times and once for the pictures, so that memory stays small. A decoder
    puts frames out in the order of display: sorting repairs times that are in coding order. False if there
    is none, or none early enough.
    """
    packets = stretch.packets
    times = sorted(frame.pts for frame in _decode_in_order(context, packets) if frame.pts is not None)
    if not times or (times[0] > stretch.targets[0] and not stretch.is_first):
        return False
    chosen = on_screen(times, stretch.targets)
    missing = set(chosen)
    stamped = (frame for frame in _decode_in_order(context, packets) if frame.pts is not None)
    for time, frame in zip(times, stamped, strict=False):
        if time in missing:
            pictures.take(frame, chosen, time)
            missing.remove(time)
    return not missing


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


class Pictures:
    """Decoded frames as upright RGB pictures of one size, each written where the window shows it.

    Pixels are taken as square. The size is reduced with a triangle filter over the area of each new pixel
    (swscale). Colour that a file stores at half the resolution, as most do, keeps half the new one, as if the
    file had been written in the small size; it is some grey levels away from resized RGB at colour edges.
    """

    def __init__(self, num_frames: int, short_side: int | None) -> None:
        self._num_frames = num_frames
        self._short_side = short_side
        self._size: tuple[int, int] | None = None
        self._frames = np.empty(0, np.uint8)
        self._to_size, self._to_rgb = VideoReformatter(), VideoReformatter()

    def take(self, frame: Any, chosen: list[int], time: int) -> None:
        """Write a frame to all places whose entry in `chosen` is `time`."""
        picture = self._upright(frame)
        if not self._frames.size:
            self._frames = np.empty((self._num_frames, *picture.shape), np.uint8)
        for place, shown in enumerate(chosen):
            if shown == time:
                self._frames[place] = picture

    def tensor(self) -> Tensor:
        """All pictures, uint8 (T, H, W, 3)."""
        return torch.from_numpy(self._frames)

    def _upright(self, frame: Any) -> np.ndarray:
        rotation = round(frame.rotation / 90)
        if self._size is None:  # a stream that changes its size keeps that of its first frame
            self._size = shrunk_size(frame.width, frame.height, self._short_side)
        if self._size != (frame.width, frame.height):
            # Straight to packed RGB, swscale is slow; other pixels keep their colours through planar RGB.
            format = frame.format.name if frame.format.name in HALVED_COLOUR else "gbrp"
            width, height = self._size
            frame = self._to_size.reformat(frame, width, height, format, interpolation="BILINEAR", threads=1)
        rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1)
        picture = packed(rgb)
        return np.rot90(picture, rotation) if rotation else picture


def packed(frame: Any) -> np.ndarray:
    """The pixels of an RGB frame, (H, W, 3) uint8, without a copy."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : 3 * frame.width]
    return rows.reshape(frame.height, frame.width, 3)


def shrunk_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Size with the given short side and the same shape, never larger than before."""
    short = min(width, height)
    if short_side is None or short_side >= short:
        return width, height
    return round(width * short_side / short), round(height * short_side / short)
