"""The manifest: which samples there are, in which order. One row a sample, sorted by id."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avssl.data.checks import check_rows, named
from avssl.data.remote import is_url, local_copy
from avssl.data.tables import (
    PLACES,
    SCHEMA,
    Sample,
    check_names,
    read_columns,
    read_metadata,
    read_parquet,
    samples_of,
)
from avssl.errors import ManifestError
from avssl.files import atomic_write
from avssl.types import Source

VERSION = 1
"""Version of the parquet layout; a file with a higher one is refused."""

BESIDE = "."
"""Stored root of a manifest whose files lie beside it, wherever both are."""


class Manifest:
    """Samples sorted by id.

    Parameters
    ----------
    table : pyarrow.Table
        Columns of `Sample`, in any order of rows; kept sorted by id. Those that say where in a file a sample
        lies may be left out, and are if they are empty.
    root : str or Path
        Folder the relative paths start from; may be a URL.

    Raises
    ------
    ManifestError
        When there is no row, an id occurs twice, or a row has impossible times.
    """

    def __init__(self, table: pa.Table, root: str | Path) -> None:
        placed = all(name in table.column_names for name in PLACES.names)
        placed = placed and any(table[name].null_count < table.num_rows for name in PLACES.names)
        schema = pa.schema([*SCHEMA, *PLACES]) if placed else SCHEMA
        try:
            table = table.select(schema.names).cast(schema).combine_chunks()
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise ManifestError(f"the table does not have the columns of a manifest: {error}") from error
        if table.num_rows == 0:
            raise ManifestError("a manifest needs at least one sample; got none")
        self.table = table.sort_by("id").replace_schema_metadata(None)
        self.root = str(root).rstrip("/") if is_url(root) else Path(os.path.abspath(root))
        check_rows(self.table)

    @classmethod
    def from_samples(cls, samples: Iterable[Sample], root: str | Path) -> Manifest:
        """Manifest of the given rows."""
        schema = pa.schema([*SCHEMA, *PLACES])
        return cls(pa.Table.from_pylist([asdict(sample) for sample in samples], schema=schema), root)

    # ---- rows and columns

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Manifest({len(self)} samples, root={self.root}, splits={self.splits}, hash={self.hash[:12]})"

    def row(self, i: int) -> Sample:
        """Row `i`, counted from 0."""
        columns = zip(self.table.column_names, self.table.columns, strict=True)
        return Sample(**{name: column[i].as_py() for name, column in columns})

    def path(self, i: int) -> str:
        """Absolute path of the file of row `i`, or its URL."""
        path: str = self.table["path"][i].as_py()
        if is_url(path):
            return path
        return f"{self.root}/{path}" if is_url(self.root) else os.path.join(self.root, path)

    def sources(self, i: int) -> tuple[Source, Source | None]:
        """What a reader opens for row `i`, and where its sound is when that lies apart; fetches URLs."""
        return self.row(i).sources(local_copy(self.path(i)))

    @property
    def is_remote(self) -> bool:
        """Whether some of the files are at URLs."""
        return is_url(self.root) or any(map(is_url, pc.unique(self.table["path"]).to_pylist()))

    @property
    def ids(self) -> list[str]:
        """Ids, sorted."""
        return self.table["id"].to_pylist()

    @property
    def labels(self) -> list[str | None]:
        """Label of each row."""
        return self.table["label"].to_pylist()

    @cached_property
    def classes(self) -> list[str]:
        """Labels that occur, sorted."""
        return sorted({label for label in self.labels if label is not None})

    @property
    def splits(self) -> dict[str, int]:
        """Number of rows of each split, sorted by name."""
        return dict(sorted(Counter(self.table["split"].to_pylist()).items()))

    def label_indices(self, classes: Sequence[str] | None = None) -> np.ndarray:
        """Position of each label in `classes` (default: `self.classes`), int64 (N,); -1 without label.

        Give the classes of the whole manifest to number one split as another one.
        """
        number: dict[str | None, int] = {
            name: i for i, name in enumerate(self.classes if classes is None else classes)
        }
        if unknown := sorted(set(self.classes) - set(number)):
            raise ManifestError(
                f"{named(unknown)}: not among the {len(number)} classes; label both splits alike"
            )
        number[None] = -1
        return np.array([number[label] for label in self.labels], dtype=np.int64)

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """Row of each id, int64; `ManifestError` names the ids that are not here."""
        wanted = list(ids)
        unknown = [name for name in wanted if name not in self._row_of]
        if unknown:
            raise ManifestError(f"{named(unknown)}: no such id among the {len(self)} samples of the manifest")
        return np.array([self._row_of[name] for name in wanted], dtype=np.int64)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def copies(self) -> np.ndarray:
        """Row of the first copy of each sample, int64 (N,): same content and times; itself where unhashed."""
        columns = [self.table[n].to_pylist() for n in ("content_hash", "start_seconds", "end_seconds")]
        first: dict[tuple[object, ...], int] = {}
        groups = [
            first.setdefault((key if key[0] else (i,)), i) for i, key in enumerate(zip(*columns, strict=True))
        ]
        return np.array(groups, dtype=np.int64)

    def select(
        self, split: str | None = None, need_video: bool = False, need_audio: bool = False
    ) -> Manifest:
        """Rows of one split (None: all) that have the streams needed, as a manifest of its own.

        Raises
        ------
        ManifestError
            When no row is left.
        """
        keep = np.ones(len(self), dtype=bool)
        if split is not None:
            keep &= np.array(self.table["split"].to_pylist(), dtype=object) == split
        for needed, name in ((need_video, "has_video"), (need_audio, "has_audio")):
            keep &= self.table[name].to_numpy() if needed else True
        if not keep.any():
            needs = [word for needed, word in ((need_video, "video"), (need_audio, "audio")) if needed]
            having = f" with {' and '.join(needs)}" if needs else ""
            there = ", ".join(f"{name} ({count})" for name, count in self.splits.items())
            raise ManifestError(f"no sample of split {split!r}{having}; splits of the manifest: {there}")
        return Manifest(self.table.filter(pa.array(keep)), self.root)

    # ---- identity

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over all columns but `path` and the places in it, row by row in the order of ids.

        Where the data lie is left out, so that the same data elsewhere keep their hash; what they contain is
        in it through `content_hash`.
        """
        digest = hashlib.sha256(f"avssl manifest {VERSION}".encode())
        for field in SCHEMA:
            column = self.table[field.name]
            digest.update(f"\n{field.name}:{field.type}\n".encode())
            if field.name == "path":
                continue
            if field.type == pa.string():
                lengths = pc.fill_null(pc.binary_length(column), -1)
                digest.update(lengths.to_numpy().astype("<i8").tobytes())
                digest.update("".join(text for text in column.to_pylist() if text).encode())
            else:
                digest.update(column.to_numpy().astype("<f8").tobytes())
        return digest.hexdigest()

    # ---- files

    def save(self, path: str | Path) -> None:
        """Write to ``.parquet`` or ``.csv``, whole or not at all.

        A CSV file cannot say its root: unless it lies in the root itself, it holds absolute paths. A manifest
        of shards that is saved beside them goes on to find them there when the folder moves.
        """
        path = Path(path)
        in_root = path.absolute().parent == self.root
        if path.suffix == ".parquet":
            beside = in_root and "video_offset_bytes" in self.table.column_names
            metadata = {"avssl.version": str(VERSION), "avssl.root": BESIDE if beside else str(self.root)}
            with atomic_write(path) as file:
                pq.write_table(self.table.replace_schema_metadata(metadata), file)
        elif path.suffix == ".csv":
            with atomic_write(path) as file:
                file.write(self._csv(absolute=not in_root).encode())
        else:
            raise ManifestError(f"cannot write a manifest to {path}; the name must end in .parquet or .csv")

    def _csv(self, absolute: bool) -> str:
        columns = {name: self.table[name].to_pylist() for name in self.table.column_names}
        if absolute:
            columns["path"] = [self.path(i).replace(os.sep, "/") for i in range(len(self))]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None) -> Manifest:
        """Read ``.parquet``, ``.csv`` or ``.tsv``.

        Parameters
        ----------
        path : str or Path
            A saved manifest, which may be at a URL, or any table with at least a ``path`` column: what it
            leaves out takes the defaults of `Sample`. Such rows were never probed; training needs a scan of
            the list.
        root : str or Path, optional
            Folder the relative paths start from, for data that moved. Default: the one stored in the parquet
            file, else the folder of the file.

        Raises
        ------
        ManifestError
            When the file is missing, damaged, of a later version, or holds unknown columns or wrong values.
        """
        home: str | Path = Path(path).absolute().parent
        if is_url(path):
            home = str(path).rpartition("/")[0]
            path = local_copy(str(path))
        path = Path(path)
        if path.suffix not in (".parquet", ".csv", ".tsv"):
            raise ManifestError(
                f"cannot read a manifest from {path}; the name must end in .parquet, .csv or .tsv"
            )
        if path.suffix == ".parquet" and path.is_file():
            stored = read_metadata(path)
            version = int(stored.get(b"avssl.version", b"0"))
            if version > VERSION:
                raise ManifestError(
                    f"{path} has manifest version {version}; this package reads up to {VERSION}: update it"
                )
            if version:
                table = read_parquet(path)
                check_names(table.column_names, path, "row 0")
                stored_root = stored[b"avssl.root"].decode()
                if root is None:
                    root = home if stored_root == BESIDE else stored_root
                return cls(table, root)
        columns = read_columns(path)
        root = home if root is None else root
        return cls.from_samples(samples_of(columns, root), root)
