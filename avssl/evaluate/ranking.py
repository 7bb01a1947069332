"""Retrieval metrics for any pair of feature sets and any relevance, exact, with ties by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avssl.errors import EvaluationError
from avssl.evaluate import scores as blocks
from avssl.evaluate.checks import FloatArray, check_same_width, comparable_rows
from avssl.evaluate.pool import Names, Pool
from avssl.evaluate.scores import NOBODY, SCORE_TIE, count_rivals

Ties = Literal["mean", "optimistic", "pessimistic"]
Values = dict[str, NDArray[np.float32]]
DEPTHS = (1, 5, 10, 50)
# From so many gallery rows on, of which at most so many are relevant, most scores need not be sorted.
SIEVE_ROWS, SIEVE_RELEVANT = 2**11, 2**10


@dataclass(frozen=True, eq=False)
class Ranking:
    """What retrieval in a pool came to, query by query.

    Parameters
    ----------
    per_query : dict of str to float32 (M,)
        ``rank`` of the first relevant row (1 is best) and ``ap``, average precision; for each depth k
        ``r{k}``: a relevant row is among the first k (R@k), ``p{k}``: share of the first k that is relevant,
        ``ndcg{k}``: nDCG with gains 0 and 1. All but the rank lie in [0, 1].
    ids : str (M,)
        The queries.
    chance : dict of str to float
        `metrics` expected of a random order.
    relevance : {"instance", "class"}
        As of `Pool`.
    ties : {"mean", "optimistic", "pessimistic"}
        Rows of equal score stand in every order (values are the expectation over them), relevant rows first,
        or relevant rows last.
    pool_size : int
        Gallery rows ranked for a query.
    pool_hash : str
        `Pool.hash`; results are comparable if it is the same.
    tied_queries : int
        Queries with a relevant row that scores like one that is not.
    excluded : dict of str to int
        Why samples do not take part, and how many.
    """

    per_query: Values
    ids: Names
    chance: dict[str, float]
    relevance: str
    ties: Ties
    pool_size: int
    pool_hash: str
    tied_queries: int
    excluded: dict[str, int]

    @property
    def queries(self) -> int:
        """Number of queries."""
        return len(self.ids)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Means over queries, ``map`` that of ``ap``, and ``median_rank`` and ``mean_rank``."""
        return summary(self.per_query)

    def as_dict(self) -> dict[str, Any]:
        """All but the values of single queries, for JSON."""
        whole = {"metrics": self.metrics, "chance": self.chance, "queries": self.queries}
        kept = ("relevance", "ties", "pool_size", "pool_hash", "tied_queries", "excluded")
        return whole | {name: getattr(self, name) for name in kept}


def rank_pool(
    queries: ArrayLike,
    gallery: ArrayLike,
    pool: Pool,
    ks: Sequence[int] = DEPTHS,
    ties: Ties = "mean",
) -> Ranking:
    """Rank the gallery by cosine for each query of a pool.

    Parameters
    ----------
    queries : (rows, d) array
        Embeddings that ask: of audio and of video, or of one of them on both sides.
    gallery : (rows, d) array
        Embeddings that are ranked.
    pool : Pool
        Which rows take part and what is relevant.
    ks : ints >= 1
        Depths of R@k, precision and nDCG; those beyond the pool are left out.
    ties : {"mean", "optimistic", "pessimistic"}
        See `Ranking`.

    Raises
    ------
    EvaluationError
        If embeddings are missing, not finite, zero or all the same (their ids are named), the sides do not
        fit each other, or no depth fits the pool.
    """
    code = tie_code(ties)
    depths = sorted({k for k in ks if k <= pool.size})
    if not depths or depths[0] < 1:
        raise EvaluationError(
            f"got k in {tuple(ks)} for a pool of {pool.size}; each must be at least 1, and one must not be "
            "beyond the pool; ask for k=1"
        )
    asking = comparable_rows(_rows(queries, pool.query_rows, "queries"), "queries", pool.query_ids)
    ranked = comparable_rows(_rows(gallery, pool.gallery_rows, "gallery"), "gallery", pool.gallery_ids)
    check_same_width(asking, ranked, ("queries", "gallery"))

    from avssl.evaluate import kernels  # here: loading the compiler takes half a second

    numbers = np.array(depths, np.int64)
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2.0, depths[-1] + 2)))])
    values = np.zeros((len(asking), kernels.DEPTHS + 3 * len(depths)))
    if (pool.num_relevant == 1).all():
        better, equal = count_rivals(asking, ranked, _only_relevant(pool), pool.own)
        kernels.single_values(better, equal, numbers, discounts, code, values)
    else:
        _sort_and_value(asking, ranked, pool, numbers, discounts, code, values)
    return Ranking(
        per_query=_by_name(values, depths),
        ids=pool.query_ids,
        chance=_chance(pool, numbers, discounts, depths),
        relevance=pool.relevance,
        ties=ties,
        pool_size=pool.size,
        pool_hash=pool.hash,
        tied_queries=int(values[:, kernels.TIED].sum()),
        excluded=dict(pool.excluded),
    )


def tie_code(ties: str) -> int:
    """Number of a rule about ties."""
    if ties not in get_args(Ties):
        raise EvaluationError(f"got ties={ties!r}; must be one of {', '.join(get_args(Ties))}; use 'mean'")
    return get_args(Ties).index(ties)


def summary(per_query: Values) -> dict[str, float]:
    """Metrics from the values of the queries, in the order they are shown."""
    means = {name: float(np.mean(values, dtype=np.float64)) for name, values in per_query.items()}
    means["mean_rank"], means["map"] = means.pop("rank"), means.pop("ap")
    means["median_rank"] = float(np.median(per_query["rank"]))
    return {name: means[name] for name in sorted(means, key=_place)}


def _place(name: str) -> tuple[int, int]:
    """R@k first, by k, then ranks, mAP, nDCG and precision."""
    depth = "".join(filter(str.isdigit, name))
    kinds = ["r", "median_rank", "mean_rank", "map", "ndcg", "p"]
    return kinds.index(name.removesuffix(depth) if depth else name), int(depth or 0)


def _rows(features: ArrayLike, rows: NDArray[np.int64], name: str) -> NDArray[Any]:
    array = np.asarray(features)
    if array.ndim != 2 or (rows.size and rows.max() >= len(array)):
        raise EvaluationError(
            f"{name} has shape {array.shape}; the pool was made for at least {rows.max() + 1} rows of "
            "(rows, dimensions); pass the features whose ids the pool was made of"
        )
    return array[rows]


def _only_relevant(pool: Pool) -> NDArray[np.int64]:
    """Gallery place of the one relevant row of each query; of a group of two, the one that is not itself."""
    order = np.argsort(pool.gallery_groups, kind="stable")
    first = np.searchsorted(pool.gallery_groups, pool.query_groups, sorter=order)
    found = order[first]
    second = order[np.minimum(first + 1, len(order) - 1)]
    return np.where(found == pool.own, second, found)


def _sort_and_value(
    queries: FloatArray,
    gallery: FloatArray,
    pool: Pool,
    ks: NDArray[np.int64],
    discounts: FloatArray,
    ties: int,
    values: FloatArray,
) -> None:
    """Fill in the values of queries with any number of relevant rows: all scores of a query are sorted."""
    # With the gallery in the order of its groups, the relevant scores of a query are neighbours.
    order = np.argsort(pool.gallery_groups, kind="stable")
    groups = pool.gallery_groups[order]
    begin = np.searchsorted(groups, pool.query_groups, side="left")
    end = np.searchsorted(groups, pool.query_groups, side="right")
    own = np.where(pool.own == NOBODY, NOBODY, np.argsort(order)[pool.own])
    itself = ((begin <= own) & (own < end)).astype(np.int64)
    with ThreadPoolExecutor(blocks.threads()) as workers:
        for rows, scores in blocks.score_blocks(queries, gallery[order]):
            blocks.leave_out(scores, own[rows])

            def work(part: slice) -> None:
                room = np.empty(len(gallery))
                for i in range(part.start, part.stop):
                    at, line = rows.start + i, scores[i]  # noqa: B023
                    relevant = np.sort(line[begin[at] : end[at]])[itself[at] :]  # itself scores lowest
                    _value_one(line, relevant, room, (SCORE_TIE, ks, discounts, ties), values[at])

            blocks.share_rows(workers, work, len(scores))


def _value_one(
    scores: FloatArray, relevant: FloatArray, room: FloatArray, given: tuple[Any, ...], values: FloatArray
) -> None:
    """Fill in the values of one query; `scores` may be sorted, `room` for as many is written over."""
    from avssl.evaluate import kernels

    counts = np.empty(kernels.CELLS, np.int32)
    if len(scores) >= SIEVE_ROWS and len(relevant) <= SIEVE_RELEVANT:
        kept = room[: kernels.sieve(scores, relevant, counts, np.empty_like(counts), room)]
        kept.sort()
        if kernels.sorted_values(kept, relevant, counts, *given, values):
            return
        values[:] = 0
    scores.sort()
    kernels.sorted_values(scores, relevant, counts[:0], *given, values)


def _by_name(values: FloatArray, depths: Sequence[int]) -> Values:
    from avssl.evaluate import kernels

    named = {"rank": values[:, kernels.RANK], "ap": values[:, kernels.AP]}
    kinds = [f"{kind}{k}" for kind in ("r", "p", "ndcg") for k in depths]
    named |= {name: values[:, kernels.DEPTHS + n] for n, name in enumerate(kinds)}
    return {name: column.astype(np.float32) for name, column in named.items()}


def _chance(
    pool: Pool, ks: NDArray[np.int64], discounts: FloatArray, depths: Sequence[int]
) -> dict[str, float]:
    """Metrics of a random order, from the values of one query of each number of relevant rows."""
    from avssl.evaluate import kernels

    totals, queries = np.unique(pool.num_relevant, return_inverse=True)
    values = np.zeros((len(totals), kernels.DEPTHS + 3 * len(depths)))
    kernels.random_values(pool.size, totals, ks, discounts, values)
    return summary(_by_name(values[queries], depths))
