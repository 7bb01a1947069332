"""Retrieval metrics against brute force over all orders and hand-made cases with ties."""

from itertools import permutations

import numpy as np
import pytest

from avssl.errors import EvaluationError
from avssl.evaluate import class_precision, retrieval_metrics
from avssl.evaluate import scores as scores_module


def _ranks_reference(queries, gallery, relevant):
    """Rank of each match by sorting Python floats; no ties in the data."""
    ranks = []
    for i, query in enumerate(queries):
        cosine = [float(g @ query / np.linalg.norm(g) / np.linalg.norm(query)) for g in gallery]
        ranks.append(sorted(range(len(gallery)), key=lambda j: -cosine[j]).index(relevant[i]) + 1)
    return np.array(ranks)


def _embeddings(rows, dims, noise=1.0, seed=0):
    generator = np.random.default_rng(seed)
    one = generator.normal(size=(rows, dims))
    return one, one + noise * generator.normal(size=(rows, dims))


@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_retrieval_equals_brute_force_at_every_block_size(block, monkeypatch):
    monkeypatch.setattr(scores_module, "BLOCK_SCORES", block)
    queries, gallery = _embeddings(43, 9)
    ranks = _ranks_reference(queries, gallery, np.arange(43))
    result = retrieval_metrics(queries, gallery, ks=(1, 2, 5, 43))
    assert result.recall == pytest.approx({k: float(np.mean(ranks <= k)) for k in (1, 2, 5, 43)})
    assert 0 < result.recall[1] < 1
    assert result.recall[43] == 1.0
    assert result.median_rank == np.median(ranks)
    assert result.mean_rank == pytest.approx(ranks.mean())
    assert result.chance == {1: 1 / 43, 2: 2 / 43, 5: 5 / 43, 43: 1.0}
    assert (result.pool_size, result.queries, result.tied_queries, result.ties) == (43, 43, 0, "mean")


def test_retrieval_follows_relevant_rows_to_another_pool():
    gallery, _ = _embeddings(50, 8)
    relevant = np.random.default_rng(1).integers(0, 50, 20)
    queries = gallery[relevant] + 1.5 * np.random.default_rng(2).normal(size=(20, 8))
    ranks = _ranks_reference(queries, gallery, relevant)
    result = retrieval_metrics(queries, gallery, relevant)
    assert result.mean_rank == pytest.approx(ranks.mean())
    assert result.recall[10] == pytest.approx(np.mean(ranks <= 10))
    assert (result.pool_size, result.queries) == (50, 20)


def test_retrieval_of_identical_sides_is_perfect_and_of_noise_is_chance():
    one, _ = _embeddings(100, 16)
    other, _ = _embeddings(100, 16, seed=7)
    perfect, noise = retrieval_metrics(one, one), retrieval_metrics(one, other)
    assert perfect.recall == {1: 1.0, 5: 1.0, 10: 1.0}
    assert (perfect.median_rank, perfect.mean_rank) == (1.0, 1.0)
    assert noise.mean_rank == pytest.approx(50.5, abs=10)


# Query 0 points at x; of four gallery rows, the first (its match), second and third are x, the last is y.
TIED_GALLERY = np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    "ties, rank, recall",
    [
        ("mean", 2.0, {1: 1 / 3, 2: 2 / 3, 3: 1.0}),
        ("optimistic", 1.0, {1: 1, 2: 1, 3: 1}),
        ("pessimistic", 3.0, {1: 0, 2: 0, 3: 1}),
    ],
)
def test_retrieval_resolves_a_hand_made_tie_by_the_rule(ties, rank, recall):
    result = retrieval_metrics([[1.0, 0.0]], TIED_GALLERY, [0], ks=(1, 2, 3), ties=ties)
    assert result.median_rank == rank
    assert result.recall == pytest.approx(recall)
    assert result.tied_queries == 1


def test_retrieval_mean_rule_is_the_average_over_all_orders():
    generator = np.random.default_rng(0)
    gallery = np.eye(3)[[0, 1, 0, 2, 1, 0]]
    queries = np.eye(3)[[0, 1, 0, 2, 1, 0]] + 0.1 * generator.uniform(size=(6, 3))
    relevant = np.array([2, 0, 5, 3, 1, 4])
    scores = np.round(queries @ gallery.T, 9)
    ranks = np.array(
        [
            [sorted(order, key=lambda j: -scores[i, j]).index(relevant[i]) + 1 for i in range(6)]
            for order in permutations(range(6))
        ]
    )
    result = retrieval_metrics(queries, gallery, relevant, ks=(1, 2, 3))
    assert result.mean_rank == pytest.approx(ranks.mean())
    assert result.recall == pytest.approx({k: np.mean(ranks <= k) for k in (1, 2, 3)})


def test_retrieval_counts_exact_ties_wherever_the_row_stands():
    """One embedding repeated over a wide pool ties with itself, whatever the matrix product rounds to."""
    generator = np.random.default_rng(0)
    gallery = np.repeat(generator.normal(size=(2, 301)), 517, axis=0).astype(np.float32)
    scale = generator.uniform(0.1, 10, (1034, 1)).astype(np.float64)
    result = retrieval_metrics(gallery * scale, gallery)
    assert result.mean_rank == pytest.approx(1 + 516 / 2)
    assert result.recall[10] == pytest.approx(10 / 517)


def test_retrieval_shared_embedding_of_failed_files_does_not_move_the_others():
    """The case that breaks rank search by equality: a tenth of the gallery is one constant vector."""
    queries, gallery = _embeddings(300, 32)
    whole = retrieval_metrics(queries, gallery)
    failed = gallery.copy()
    failed[:30] = 0.01
    result = retrieval_metrics(queries, failed)
    ranks = _ranks_reference(queries[30:], failed[30:], np.arange(270))
    assert result.queries == 300
    assert result.tied_queries == 30
    assert result.recall[1] <= (np.mean(ranks <= 1) * 270 + 30 / 30) / 300 + 1e-9
    assert abs(result.recall[1] - whole.recall[1]) < 0.12


def test_retrieval_as_dict_prefixes_the_direction():
    queries, gallery = _embeddings(20, 4)
    flat = retrieval_metrics(queries, gallery).as_dict("a2v_")
    assert list(flat) == ["a2v_r1", "a2v_r5", "a2v_r10", "a2v_median_rank", "a2v_mean_rank"]
    assert all(type(value) is float for value in flat.values())


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"queries": np.diag([1.0] * 11 + [np.nan])},
            r"1 of 12 rows of queries hold NaN .* \(rows 11\)",
        ),
        (
            {"gallery": np.zeros((12, 12))},
            r"12 of 12 rows of gallery are all zeros \(rows 0, 1, 2, 3, 4, \.{3}\)",
        ),
        (
            {"gallery": np.ones((12, 12))},
            r"all 12 rows of gallery are the same embedding \(rows 0, 1, 2, .*\)",
        ),
        ({"queries": 3 * np.ones((12, 12))}, "all 12 rows of queries are the same embedding"),
        ({"gallery": np.eye(12)[:, :5] + 1}, "queries has 12 dimensions and gallery has 5"),
        ({"gallery": np.eye(12)[:11]}, "got 12 queries and 11 gallery rows; without `relevant`"),
        ({"relevant": np.arange(11)}, r"relevant is int64 \(11,\); must be integers \(12,\)"),
        ({"relevant": np.arange(12) / 2}, "relevant is float64"),
        ({"relevant": np.arange(12) - 1}, r"1 entries of relevant \(rows 0\) lie outside 0\.\.11"),
        ({"ks": (1, 13)}, r"got k in \(1, 13\) for a pool of 12"),
        ({"ks": (0,)}, r"got k in \(0,\)"),
        ({"ks": ()}, r"got k in \(\)"),
        ({"ties": "random"}, "got ties='random'; must be one of mean, optimistic, pessimistic"),
    ],
)
def test_retrieval_names_what_does_not_fit(change, message):
    with pytest.raises(EvaluationError, match=message):
        retrieval_metrics(**({"queries": np.eye(12), "gallery": np.eye(12)} | change))


def test_retrieval_refuses_a_pool_of_one():
    with pytest.raises(EvaluationError, match="a pool needs 2 rows"):
        retrieval_metrics([[1.0, 0.0]], [[1.0, 0.0]], ks=(1,))


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("k", [1, 4])
def test_class_precision_equals_brute_force(exclude_self, k, monkeypatch):
    monkeypatch.setattr(scores_module, "BLOCK_SCORES", 100)
    queries, gallery = _embeddings(40, 6)
    labels = np.array(list("abcd"))[np.random.default_rng(3).integers(0, 4, 40)]
    shares, chances = [], []
    for i, query in enumerate(queries):
        pool = [j for j in range(40) if not (exclude_self and j == i)]
        pool.sort(key=lambda j: -(gallery[j] @ query) / np.linalg.norm(gallery[j]))
        shares.append(np.mean(labels[pool[:k]] == labels[i]))
        chances.append(np.mean(labels[pool] == labels[i]))
    result = class_precision(queries, labels, gallery, labels, k, exclude_self=exclude_self)
    assert result["precision"] == pytest.approx(np.mean(shares))
    assert result["chance"] == pytest.approx(np.mean(chances))
    assert (result["pool_size"], result["queries"]) == (40 - exclude_self, 40)


def test_class_precision_counts_ties_by_expectation():
    result = class_precision([[1.0, 0.0]], ["a"], TIED_GALLERY, ["a", "b", "b", "a"], k=2, exclude_self=False)
    assert result["precision"] == pytest.approx(1 / 3)
    assert result["chance"] == 0.5


def test_class_precision_with_self_excluded_needs_the_same_samples():
    with pytest.raises(EvaluationError, match="got 2 queries and 3 gallery rows"):
        class_precision(np.eye(3)[:2], ["a", "b"], np.eye(3), ["a", "b", "a"], exclude_self=True)


@pytest.mark.parametrize(
    "labels, k, message",
    [
        (None, 1, "query_labels is None"),
        (["a", "b", "c"], 1, r"1 classes of query_labels do not occur in gallery_labels \(c\)"),
        (["a", "b", "a"], 3, r"got k in \(3,\) for a pool of 2"),
    ],
)
def test_class_precision_names_what_does_not_fit(labels, k, message):
    with pytest.raises(EvaluationError, match=message):
        class_precision(np.eye(3), labels, np.eye(3), ["a", "b", "a"], k, exclude_self=True)
