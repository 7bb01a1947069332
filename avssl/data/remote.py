"""Files at URLs: each is fetched whole into a folder of limited size that all processes of a machine share.

``AVSSL_CACHE`` names the folder (default: ``avssl`` in the user's cache folder), ``AVSSL_CACHE_GB`` its size
(default 100). They belong to the machine, not to a run, so they are no part of a recipe.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock

from avssl.errors import ManifestError

DEFAULT_CACHE_GB = 100.0
ATTEMPTS = 3


class CannotFetchError(ManifestError):
    """A file at a URL that cannot be had."""


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL such as ``s3://bucket/shard-000000.tar``."""
    return "://" in str(path)


def local_copy(path: str) -> str:
    """The path itself, or for a URL that of its local copy, fetched unless it is there.

    Copies that were not used for the longest time make room. One that a reader was about to open may be among
    them: it is then fetched again.

    Raises
    ------
    CannotFetchError
        When the URL cannot be read after three attempts, or the copy does not fit.
    """
    if not is_url(path):
        return path
    file_system, inside, version = _look_up(path)
    folder = cache_folder()
    name = hashlib.sha256(f"{path}\n{version}".encode()).hexdigest()[:16]
    target = folder / f"{name}-{os.path.basename(inside)}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # one process fetches, the others wait
            if not target.exists():
                _fetch(path, file_system, inside, target)
    with suppress(FileNotFoundError):
        os.utime(target)
    return str(target)


def cache_folder() -> Path:
    """Where copies are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("AVSSL_CACHE") or Path(home) / "avssl")


def cache_bytes() -> float:
    """How much they may take in all."""
    text = os.environ.get("AVSSL_CACHE_GB") or DEFAULT_CACHE_GB
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not size > 0:
        raise ManifestError(f"AVSSL_CACHE_GB is {text!r}; must be a number of gigabytes above 0")
    return size * 1e9


@lru_cache(maxsize=100_000)
def _look_up(url: str) -> tuple[Any, str, str]:
    """File system, path in it, and a text that changes with the file; asked once a process."""
    try:
        file_system, inside = fsspec.core.url_to_fs(url)
        return file_system, inside, str(file_system.ukey(inside))
    except Exception as error:  # each protocol raises errors of its own library
        raise CannotFetchError(f"{url}: {_reason(error)}; check the address and your access") from error


def _fetch(url: str, file_system: Any, inside: str, target: Path) -> None:
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _make_room(target.parent, file_system.size(inside) or 0, url)
            file_system.get_file(inside, str(temporary))
            os.replace(temporary, target)
            return
        except ManifestError:
            raise
        except Exception as error:
            if attempt == ATTEMPTS:
                reason = f"{url}: {_reason(error)}, {ATTEMPTS} times, into {target.parent}"
                raise CannotFetchError(f"{reason}; check the network and the disk") from error
        finally:
            temporary.unlink(missing_ok=True)


def _make_room(folder: Path, needed: int, url: str) -> None:
    """Remove the copies used longest ago until `needed` bytes more fit."""
    limit = cache_bytes()
    if needed > limit:
        raise CannotFetchError(
            f"{url} has {needed / 1e9:.3g} GB, the cache {limit / 1e9:.3g}; set AVSSL_CACHE_GB to several "
            "shards, or write smaller shards"
        )
    copies = []
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removed it
            status = file.stat()
            copies.append((status.st_mtime, status.st_size, file))
    excess = sum(size for _, size, _ in copies) + needed - limit
    for _, size, file in sorted(copies):
        if excess <= 0:
            break
        if file.suffix != ".lock":
            file.unlink(missing_ok=True)
            excess -= size


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".strip()
