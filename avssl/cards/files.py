"""Files of a local copy: which label files there are, and which file is which sample."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from avssl.cards.card import Card, Layout
from avssl.cards.entries import Entry, file_names
from avssl.data.scan import EXTENSIONS, IMAGES, walk_files
from avssl.errors import ManifestError

MEDIA = {
    "video": EXTENSIONS,
    "audio": frozenset(["wav", "flac", "ogg", "opus", "mp3", "m4a", "aac"]),
    "image": IMAGES,
}


class Copy:
    """All files below a folder, and label files that lie elsewhere.

    Parameters
    ----------
    root : Path
        Folder of the copy.
    lists : sequence of Path
        Folders or files to look for label files in, before the root.

    Raises
    ------
    ManifestError
        When one of them does not exist or cannot be listed.
    """

    def __init__(self, root: Path, lists: Sequence[Path] = ()) -> None:
        if not root.is_dir():
            rule = "is a file" if root.exists() else "does not exist"
            raise ManifestError(f"{root} {rule}; --root takes the folder of the data set")
        self.root = root
        self.files = sorted(_below(root))
        self._places = [_list_place(path) for path in lists] + [(root, self.files)]

    def find_lists(self, wanted: Sequence[str], fold: int = 1) -> list[Path]:
        """Label files of the first of the wanted names that is there; several only for a name with ``*``."""
        for pattern in (name.format(fold=fold) for name in wanted):
            fits = fnmatchcase if "*" in pattern else str.__eq__
            for folder, names in self._places:
                found = [folder / name for name in names if fits(name.rpartition("/")[2], pattern)]
                if not found:
                    continue
                if "*" in pattern:
                    return found
                depth = min(len(path.parts) for path in found)
                nearest = [path for path in found if len(path.parts) == depth]
                if len(nearest) > 1:
                    raise ManifestError(
                        f"which {pattern} is meant, {nearest[0]} or {nearest[1]}? Name it with --lists"
                    )
                return nearest
        return []

    def media(self, layout: Layout) -> list[str]:
        """Sorted paths below the root of the media files of the kinds of a layout."""
        wanted = frozenset().union(*(MEDIA[kind] for kind in layout.media))
        return [name for name in self.files if _extension(name) in wanted]

    def outline(self, at_most: int = 10) -> str:
        """The first level of the folder, for messages."""
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(self.root))
        more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
        return (", ".join(names[:at_most]) + more) or "nothing"


def few(names: Sequence[str], at_most: int = 5) -> str:
    """The first names, for messages."""
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")


def misfit(card: Card, copy: Copy, why: str) -> ManifestError:
    """The error for a folder that is none of the data set: what was expected and what is there."""
    tree = "\n".join(f"    {line}" for line in card.layout.tree.rstrip().splitlines())
    return ManifestError(
        f"{copy.root} is no copy of {card.title}: {why}\n  expected:\n{tree}\n  found: {copy.outline()}\n"
        "  --root takes the folder of the data set or one above it, --lists label files from elsewhere"
    )


def entries_of_paths(layout: Layout, split: str, media: Sequence[str], taken: set[str]) -> list[Entry]:
    """Samples of a split without label file, from the paths of media files that no other split has taken."""
    pattern = re.compile(layout.paths[split])
    entries = []
    for name in media:
        found = None if name in taken else pattern.search(name)
        if found is not None:
            key = os.path.splitext(name[found.start() :].lstrip("/"))[0]
            groups = found.groupdict()
            entries.append(Entry(groups.get("id", key), key, split, groups.get("label"), file=name))
    return entries


def match(entries: Sequence[Entry], media: Sequence[str], layout: Layout) -> dict[str, str]:
    """File of each entry that has one, by id.

    A file is known by its name without folder and extension. Where several have it, the one whose folders
    fit the label file comes first, then the preferred kind and place, then the one in a folder of the split.
    """
    files_of: defaultdict[str, list[str]] = defaultdict(list)
    for name in media:
        files_of[_stem(name)].append(name)
    kind_of = {extension: i for i, kind in enumerate(layout.media) for extension in MEDIA[kind]}

    def rank(name: str, wanted: str, split: str) -> tuple[bool, int, bool, bool, int, str]:
        return (
            not f"/{os.path.splitext(name)[0]}".endswith(f"/{wanted}"),
            kind_of[_extension(name)],
            not (layout.prefer and re.search(layout.prefer, name)),
            split not in name.split("/"),
            name.count("/"),
            name,
        )

    found = {}
    for entry in entries:
        if entry.file is not None:
            found[entry.id] = entry.file
            continue
        for wanted in file_names(layout.names, entry.key, entry.start, entry.end):
            if candidates := files_of.get(wanted.rpartition("/")[2]):
                found[entry.id] = min(candidates, key=lambda name: rank(name, wanted, entry.split))
                break
    return found


def extra_files(media: Sequence[str], used: set[str]) -> list[str]:
    """Media files that are no sample; a second file of the name of a sample is not counted."""
    stems = {_stem(name) for name in used}
    return [name for name in media if _stem(name) not in stems]


def _below(folder: Path) -> list[str]:
    prefix = len(os.path.join(folder, ""))
    return [name[prefix:].replace(os.sep, "/") for name in walk_files(str(folder))]


def _list_place(path: Path) -> tuple[Path, list[str]]:
    if path.is_dir():
        return path, sorted(_below(path))
    if not path.is_file():
        raise ManifestError(f"{path} does not exist; --lists takes label files or a folder of them")
    return path.parent, [path.name]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()
