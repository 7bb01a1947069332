"""What one file is: its streams and a fingerprint of its bytes, or why it is skipped."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from avssl.decode import MediaInfo, probe
from avssl.errors import DecodeError

_PART = 64 * 1024


@dataclass(frozen=True)
class Skipped:
    """A file that is not in the manifest: where reading it failed, and why."""

    path: str
    stage: str
    reason: str


def measure(path: str, root: Path) -> tuple[MediaInfo, str] | Skipped:
    """Streams and fingerprint of a file, or why it is skipped."""
    full = os.path.join(root.absolute(), path)
    try:
        full.encode()
        if not os.path.isfile(full):
            return Skipped(full, "open", "there is no such file")
        info = probe(full)
        fingerprint = content_hash(full)
    except UnicodeEncodeError:
        readable = os.fsencode(full).decode("utf-8", "replace")
        return Skipped(readable, "open", "the name of the file is not UTF-8; rename it")
    except DecodeError as error:
        return Skipped(full, error.stage, error.reason)
    except OSError as error:
        return Skipped(full, "open", error.strerror or str(error))
    if not (info.has_video or info.has_audio):
        return Skipped(full, "open", "neither a video nor an audio stream")
    if info.duration_seconds <= 0:
        return Skipped(full, "open", "the file has no length")
    return info, fingerprint


def content_hash(path: str | Path) -> str:
    """Fingerprint of a file: BLAKE2b (128 bits, hex) of its size and its first, middle and last 64 KiB.

    Three reads whatever the size: enough to notice a file that was cut, encoded again or replaced, not a
    proof that every byte is the same.
    """
    size = os.path.getsize(path)
    digest = hashlib.blake2b(size.to_bytes(8, "big"), digest_size=16)
    with open(path, "rb") as file:
        for offset in (0, max(0, size // 2 - _PART // 2), max(0, size - _PART)):
            file.seek(offset)
            digest.update(file.read(_PART))
    return digest.hexdigest()
