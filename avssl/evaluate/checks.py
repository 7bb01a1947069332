"""What every metric asks of its arrays before it computes a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avssl.errors import EvaluationError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Labels = Sequence[Any] | NDArray[Any] | None

# Unit rows closer than this in every dimension are one point: float32 cannot tell them apart.
SAME_POINT = 1e-7


def first_rows(rows: ArrayLike, limit: int = 5) -> str:
    """Name the first few row numbers, for an error message."""
    numbers = np.asarray(rows).tolist()
    return ", ".join(map(str, numbers[:limit])) + (", ..." if len(numbers) > limit else "")


def _those(rows: IntArray, ids: Sequence[Any] | NDArray[Any] | None) -> str:
    """Name the first few samples: by their ids, or by their rows."""
    if ids is None:
        return f"rows {first_rows(rows)}"
    return f"ids {first_rows(np.asarray(ids)[rows])}"


def feature_rows(
    features: ArrayLike, name: str, ids: Sequence[Any] | NDArray[Any] | None = None
) -> FloatArray:
    """Features as float64 (N, d), N >= 1 and d >= 1; errors name the `ids` of rows, if there are any.

    Raises
    ------
    EvaluationError
        If the shape is not (N, d) or a row holds NaN or infinity.
    """
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise EvaluationError(
            f"{name} has shape {array.shape}; must be (rows, dimensions), neither 0; pass one feature a row"
        )
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        raise EvaluationError(
            f"{bad.size} of {len(array)} rows of {name} hold NaN or infinity ({_those(bad, ids)}); "
            "every row must be finite; leave these rows out and say so, or look for a diverged training run"
        )
    return array


def unit_rows(features: ArrayLike, name: str, ids: Sequence[Any] | NDArray[Any] | None = None) -> FloatArray:
    """Rows of `features` scaled to length 1, float64 (N, d).

    Raises
    ------
    EvaluationError
        If the shape is not (N, d) or a row is not finite or has length 0.
    """
    array = feature_rows(features, name, ids)
    # Dividing by the largest entry first keeps the squares away from overflow and underflow.
    largest = np.abs(array).max(axis=1, keepdims=True)
    zero = np.flatnonzero(largest == 0)
    if zero.size:
        raise EvaluationError(
            f"{zero.size} of {len(array)} rows of {name} are all zeros ({_those(zero, ids)}); "
            "a cosine needs a direction; leave these rows out and say so"
        )
    array = array / largest
    array /= np.linalg.norm(array, axis=1, keepdims=True)
    return array


def comparable_rows(
    features: ArrayLike, name: str, ids: Sequence[Any] | NDArray[Any] | None = None
) -> FloatArray:
    """Rows of `features` scaled to length 1, at least two of which differ, float64 (N, d).

    Raises
    ------
    EvaluationError
        As `unit_rows`, and if there are several rows and all have the same direction: any order among
        them would be an accident.
    """
    unit = unit_rows(features, name, ids)
    if len(unit) > 1 and np.abs(unit - unit[0]).max() <= SAME_POINT:
        rows = _those(np.arange(len(unit)), ids)
        raise EvaluationError(
            f"all {len(unit)} rows of {name} are the same embedding ({rows}); at least two must "
            "differ to be ranked; the model has collapsed, or one feature was written to every row"
        )
    return unit


def label_array(labels: Labels, rows: int, name: str) -> NDArray[Any]:
    """Labels as an array of `rows` comparable values.

    Raises
    ------
    EvaluationError
        If there are no labels, some are missing, or their number is not `rows`.
    """
    if labels is None:
        raise EvaluationError(
            f"{name} is None; this metric compares classes; "
            "give the manifest a label column, or leave the metric out"
        )
    values = list(labels)
    if len(values) != rows:
        raise EvaluationError(
            f"{name} has {len(values)} entries for {rows} rows; must be one a row; take both from a manifest"
        )
    # A missing label in a table that went through pandas is a float NaN: the one value unequal to itself.
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {rows} entries of {name} are missing (rows {first_rows(missing)}); "
            "every row needs a class; evaluate only rows that have a label"
        )
    return np.asarray(values)


def class_numbers(labels: NDArray[Any], name: str) -> tuple[NDArray[Any], IntArray]:
    """Classes in sorted order, and the number of each label's class.

    Raises
    ------
    EvaluationError
        If there are fewer than two classes.
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise EvaluationError(
            f"{name} has the single class {classes.tolist()[0]!r}; at least 2 are needed; "
            "check the label column, or leave the metric out"
        )
    return classes, numbers.astype(np.int64)


def paired_class_numbers(
    known: NDArray[Any], asked: NDArray[Any], known_name: str, asked_name: str
) -> tuple[IntArray, IntArray]:
    """Class numbers of two label arrays, both counted in the sorted classes of `known`.

    Raises
    ------
    EvaluationError
        If `known` has fewer than two classes, or `asked` has one that `known` lacks.
    """
    classes, known_numbers = class_numbers(known, known_name)
    extra = np.setdiff1d(asked, classes)
    if extra.size:
        raise EvaluationError(
            f"{extra.size} classes of {asked_name} do not occur in {known_name} ({first_rows(extra)}); "
            "they could never be found; split the data by sample, not by class"
        )
    return known_numbers, np.searchsorted(classes, asked).astype(np.int64)


def check_same_width(one: FloatArray, other: FloatArray, names: tuple[str, str]) -> None:
    """Raise EvaluationError unless both arrays have the same number of dimensions."""
    if one.shape[1] != other.shape[1]:
        raise EvaluationError(
            f"{names[0]} has {one.shape[1]} dimensions and {names[1]} has {other.shape[1]}; must be equal; "
            "take both from one model and one layer (retrieval across modalities: the projected embeddings)"
        )
