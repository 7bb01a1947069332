"""Data set cards: what a data set is, where it comes from, and how a local copy of it is laid out."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

import avssl
from avssl.errors import ManifestError

UNUSED = "unused"
"""Split of files that a data set has but that take no part in the fold asked for."""

LABEL_SEPARATOR = ";"
"""Stands between the classes of a sample that has several."""

Column = Literal["key", "path", "label", "split", "start", "end"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class LabelNames:
    """A table that turns codes of classes into names: its file and the names of two of its columns."""

    __pydantic_config__ = _STRICT
    file: str
    code: str
    name: str


@dataclass(frozen=True)
class Layout:
    """Where the files are and what the label files say about them.

    Parameters
    ----------
    kind : str
        How label files are read: ``"table"``; ``"coco"`` (JSON); ``"paths"`` (there are none, folders and
        names say everything); ``"scan"`` (any folder or list, read as by ``avssl prepare``).
    media : list of str
        Kinds of files, the preferred one first where a sample exists as several.
    tree : str
        The layout as a picture, for messages and for people.
    lists : dict of str to list of str
        Names of the label file of each split, wherever it lies; the first that exists counts. ``*`` stands
        for any text (several files then), ``{fold}`` for the number of the fold. Under ``"all"`` stand those
        with a column of splits.
    paths : dict of str to str
        For splits without label file: pattern of the files, searched in the path below the root. Group
        ``label`` is the class, group ``id`` the id, if it is not all that matches without the extension.
    columns : dict of str to (str or int)
        Name, or place from 0 in tables without header, of: ``key`` (YouTube id) or ``path``, ``label``,
        ``split``, ``start``, ``end`` (seconds). ``label: "@file"`` takes the name of the label file.
    delimiter : str
        Of cells.
    skip_lines : str or None
        Pattern of lines to pass over, matched from their start.
    label_pattern : str or None
        Its first group, searched in the cell, is the class.
    label_delimiter : str or None
        Stands between several classes in a cell.
    label_names : LabelNames or None
        Table of the names of classes.
    split_names : dict of str to str
        Split of each value of the column; ``{fold}`` as above, ``*`` for all other values.
    subset : dict of str to str
        File with the names of the only samples of a split that belong to the data set, one a line.
    names : list of str
        What a file of a sample may be called, without folder and extension, from ``key``, ``start``, ``end``
        (whole seconds), ``start_ms`` and ``end_ms``.
    id : str
        Id of a sample in a manifest, from the same.
    clip_seconds : float or None
        Length of a sample where no column gives the end.
    prefer : str or None
        Pattern of the path to take where there are several files of a name.
    """

    __pydantic_config__ = _STRICT
    kind: Literal["table", "coco", "paths", "scan"]
    media: Annotated[list[Literal["video", "audio", "image"]], Field(min_length=1)]
    tree: str
    lists: dict[str, list[str]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    columns: dict[Column, str | int] = field(default_factory=dict)
    delimiter: str = ","
    skip_lines: str | None = None
    label_pattern: str | None = None
    label_delimiter: str | None = None
    label_names: LabelNames | None = None
    split_names: dict[str, str] = field(default_factory=dict)
    subset: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=lambda: ["{key}"])
    id: str = "{key}"
    clip_seconds: float | None = None
    prefer: str | None = None


@dataclass(frozen=True)
class Expected:
    """How much there should be.

    Parameters
    ----------
    classes : int or None
        Number of classes.
    splits : dict of str to (int or list of int)
        Samples of each split; a list gives one number for each fold.
    exact : bool
        Whether a complete copy has exactly these numbers.
    source : str
        Where the numbers are from.
    """

    __pydantic_config__ = _STRICT
    classes: int | None = None
    splits: dict[str, int | list[int]] = field(default_factory=dict)
    exact: bool = True
    source: str = ""


@dataclass(frozen=True)
class Card:
    """One data set.

    Parameters
    ----------
    title, content, source, licence, citation, obtain, notes : str
        For people.
    layout : Layout
        How a copy is read.
    expected : Expected
        How much there should be.
    vanishing : bool
        Whether samples are videos on the internet, of which some are gone and whole splits may be left out.
    tolerated : float
        Share of the samples that may be missing or unreadable before a copy counts as broken.
    name : str
        What the command line calls it: the name of the file.
    """

    __pydantic_config__ = _STRICT
    title: str
    content: str
    source: str
    licence: str
    citation: str
    obtain: str
    layout: Layout
    expected: Expected = field(default_factory=Expected)
    notes: str = ""
    vanishing: bool = False
    tolerated: Annotated[float, Field(ge=0, le=1)] = 0.0
    name: str = ""

    @property
    def folds(self) -> int:
        """Number of official ways to split the samples."""
        return max([1, *(len(n) for n in self.expected.splits.values() if isinstance(n, list))])

    def counts(self, fold: int = 1) -> dict[str, int]:
        """Expected samples of each split in a fold, counted from 1."""
        splits = self.expected.splits
        return {name: n[fold - 1] if isinstance(n, list) else n for name, n in splits.items()}


def cards_folder(package: Path | None = None) -> Path:
    """Folder of the cards: ``datasets`` of a checkout, else where an installation keeps shared files.

    Parameters
    ----------
    package : Path, optional
        Folder of the package; default that of `avssl`.
    """
    package = Path(avssl.__file__).parent if package is None else package
    # A folder "datasets" beside an installed package would be another library.
    if (package.parent / "setup.cfg").is_file():
        return package.parent / "datasets"
    places = [folder / "share" / "avssl" / "datasets" for folder in [*package.parents, Path(sys.prefix)]]
    for place in places:
        if place.is_dir():
            return place
    raise ManifestError(
        f"the data set cards are not installed: no folder share/avssl/datasets above {package}; install "
        "avssl again, or give the path of a card in place of a name"
    )


def card_names() -> list[str]:
    """Names of all cards, sorted."""
    return sorted(path.stem for path in cards_folder().glob("*.yaml"))


def load_card(name: str) -> Card:
    """Read a card by its name, or by the path of its file if that ends in ``.yaml``.

    Raises
    ------
    ManifestError
        When there is none, or it has unknown, missing or wrong keys.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        names = card_names()
        if name not in names:
            close = difflib.get_close_matches(name.lower(), names, 1, 0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ManifestError(f"no data set {name!r}; {hint}There are: {', '.join(names)}")
        path = cards_folder() / f"{name}.yaml"
    elif not path.is_file():
        raise ManifestError(f"there is no card {path}; give a name of 'avssl datasets list' or a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is no readable YAML file: {error}") from error
    return card_of(content, path)


def card_of(content: Any, path: Path) -> Card:
    """Card of the content of its file; `path` gives the name and stands in messages."""
    if not isinstance(content, Mapping):
        raise ManifestError(f"{path} holds no keys; a card has title, content, source, licence and so on")
    try:
        return TypeAdapter(Card).validate_python({**content, "name": path.stem})
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ManifestError("\n".join(lines)) from error
