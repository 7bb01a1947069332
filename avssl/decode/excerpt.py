"""A small file in memory with the packets of a window, for libraries that cannot seek exactly by themselves.

Decord and torchcodec count frames, and lose count where a stream starts with frames that cannot be decoded
(open groups of pictures), has no index (transport and program streams) or hides frames (edit lists). In an
excerpt decoding starts at its only key frame and frame i is simply the i-th: they cannot go wrong, and what
they decode is what PyAV decodes.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.container import InputContainer

from avssl.decode.container import CannotReadError
from avssl.decode.frames import shrunk_size
from avssl.decode.packets import find_stretches
from avssl.types import VideoWindow

REMEDY = "read it with the decoder pyav"


class Excerpt(NamedTuple):
    """What another library needs to know about a window.

    Parameters
    ----------
    data : bytes
        A Matroska file without sound.
    num_frames : int
        Frames in it.
    indices : list of int
        For each frame of the window its number in the file.
    size : (int, int) or None
        Width and height to which stored frames are to be shrunk; None if they keep their size.
    quarter_turns : int
        Counter-clockwise turns that put stored frames upright.
    """

    data: bytes
    num_frames: int
    indices: list[int]
    size: tuple[int, int] | None
    quarter_turns: int


def find_excerpt(container: InputContainer, stream: Any, window: VideoWindow, zero: Fraction) -> Excerpt:
    """The excerpt for `window`; time `zero` of the stream's clock is the start of the file.

    Raises
    ------
    CannotReadError
        As `avssl.decode.packets.find_stretches`, or the packets do not say which frames will come out.
    """
    stretch = next(s for s in find_stretches(container, stream, window, zero) if s.packets)
    stamps = sorted(packet.pts for packet in stretch.packets) if stretch.is_stamped else []
    if len(set(stamps)) < len(stretch.packets):
        name = container.format.name
        raise CannotReadError(f"this {name} file lacks display times; {REMEDY}")
    # Frames shown before the key frame belong to the packets before it, and may not decode without them.
    first = stretch.packets[0].pts
    packets = [p for p in stretch.packets if stretch.is_first or p.pts >= first]
    rank = {time: i for i, time in enumerate(sorted(packet.pts for packet in packets))}
    indices = [rank[time] for time in stretch.chosen()]
    sample = _first_frame(stream, packets)
    size = shrunk_size(sample.width, sample.height, window.short_side)
    return Excerpt(
        data=_mux(stream, packets, rank),
        num_frames=len(packets),
        indices=indices,
        size=None if size == (sample.width, sample.height) else size,
        quarter_turns=round(sample.rotation / 90),
    )


def _first_frame(stream: Any, packets: list[Any]) -> Any:
    """The turn of a picture is known only once a frame is decoded."""
    try:
        for packet in [packets[0], None]:
            for frame in stream.codec_context.decode(packet):
                return frame
    except av.FFmpegError:
        pass
    raise CannotReadError("the first frame of the window cannot be decoded")


def _mux(stream: Any, packets: list[Any], rank: dict[int, int]) -> bytes:
    """Packets as a file of 25 frames a second, with one key frame so that nobody seeks to another."""
    delay = max(i - rank[packet.pts] for i, packet in enumerate(packets))
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        try:  # opaque: by its decoder, since that of AV1 has no encoder
            target = container.add_stream_from_template(stream, opaque=True)
        except ValueError as error:
            name = stream.codec_context.codec.canonical_name
            raise CannotReadError(f"an excerpt cannot hold {name} video; {REMEDY}") from error
        target.set_display_rotation(0)  # some libraries would turn pictures, others not
        for i, packet in enumerate(packets):
            packet.pts, packet.dts, packet.time_base = rank[packet.pts] + delay, i, Fraction(1, 25)
            packet.is_keyframe = i == 0
            packet.stream = target
            container.mux(packet)
    return file.getvalue()
