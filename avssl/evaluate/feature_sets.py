"""Features of other programs: ``.npy``, ``.npz`` and ``.parquet``, matched by id, with labels or without."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from avssl.errors import EvaluationError
from avssl.evaluate.checks import first_rows

ID_NAMES = ("id", "ids")
LABEL_NAMES = ("label", "labels")
SUFFIXES = (".npy", ".npz", ".parquet")
Column = NDArray[Any]
DAMAGES = (ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged array raises."""


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of one modality, as they are in a file.

    Parameters
    ----------
    path : Path
        The file.
    features : float (N, d)
        One row a sample.
    ids : str (N,) or None
        Of the samples.
    others : dict of str to (N,) arrays
        Further columns, labels among them.
    """

    path: Path
    features: NDArray[Any]
    ids: Column | None = None
    others: dict[str, Column] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Matched:
    """Samples that both sides have.

    Parameters
    ----------
    ids : str (N,)
        Row numbers where the files give none.
    video_rows, audio_rows : int64 (N,)
        Their rows in the files.
    excluded : dict of str to int
        Samples that only one side has.
    """

    ids: Column
    video_rows: NDArray[np.int64]
    audio_rows: NDArray[np.int64]
    excluded: dict[str, int]


def read_features(path: Path, name: str | None = None) -> FeatureSet:
    """Read features, and ids and other columns where the file has them.

    Parameters
    ----------
    path : Path
        ``.npy``: (N, d). ``.npz``: one array (N, d); ``id`` or ``ids`` holds ids. ``.parquet``: one column of
        lists of numbers; ids are in a column of one of these names.
    name : str, optional
        Array or column of the features, where there are several.

    Raises
    ------
    EvaluationError
        If the file cannot be read, or holds no such features.
    """
    columns = _columns(path)
    wide = [key for key, column in columns.items() if column.ndim == 2 and column.dtype.kind in "fiu"]
    if name not in wide if name is not None else len(wide) != 1:
        there = ", ".join(f"{key} {column.shape}" for key, column in columns.items()) or "nothing"
        asked = "one array (rows, dimensions) is needed" if name is None else f"{name!r} was asked for"
        raise EvaluationError(
            f"{path}: holds {there}; {asked}; name one of: {', '.join(wide) or 'none there'}"
        )
    features = columns[name or wide[0]]
    flat = {key: column for key, column in columns.items() if column.shape == (len(features),)}
    ids = next((flat.pop(key) for key in ID_NAMES if key in flat), None)
    if ids is not None:
        ids = ids.astype(np.str_)
        values, counts = np.unique(ids, return_counts=True)
        if len(values) < len(ids):
            twice = first_rows(values[counts > 1])
            raise EvaluationError(
                f"{path}: {len(ids) - len(values)} of {len(ids)} ids occur again ({twice}); each must be "
                "unique; average the rows of a sample"
            )
    return FeatureSet(path, features, ids, flat)


def match_sets(video: FeatureSet, audio: FeatureSet) -> Matched:
    """Pair the samples of two files by id; without ids on both sides, row by row.

    Raises
    ------
    EvaluationError
        If rows without ids are not equally many, or no id is in both.
    """
    rows = np.arange(len(video.features))
    if video.ids is None or audio.ids is None:
        if len(video.features) != len(audio.features):
            raise EvaluationError(
                f"{video.path} has {len(video.features)} rows and {audio.path} has {len(audio.features)}; "
                "without ids in both, row i of one belongs to row i of the other; give both files ids"
            )
        named = next((ids for ids in (video.ids, audio.ids) if ids is not None), None)
        return Matched(rows.astype(np.str_) if named is None else named, rows, rows, {})
    common, video_rows, audio_rows = np.intersect1d(video.ids, audio.ids, True, return_indices=True)
    if not len(common):
        raise EvaluationError(
            f"no id of {video.path} ({first_rows(video.ids)}) is in {audio.path} ({first_rows(audio.ids)}); "
            "pairs are found by id; write both from one manifest"
        )
    counts = {"only in video": len(video.ids) - len(common), "only in audio": len(audio.ids) - len(common)}
    excluded = {reason: number for reason, number in counts.items() if number}
    return Matched(common, video_rows, audio_rows, excluded)


def read_labels(source: str, sides: list[tuple[FeatureSet, NDArray[np.int64]]], ids: Column) -> list[Any]:
    """Label of each matched sample, None where there is none.

    Parameters
    ----------
    source : str
        A column of a file of features, or a file: ``.txt`` (a label a line) and ``.npy`` go row by row with
        the first side; ``.csv``, ``.parquet`` and ``.npz`` have columns ``id`` and ``label``.
    sides : list of (FeatureSet, int64 (N,))
        Features, and the rows of the matched samples in them; the first that has the column is asked.
    ids : str (N,)
        The matched samples.

    Raises
    ------
    EvaluationError
        If there is neither such a file nor such a column, or it does not fit.
    """
    for one, rows in sides:
        if source in one.others:
            return [value if value != "" else None for value in one.others[source][rows].tolist()]
    first, rows = sides[0]
    path = Path(source)
    if not path.is_file():
        there = ", ".join(sorted({key for one, _ in sides for key in one.others})) or "none"
        raise EvaluationError(
            f"--labels {source}: no such file, and no such column in the features (there: {there}); give a "
            "file with columns id and label, or one label a row"
        )
    if path.suffix == ".txt":
        return _by_row(np.array(_lines(path)), rows, len(first.features), path)
    columns = _columns(path)
    if path.suffix == ".npy":
        return _by_row(columns["features"], rows, len(first.features), path)
    known_ids, labels = (
        next((columns[key] for key in names if key in columns), None) for names in (ID_NAMES, LABEL_NAMES)
    )
    if known_ids is None or labels is None or known_ids.shape != labels.shape:
        raise EvaluationError(
            f"{path}: has columns {', '.join(columns)}; labels need id and label; rename them, or give one "
            "label a row in a text file"
        )
    return _look_up(known_ids.astype(np.str_), labels, ids)


def _look_up(known: Column, labels: Column, ids: Column) -> list[Any]:
    table = dict(zip(known.tolist(), labels.tolist(), strict=True))
    return [table.get(name) for name in ids.tolist()]


def _by_row(labels: Column, rows: NDArray[np.int64], expected: int, path: Path) -> list[Any]:
    if labels.shape != (expected,):
        raise EvaluationError(
            f"{path}: has labels {labels.shape} for {expected} rows of features; must be one a row; give a "
            "table with columns id and label"
        )
    return [value if value != "" else None for value in labels[rows].tolist()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: is not text: {error.reason}; write it as UTF-8") from error


def _columns(path: Path) -> dict[str, Column]:
    """Arrays of a file by name."""
    readers: dict[str, Callable[[Path], dict[str, Column]]] = {
        ".npy": _npy,
        ".npz": lambda file: {name: x for name, x in read_npz(file).items() if isinstance(x, np.ndarray)},
        ".parquet": lambda file: _table(pyarrow.parquet.read_table(file), file),
        ".csv": lambda file: _table(pyarrow.csv.read_csv(file), file),
    }
    if path.suffix not in readers:
        raise EvaluationError(f"{path}: is not a file of features; must be one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file; give a file of features ({', '.join(SUFFIXES)})")
    try:
        return readers[path.suffix](path)
    except (*DAMAGES, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EvaluationError(
            f"{path}: cannot be read: {reason}; write it again, without pickled objects"
        ) from error


def _npy(path: Path) -> dict[str, Column]:
    with path.open("rb") as file:
        return {"features": np.lib.format.read_array(file, allow_pickle=False)}


def read_npz(path: Path) -> dict[str, Any]:
    """Members of an ``.npz`` file: arrays, and bytes of what is none.

    Raises
    ------
    One of `DAMAGES`
        As numpy does of damaged files, which it leaves open where it opened them itself.
    """
    with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _table(table: pa.Table, path: Path) -> dict[str, Column]:
    """Columns as arrays; columns of lists as (rows, dimensions)."""
    columns: dict[str, Column] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if "list" in str(column.type):
            columns[name] = _stacked(column, f"{path}: column {name}")
        else:
            columns[name] = np.array(column.to_pylist(), dtype=object if column.null_count else None)
    return columns


def _stacked(column: pa.Array, what: str) -> Column:
    """A column of lists as (rows, dimensions)."""
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    usual = np.bincount(lengths[lengths > 0].astype(np.int64)).argmax() if (lengths > 0).any() else 0
    odd = np.flatnonzero(lengths != usual)
    if odd.size or not usual:
        raise EvaluationError(
            f"{what}: {len(odd)} of {len(column)} rows ({first_rows(odd)}) are empty or not {usual} numbers "
            "long; all must be equally long; leave these rows out"
        )
    return np.asarray(column.flatten()).reshape(len(column), usual)
