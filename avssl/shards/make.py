"""One sample: from its stretch of the source to its members of a tar. A pure function, run anywhere."""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer

from avssl.data import Sample, Skipped
from avssl.decode import open_reader
from avssl.decode.container import (
    demuxing,
    failures_as_decode_error,
    open_container,
    pick_stream,
    seek_attempts,
    start_seconds,
)
from avssl.decode.source import span
from avssl.errors import DecodeError
from avssl.shards.encode import chunks, encode_image, encode_sound, encode_video
from avssl.shards.plan import Task
from avssl.shards.settings import ShardSettings
from avssl.types import AudioWindow, Source, VideoWindow

CHUNK_BYTES = 64 * 2**20
CHUNK_SECONDS = 60
IMAGE_MARKS = (b"\xff\xd8\xff", b"\x89PNG", b"BM")


@dataclass(frozen=True)
class Made:
    """A finished sample.

    Parameters
    ----------
    row : Sample
        Row of the manifest; its places count from the start of `members`, its path is empty.
    members : bytes
        Its members as they stand in the tar, headers included.
    """

    row: Sample
    members: bytes


def make_sample(task: Task, settings: ShardSettings) -> Made | Skipped:
    """Read the stretch of a task, encode it, and pack it for the tar.

    Video and sound end where their streams do, at the latest with the stretch. A stretch without sound (or
    without pictures) becomes a sample without.

    Returns
    -------
    Made or Skipped
        Skipped when the stretch cannot be read; whatever is wrong with a file ends here.
    """
    sample = task.sample
    try:
        members, row = _encode(task, settings)
    except DecodeError as error:
        return Skipped(sample.id, error.stage, error.reason)
    except (OSError, MemoryError, av.FFmpegError) as error:
        return Skipped(sample.id, "open", f"cannot be encoded: {type(error).__name__}: {error}")
    if not members:
        return Skipped(sample.id, "open", "the streams end before the sample begins")
    digest = hashlib.blake2b(digest_size=16)
    for content in members.values():
        digest.update(content)
    row = replace(row, content_hash=digest.hexdigest())
    members["json"] = _description(sample, row).encode()
    return _packed(task.key, members, row)


def _encode(task: Task, settings: ShardSettings) -> tuple[dict[str, bytes], Sample]:
    """Media files of the sample by extension, and its row without places."""
    sample = task.sample
    members: dict[str, bytes] = {}
    row = Sample(sample.id, "", 0.0, label=sample.label, split=sample.split, has_video=False, has_audio=False)
    if sample.has_video and is_image(task.video):
        picture = open_reader().read(task.video, VideoWindow(0.0, 1, 1.0, settings.short_side)).frames
        assert picture is not None
        members["jpg"] = encode_image(picture[0].numpy())
        height, width = picture.shape[1:3]
        row = replace(row, has_video=True, fps=sample.fps, width=width, height=height)
        row = replace(row, duration_seconds=sample.duration_seconds)
    elif sample.has_video and (length := _length(task.video, "video", sample)) > 0:
        count = max(1, math.ceil(length * settings.fps - 1e-6))
        content, count, width, height = encode_video(_frames(task, count, settings), settings.fps)
        members["mp4"] = content
        row = replace(row, has_video=True, fps=settings.fps, width=width, height=height)
        row = replace(row, duration_seconds=count / settings.fps)
    sound = task.audio or task.video
    if sample.has_audio and (length := _length(sound, "audio", sample)) > 0:
        count = max(1, round(length * settings.sample_rate))
        pieces = _sound(sound, sample, count, settings.sample_rate)
        members["wav"] = encode_sound(pieces, settings.sample_rate)
        duration = max(row.duration_seconds, count / settings.sample_rate)
        row = replace(row, has_audio=True, duration_seconds=duration)
    return members, replace(row, end_seconds=row.duration_seconds)


def is_image(source: Source) -> bool:
    """Whether a source is a JPEG, PNG, BMP or WebP picture, by its first bytes."""
    path, offset, _ = span(source)
    with open(path, "rb") as file:
        file.seek(offset)
        head = file.read(12)
    return head.startswith(IMAGE_MARKS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _length(source: Source, kind: str, sample: Sample) -> float:
    """Seconds from the start of the sample to its end, or to that of the stream if it comes before."""
    with open_container(source) as container, failures_as_decode_error(source, kind):
        zero = start_seconds(container)
        end = _stream_end(container, kind, zero + Fraction(sample.end_seconds))
        return float(end - zero) - sample.start_seconds


def _stream_end(container: InputContainer, kind: str, end: Fraction) -> Fraction:
    """End of the last packet of a stream, or `end` if the stream goes on; looks only near `end`."""
    stream = pick_stream(container, kind)
    if stream is None:
        return Fraction(-1)
    latest: Fraction | None = None
    for _ in seek_attempts(container, stream, math.floor(end / stream.time_base)):
        with suppress(av.FFmpegError), demuxing(container, stream) as packets:  # damaged or cut off here
            for packet in packets:
                time = packet.dts if packet.pts is None else packet.pts
                if time is None or not packet.size:
                    continue
                until = (time + (packet.duration or 1)) * stream.time_base
                latest = until if latest is None else max(latest, until)
                if until >= end:
                    return end
        if latest is not None:
            return latest
    return Fraction(-1)


def _frames(task: Task, count: int, settings: ShardSettings) -> Iterator[np.ndarray]:
    """Frames of the sample in pieces that fit the memory, each uint8 (T, H, W, 3)."""
    sample, reader = task.sample, open_reader()
    short = min(sample.width, sample.height)
    shrink = 1.0 if settings.short_side is None else min(1.0, settings.short_side / short)
    frame_bytes = 3 * shrink**2 * sample.width * sample.height
    for first, length in chunks(count, max(16, int(CHUNK_BYTES / frame_bytes))):
        start = sample.start_seconds + first / settings.fps
        clip = reader.read(task.video, VideoWindow(start, length, settings.fps, settings.short_side))
        assert clip.frames is not None
        yield clip.frames.numpy()


def _sound(source: Source, sample: Sample, count: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Sound of the sample in pieces, each float32 (samples,); silence where a later piece has none."""
    reader = open_reader()
    for first, length in chunks(count, CHUNK_SECONDS * sample_rate):
        window = AudioWindow(sample.start_seconds + first / sample_rate, length / sample_rate, sample_rate)
        try:
            waveform = reader.read(source, None, window).waveform
        except DecodeError:
            if first == 0:
                raise
            yield np.zeros(length, np.float32)
            continue
        assert waveform is not None
        yield waveform[0].numpy()


def _description(sample: Sample, row: Sample) -> str:
    """What ``KEY.json`` says: where the sample comes from, and what it is now."""
    original = ("duration_seconds", "fps", "width", "height", "content_hash")
    now = ("has_video", "has_audio", *original)
    content: dict[str, Any] = {"id": sample.id, "label": sample.label, "split": sample.split}
    content["source"] = {
        "path": sample.path,
        "start_seconds": sample.start_seconds,
        "end_seconds": sample.end_seconds,
    } | {name: getattr(sample, name) for name in original}
    content |= {name: getattr(row, name) for name in now}
    return json.dumps(content, ensure_ascii=False)


def _packed(key: str, members: dict[str, bytes], row: Sample) -> Made:
    """The members as tar records, and where in them each file begins."""
    records = bytearray()
    places: dict[str, int] = {}
    for extension, content in members.items():
        header = tarfile.TarInfo(f"{key}.{extension}")  # no owner, no time: the same bytes every day
        header.size = len(content)
        records += header.tobuf(tarfile.USTAR_FORMAT)
        kind = {"mp4": "video", "jpg": "video", "wav": "audio"}.get(extension)
        if kind is not None:
            places |= {f"{kind}_offset_bytes": len(records), f"{kind}_num_bytes": len(content)}
        records += content
        records += bytes(-len(records) % tarfile.BLOCKSIZE)
    return Made(Sample(**(asdict(row) | places)), bytes(records))
