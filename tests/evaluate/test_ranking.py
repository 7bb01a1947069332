"""Retrieval metrics against brute force over all orders of equals, and against scikit-learn without ties."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from avssl.errors import EvaluationError
from avssl.evaluate import kernels
from avssl.evaluate import ranking as ranking_module
from avssl.evaluate import scores as scores_module
from avssl.evaluate.pool import NO_GALLERY_LABEL, NO_MATCH, NO_QUERY_LABEL, make_pool
from avssl.evaluate.ranking import rank_pool


def _one_order(relevant, ks):
    """Values of one query from the relevance (0 or 1) of its gallery, best first; plain Python."""
    places = [place for place, hit in enumerate(relevant, start=1) if hit]
    values = {"rank": places[0], "ap": np.mean([(n + 1) / place for n, place in enumerate(places)])}
    for k in ks:
        values[f"r{k}"] = float(places[0] <= k)
        values[f"p{k}"] = sum(relevant[:k]) / k
        gain = sum(1 / np.log2(1 + place) for place in places if place <= k)
        values[f"ndcg{k}"] = gain / sum(1 / np.log2(1 + place) for place in range(1, min(k, len(places)) + 1))
    return values


def _expected(scores, relevant, ks, ties):
    """Values of one query by the rule, each order of the gallery that its scores allow looked at."""
    outcomes = []
    for order in permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in pairwise(order)):
            outcomes.append([int(relevant[j]) for j in order])
    if ties == "optimistic":
        outcomes = [max(outcomes)]  # the list that has its ones first
    if ties == "pessimistic":
        outcomes = [min(outcomes)]
    values = [_one_order(outcome, ks) for outcome in outcomes]
    return {name: np.mean([one[name] for one in values]) for name in values[0]}


@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_values_equal_brute_force_over_all_orders_of_equals(seed, exclude_self, ties):
    generator = np.random.default_rng(seed)
    size, ks = 7, (1, 2, 3, 6)
    gallery = np.eye(3)[generator.integers(0, 3, size)]  # few directions: many ties
    gallery[:2] = np.eye(3)[:2]
    queries = gallery[:] if exclude_self else np.abs(generator.normal(size=(size, 3)))
    labels = np.array(["a", "b", "a", "a", "b", "b", "c"])
    pool = make_pool(range(size), range(size), labels, labels, exclude_self=exclude_self)
    result = rank_pool(queries, gallery, pool, ks, ties)
    scores = np.round(queries @ gallery.T / np.linalg.norm(queries, axis=1, keepdims=True), 12)
    for place, query in enumerate(pool.query_rows):
        others = [j for j in range(size) if not (exclude_self and j == query)]
        expected = _expected(scores[query, others], labels[others] == labels[query], ks, ties)
        found = {name: values[place] for name, values in result.per_query.items()}
        assert found == pytest.approx(expected, rel=1e-6), (query, scores[query])
    assert result.tied_queries > 0
    assert result.queries == (6 if exclude_self else 7)
    assert result.excluded == ({NO_MATCH: 1} if exclude_self else {})


@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
def test_instance_values_equal_brute_force_over_all_orders_of_equals(ties):
    generator = np.random.default_rng(0)
    gallery = np.eye(3)[[0, 1, 0, 2, 1, 0]]
    queries = np.abs(generator.normal(size=(6, 3)))
    result = rank_pool(queries, gallery, make_pool(range(6), range(6)), (1, 2, 5), ties)
    scores = queries @ gallery.T
    for query in range(6):
        expected = _expected(scores[query], np.arange(6) == query, (1, 2, 5), ties)
        found = {name: values[query] for name, values in result.per_query.items()}
        assert found == pytest.approx(expected, rel=1e-6)


def test_rules_about_ties_enclose_the_mean():
    generator = np.random.default_rng(1)
    gallery = np.eye(5)[generator.integers(0, 5, 60)]
    labels = generator.integers(0, 6, 60)
    pool = make_pool(range(60), range(60), labels, labels)
    best, mean, worst = (
        rank_pool(gallery + 0.1, gallery, pool, ties=ties).metrics
        for ties in ("optimistic", "mean", "pessimistic")
    )
    for name in mean:
        low, high = (best[name], worst[name]) if "rank" in name else (worst[name], best[name])
        assert low < mean[name] < high or low == mean[name] == high, name
    assert best["map"] - worst["map"] > 0.1


def _labelled(rows, dims, classes, seed=0):
    generator = np.random.default_rng(seed)
    one = generator.normal(size=(rows, dims))
    other = one + generator.normal(size=(rows, dims))
    return one, other, generator.integers(0, classes, rows)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_class_values_equal_scikit_learn_without_ties(exclude_self, monkeypatch):
    monkeypatch.setattr(scores_module, "BLOCK_SCORES", 500)
    queries, gallery, labels = _labelled(80, 6, 5)
    pool = make_pool(range(80), range(80), labels, labels, exclude_self=exclude_self)
    result = rank_pool(queries, gallery, pool, (1, 10, 50, 100))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    scores = unit[0] @ unit[1].T
    assert not any("100" in name for name in result.per_query)  # beyond the pool
    for query in range(80):
        others = [j for j in range(80) if not (exclude_self and j == query)]
        score, right = scores[query, others], labels[others] == labels[query]
        assert result.per_query["ap"][query] == pytest.approx(average_precision_score(right, score), rel=1e-6)
        for k in (1, 10, 50):
            ideal = ndcg_score([right.astype(float)], [score], k=k)
            assert result.per_query[f"ndcg{k}"][query] == pytest.approx(ideal, rel=1e-6)
            share = right[np.argsort(-score)[:k]].mean()
            assert result.per_query[f"p{k}"][query] == pytest.approx(share, rel=1e-6)
    assert result.pool_size == 80 - exclude_self
    assert result.metrics["map"] == pytest.approx(result.per_query["ap"].mean(), rel=1e-6)
    assert list(result.metrics)[:6] == ["r1", "r10", "r50", "median_rank", "mean_rank", "map"]


def test_chance_is_what_random_embeddings_come_to():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 400)
    pool = make_pool(range(400), range(400), labels, labels)
    found = [
        rank_pool(generator.normal(size=(400, 8)), generator.normal(size=(400, 8)), pool, (1, 5)).metrics
        for _ in range(10)
    ]
    chance = rank_pool(generator.normal(size=(400, 8)), generator.normal(size=(400, 8)), pool, (1, 5)).chance
    for name in ("r1", "r5", "mean_rank", "map", "ndcg5", "p5"):
        assert np.mean([one[name] for one in found]) == pytest.approx(chance[name], rel=0.05), name
    single = rank_pool(np.eye(20), np.eye(20), make_pool(range(20), range(20)), (1, 5))
    assert (single.chance["r5"], single.chance["median_rank"]) == (pytest.approx(0.25), 10.5)


def test_one_relevant_row_and_many_give_the_same_values():
    """Classes of one query and one gallery row each: counting and sorting must agree."""
    queries, gallery, _ = _labelled(50, 4, 2)
    gallery[10:20] = gallery[10]
    counted = rank_pool(queries, gallery, make_pool(range(50), range(50)))
    # One more query with two relevant rows sends all of them through the sort.
    labels = [*range(50), 50, 50]
    more = np.concatenate([gallery, -gallery[:2]])
    pool = make_pool([*range(50), 50], range(52), labels[:51], labels)
    values = rank_pool(np.concatenate([queries, queries[:1]]), more, pool).per_query
    alone = rank_pool(queries, more, make_pool(range(50), range(52)))
    for name in counted.per_query:
        np.testing.assert_allclose(values[name][:50], alone.per_query[name], rtol=1e-6)


def test_pairs_of_a_class_without_the_query_itself_are_counted_like_sorted():
    queries, _, _ = _labelled(40, 5, 2)
    pairs, threes = np.arange(40) // 2, np.append(np.arange(40) // 2, 0)
    counted = rank_pool(queries, queries, make_pool(range(40), range(40), pairs, pairs, exclude_self=True))
    scores = queries @ queries.T / np.linalg.norm(queries, axis=1)
    np.fill_diagonal(scores, -np.inf)
    match = scores[np.arange(40), np.arange(40) ^ 1]
    np.testing.assert_array_equal(counted.per_query["rank"], 1 + (scores > match[:, None]).sum(axis=1))
    more = np.concatenate([queries, queries[:1] + 0.1])
    pool = make_pool(range(41), range(41), threes, threes, exclude_self=True)
    assert rank_pool(more, more, pool).queries == 41


@pytest.mark.parametrize("block", [1, 3000, 10**6])
@pytest.mark.parametrize("near_share", [32, 10**9])
def test_float32_counts_equal_float64_counts(block, near_share, monkeypatch):
    generator = np.random.default_rng(0)
    gallery = generator.normal(size=(700, 40)).astype(np.float32)
    gallery[100:200] = gallery[100]  # ties
    gallery[200:400] = gallery[200] + 1e-6 * generator.normal(size=(200, 40))  # nearer than float32 can tell
    queries = gallery[:130] + generator.normal(size=(130, 40)).astype(np.float32) * 0.1
    queries[120:130] = gallery[200:210]
    targets = generator.integers(0, 700, 130)
    targets[:30], targets[110:130] = 150, 205
    own = np.where(np.arange(130) % 3 == 0, (targets + 1) % 700, scores_module.NOBODY)
    unit = [
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(float), gallery.astype(float))
    ]
    expected = scores_module._count_in_float64(*unit, targets, own)
    monkeypatch.setattr(scores_module, "SMALL_SCORES", 0)
    monkeypatch.setattr(scores_module, "BLOCK_SCORES", block)
    monkeypatch.setattr(scores_module, "NEAR_SHARE", near_share)
    found = scores_module.count_rivals(*unit, targets, own)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert expected[1].max() >= 98


def test_a_collapsed_model_is_counted_in_float64(monkeypatch):
    generator = np.random.default_rng(0)
    base = generator.normal(size=16)
    unit = base + 1e-7 * generator.normal(size=(300, 16))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    rows, nobody = np.arange(300), np.full(300, scores_module.NOBODY)
    expected = scores_module._count_in_float64(unit, unit, rows, nobody)
    _, _, crowded = scores_module._count_in_float32(unit, unit, rows, nobody)
    assert crowded.all()
    monkeypatch.setattr(scores_module, "SMALL_SCORES", 0)
    np.testing.assert_array_equal(scores_module.count_rivals(unit, unit, rows), expected)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("ties", ["mean", "pessimistic"])
def test_sieving_scores_gives_the_values_of_sorting_them(ties, exclude_self, monkeypatch):
    queries, _, labels = _labelled(400, 6, 30)
    gallery = queries.copy()
    gallery[50:90] = gallery[50]
    gallery[100], gallery[101] = queries[7], -queries[7]  # cosines of 1 and -1
    pool = make_pool(range(400), range(400), labels, labels, exclude_self=exclude_self)
    by_sorting = rank_pool(queries, gallery, pool, ties=ties)
    monkeypatch.setattr(ranking_module, "SIEVE_ROWS", 0)
    kept = []
    sieve = kernels.sieve
    monkeypatch.setattr(kernels, "sieve", lambda *given: kept.append(sieve(*given)) or kept[-1])
    by_sieving = rank_pool(queries, gallery, pool, ties=ties)
    for name, values in by_sorting.per_query.items():
        np.testing.assert_array_equal(values, by_sieving.per_query[name])
    assert by_sorting.tied_queries == by_sieving.tied_queries > 0
    assert len(kept) == 400
    assert np.mean(kept) < 100


def test_a_level_wider_than_the_sieve_allows_for_is_sorted(monkeypatch):
    """Cosines in steps of half a tie are one level, however far it goes."""
    angles = np.pi / 2 - np.concatenate([5e-13 * np.arange(5000), [0.5, 1.0, 1.5, -0.5]])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array(["a"] * 2 + ["b"] * 4998 + ["a", "b", "a", "b"])
    pool = make_pool(["q"], range(len(gallery)), ["a"], labels)
    monkeypatch.setattr(ranking_module, "SIEVE_ROWS", 10**6)
    by_sorting = rank_pool([[1.0, 0.0]], gallery, pool)
    monkeypatch.setattr(ranking_module, "SIEVE_ROWS", 0)
    usable = []
    sorted_values = kernels.sorted_values
    monkeypatch.setattr(
        kernels, "sorted_values", lambda *given: usable.append(sorted_values(*given)) or usable[-1]
    )
    by_sieving = rank_pool([[1.0, 0.0]], gallery, pool)
    assert usable == [False, True]
    assert by_sieving.metrics == by_sorting.metrics
    level = np.arange(1, 5001)
    expected = (1 + 2 / 3 + 2 / 5000 * np.sum((3 + (level - 1) / 4999) / (3 + level))) / 4
    assert by_sieving.metrics["map"] == pytest.approx(expected, rel=1e-6)


def test_float32_products_stay_within_the_bound():
    generator = np.random.default_rng(0)
    for dims in (3, 128, 1024):
        one, other = (generator.normal(size=(200, dims)) for _ in range(2))
        other[:50] = one[:50]
        one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
        wrong = np.abs(one.astype(np.float32) @ other.astype(np.float32).T - one @ other.T).max()
        assert 0 < wrong < scores_module.error_bound(dims)


def test_blocks_hold_no_more_scores_than_allowed(monkeypatch):
    sizes = []
    product = np.matmul

    def watched(a, b, out):
        sizes.append(out.size)
        return product(a, b, out=out)

    queries, gallery, _ = _labelled(300, 8, 5)
    whole = rank_pool(queries, gallery, make_pool(range(300), range(300)))
    monkeypatch.setattr(scores_module, "SMALL_SCORES", 0)
    monkeypatch.setattr(scores_module, "BLOCK_SCORES", 1000)
    monkeypatch.setattr(np, "matmul", watched)
    result = rank_pool(queries, gallery, make_pool(range(300), range(300)))
    assert result.metrics == whole.metrics
    assert len(sizes) >= 90
    assert max(sizes) <= 1000
    blocks = [scores.size for _, scores in scores_module.score_blocks(queries, gallery)]
    assert max(blocks) <= 1000
    assert sum(blocks) == 300 * 300


def test_queries_keep_their_values_in_another_order_and_with_other_names_of_classes():
    queries, gallery, labels = _labelled(60, 5, 4)
    ids = np.array([f"clip{i}" for i in range(60)])
    mixed = np.random.default_rng(5).permutation(60)
    plain = rank_pool(queries, gallery, make_pool(ids, ids, labels, labels))
    named = np.array(["dog", "cat", "bird", "horse"])[labels]
    other = rank_pool(queries[mixed], gallery, make_pool(ids[mixed], ids, named[mixed], named))
    assert plain.pool_hash == other.pool_hash
    np.testing.assert_allclose(plain.per_query["ap"][mixed], other.per_query["ap"])
    assert list(other.ids) == list(ids[mixed])


@pytest.mark.parametrize("change", ["id", "label", "query", "self", "relevance"])
def test_pool_hash_knows_ids_and_relevance(change):
    ids, labels = [f"clip{i}" for i in range(12)], list("aabbccddeeff")
    plain = make_pool(ids, ids, labels, labels)
    if change == "id":
        other = make_pool(["new", *ids[1:]], ["new", *ids[1:]], labels, labels)
    elif change == "label":
        other = make_pool(ids, ids, ["b", *labels[1:]], ["b", *labels[1:]])
    elif change == "query":
        other = make_pool(ids[1:], ids, labels[1:], labels)
    elif change == "self":
        other = make_pool(ids, ids, labels, labels, exclude_self=True)
    else:
        other = make_pool(ids, ids)
    assert other.hash != plain.hash
    assert make_pool(ids, ids, labels, labels).hash == plain.hash


def test_samples_without_label_or_match_are_counted():
    queries = _labelled(8, 4, 2)[0]
    labels = ["a", "a", None, "b", float("nan"), "c", "c", "c"]
    pool = make_pool(range(8), range(8), labels, labels, exclude_self=True, excluded={"failed to read": 3})
    result = rank_pool(queries, queries, pool, (1,))
    assert result.excluded == {"failed to read": 3, NO_QUERY_LABEL: 2, NO_GALLERY_LABEL: 2, NO_MATCH: 1}
    assert list(result.ids) == ["0", "1", "5", "6", "7"]
    assert result.pool_size == 5  # six have a label, and the query itself is left out
    assert result.as_dict()["excluded"] == result.excluded


def test_embeddings_that_cannot_be_ranked_are_named_by_id():
    ids = [f"clip{i}" for i in range(12)]
    broken, pool = np.eye(12), make_pool(ids, ids)
    broken[3] = np.nan
    with pytest.raises(EvaluationError, match=r"1 of 12 rows of queries hold NaN or infinity \(ids clip3\)"):
        rank_pool(broken, np.eye(12), pool)
    with pytest.raises(
        EvaluationError, match=r"all 12 rows of gallery are the same embedding \(ids clip0, clip1"
    ):
        rank_pool(np.eye(12), np.ones((12, 12)), pool)
    broken[3] = 0
    with pytest.raises(EvaluationError, match=r"1 of 12 rows of gallery are all zeros \(ids clip3\)"):
        rank_pool(np.eye(12), broken, pool)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_pool(["a", "a"], ["a", "b"]), r"1 of 1 query_ids occur more than once \(a\)"),
        (lambda: make_pool([["a"]], ["a", "b"]), r"query_ids has shape \(1, 1\)"),
        (lambda: make_pool("ab", "ab"), r"query_ids has shape \(\)"),
        (lambda: make_pool([1, 2], [3, 4]), "0 of 2 queries have a relevant row among 2 .instance relevance"),
        (
            lambda: make_pool([1, 2], [1, 2], exclude_self=True),
            "instance relevance, the query itself left out",
        ),
        (lambda: make_pool([1], [1]), "one query and a pool of 2 are needed"),
        (lambda: make_pool([1, 2], [1, 2], ["a", "b"]), "got labels of one side only"),
        (lambda: make_pool([1, 2], [1, 2], ["a"], ["a", "b"]), "query_labels has 1 entries for 2 rows"),
        (lambda: make_pool([1, 2], [1, 2], [None, None], ["a", "b"]), "0 of 0 queries"),
        (
            lambda: rank_pool(np.eye(3), np.eye(4), make_pool(range(4), range(4))),
            r"queries has shape \(3, 3\)",
        ),
        (
            lambda: rank_pool(np.eye(4)[:, :3] + 1, np.eye(4), make_pool(range(4), range(4))),
            "has 3 dimensions",
        ),
        (lambda: rank_pool(np.eye(4), np.eye(4), make_pool(range(4), range(4)), (5,)), r"got k in \(5,\)"),
        (
            lambda: rank_pool(np.eye(4), np.eye(4), make_pool(range(4), range(4)), (0, 1)),
            r"got k in \(0, 1\)",
        ),
        (
            lambda: rank_pool(np.eye(4), np.eye(4), make_pool(range(4), range(4)), ties="any"),
            "got ties='any'",
        ),
    ],
)
def test_ranking_names_what_does_not_fit(call, message):
    with pytest.raises(EvaluationError, match=message):
        call()
