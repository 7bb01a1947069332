"""Retrieval across modalities: where does a query's match stand in the ranked gallery?

Ties are common in practice (failed files that share one embedding, collapsed models), and a rank that ignores
them flatters or punishes by accident. Here b gallery rows score higher than the match and e others score the
same; every order among the equals is equally likely, and each number is its expectation over those orders:

    rank = 1 + b + e / 2                     P(rank <= k) = min(max((k - b) / (e + 1), 0), 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from avssl.errors import EvaluationError
from avssl.evaluate.checks import (
    FloatArray,
    IntArray,
    Labels,
    check_same_width,
    comparable_rows,
    first_rows,
    label_array,
    paired_class_numbers,
)
from avssl.evaluate.ranking import Ties, tie_code
from avssl.evaluate.scores import SCORE_TIE, count_rivals, leave_out, score_blocks


@dataclass(frozen=True)
class RetrievalResult:
    """Ranks of the matches of all queries, summarised.

    Parameters
    ----------
    recall : dict of int to float
        R@k: share of queries whose match is among the first k, in [0, 1].
    chance : dict of int to float
        R@k of a random order, k / pool_size.
    median_rank, mean_rank : float
        Over queries; the first place is rank 1.
    pool_size : int
        Number of gallery rows that are ranked.
    queries : int
        Number of queries.
    tied_queries : int
        Queries whose match shares its score with other rows.
    ties : {"mean", "optimistic", "pessimistic"}
        The rule the numbers follow.
    """

    recall: dict[int, float]
    chance: dict[int, float]
    median_rank: float
    mean_rank: float
    pool_size: int
    queries: int
    tied_queries: int
    ties: Ties

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """R@k and ranks as one flat dictionary, e.g. ``{"a2v_r1": ..., "a2v_median_rank": ...}``."""
        recalls = {f"{prefix}r{k}": value for k, value in self.recall.items()}
        return recalls | {f"{prefix}median_rank": self.median_rank, f"{prefix}mean_rank": self.mean_rank}


def retrieval_metrics(
    queries: ArrayLike,
    gallery: ArrayLike,
    relevant: ArrayLike | None = None,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "mean",
) -> RetrievalResult:
    """Rank the gallery by cosine for each query and find its match.

    Parameters
    ----------
    queries : (M, d) array
        Embeddings that ask.
    gallery : (N, d) array, N >= 2
        Embeddings that are ranked.
    relevant : (M,) int array or None
        Gallery row of each query's match; None: the same row, and then M must be N.
    ks : ints in 1..N
        The k of R@k.
    ties : {"mean", "optimistic", "pessimistic"}
        Rows that score like the match stand around it in every order (the expectation, see the top of this
        file), after it, or before it.

    Raises
    ------
    EvaluationError
        If the arrays do not fit each other, an embedding is not finite or zero, all embeddings of a side are
        the same, or `relevant`, `ks` or `ties` is out of range.
    """
    query_rows, gallery_rows = comparable_rows(queries, "queries"), comparable_rows(gallery, "gallery")
    check_same_width(query_rows, gallery_rows, ("queries", "gallery"))
    pool_size = len(gallery_rows)
    targets = _targets(relevant, len(query_rows), pool_size)
    _check_depths(ks, pool_size)
    tie_code(ties)
    better, equal = count_rivals(query_rows, gallery_rows, targets)
    tied_queries = int(np.count_nonzero(equal))
    if ties == "optimistic":
        equal = np.zeros_like(equal)
    elif ties == "pessimistic":
        better, equal = better + equal, np.zeros_like(equal)
    rank = 1 + better + equal / 2
    return RetrievalResult(
        recall={k: float(np.mean(np.clip((k - better) / (equal + 1), 0, 1))) for k in ks},
        chance={k: k / pool_size for k in ks},
        median_rank=float(np.median(rank)),
        mean_rank=float(np.mean(rank)),
        pool_size=pool_size,
        queries=len(query_rows),
        tied_queries=tied_queries,
        ties=ties,
    )


def class_precision(
    queries: ArrayLike,
    query_labels: Labels,
    gallery: ArrayLike,
    gallery_labels: Labels,
    k: int = 1,
    *,
    exclude_self: bool,
) -> dict[str, float]:
    """Share of the first `k` gallery rows that have the query's class, averaged over queries.

    Rows that tie at place k count by their expectation over random order, as in `retrieval_metrics`.

    Parameters
    ----------
    queries : (M, d) array
        Embeddings that ask.
    query_labels : M labels
        Their classes, all of them among `gallery_labels`.
    gallery : (N, d) array
        Embeddings that are ranked by cosine.
    gallery_labels : N labels
        Their classes, at least two.
    k : int in 1..N (N - 1 with `exclude_self`)
        Number of rows looked at.
    exclude_self : bool
        Leave gallery row i out for query i; both sides must then describe the same samples in one order.

    Returns
    -------
    dict
        ``precision`` and its ``chance`` (a random order) in [0, 1], ``pool_size`` and ``queries``.

    Raises
    ------
    EvaluationError
        If arrays and labels do not fit each other, embeddings cannot be ranked, or `k` is out of range.
    """
    query_rows, gallery_rows = comparable_rows(queries, "queries"), comparable_rows(gallery, "gallery")
    check_same_width(query_rows, gallery_rows, ("queries", "gallery"))
    gallery_classes, query_classes = paired_class_numbers(
        label_array(gallery_labels, len(gallery_rows), "gallery_labels"),
        label_array(query_labels, len(query_rows), "query_labels"),
        "gallery_labels",
        "query_labels",
    )
    if exclude_self:
        _targets(None, len(query_rows), len(gallery_rows))
    pool_size = len(gallery_rows) - exclude_self
    _check_depths((k,), pool_size)

    precisions, sizes = [], []
    for rows, scores in score_blocks(query_rows, gallery_rows):
        same = query_classes[rows, None] == gallery_classes[None, :]
        if exclude_self:
            own = np.arange(rows.start, rows.stop)
            leave_out(scores, own)
            same[np.arange(len(scores)), own] = False
        precisions.append(_expected_precision(scores, same, k))
        sizes.append(same.sum(axis=1))
    return {
        "precision": float(np.mean(np.concatenate(precisions))),
        "chance": float(np.mean(np.concatenate(sizes)) / pool_size),
        "pool_size": pool_size,
        "queries": len(query_rows),
    }


def _targets(relevant: ArrayLike | None, num_queries: int, pool_size: int) -> IntArray:
    """Gallery row of each query's match, (M,)."""
    if relevant is None:
        if num_queries != pool_size:
            raise EvaluationError(
                f"got {num_queries} queries and {pool_size} gallery rows; without `relevant` row i answers "
                "query i, so the numbers must be equal; pass the gallery row of each query's match"
            )
        return np.arange(num_queries)
    targets = np.asarray(relevant)
    if targets.shape != (num_queries,) or not np.issubdtype(targets.dtype, np.integer):
        raise EvaluationError(
            f"relevant is {targets.dtype} {targets.shape}; must be integers ({num_queries},); "
            "pass the gallery row of each query's match"
        )
    outside = np.flatnonzero((targets < 0) | (targets >= pool_size))
    if outside.size:
        raise EvaluationError(
            f"{outside.size} entries of relevant (rows {first_rows(outside)}) lie outside "
            f"0..{pool_size - 1}; each must be a row of the gallery; leave out queries that have no match"
        )
    return targets.astype(np.int64)


def _check_depths(ks: Sequence[int], pool_size: int) -> None:
    if pool_size < 2 or not ks or min(ks) < 1 or max(ks) > pool_size:
        raise EvaluationError(
            f"got k in {tuple(ks)} for a pool of {pool_size}; a pool needs 2 rows and each k must be in "
            "1..pool size; ask for smaller k or a larger pool"
        )


def _expected_precision(scores: FloatArray, same: np.ndarray, k: int) -> FloatArray:
    """Expected share of `same` among the k best scores of each row, ties in random order; (rows,)."""
    last = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    above = scores > last + SCORE_TIE
    level = (scores >= last - SCORE_TIE) & ~above
    places_left = k - above.sum(axis=1)
    share_of_level = (same & level).sum(axis=1) / level.sum(axis=1)
    return ((same & above).sum(axis=1) + places_left * share_of_level) / k
