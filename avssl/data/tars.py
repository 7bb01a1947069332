"""Tar archives in the layout of WebDataset: members that share a key are one sample."""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avssl.data.measure import Skipped
from avssl.data.probing import Wish
from avssl.data.tables import relative_path
from avssl.errors import ManifestError
from avssl.types import Part

SOUNDS = frozenset(["wav", "flac", "mp3", "ogg", "opus", "m4a", "aac"])
"""Extensions of members that are the sound of their sample."""

TEXTS = frozenset(["json", "cls", "txt"])
"""Extensions of members that describe it."""

MAX_TEXT_BYTES = 1_000_000


@dataclass
class Group:
    """The members of one sample.

    Parameters
    ----------
    archive, key : str
        Path of the tar, and what the names of the members have in common.
    video, image, audio : Part or None
        First member of each kind.
    texts : dict of str to str
        Other members by extension.
    """

    archive: str
    key: str
    video: Part | None = None
    image: Part | None = None
    audio: Part | None = None
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part | None, Part | None]:
        """Video, or else image, and sound."""
        return self.video or self.image, self.audio

    def said(self) -> dict[str, Any]:
        """Id, label and split as far as the members tell; the label is that of cls, json or txt."""
        try:
            told = json.loads(self.texts.get("json", "{}"))
        except ValueError:
            told = {}
        told = told if isinstance(told, dict) else {}
        label = self.texts.get("cls", told.get("label", self.texts.get("txt")))
        values = {"id": told.get("id"), "split": told.get("split"), "label": label}
        return {k: str(v).strip() for k, v in values.items() if v is not None and str(v).strip()}


def from_archives(
    archives: Sequence[Path], root: Path, videos: frozenset[str], images: frozenset[str]
) -> tuple[list[Wish], list[Skipped]]:
    """One sample a key of each tar; ids of the samples' own if all are different, else tar and key.

    Parameters
    ----------
    archives, root
        Tars, and the folder their paths become relative to.
    videos, images
        Extensions of the members to take; sound is always taken.

    Raises
    ------
    ManifestError
        When no member can be taken.
    """
    groups: list[Group] = []
    refused: list[Skipped] = []
    for archive in archives:
        found, bad = read_archive(archive, videos, images)
        groups += found
        refused += bad
    if not groups:
        first = f"; the first refused: {refused[0].path}: {refused[0].reason}" if refused else ""
        raise ManifestError(
            f"no media in the {len(archives)} tars of {root}{first}; a sample needs a member that ends in "
            f"{' '.join(sorted(videos | images))} or {' '.join(sorted(SOUNDS))}"
        )
    said = [group.said() for group in groups]
    own = {values.get("id") for values in said}
    wishes = []
    for group, values in zip(groups, said, strict=True):
        path = relative_path(group.archive, root)
        name = values["id"] if None not in own and len(own) == len(groups) else f"{path}/{group.key}"
        label, split = values.get("label"), values.get("split")
        wishes.append(Wish(path, name, label=label, split=split, parts=group.parts))
    return wishes, refused


def read_archive(
    path: Path, videos: frozenset[str], images: frozenset[str]
) -> tuple[list[Group], list[Skipped]]:
    """Samples of a tar, and the members that are refused.

    Parameters
    ----------
    path : Path
        An uncompressed tar.
    videos, images : frozenset of str
        Extensions of the members to take.

    Returns
    -------
    list of Group, list of Skipped
        Groups in the order of the archive. Refused are links, devices and names that lead outside; a damaged
        archive gives what comes before the damage.
    """
    groups: dict[str, Group] = {}
    refused: list[Skipped] = []
    try:
        for member, file in _members(path):
            reason = _unsafe(member)
            if reason:
                refused.append(Skipped(f"{path}: {member.name}", "open", reason))
            elif member.isfile() and member.size > 0:
                group, extension = _group_of(groups, member, path)
                kind = extension.rpartition(".")[2]
                part = Part(str(path), member.offset_data, member.size)
                if kind in videos:
                    group.video = group.video or part
                elif kind in images:
                    group.image = group.image or part
                elif kind in SOUNDS:
                    group.audio = group.audio or part
                elif extension in TEXTS and member.size <= MAX_TEXT_BYTES:
                    content = file.extractfile(member)
                    assert content is not None  # it is a regular file
                    group.texts[extension] = content.read().decode("utf-8", "replace")
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"no readable tar from here on ({error}); a compressed one must be decompressed first"
        refused.append(Skipped(str(path), "open", reason))
    return [group for group in groups.values() if any(group.parts)], refused


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    size = os.path.getsize(path)
    with tarfile.open(path, "r:") as file:
        for member in file:
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"{member.name} is cut off")
            yield member, file
        with path.open("rb") as raw:  # tarfile takes a damaged header for the end
            raw.seek(file.offset)
            if any(raw.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"damaged at byte {file.offset}")


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member must not be taken, None if it may."""
    name = posixpath.normpath(member.name.replace("\\", "/"))
    if posixpath.isabs(name) or name.split("/")[0] == ".." or name[1:2] == ":":
        return "the name of the member leads outside the archive"
    if member.issym() or member.islnk():
        return f"the member is a link to {member.linkname}"
    if not (member.isfile() or member.isdir()) or member.issparse():
        return "the member is neither a plain file nor a folder"
    return None


def _group_of(groups: dict[str, Group], member: tarfile.TarInfo, path: Path) -> tuple[Group, str]:
    """The sample a member belongs to, and its extension: what follows the first dot of the name."""
    folder, name = posixpath.split(posixpath.normpath(member.name))
    stem, _, extension = name.partition(".")
    key = posixpath.join(folder, stem)
    return groups.setdefault(key, Group(str(path), key)), extension.lower()
