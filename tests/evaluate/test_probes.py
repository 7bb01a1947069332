"""kNN and linear probes against independent float64 references and hand-made cases."""

import logging

import numpy as np
import pytest

from avssl.errors import EvaluationError
from avssl.evaluate import knn_accuracy, linear_probe
from avssl.evaluate import linear as linear_module


def _blobs(rows, dims, classes, spread, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(rows) % classes)
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    return centres[labels] + spread * generator.normal(size=(rows, dims)), labels


def _knn_reference(train, train_labels, test, test_labels, k, temperature):
    hits = 0
    for row, label in zip(test, test_labels, strict=True):
        cosine = [x @ row / np.linalg.norm(x) / np.linalg.norm(row) for x in train]
        votes = dict.fromkeys(sorted(set(train_labels)), 0.0)
        for j in sorted(range(len(train)), key=lambda j: -cosine[j])[:k]:
            votes[train_labels[j]] += np.exp(cosine[j] / temperature)
        hits += max(votes, key=votes.__getitem__) == label
    return hits / len(test)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (7, 0.07), (20, 1.0), (500, 0.1)])
def test_knn_equals_brute_force(k, temperature):
    train, train_labels = _blobs(80, 12, 5, 2.0)
    test, test_labels = _blobs(60, 12, 5, 2.0, seed=1)
    expected = _knn_reference(train, train_labels, test, test_labels, k, temperature)
    assert 0.2 < expected < 1.0
    assert knn_accuracy(train, train_labels, test, test_labels, k, temperature) == pytest.approx(expected)


def test_knn_weighs_votes_by_similarity():
    train = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    query = [[1.0, 0.2]]
    assert knn_accuracy(train, ["near", "far", "far"], query, ["near"], k=3) == 1.0
    assert knn_accuracy(train, ["near", "far", "far"], query, ["far"], k=3, temperature=100.0) == 1.0


def test_knn_ignores_the_length_of_features():
    train, train_labels = _blobs(50, 6, 3, 1.5)
    test, test_labels = _blobs(50, 6, 3, 1.5, seed=1)
    scale = np.random.default_rng(0).uniform(1e-3, 1e3, (50, 1))
    plain = knn_accuracy(train, train_labels, test, test_labels)
    assert knn_accuracy(train * scale, train_labels, test * scale[::-1], test_labels) == plain


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_knn_gives_a_tied_vote_to_the_class_first_in_sorted_order(order):
    train = np.array([[1.0, 0.5], [1.0, -0.5]])[order]
    labels = np.array(["ant", "bee"])[order]
    assert knn_accuracy(train, labels, [[1.0, 0.0]], ["ant"], k=2) == 1.0


@pytest.mark.parametrize("first", ["ant", "bee"])
def test_knn_sees_a_tie_through_the_rounding_of_similarities(first):
    """A row and its copy with halves swapped are equally near to a query whose halves are equal."""
    half, one, other = np.random.default_rng(0).normal(size=(3, 200, 61))
    names = (first, "bee" if first == "ant" else "ant")
    for u, a, b in zip(half, one, other, strict=True):
        train = [np.concatenate([a, b]), np.concatenate([b, a])]
        assert knn_accuracy(train, names, [np.concatenate([u, u])], ["ant"], k=2) == 1.0


def test_knn_survives_a_tiny_temperature():
    train, labels = _blobs(40, 5, 2, 0.1)
    assert knn_accuracy(train, labels, train, labels, temperature=1e-6) == 1.0


@pytest.mark.parametrize("value", [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_knn_names_a_wrong_option(value):
    train, labels = _blobs(10, 3, 2, 1.0)
    with pytest.raises(EvaluationError, match="must be k >= 1 and temperature > 0"):
        knn_accuracy(train, labels, train, labels, **value)


def test_linear_probe_separates_what_a_line_separates():
    train, train_labels = _blobs(120, 8, 4, 0.2)
    test, test_labels = _blobs(80, 8, 4, 0.2, seed=1)
    result = linear_probe(train, train_labels, test, test_labels)
    assert result.accuracy == 1.0
    assert result.converged


def test_linear_probe_of_noise_is_near_chance():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(400, 16)), np.arange(400) % 4
    result = linear_probe(features[:200], labels[:200], features[200:], labels[200:])
    assert 0.1 < result.accuracy < 0.4


def test_linear_probe_equals_the_same_steps_by_hand():
    from sklearn.linear_model import LogisticRegression

    train, train_labels = _blobs(150, 10, 3, 2.5)
    test, test_labels = _blobs(150, 10, 3, 2.5, seed=1)
    result = linear_probe(train, train_labels, test, test_labels)
    mean, std = train.mean(axis=0), train.std(axis=0)
    model = LogisticRegression(C=result.C, max_iter=5000).fit((train - mean) / std, train_labels)
    assert result.C in (0.01, 0.1, 1.0, 10.0)
    assert result.accuracy == pytest.approx(model.score((test - mean) / std, test_labels))


def test_linear_probe_chooses_strength_without_looking_at_test_rows():
    train, train_labels = _blobs(90, 10, 3, 3.0)
    test, test_labels = _blobs(90, 10, 3, 3.0, seed=1)
    right = linear_probe(train, train_labels, test, test_labels)
    wrong = linear_probe(train, train_labels, test, (test_labels + 1) % 3)
    assert right.C == wrong.C
    assert right.accuracy != wrong.accuracy


def test_linear_probe_takes_the_best_strength_on_validation_rows_and_the_strongest_among_equals():
    from sklearn.linear_model import LogisticRegression

    chosen = set()
    for seed in range(6):
        features, labels = _blobs(90, 40, 3, 3.0 + seed, seed)
        held = linear_module.validation_rows(labels, seed)
        scaled = (features - features.mean(axis=0)) / features.std(axis=0)
        accuracy = []
        for strength in linear_module.STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=5000).fit(scaled[~held], labels[~held])
            accuracy.append(np.mean(model.predict(scaled[held]) == labels[held]))
        best = linear_module.STRENGTHS[int(np.argmax(accuracy))]
        assert best == linear_probe(features, labels, features, labels, seed=seed).C
        chosen.add(best)
    assert len(chosen) > 1


def test_linear_probe_is_unmoved_by_scale_shift_and_constant_dimensions():
    train, train_labels = _blobs(100, 6, 3, 1.5)
    test, test_labels = _blobs(100, 6, 3, 1.5, seed=1)
    plain = linear_probe(train, train_labels, test, test_labels)
    constant = np.full((100, 2), 7.3)
    moved = linear_probe(
        np.hstack([1e3 * train - 5e4, constant]),
        train_labels,
        np.hstack([1e3 * test - 5e4, constant + 1]),
        test_labels,
    )
    assert moved.C == plain.C
    assert moved.accuracy == pytest.approx(plain.accuracy, abs=0.011)


def test_linear_probe_says_when_the_solver_stopped_early(monkeypatch, caplog):
    monkeypatch.setattr(linear_module, "MAX_ITERATIONS", 1)
    train, labels = _blobs(60, 5, 3, 1.0)
    with caplog.at_level(logging.WARNING):
        result = linear_probe(train, labels, train, labels)
    assert not result.converged
    assert "did not converge in 1 iterations" in caplog.text


def test_linear_probe_holds_a_fifth_of_each_class_and_spares_single_rows():
    classes = np.array([0] * 10 + [1] * 5 + [2] * 2 + [3])
    held = linear_module.validation_rows(classes, seed=0)
    assert np.bincount(classes[held], minlength=4).tolist() == [2, 1, 1, 0]
    assert (held == linear_module.validation_rows(classes, seed=0)).all()
    assert (held != linear_module.validation_rows(classes, seed=1)).any()


def test_linear_probe_needs_a_row_to_validate():
    with pytest.raises(EvaluationError, match="each of the 3 classes of train_labels has one row"):
        linear_probe(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2])


def test_linear_probe_converges_at_the_size_of_the_demo():
    train, train_labels = _blobs(600, 256, 12, 4.0)
    test, test_labels = _blobs(200, 256, 12, 4.0, seed=1)
    result = linear_probe(train.astype(np.float32), train_labels, test.astype(np.float32), test_labels)
    assert result.converged


@pytest.mark.parametrize("probe", [knn_accuracy, linear_probe])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_labels": None}, "train_labels is None"),
        ({"test_labels": ["a"]}, "test_labels has 1 entries for 4 rows"),
        (
            {"train_labels": ["a", None, "b", np.nan]},
            r"2 of 4 entries of train_labels .* \(rows 1, 3\)",
        ),
        ({"train_labels": ["a"] * 4, "test_labels": ["a"] * 4}, "train_labels has the single class 'a'"),
        (
            {"test_labels": ["a", "b", "c", "d"]},
            r"2 classes of test_labels do not occur .*\(c, d\)",
        ),
        ({"train": np.eye(4)[:, :3] + 1}, "train has 3 dimensions and test has 4"),
        ({"train": np.ones(4)}, r"train has shape \(4,\)"),
        ({"test": np.zeros((0, 4))}, r"test has shape \(0, 4\)"),
        (
            {"test": np.diag([1, np.nan, 1, np.inf])},
            r"2 of 4 rows of test hold NaN .*\(rows 1, 3\)",
        ),
    ],
)
def test_probes_name_what_does_not_fit(probe, change, message):
    arguments = {
        "train": np.eye(4),
        "train_labels": ["a", "a", "b", "b"],
        "test": np.eye(4),
        "test_labels": ["a", "a", "b", "b"],
    }
    with pytest.raises(EvaluationError, match=message):
        probe(**(arguments | change))


def test_knn_refuses_collapsed_and_zero_features():
    labels = ["a", "a", "b", "b"]
    with pytest.raises(EvaluationError, match="all 4 rows of train are the same embedding"):
        knn_accuracy(np.ones((4, 3)), labels, np.eye(4)[:, :3] + 1, labels)
    with pytest.raises(EvaluationError, match=r"1 of 4 rows of test are all zeros \(rows 2\)"):
        knn_accuracy(np.eye(4), labels, np.diag([1, 1, 0, 1]), labels)
