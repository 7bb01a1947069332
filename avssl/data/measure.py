"""What one file is: its streams and a fingerprint of its bytes, or why it is skipped."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from avssl.decode import MediaInfo, probe
from avssl.errors import DecodeError
from avssl.types import Part, Source

Parts = tuple[Part | None, Part | None]
"""Video (or image) and sound of a sample in a tar; both None for a sample that is a file."""

_PIECE = 64 * 1024


@dataclass(frozen=True)
class Skipped:
    """A file that is not in the manifest: where reading it failed, and why."""

    path: str
    stage: str
    reason: str


def measure(path: str, root: Path, parts: Parts = (None, None)) -> tuple[MediaInfo, str] | Skipped:
    """Streams and fingerprint of a file, or of a sample inside it, or why it is skipped."""
    full = os.path.join(root.absolute(), path)
    try:
        full.encode()
        if not os.path.isfile(full):
            return Skipped(full, "open", "there is no such file")
        sources: list[Source] = [part for part in parts if part is not None]
        sources = sources or [full]
        infos = [probe(source) for source in sources]
        fingerprints = [content_hash(source) for source in sources]
    except UnicodeEncodeError:
        readable = os.fsencode(full).decode("utf-8", "replace")
        return Skipped(readable, "open", "the name of the file is not UTF-8; rename it")
    except DecodeError as error:
        return Skipped(full, error.stage, error.reason)
    except OSError as error:
        return Skipped(full, "open", error.strerror or str(error))
    info = infos[0]
    if len(infos) == 2:
        duration = max(info.duration_seconds, infos[1].duration_seconds)
        sound = infos[1].has_audio, infos[1].sample_rate
        info = replace(info, duration_seconds=duration, has_audio=sound[0], sample_rate=sound[1])
    if not (info.has_video or info.has_audio):
        return Skipped(full, "open", "neither a video nor an audio stream")
    if info.duration_seconds <= 0:
        return Skipped(full, "open", "the file has no length")
    return info, "".join(fingerprints)


def content_hash(source: Source) -> str:
    """Fingerprint of a file: BLAKE2b (128 bits, hex) of its size and its first, middle and last 64 KiB.

    Three reads whatever the size: enough to notice a file that was cut, encoded again or replaced, not a
    proof that every byte is the same.
    """
    if isinstance(source, Part):
        path, start, size = source.path, source.offset_bytes, source.num_bytes
    else:
        path, start, size = os.fspath(source), 0, os.path.getsize(source)
    digest = hashlib.blake2b(size.to_bytes(8, "big"), digest_size=16)
    with open(path, "rb") as file:
        for offset in (0, max(0, size // 2 - _PIECE // 2), max(0, size - _PIECE)):
            file.seek(start + offset)
            digest.update(file.read(min(_PIECE, size - offset)))
    return digest.hexdigest()
