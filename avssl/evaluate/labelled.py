"""What the protocols of this room take and give: labelled clips, and predictions for their samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.errors import EvaluationError
from avssl.evaluate.checks import FloatArray, IntArray, class_numbers, first_rows, label_array

FloatRows = NDArray[np.floating[Any]]

BLOCK_CLIPS = 1024
"""Clips that are held in memory as float32 or float64 at a time, where not all are needed."""


class PickedRows:
    """Some rows of an array, which are read when they are asked for.

    Parameters
    ----------
    array : float (M, d)
        May be memory-mapped.
    places : int64 (P,)
        Which rows.
    """

    def __init__(self, array: FloatRows | PickedRows, places: IntArray) -> None:
        self.array = array
        self.places = places
        self.shape: tuple[int, ...] = (len(places), array.shape[1])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: slice | IntArray) -> FloatRows:
        return self.array[self.places[key]]


@dataclass(frozen=True, eq=False)
class LabelledClips:
    """Features of clips, several a sample, and the class of each sample.

    Parameters
    ----------
    features : float (M, d)
        One row a clip; may be memory-mapped, and float16.
    rows : int64 (M,)
        Sample each clip is of: its row in the manifest.
    labels : (M,)
        Class of each clip's sample.

    Raises
    ------
    EvaluationError
        If the three do not fit each other, a label is missing, or a sample has two classes.
    """

    features: FloatRows | PickedRows
    rows: IntArray
    labels: NDArray[Any]

    def __post_init__(self) -> None:
        if len(self.features.shape) != 2 or 0 in self.features.shape:
            raise EvaluationError(
                f"features have shape {self.features.shape}; must be (clips, dimensions), neither 0; pass "
                "one feature a clip"
            )
        object.__setattr__(self, "labels", label_array(self.labels, len(self.features), "labels"))
        if len(self.rows) != len(self.features):
            raise EvaluationError(
                f"rows has {len(self.rows)} entries for {len(self.features)} clips; must be one a clip"
            )
        if (self.sample_labels[self.sample_of] != self.labels).any():
            wrong = self.rows[self.sample_labels[self.sample_of] != self.labels]
            raise EvaluationError(
                f"samples have clips of two classes (rows {first_rows(np.unique(wrong))}); a sample has one "
                "class; take the labels from the manifest"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def samples(self) -> IntArray:
        """Row of each sample, rising, int64 (N,)."""
        return np.unique(self.rows)

    @cached_property
    def sample_of(self) -> IntArray:
        """Place in `samples` of each clip's, int64 (M,)."""
        return np.searchsorted(self.samples, self.rows).astype(np.int64)

    @cached_property
    def sample_labels(self) -> NDArray[Any]:
        """Class of each sample, (N,)."""
        _, first = np.unique(self.rows, return_index=True)
        return self.labels[first]

    def of(self, samples: IntArray) -> LabelledClips:
        """Clips of some samples, given by their rows; those that are not here are left out."""
        keep = np.flatnonzero(np.isin(self.rows, samples))
        if not keep.size:
            raise EvaluationError(
                f"none of the {len(samples)} samples asked for is among those that could be read; look at "
                "the failures of the features"
            )
        return LabelledClips(PickedRows(self.features, keep), self.rows[keep], self.labels[keep])

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Clips one block after another: which, and their features as float32.

        Raises
        ------
        EvaluationError
            When a feature is not finite.
        """
        for start in range(0, len(self), BLOCK_CLIPS):
            part = slice(start, start + BLOCK_CLIPS)
            block = np.asarray(self.features[part], dtype=np.float32)
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if bad.size:
                raise EvaluationError(
                    f"features of samples hold NaN or infinity (rows {first_rows(self.rows[part][bad])}); "
                    "every feature must be finite; look for a diverged training run"
                )
            yield part, block

    def means(self) -> FloatArray:
        """Mean of the features over the clips of each sample, float64 (N, d)."""
        total = np.zeros((len(self.samples), self.features.shape[1]))
        for part, block in self.blocks():
            np.add.at(total, self.sample_of[part], block)
        return total / np.bincount(self.sample_of)[:, None]

    def mean_scores(self, scores: FloatArray) -> FloatArray:
        """Mean over the clips of each sample, (N, K), of scores of each clip, (M, K)."""
        total = np.zeros((len(self.samples), scores.shape[1]))
        np.add.at(total, self.sample_of, scores)
        return total / np.bincount(self.sample_of)[:, None]


def common_classes(train: LabelledClips, test: LabelledClips) -> tuple[list[Any], IntArray, IntArray]:
    """Sorted classes of the training clips, and the number of the class of each clip of either.

    Raises
    ------
    EvaluationError
        When there are fewer than two, a test clip has another class, or the features are of two lengths.
    """
    if train.features.shape[1] != test.features.shape[1]:
        raise EvaluationError(
            f"train has {train.features.shape[1]} dimensions and test has {test.features.shape[1]}; must be "
            "equal; take both from one model and one block"
        )
    names, train_classes = class_numbers(train.labels, "the labels of the training clips")
    if (unknown := np.setdiff1d(test.labels, names)).size:
        raise EvaluationError(
            f"{unknown.size} classes of the test clips do not occur among the training clips "
            f"({first_rows(unknown)}); they could never be found; split the data by sample, not by class"
        )
    return names.tolist(), train_classes, np.searchsorted(names, test.labels).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of each test sample.

    Parameters
    ----------
    rows : int64 (N,)
        Row of each sample in the manifest.
    predicted, true : int64 (N,)
        Class numbers, counted in `classes`.
    classes : list
        Names of the classes, sorted.
    """

    rows: IntArray
    predicted: IntArray
    true: IntArray
    classes: list[Any]

    @property
    def accuracy(self) -> float:
        """Share of the samples that are classified rightly."""
        return float(np.mean(self.predicted == self.true))


def predict_samples(
    scores: FloatArray, clips: LabelledClips, clip_classes: IntArray, classes: list[Any]
) -> Predictions:
    """Class of largest mean score over the clips of each sample; the first of equals.

    Parameters
    ----------
    scores : float (M, K)
        Of each clip and class.
    clips : LabelledClips
        The M clips.
    clip_classes : int64 (M,)
        True class of each.
    classes : list
        Names of the K classes.
    """
    true = np.zeros(len(clips.samples), dtype=np.int64)
    true[clips.sample_of] = clip_classes
    predicted = clips.mean_scores(scores).argmax(axis=1).astype(np.int64)
    return Predictions(clips.samples, predicted, true, classes)
