"""From a folder, a list of files or tars to a manifest of what can be read, and names of what cannot."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avssl.data.manifest import Manifest
from avssl.data.measure import Parts, Skipped
from avssl.data.probing import Wish, probe_wishes
from avssl.data.tables import PLACES, Columns, default_id, read_columns, relative_path
from avssl.data.tars import from_archives
from avssl.errors import ManifestError
from avssl.types import Part

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

    A ``.tar``, or a folder with no media but tars, is read as WebDataset: members whose names differ only
    after the first dot are one sample.

    Parameters
    ----------
    source : str or Path
        Folder, list or tar.
    split : str, optional
        Split of all files, whatever folders or list say.
    val_share : float in [0, 1)
        Of the files that have no split, about this share goes to split ``"test"``, chosen by a hash of the
        relative path (all parts of a file go the same way); the others to ``"train"``.
    images : bool
        Whether images of a folder or tar count as well, each a video of one frame; beside videos they are
        often only thumbnails.
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
    refused: list[Skipped] = []
    taken_images = IMAGES if images else frozenset()
    root = source if source.is_dir() else source.absolute().parent
    if source.is_dir():
        files, ignored = _find_media(source, EXTENSIONS | taken_images)
        if files:
            wishes = _from_folders(files)
        else:
            files = sorted(walk_files(os.path.abspath(source)))
            archives = [Path(name) for name in files if name.lower().endswith(".tar")]
            wishes, refused = from_archives(archives, root, EXTENSIONS, taken_images)
            ignored.pop(".tar", None)
    elif source.suffix.lower() == ".tar" and source.is_file():
        wishes, refused = from_archives([source.absolute()], root, EXTENSIONS, taken_images)
    else:
        wishes = _from_list(source)
    wishes = _with_splits(wishes, split, val_share)
    samples, skipped = probe_wishes(wishes, root, workers, progress)
    skipped = refused + skipped
    if not samples:
        first = skipped[0]
        raise ManifestError(
            f"none of the {len(skipped)} files of {source} can be read; the first: "
            f"{first.path}: {first.stage}: {first.reason}"
        )
    return ScanResult(Manifest.from_samples(samples, root), skipped, ignored)


# ---- which files


def _find_media(folder: Path, extensions: frozenset[str]) -> tuple[list[str], dict[str, int]]:
    """Sorted posix paths of media files relative to the folder; number of other files by extension.

    There is at least one media file or one tar.
    """
    media: list[str] = []
    others: Counter[str] = Counter()
    for name in walk_files(str(folder)):
        extension = os.path.splitext(name)[1].lower()
        if extension[1:] in extensions:
            media.append(os.path.relpath(name, folder).replace(os.sep, "/"))
        else:
            others[extension or "(none)"] += 1
    if not media and ".tar" not in others:
        seen = ", ".join(f"{extension} ({count})" for extension, count in others.most_common(10))
        raise ManifestError(
            f"no media file below {folder}; extensions seen: {seen or 'none, the folder is empty'}; "
            f"extensions taken: {' '.join(sorted(extensions))}"
        )
    return sorted(media), dict(others)


def walk_files(top: str) -> Iterator[str]:
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


def _from_folders(files: Sequence[str]) -> list[Wish]:
    """Split and label of each file from the folders it lies in."""
    parts = [name.split("/")[:-1] for name in files]
    tops = {folders[0].lower() for folders in parts if folders}
    # Decided for the whole tree: a class may be called "train" (the vehicle) among others.
    by_split = bool(tops) and tops <= SPLIT_FOLDERS.keys()
    wishes = []
    for name, folders in zip(files, parts, strict=True):
        split = SPLIT_FOLDERS[folders[0].lower()] if by_split and folders else None
        classes = folders[1:] if by_split else folders
        wishes.append(Wish(name, name, label=classes[0] if classes else None, split=split))
    return wishes


def _from_list(source: Path) -> list[Wish]:
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
        wishes.append(Wish(path, **given))
    if PLACES.names[0] in columns.values:
        places = zip(*(columns.get(name) for name in PLACES.names), strict=True)
        wishes = [
            replace(wish, parts=_parts(os.path.join(source.absolute().parent, wish.path), *place))
            for wish, place in zip(wishes, places, strict=True)
        ]
    if not wishes:
        raise ManifestError(f"{source} lists no file; add one a line")
    return wishes


def _with_splits(wishes: list[Wish], split: str | None, val_share: float) -> list[Wish]:
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


def _parts(path: str, video_offset: Any, video_bytes: Any, audio_offset: Any, audio_bytes: Any) -> Parts:
    """Parts of the file a row of a list names."""
    return (
        Part(path, video_offset, video_bytes) if video_offset is not None and video_bytes else None,
        Part(path, audio_offset, audio_bytes) if audio_offset is not None and audio_bytes else None,
    )
