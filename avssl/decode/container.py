"""Open a media file through PyAV and find the way inside it: time zero, streams, places to seek to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from avssl.decode.source import ffmpeg_url, head
from avssl.errors import DecodeError
from avssl.types import Source

# What PyAV raises for a file it cannot digest: its own errors, and Python's for values it did not expect.
AV_FAILURES = (av.FFmpegError, ArithmeticError, LookupError, ValueError, OSError, MemoryError)

# A few bytes can declare a picture of gigabytes: decoders refuse more than 16,384 x 8,192 pixels.
MAX_PIXELS = {"max_pixels": str(2**27)}

# MPEG program streams stamp only some packets: after a seek FFmpeg counts on from the stamp of another one.
GUESSED_AFTER_SEEK = ("mpeg",)


# How to open MP4 and QuickTime files, which have an index, without decoding a frame.
HEADER_ONLY: dict[str, Any] = {
    "format": "mov",  # asking all formats whether they know the file takes as long as reading its header
    "options": {"skip_frame": "all", **MAX_PIXELS},
    "container_options": {"analyzeduration": "1"},
}


class CannotReadError(ValueError):
    """A window cannot be read; the message is the reason given to the user."""


@contextmanager
def failures_as_decode_error(source: Source, stage: str) -> Iterator[None]:
    """Turn whatever PyAV raises inside the block into a `DecodeError` of `stage`."""
    try:
        yield
    except AV_FAILURES as error:
        if isinstance(error, CannotReadError):
            reason = str(error)
        else:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DecodeError(str(source), stage, reason) from error


@contextmanager
def open_container(source: Source, quick: bool = False) -> Iterator[InputContainer]:
    """Open a source for reading and close it at the end of the block.

    Parameters
    ----------
    source : str, Path or Part
        What to open.
    quick : bool
        Do not look beyond the header if that tells all but the pixel format. A decoder then learns only from
        its packets how many frames to hold back for reordering: some may be lost, none is wrong.

    Raises
    ------
    DecodeError
        Stage "open": the source is missing, empty, a folder or a pipe, or is no media file.
    """
    url = ffmpeg_url(source)
    with failures_as_decode_error(source, "open"):
        # A title that is not valid UTF-8 must not make a file unreadable.
        if quick and head(source, 8)[4:] == b"ftyp":
            container = av.open(url, metadata_errors="replace", **HEADER_ONLY)
            if not all(stream.frames for stream in container.streams if is_media(stream)):
                container.close()  # fragments: each has a header of its own
                container = av.open(url, metadata_errors="replace", options=MAX_PIXELS)
        else:
            container = av.open(url, metadata_errors="replace", options=MAX_PIXELS)
    with container:
        yield container


def is_media(stream: Any) -> bool:
    """Whether a stream is video or sound that FFmpeg can decode; a cover picture is no video."""
    is_cover = bool(stream.disposition & Disposition.attached_pic)
    return stream.type in ("video", "audio") and stream.codec_context is not None and not is_cover


def pick_stream(container: InputContainer, kind: str) -> Any | None:
    """First "video" or "audio" stream, with codec threads off; None if there is none."""
    for stream in container.streams:
        if stream.type == kind and is_media(stream):
            # Many readers run side by side: threads inside the codec only cost their start.
            stream.codec_context.thread_count = 1
            stream.codec_context.thread_type = "NONE"
            stream.codec_context.options = MAX_PIXELS
            return stream
    return None


def require_stream(source: Source, container: InputContainer, kind: str) -> Any:
    """As `pick_stream`; a missing stream is a `DecodeError` of stage `kind`."""
    with failures_as_decode_error(source, kind):
        stream = pick_stream(container, kind)
    if stream is None:
        raise DecodeError(str(source), kind, f"the file has no {kind} stream")
    return stream


def start_seconds(container: InputContainer) -> Fraction:
    """Time zero of the file on the clock of its streams: the earliest start of any video or audio stream."""
    streams: list[Any] = [stream for stream in container.streams if is_media(stream)]
    starts = [stream.start_time * stream.time_base for stream in streams if stream.start_time is not None]
    return min(starts, default=Fraction(0))


def demuxing(container: InputContainer, streams: Any) -> closing[Any]:
    """The packets from here on, to iterate over inside a `with` block.

    PyAV frees what it allocates for them only if its generator ends or is closed, not if it is forgotten.
    """
    return closing(container.demux(streams))


def seek_attempts(container: InputContainer, stream: Any, target: int) -> Iterator[bool]:
    """Seek to ever earlier places; each yields whether it is the very first of the stream.

    Formats index decoding times, search by bisection or point between key frames, so a backward seek may
    still land behind the target. The caller goes on until it finds itself before it: the target, then
    1, 4, 16, ... seconds earlier, and the start at last.
    """
    first = stream.start_time or 0
    second = round(1 / stream.time_base)
    back = target - first if container.format.name in GUESSED_AFTER_SEEK else 0
    while target - back > first:
        with suppress(av.FFmpegError):
            container.seek(target - back, stream=stream)
            yield False
        back = 4 * back or second
    for tick in (first - 10 * second, first):  # packets may start earlier, or know nothing earlier
        with suppress(av.FFmpegError):
            container.seek(tick, stream=stream)
            yield True
            return
    name = container.format.name
    raise CannotReadError(
        f"no position in this {name} file can be sought; it is damaged, or needs converting, such as to MP4"
    )
