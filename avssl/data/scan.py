"""From a folder or a list of files to a manifest: every file is probed, and what cannot be read is named."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from avssl.data.manifest import Manifest
from avssl.data.measure import Skipped, measure
from avssl.data.tables import Columns, Sample, default_id, read_columns, relative_path
from avssl.decode import MediaInfo
from avssl.errors import ManifestError

EXTENSIONS = frozenset(["mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "flv", "wmv", "ts", "3gp", "ogv"])
"""Extensions of the files a scan of a folder takes up; a list may name any file."""

IMAGES = frozenset(["jpg", "jpeg", "png", "webp", "bmp"])
"""Further ones that it takes up if asked to: an image is a video of one frame."""

SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class ScanResult:
    """What a scan found.

    Parameters
    ----------
    manifest : Manifest
        The files that can be read.
    skipped : list of Skipped
        The files that cannot.
    ignored : dict of str to int
        Number of other files in a folder, by extension.
    """

    manifest: Manifest
    skipped: list[Skipped]
    ignored: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Wish:
    """A sample before its file was probed; None where nothing was said."""

    path: str
    id: str
    start_seconds: float = 0.0
    end_seconds: float | None = None
    label: str | None = None
    split: str | None = None


def scan(
    source: str | Path,
    *,
    split: str | None = None,
    val_share: float = 0.0,
    images: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScanResult:
    """Probe the files of a folder or of a list.

    A folder is searched through all its levels. If all its first-level folders with media are called train,
    val, validation or test, they give the split and the next level gives the label; otherwise the first level
    gives the label. A ``.csv``, ``.tsv`` or ``.parquet`` list needs a ``path`` column and may have ``id``,
    ``start_seconds``, ``end_seconds``, ``label`` and ``split``; what can be measured is measured, whatever
    the list says. A ``.txt`` list has one path a line. Relative paths start from the folder of the list.

    Parameters
    ----------
    source : str or Path
        Folder or list.
    split : str, optional
        Split of all files, whatever folders or list say.
    val_share : float in [0, 1)
        Of the files that have no split, about this share goes to split ``"test"``, chosen by a hash of the
        relative path (all parts of a file go the same way); the others to ``"train"``.
    images : bool
        Whether a folder's images count as well, each a video of one frame; beside videos they are often
        only thumbnails.
    workers : int >= 1, optional
        Threads that probe; default: four more than processors, at most 32.
    progress : callable, optional
        Called as ``progress(done, total)`` after each file.

    Raises
    ------
    ManifestError
        When the source is missing, holds no media, cannot be read as a list, or none of its files can be
        decoded.
    """
    source = Path(source)
    if not 0 <= val_share < 1:
        raise ManifestError(f"val_share must be at least 0 and below 1; got {val_share}")
    ignored: dict[str, int] = {}
    if source.is_dir():
        root = source
        files, ignored = _find_media(source, EXTENSIONS | IMAGES if images else EXTENSIONS)
        wishes = _from_folders(files)
    else:
        root = source.absolute().parent
        wishes = _from_list(source)
    wishes = _with_splits(wishes, split, val_share)
    samples, skipped = _probe_all(wishes, root, workers, progress)
    if not samples:
        first = skipped[0]
        raise ManifestError(
            f"none of the {len(skipped)} files of {source} can be read; the first: "
            f"{first.path}: {first.stage}: {first.reason}"
        )
    return ScanResult(Manifest.from_samples(samples, root), skipped, ignored)


# ---- which files


def _find_media(folder: Path, extensions: frozenset[str]) -> tuple[list[str], dict[str, int]]:
    """Sorted posix paths of media files relative to the folder; number of other files by extension."""
    media: list[str] = []
    others: Counter[str] = Counter()
    for name in _walk(str(folder)):
        extension = os.path.splitext(name)[1].lower()
        if extension[1:] in extensions:
            media.append(os.path.relpath(name, folder).replace(os.sep, "/"))
        else:
            others[extension or "(none)"] += 1
    if not media:
        seen = ", ".join(f"{extension} ({count})" for extension, count in others.most_common(10))
        raise ManifestError(
            f"no media file below {folder}; extensions seen: {seen or 'none, the folder is empty'}; "
            f"extensions taken: {' '.join(sorted(extensions))}"
        )
    return sorted(media), dict(others)


def _walk(top: str) -> Iterator[str]:
    """All files below a folder, through linked folders too, each real folder once."""
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise ManifestError(
            f"cannot list {error.filename} ({error.strerror}); allow it or remove it"
        ) from error

    for folder, below, files in os.walk(top, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below.sort()
        yield from (os.path.join(folder, name) for name in files)


def _from_folders(files: Sequence[str]) -> list[_Wish]:
    """Split and label of each file from the folders it lies in."""
    parts = [name.split("/")[:-1] for name in files]
    tops = {folders[0].lower() for folders in parts if folders}
    # Decided for the whole tree: a class may be called "train" (the vehicle) among others.
    by_split = bool(tops) and tops <= SPLIT_FOLDERS.keys()
    wishes = []
    for name, folders in zip(files, parts, strict=True):
        split = SPLIT_FOLDERS[folders[0].lower()] if by_split and folders else None
        classes = folders[1:] if by_split else folders
        wishes.append(_Wish(name, name, label=classes[0] if classes else None, split=split))
    return wishes


def _from_list(source: Path) -> list[_Wish]:
    """What a list asks for."""
    if not source.exists():
        raise ManifestError(f"{source} does not exist; give a folder or a list of files")
    if source.suffix.lower() == ".txt":
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ManifestError(f"{source} is no UTF-8 text ({error}); write it again") from error
        numbered = [(line.strip(), f"line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
        columns = Columns({"path": [path for path, _ in numbered]}, [place for _, place in numbered])
    elif source.suffix.lower() in (".csv", ".tsv", ".parquet"):
        columns = read_columns(source)
    else:
        raise ManifestError(
            f"cannot scan {source}; give a folder or a list that ends in .csv, .tsv, .parquet or .txt"
        )
    wishes = []
    names = ("id", "start_seconds", "end_seconds", "label", "split")
    for path, *said in zip(columns.values["path"], *(columns.get(name) for name in names), strict=True):
        given = {name: value for name, value in zip(names, said, strict=True) if value is not None}
        path = relative_path(path, source.absolute().parent)
        given.setdefault("id", default_id(path, given.get("start_seconds", 0.0), given.get("end_seconds")))
        wishes.append(_Wish(path, **given))
    if not wishes:
        raise ManifestError(f"{source} lists no file; add one a line")
    return wishes


def _with_splits(wishes: list[_Wish], split: str | None, val_share: float) -> list[_Wish]:
    """The split of each sample: the one asked for, else its own, else by a hash of its path."""
    if split is not None:
        wishes = [replace(wish, split=split) for wish in wishes]
    return [
        wish if wish.split else replace(wish, split="test" if _position(wish.path) < val_share else "train")
        for wish in wishes
    ]


def _position(path: str) -> float:
    """A number in [0, 1) that depends on the path alone."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


# ---- what is in them


def _probe_all(
    wishes: list[_Wish], root: Path, workers: int | None, progress: Callable[[int, int], None] | None
) -> tuple[list[Sample], list[Skipped]]:
    """Probe each file once, in threads: the decoding libraries release the interpreter lock."""
    paths = list(dict.fromkeys(wish.path for wish in wishes))
    found: dict[str, tuple[MediaInfo, str] | Skipped] = {}
    pool = ThreadPoolExecutor(workers or min(32, (os.cpu_count() or 1) + 4))
    try:
        results = pool.map(lambda path: measure(path, root), paths)
        for done, (path, result) in enumerate(zip(paths, results, strict=True), start=1):
            found[path] = result
            if progress is not None:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the files in the queue
    skipped = [result for result in found.values() if isinstance(result, Skipped)]
    samples = []
    for wish in wishes:
        result = found[wish.path]
        if isinstance(result, Skipped):
            continue
        sample = _sample(wish, *result)
        if isinstance(sample, Skipped):
            skipped.append(sample)
        else:
            samples.append(sample)
    return samples, skipped


def _sample(wish: _Wish, info: MediaInfo, fingerprint: str) -> Sample | Skipped:
    """The row of a file, or why the part asked for is not in it."""
    # An end of 0, as of rows never probed, means the end of the file.
    end = min(wish.end_seconds or info.duration_seconds, info.duration_seconds)
    if not 0 <= wish.start_seconds < end:
        reason = (
            f"{wish.start_seconds} s to {end} s is empty or outside the {info.duration_seconds} s of the file"
        )
        return Skipped(wish.id, "open", reason)
    return Sample(
        id=wish.id,
        path=wish.path,
        start_seconds=wish.start_seconds,
        end_seconds=end,
        label=wish.label,
        split=wish.split or "train",
        has_video=info.has_video,
        has_audio=info.has_audio,
        duration_seconds=info.duration_seconds,
        fps=info.fps,
        width=info.width,
        height=info.height,
        content_hash=fingerprint,
    )
