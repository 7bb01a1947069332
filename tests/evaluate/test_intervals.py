"""Intervals that cover what they should, and p-values that are uniform when nothing differs."""

from dataclasses import replace

import numpy as np
import pytest

from avssl.errors import EvaluationError
from avssl.evaluate import scores as scores_module
from avssl.evaluate.intervals import bootstrap_intervals, compare_rankings
from avssl.evaluate.pool import make_pool
from avssl.evaluate.ranking import Ranking, rank_pool
from avssl.evaluate.ranking_file import load_ranking, save_ranking


def _ranking(ranks, pool_size=1000):
    """A result as of instance relevance with these ranks."""
    ranks = np.asarray(ranks, np.float32)
    values = {"rank": ranks, "ap": 1 / ranks, "r1": (ranks <= 1).astype(np.float32)}
    ids = np.array([f"clip{i:05d}" for i in range(len(ranks))])
    return Ranking(values, ids, {}, "instance", "mean", pool_size, "hash", 0, {})


def _draw(generator, size):
    """Ranks from a population whose metrics are known, nearly."""
    return np.ceil(generator.exponential(8.0, size))


def test_intervals_of_95_percent_cover_the_population_about_so_often():
    generator = np.random.default_rng(0)
    population = _ranking(_draw(generator, 400_000)).metrics
    covered = dict.fromkeys(population, 0)
    trials = 200
    for trial in range(trials):
        found = bootstrap_intervals(_ranking(_draw(generator, 150)), resamples=300, seed=trial)
        for name, interval in found.items():
            assert interval.low <= interval.value <= interval.high
            covered[name] += interval.low <= population[name] <= interval.high
    assert set(covered) == {"r1", "median_rank", "mean_rank", "map"}
    for name, times in covered.items():
        assert times >= 0.89 * trials, (name, times)
        if name != "median_rank":  # a whole number here, so that its intervals are wider than they need be
            assert times <= 0.99 * trials, (name, times)


@pytest.mark.parametrize("queries", [8, 9])
def test_every_metric_of_a_resample_is_that_of_the_queries_drawn(queries, monkeypatch):
    """Against a loop that draws queries one by one, with the same random numbers."""
    monkeypatch.setattr(scores_module, "BLOCK_SCORES", 3 * queries)
    ranking = _ranking(np.random.default_rng(3).integers(1, 9, queries))
    generator, drawn = np.random.default_rng(7), []
    for _ in range(50):
        chosen = generator.integers(0, queries, queries)
        drawn.append(_ranking(ranking.per_query["rank"][chosen]).metrics)
    for name, interval in bootstrap_intervals(ranking, resamples=50, seed=7, level=0.8).items():
        low, high = np.quantile([one[name] for one in drawn], [0.1, 0.9])
        assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-6), name
        assert interval.value == ranking.metrics[name]


def test_intervals_are_the_same_for_a_seed_and_narrow_with_queries():
    ranks = _draw(np.random.default_rng(0), 4000)
    few, many = _ranking(ranks[:100]), _ranking(ranks)
    assert bootstrap_intervals(few, seed=1) == bootstrap_intervals(few, seed=1)
    assert bootstrap_intervals(few, seed=1) != bootstrap_intervals(few, seed=2)
    narrow, wide = bootstrap_intervals(many)["mean_rank"], bootstrap_intervals(few)["mean_rank"]
    assert narrow.high - narrow.low < (wide.high - wide.low) / 4


def test_p_values_are_uniform_when_nothing_differs():
    generator = np.random.default_rng(1)
    p_values = {"r1": [], "mean_rank": [], "map": [], "median_rank": []}
    for trial in range(200):
        hard = generator.exponential(8.0, 60)  # of both models: the pairing matters
        one, other = (np.ceil(hard * generator.uniform(0.5, 1.5, 60)) for _ in range(2))
        for name, found in compare_rankings(_ranking(one), _ranking(other), 199, trial).items():
            p_values[name].append(found.p_value)
    for name, values in p_values.items():
        assert min(values) >= 1 / 200
        # Values of few queries come in steps, so equal ones make a test cautious, never bold.
        for level in (0.05, 0.2, 0.5):
            assert np.mean(np.array(values) <= level) <= level + 3 * np.sqrt(level * (1 - level) / 200), name
    for name in ("mean_rank", "map"):
        assert np.mean(p_values[name]) == pytest.approx(0.5, abs=0.07)


def test_a_difference_is_found_by_pairing_where_intervals_overlap():
    generator = np.random.default_rng(2)
    hard = generator.exponential(30.0, 300)
    better, worse = _ranking(np.ceil(hard)), _ranking(np.ceil(hard * 1.1) + 1)
    found = compare_rankings(better, worse)["mean_rank"]
    one, other = (bootstrap_intervals(x)["mean_rank"] for x in (better, worse))
    assert one.high > other.low
    assert found.high < 0
    assert found.p_value == pytest.approx(1 / 1001)
    assert found.value == pytest.approx(found.first - found.second)
    assert (found.first, found.second) == (one.value, other.value)


def test_permutation_p_value_of_few_queries_is_near_the_exact_one():
    one, other = [1, 4, 2, 9, 3, 6], [2, 9, 2, 20, 4, 5]
    gaps = np.array(one) - np.array(other)
    signs = 1 - 2 * ((np.arange(64)[:, None] >> np.arange(6)) & 1)
    exact = np.mean(np.abs(signs @ gaps) >= abs(gaps.sum()))
    found = compare_rankings(_ranking(one), _ranking(other), resamples=4000)
    assert found["mean_rank"].p_value == pytest.approx(exact, abs=0.02)
    medians = [
        abs(np.median(np.where(s > 0, one, other)) - np.median(np.where(s > 0, other, one))) for s in signs
    ]
    exact = np.mean(np.array(medians) >= abs(np.median(one) - np.median(other)))
    assert found["median_rank"].p_value == pytest.approx(exact, abs=0.02)


def test_a_result_does_not_differ_from_itself_in_another_order():
    ranking = _ranking(_draw(np.random.default_rng(0), 50))
    mixed = np.random.default_rng(1).permutation(50)
    values = {name: column[mixed] for name, column in ranking.per_query.items()}
    for found in compare_rankings(
        ranking, replace(ranking, per_query=values, ids=ranking.ids[mixed])
    ).values():
        assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_results_of_different_pools_or_rules_are_not_compared():
    generator = np.random.default_rng(0)
    one = generator.normal(size=(20, 4))
    ids, labels = [f"clip{i}" for i in range(20)], generator.integers(0, 3, 20)
    whole = rank_pool(one, one, make_pool(ids, ids))
    fewer = rank_pool(one, one[:19], make_pool(ids, ids[:19]))
    classes = rank_pool(one, one, make_pool(ids, ids, labels, labels))
    message = r"different pools: 20 queries to 20 rows \(instance relevance, hash \w{12}\) and"
    with pytest.raises(
        EvaluationError, match=rf"{message} 19 to 19 \(instance, \w{{12}}\); ids and relevance"
    ):
        compare_rankings(whole, fewer)
    with pytest.raises(EvaluationError, match=rf"{message} 20 to 20 \(class, "):
        compare_rankings(whole, classes)
    with pytest.raises(EvaluationError, match="different rules about ties: 'mean' and 'optimistic'"):
        compare_rankings(whole, rank_pool(one, one, make_pool(ids, ids), ties="optimistic"))


@pytest.mark.parametrize(
    "ranks, change",
    [([1], {}), ([1, 2], {"resamples": 0}), ([1, 2], {"level": 1.0}), ([1, 2], {"level": 95})],
)
def test_intervals_need_queries_resamples_and_a_level(ranks, change):
    with pytest.raises(
        EvaluationError, match=r"2 queries, 1 resample and a level between 0 and 1 are needed"
    ):
        bootstrap_intervals(_ranking(ranks), **change)


def test_a_saved_result_compares_like_the_one_that_was_saved(tmp_path):
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(30, 4)), generator.normal(size=(30, 4))
    pool = make_pool(range(30), range(30), excluded={"failed to read": 2})
    ranking = rank_pool(one, one + other, pool)
    save_ranking(tmp_path / "new/a.npz", ranking)
    loaded = load_ranking(tmp_path / "new/a.npz")
    assert loaded.as_dict() == ranking.as_dict()
    worse = rank_pool(other, one, pool)
    assert compare_rankings(loaded, worse) == compare_rankings(ranking, worse)


def test_what_is_no_result_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"gone.npz: no such result; write it with"):
        load_ranking(tmp_path / "gone.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    np.savez(tmp_path / "other.npz", features=np.eye(3))
    for name in ("broken.npz", "other.npz"):
        with pytest.raises(EvaluationError, match=rf"{name}: is not a result of retrieval"):
            load_ranking(tmp_path / name)
