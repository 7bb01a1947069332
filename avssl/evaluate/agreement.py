"""How good mined positives are, and whether embeddings have collapsed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from avssl.errors import EvaluationError
from avssl.evaluate.checks import Labels, class_numbers, first_rows, label_array, unit_rows


def positive_precision(positives: ArrayLike, labels: Labels) -> dict[str, float]:
    """Share of mined positives that have their query's class, against a random choice.

    Parameters
    ----------
    positives : (N, k) int array
        Rows mined as positives of each row; -1 marks an empty place.
    labels : N labels
        Classes, at least two; used to judge only, mining never sees them.

    Returns
    -------
    dict
        ``precision`` in [0, 1] over all mined pairs; ``chance``, the share of same-class pairs among all
        pairs of different rows, sum over classes of n (n - 1) / (N (N - 1)); ``pairs``, the number of mined
        pairs; ``queries``, the number of rows with at least one positive; ``rows``, N.

    Raises
    ------
    EvaluationError
        If `positives` is not an integer (N, k) array of rows in -1..N-1, names a row as its own positive or
        is empty throughout, or labels do not fit.
    """
    array = np.asarray(positives)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise EvaluationError(
            f"positives are {array.dtype} {array.shape}; must be integers (rows, positives); "
            "pass -1 for empty places"
        )
    rows = len(array)
    _, classes = class_numbers(label_array(labels, rows, "labels"), "labels")
    wrong = np.flatnonzero(((array < -1) | (array >= rows) | (array == np.arange(rows)[:, None])).any(axis=1))
    if wrong.size:
        raise EvaluationError(
            f"{wrong.size} rows of positives (rows {first_rows(wrong)}) name themselves or a row outside "
            f"-1..{rows - 1}; positives are other rows of the same manifest; mine again with this manifest"
        )
    query, place = np.nonzero(array >= 0)
    if not query.size:
        raise EvaluationError(
            f"none of {rows} rows has a positive; at least one is needed; mine positives first"
        )
    hits = classes[query] == classes[array[query, place]]
    sizes = np.bincount(classes).astype(np.float64)
    return {
        "precision": float(hits.mean()),
        "chance": float((sizes * (sizes - 1)).sum() / (rows * (rows - 1.0))),
        "pairs": int(query.size),
        "queries": int(np.unique(query).size),
        "rows": rows,
    }


def collapse(embeddings: ArrayLike) -> dict[str, float]:
    """Three signs of collapse, computed on embeddings scaled to length 1.

    Parameters
    ----------
    embeddings : (N, d) array
        Any scale.

    Returns
    -------
    dict
        ``mean_norm``, length of the mean embedding: 0 spread evenly, 1 all the same; ``std``, standard
        deviation averaged over dimensions (0 when collapsed), and ``std_spread`` = 1 / sqrt(d), its value
        when spread evenly (Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021, section
        4.1); ``effective_rank`` in 1..min(N, d), the exponential of the entropy of the singular values
        (Roy & Vetterli, EUSIPCO 2007).

    Raises
    ------
    EvaluationError
        If the shape is not (N, d) or a row is not finite or all zeros.
    """
    unit = unit_rows(embeddings, "embeddings")
    singular = np.linalg.svd(unit, compute_uv=False)
    share = singular / singular.sum()
    share = share[share > 0]
    return {
        "mean_norm": float(np.linalg.norm(unit.mean(axis=0))),
        "std": float(unit.std(axis=0).mean()),
        "std_spread": float(unit.shape[1] ** -0.5),
        "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
    }
