"""What a media file holds, without decoding more than one frame."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer

from avssl.decode.container import (
    demuxing,
    failures_as_decode_error,
    open_container,
    pick_stream,
    start_seconds,
)
from avssl.types import Source


@dataclass(frozen=True)
class MediaInfo:
    """Facts about a file; numbers of a missing stream are 0.

    Parameters
    ----------
    duration_seconds : float
        From the earliest start of any stream to the latest end; 0 if the file holds no packet.
    fps : float
        Mean frames a second.
    width, height : int
        Size of the upright picture in pixels.
    has_video, has_audio : bool
        Whether there is such a stream; a cover picture is no video.
    sample_rate : int
        Samples a second of the sound, in hertz.
    """

    duration_seconds: float
    fps: float
    width: int
    height: int
    has_video: bool
    has_audio: bool
    sample_rate: int


def probe(path: Source) -> MediaInfo:
    """Look into a file: headers, the first frame for the orientation, packets only if durations are missing.

    Raises
    ------
    DecodeError
        Stage "open": the file is missing, empty or no media file.
    """
    with open_container(path) as container, failures_as_decode_error(path, "open"):
        video, audio = pick_stream(container, "video"), pick_stream(container, "audio")
        duration = _duration(container, [stream for stream in (video, audio) if stream is not None])
        width, height = _upright_size(container, video) if video is not None else (0, 0)
        rate = (video.average_rate or video.guessed_rate) if video is not None else None
        return MediaInfo(
            duration_seconds=float(duration),
            fps=float(rate or 0),
            width=width,
            height=height,
            has_video=video is not None,
            has_audio=audio is not None,
            sample_rate=audio.codec_context.sample_rate if audio is not None else 0,
        )


def _duration(container: InputContainer, streams: list[Any]) -> Fraction:
    zero = start_seconds(container)
    if streams and all(stream.duration for stream in streams):
        ends = [((stream.start_time or 0) + stream.duration) * stream.time_base for stream in streams]
        return max(ends) - zero
    if container.duration:
        return Fraction(container.duration, av.time_base)
    return _last_packet_end(container, streams) - zero


def _last_packet_end(container: InputContainer, streams: list[Any]) -> Fraction:
    """Latest end of any packet, for files written without durations (live recordings)."""
    latest = start_seconds(container)
    with suppress(av.FFmpegError), demuxing(container, streams) as packets:  # cut off here
        for packet in packets:
            if packet.pts is not None:
                latest = max(latest, (packet.pts + (packet.duration or 0)) * packet.time_base)
    return latest


def _upright_size(container: InputContainer, stream: Any) -> tuple[int, int]:
    """Size of the picture as shown; the rotation is known only with a decoded frame."""
    frame = None
    with suppress(av.FFmpegError):
        container.seek(stream.start_time or 0, stream=stream)
        with demuxing(container, stream) as packets:
            frame = next((frame for packet in packets for frame in packet.decode()), None)
    if frame is None:  # the header is all there is
        return stream.codec_context.width, stream.codec_context.height
    return (frame.width, frame.height) if round(frame.rotation / 90) % 2 == 0 else (frame.height, frame.width)
