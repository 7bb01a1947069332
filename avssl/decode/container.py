"""Open a media file through PyAV and find the way inside it: time zero, streams, places to seek to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from avssl.errors import DecodeError

# What PyAV raises for a file it cannot digest: its own errors, and Python's for values it did not expect.
AV_FAILURES = (av.FFmpegError, ArithmeticError, LookupError, ValueError, OSError)

# MPEG program streams stamp only some packets: after a seek FFmpeg counts on from the stamp of another one.
GUESSED_AFTER_SEEK = ("mpeg",)


class CannotReadError(ValueError):
    """A window cannot be read; the message is the reason given to the user."""


@contextmanager
def failures_as_decode_error(path: str | Path, stage: str) -> Iterator[None]:
    """Turn whatever PyAV raises inside the block into a `DecodeError` of `stage`."""
    try:
        yield
    except AV_FAILURES as error:
        if isinstance(error, CannotReadError):
            reason = str(error)
        else:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DecodeError(path, stage, reason) from error


@contextmanager
def open_container(path: str | Path) -> Iterator[InputContainer]:
    """Open `path` for reading and close it at the end of the block.

    Raises
    ------
    DecodeError
        Stage "open": the file is missing, empty, a folder or a pipe, or is no media file.
    """
    if not os.path.isfile(path):  # a pipe would block for ever
        kind = "not a regular file" if os.path.exists(path) else "no such file"
        raise DecodeError(path, "open", f"{kind}; give the path of a media file")
    if os.path.getsize(path) == 0:
        raise DecodeError(path, "open", "the file is empty (0 bytes)")
    with failures_as_decode_error(path, "open"):
        # "file:" keeps a name with a colon from being read as a network address; a title that is not
        # valid UTF-8 must not make a file unreadable.
        container = av.open(f"file:{os.fspath(path)}", metadata_errors="replace")
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
            return stream
    return None


def require_stream(path: str | Path, container: InputContainer, kind: str) -> Any:
    """As `pick_stream`; a missing stream is a `DecodeError` of stage `kind`."""
    with failures_as_decode_error(path, kind):
        stream = pick_stream(container, kind)
    if stream is None:
        raise DecodeError(path, kind, f"the file has no {kind} stream")
    return stream


def start_seconds(container: InputContainer) -> Fraction:
    """Time zero of the file on the clock of its streams: the earliest start of any video or audio stream."""
    streams: list[Any] = [stream for stream in container.streams if is_media(stream)]
    starts = [stream.start_time * stream.time_base for stream in streams if stream.start_time is not None]
    return min(starts, default=Fraction(0))


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
    raise CannotReadError(f"no position in this {name} file can be sought; convert it, for example to MP4")
