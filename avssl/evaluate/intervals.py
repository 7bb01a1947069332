"""How far to trust a retrieval metric, and the difference between two models.

Both resample queries and hold the gallery as it is: an interval says how the number would move with other
queries to the same pool, not with other pools or other trainings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from avssl.errors import EvaluationError
from avssl.evaluate import scores
from avssl.evaluate.checks import FloatArray, IntArray
from avssl.evaluate.ranking import Ranking

RESAMPLES = 1000
LEVEL = 0.95
# Means of the same numbers added in another order differ by less than this.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A metric and the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A metric of two models in one pool: first minus second, with interval and p-value.

    Parameters
    ----------
    first, second : float
        The metric of each.
    value : float
        Their difference.
    low, high : float
        Bounds of its paired bootstrap interval.
    p_value : float
        Of the two-sided paired permutation test; at least 1 / (resamples + 1).
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    p_value: float


def bootstrap_intervals(
    ranking: Ranking, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, Interval]:
    """Percentile bootstrap intervals over queries, of every metric.

    Parameters
    ----------
    ranking : Ranking
        At least two queries.
    resamples : int >= 1
        Draws of as many queries as there are, with replacement; the same for all metrics.
    seed : int
        Of the draws.
    level : float in (0, 1)
        Coverage aimed at.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    _check(ranking.queries, resamples, level)
    generator = np.random.default_rng(seed)
    parts = [_metrics_of(ranking, counts) for counts in _draws(ranking.queries, resamples, generator)]
    return {
        name: Interval(value, *_bounds(np.concatenate([part[name] for part in parts]), level))
        for name, value in ranking.metrics.items()
    }


def compare_rankings(
    first: Ranking, second: Ranking, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, Difference]:
    """Compare two results query by query, in every metric both have.

    The interval is a paired percentile bootstrap: each draw of queries is used for both. The p-value is that
    of a paired permutation test: were the models alike, each query's two values might as well be exchanged.

    Parameters
    ----------
    first, second : Ranking
        In one pool with one rule about ties; their queries may be in different orders.
    resamples, seed, level
        As for `bootstrap_intervals`; `resamples` exchanges are drawn, too.

    Raises
    ------
    EvaluationError
        If ids or relevance differ, or the rules about ties.

    References
    ----------
    Smucker, Allan and Carterette, A Comparison of Statistical Significance Tests for Information Retrieval
    Evaluation, CIKM 2007.
    """
    _check_comparable(first, second)
    _check(first.queries, resamples, level)
    one, other = _by_id(first), _by_id(second)
    generator = np.random.default_rng(seed)
    names = [name for name in one.metrics if name in other.metrics]
    observed = {name: one.metrics[name] - other.metrics[name] for name in names}
    drawn: dict[str, list[FloatArray]] = {name: [] for name in names}
    for counts in _draws(one.queries, resamples, generator):
        a, b = _metrics_of(one, counts), _metrics_of(other, counts)
        for name in names:
            drawn[name].append(a[name] - b[name])
    extreme = dict.fromkeys(names, 0)
    for exchanged in _exchanges(one.queries, resamples, generator):
        for name, values in _exchanged_differences(one, other, names, exchanged).items():
            extreme[name] += int((np.abs(values) >= abs(observed[name]) - ROUNDING).sum())
    return {
        name: Difference(
            one.metrics[name],
            other.metrics[name],
            observed[name],
            *_bounds(np.concatenate(drawn[name]), level),
            p_value=(1 + extreme[name]) / (resamples + 1),
        )
        for name in names
    }


def _check(queries: int, resamples: int, level: float) -> None:
    if queries < 2 or resamples < 1 or not 0 < level < 1:
        raise EvaluationError(
            f"got {queries} queries, resamples={resamples} and level={level}; 2 queries, 1 resample and a "
            "level between 0 and 1 are needed; 1000 and 0.95 are usual"
        )


def _check_comparable(first: Ranking, second: Ranking) -> None:
    if first.pool_hash != second.pool_hash:
        raise EvaluationError(
            f"the results are of different pools: {first.queries} queries to {first.pool_size} rows "
            f"({first.relevance} relevance, hash {first.pool_hash[:12]}) and {second.queries} to "
            f"{second.pool_size} ({second.relevance}, {second.pool_hash[:12]}); ids and relevance must be "
            "the same; evaluate both models on the samples they share"
        )
    if first.ties != second.ties:
        raise EvaluationError(
            f"the results follow different rules about ties: {first.ties!r} and {second.ties!r}; "
            "must be the same; evaluate one of them again"
        )


def _by_id(ranking: Ranking) -> Ranking:
    """The same with queries in the order of their ids."""
    order = np.argsort(ranking.ids)
    values = {name: column[order] for name, column in ranking.per_query.items()}
    return replace(ranking, per_query=values, ids=ranking.ids[order])


def _block(queries: int) -> int:
    """Resamples held at a time."""
    return max(1, scores.BLOCK_SCORES // queries)


def _draws(queries: int, resamples: int, generator: Generator) -> Iterator[IntArray]:
    """How often each query is drawn: (some resamples, M) at a time."""
    for start in range(0, resamples, _block(queries)):
        rows = min(_block(queries), resamples - start)
        counts = np.empty((rows, queries), np.int64)
        for i in range(rows):
            counts[i] = np.bincount(generator.integers(0, queries, queries), minlength=queries)
        yield counts


def _metrics_of(ranking: Ranking, counts: IntArray) -> dict[str, FloatArray]:
    """Every metric of resamples given by how often each query is in them, each (resamples,)."""
    names = list(ranking.per_query)
    columns = np.stack([ranking.per_query[name] for name in names], axis=1).astype(np.float64)
    means = dict(zip(names, (counts.astype(np.float64) @ columns).T / ranking.queries, strict=True))
    means["mean_rank"], means["map"] = means.pop("rank"), means.pop("ap")
    return means | {"median_rank": _medians(ranking.per_query["rank"], counts)}


def _medians(ranks: NDArray[np.float32], counts: IntArray) -> FloatArray:
    """Median of the ranks, each taken as often as a row of counts says."""
    order = np.argsort(ranks, kind="stable")
    upto = np.cumsum(counts[:, order], axis=1)
    middle = [(len(ranks) - 1) // 2, len(ranks) // 2]
    places = np.array([np.searchsorted(row, middle, side="right") for row in upto])
    return ranks[order][places].astype(np.float64).mean(axis=1)


def _exchanges(queries: int, resamples: int, generator: Generator) -> Iterator[NDArray[np.bool_]]:
    """Whose two values are exchanged: (some resamples, M) at a time, each with probability 1/2."""
    for start in range(0, resamples, _block(queries)):
        rows = min(_block(queries), resamples - start)
        bits = np.frombuffer(generator.bytes(rows * -(-queries // 8)), np.uint8).reshape(rows, -1)
        yield np.unpackbits(bits, axis=1, count=queries).astype(bool)


def _exchanged_differences(
    one: Ranking, other: Ranking, names: list[str], exchanged: NDArray[np.bool_]
) -> dict[str, FloatArray]:
    """First minus second, of every metric, after the exchanges; each (resamples,)."""
    keys = {name: {"mean_rank": "rank", "map": "ap"}.get(name, name) for name in names}
    means = [name for name in names if name != "median_rank"]
    gap = np.stack(
        [one.per_query[keys[n]].astype(np.float64) - other.per_query[keys[n]] for n in means], axis=1
    )
    signs = 1 - 2 * exchanged.astype(np.float64)
    found = dict(zip(means, (signs @ gap).T / one.queries, strict=True))
    if "median_rank" in names:
        a, b = one.per_query["rank"], other.per_query["rank"]
        first = np.median(np.where(exchanged, b, a), axis=1).astype(np.float64)
        found["median_rank"] = first - np.median(np.where(exchanged, a, b), axis=1)
    return found


def _bounds(values: FloatArray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
