"""Weighted k-nearest-neighbour accuracy, the probe without a parameter to fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from avssl.errors import EvaluationError
from avssl.evaluate.checks import (
    FloatArray,
    IntArray,
    Labels,
    check_same_width,
    comparable_rows,
    label_array,
    paired_class_numbers,
    unit_rows,
)

# Votes this close, relative to the winner's, are a tie: similarities are float32.
VOTE_TIE = 1e-6


def knn_accuracy(
    train: ArrayLike,
    train_labels: Labels,
    test: ArrayLike,
    test_labels: Labels,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test rows whose class wins the vote of their nearest training rows.

    Each of the `k` training rows of largest cosine s votes for its class with weight exp(s / temperature).
    The search is exact. When votes tie, the class first in sorted order wins.

    Parameters
    ----------
    train : (N, d) array
        Features to search; scaled to length 1 here.
    train_labels : N labels
        Their classes, at least two.
    test : (M, d) array
        Features that ask.
    test_labels : M labels
        Their classes, all of them among `train_labels`.
    k : int >= 1
        Number of neighbours; the number of training rows if that is smaller.
    temperature : float > 0
        Smaller gives near neighbours more weight.

    Returns
    -------
    float
        Accuracy in [0, 1].

    Raises
    ------
    EvaluationError
        If arrays and labels do not fit each other, rows are not finite or all the same, or `k` or
        `temperature` is out of range.

    References
    ----------
    Wu, Xiong, Yu, Lin: Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
    CVPR 2018, section 3.4.
    """
    if k < 1 or not temperature > 0:
        raise EvaluationError(
            f"got k={k} and temperature={temperature}; must be k >= 1 and temperature > 0; "
            "the paper has 200 and 0.07"
        )
    gallery, queries = comparable_rows(train, "train"), unit_rows(test, "test")
    check_same_width(gallery, queries, ("train", "test"))
    gallery_classes, query_classes = paired_class_numbers(
        label_array(train_labels, len(gallery), "train_labels"),
        label_array(test_labels, len(queries), "test_labels"),
        "train_labels",
        "test_labels",
    )
    similarity, neighbours = _nearest(gallery, queries, min(k, len(gallery)))
    # Votes relative to the nearest neighbour's: the same winner, and no overflow at any temperature.
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    predicted = _vote(weights, gallery_classes[neighbours], int(gallery_classes.max()) + 1)
    return float(np.mean(predicted == query_classes))


def _nearest(gallery: FloatArray, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
    """Cosines and rows of the k nearest gallery rows of each query, both (M, k), nearest first."""
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.astype(np.float32))
    similarity, rows = index.search(queries.astype(np.float32), k)
    return similarity.astype(np.float64), rows


def _vote(weights: FloatArray, classes: IntArray, num_classes: int) -> IntArray:
    """Class number with the largest sum of weights in each row; the smallest number among ties."""
    votes = np.zeros((len(weights), num_classes))
    np.add.at(votes, (np.arange(len(weights))[:, None], classes), weights)
    winners = votes >= votes.max(axis=1, keepdims=True) * (1 - VOTE_TIE)
    return winners.argmax(axis=1)
