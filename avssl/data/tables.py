"""Lists of samples on disk: CSV, TSV or parquet columns, checked; errors name the line."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from avssl.data.remote import is_url
from avssl.errors import ManifestError
from avssl.types import Part, Source

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("end_seconds", pa.float64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("has_video", pa.bool_(), nullable=False),
        pa.field("has_audio", pa.bool_(), nullable=False),
        pa.field("duration_seconds", pa.float64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
    ]
)

PLACES = pa.schema(
    [
        pa.field(f"{kind}_{what}_bytes", pa.int64())
        for kind in ("video", "audio")
        for what in ("offset", "num")
    ]
)
"""Further columns of a manifest of shards: where in the file at ``path`` the media files of a sample lie."""

NAMES = [*SCHEMA.names, *PLACES.names]


@dataclass(frozen=True)
class Sample:
    """One row of a manifest.

    Parameters
    ----------
    id : str
        Unique and stable name; by default the path, with ``#start-end`` for a part of a file.
    path : str
        Posix path of the file, relative to the root of the manifest when below it, else absolute.
    start_seconds, end_seconds : float
        The stretch of the file that belongs to the sample, from the start of the file.
    label : str or None
        Class; several are joined by ``;``.
    split : str
        ``"train"``, ``"val"``, ``"test"`` or any other name.
    has_video, has_audio : bool
        Whether the file has a stream of that kind.
    duration_seconds : float
        Length of the whole file; 0 when it was never probed.
    fps : float
        Frames a second of the file, 0 without video or when never probed.
    width, height : int
        Size of the frames in pixels, 0 without video or when never probed.
    content_hash : str
        Fingerprint of the bytes of the file (see `avssl.data.measure.content_hash`), empty when never probed.
    video_offset_bytes, video_num_bytes, audio_offset_bytes, audio_num_bytes : int or None
        Of a sample in a tar: where its video (or image) and its sound lie in the file at `path`. None for
        what lies in no file of its own; all four are None for a sample that is a file.
    """

    id: str
    path: str
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    label: str | None = None
    split: str = "train"
    has_video: bool = True
    has_audio: bool = True
    duration_seconds: float = 0.0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    content_hash: str = ""
    video_offset_bytes: int | None = None
    video_num_bytes: int | None = None
    audio_offset_bytes: int | None = None
    audio_num_bytes: int | None = None

    def sources(self, path: str) -> tuple[Source, Source | None]:
        """What a reader opens, and where the sound is when it lies apart; `path` is where the file is now."""
        parts = []
        for offset, length in (
            (self.video_offset_bytes, self.video_num_bytes),
            (self.audio_offset_bytes, self.audio_num_bytes),
        ):
            if offset is not None and length is not None:
                parts.append(Part(path, offset, length))
        return (parts[0] if parts else path), (parts[1] if len(parts) > 1 else None)


@dataclass(frozen=True)
class Columns:
    """Columns of a list as Python values.

    Parameters
    ----------
    values : dict of str to list
        Known columns only; a cell that was left empty is None.
    places : list of str
        Where each row stands in its file, for messages: ``"line 7"`` or ``"row 6"``.
    """

    values: dict[str, list[Any]]
    places: list[str]

    def __len__(self) -> int:
        return len(self.places)

    def get(self, name: str) -> list[Any]:
        """Values of a column, None in each row when the list lacks it."""
        return self.values.get(name, [None] * len(self))


def read_columns(path: Path) -> Columns:
    """Read a list of samples.

    Parameters
    ----------
    path : Path
        ``.csv`` (comma), ``.tsv`` (tab) or ``.parquet``; needs a ``path`` column, other columns of the
        manifest are optional.

    Raises
    ------
    ManifestError
        When the file is missing or damaged, a column is unknown or missing, or a cell has the wrong type.
    """
    if not path.is_file():
        raise ManifestError(f"{path} does not exist; check the path, or make a manifest with a scan")
    if path.suffix.lower() == ".parquet":
        table = read_parquet(path)
        names, rows = table.column_names, [column.to_pylist() for column in table.columns]
        places = [f"row {i}" for i in range(table.num_rows)]
        check_names(names, path, "row 0")
    else:
        names, rows, places = _read_text(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    values = {}
    for name, cells in zip(names, rows, strict=True):
        schema = SCHEMA if name in SCHEMA.names else PLACES
        convert = _CONVERT[schema.field(name).type]
        values[name] = [_cell(convert, c, name, path, p) for c, p in zip(cells, places, strict=True)]
    for cell, place in zip(values["path"], places, strict=True):
        if cell is None:
            raise ManifestError(f"{path}, {place}: the path is empty; fill it in or remove the line")
    return Columns(values, places)


def read_parquet(path: Path) -> pa.Table:
    """Read a parquet file as a table; `ManifestError` when it is damaged."""
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ManifestError(f"{path} is no readable parquet file ({error}); write it again") from error


def read_metadata(path: Path) -> dict[bytes, bytes]:
    """Key-value metadata of a parquet file; `ManifestError` when it is damaged."""
    try:
        return pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise ManifestError(f"{path} is no readable parquet file ({error}); write it again") from error


def check_names(names: list[str], path: Path, place: str) -> None:
    """Refuse unknown, repeated and missing columns."""
    for name in names:
        if name not in NAMES:
            nearest = difflib.get_close_matches(name, NAMES, 1, 0.5)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ManifestError(
                f"{path}, {place}: unknown column {name!r}; {hint}Allowed columns: {', '.join(NAMES)}"
            )
        if names.count(name) > 1:
            raise ManifestError(f"{path}, {place}: column {name!r} is there twice; keep one")
    if "path" not in names:
        raise ManifestError(f"{path}, {place}: no column 'path' among {', '.join(names) or 'none'}; add it")


def _read_text(path: Path, delimiter: str) -> tuple[list[str], list[list[Any]], list[str]]:
    """Header, cells by column and line of each row of a delimited file."""
    rows: list[list[str]] = []
    places: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            names = [name.strip() for name in next(reader, [])]
            check_names(names, path, "line 1")
            for row in reader:
                if row and len(row) != len(names):
                    raise ManifestError(
                        f"{path}, line {reader.line_num}: {len(row)} cells, but the header names "
                        f"{len(names)} columns; quote cells that hold the delimiter"
                    )
                if row:
                    rows.append(row)
                    places.append(f"line {reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} is no readable UTF-8 table ({error}); write it again") from error
    return names, [list(cells) for cells in zip(*rows, strict=True)] or [[] for _ in names], places


def _to_bool(cell: Any) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return known[str(cell).strip().lower()]


def _to_text(cell: Any) -> str:
    if not isinstance(cell, str):
        raise ValueError
    return cell


_CONVERT: dict[pa.DataType, Callable[[Any], Any]] = {
    pa.string(): _to_text,
    pa.float64(): float,
    pa.int32(): int,
    pa.int64(): int,
    pa.bool_(): _to_bool,
}
_RULES: dict[Callable[[Any], Any], str] = {
    _to_text: "text",
    float: "a number",
    int: "a whole number",
    _to_bool: "true or false",
}


def _cell(convert: Callable[[Any], Any], cell: Any, name: str, path: Path, place: str) -> Any:
    if cell is None or cell == "":
        return None
    try:
        return convert(cell)
    except (ValueError, TypeError, KeyError):
        raise ManifestError(
            f"{path}, {place}: column {name!r} holds {cell!r}; must be {_RULES[convert]}, or empty for the "
            "default"
        ) from None


def samples_of(columns: Columns, root: str | Path) -> list[Sample]:
    """Rows of a list as samples, with paths relative to `root`, default ids and the defaults of `Sample`."""
    samples = []
    names = list(columns.values)
    for values in zip(*columns.values.values(), strict=True):
        given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        given["path"] = relative_path(given["path"], root)
        segment = (given.get("start_seconds", 0.0), given.get("end_seconds"))
        given.setdefault("id", default_id(given["path"], *segment))
        given.setdefault("end_seconds", given.get("duration_seconds", 0.0))
        samples.append(Sample(**given))
    return samples


def relative_path(path: str, root: str | Path) -> str:
    """Posix path relative to `root` when below it, else absolute, or a URL; links are not resolved."""
    if is_url(path):
        return path
    base = os.path.abspath(root)
    full = os.path.normpath(os.path.join(base, path))
    inside = full.startswith(base.rstrip(os.sep) + os.sep)
    return (os.path.relpath(full, base) if inside else full).replace(os.sep, "/")


def default_id(path: str, start_seconds: float = 0.0, end_seconds: float | None = None) -> str:
    """Id of a file, or of a part of it: ``folder/file.mp4#3-13``."""
    if end_seconds is None:
        return path if start_seconds == 0 else f"{path}#{start_seconds:.10g}-"
    return f"{path}#{start_seconds:.10g}-{end_seconds:.10g}"
