"""Mined positives judged by labels, and the signs of collapse, against hand-made cases."""

import numpy as np
import pytest

from avssl.errors import EvaluationError
from avssl.evaluate import collapse, positive_precision


def test_positive_precision_of_a_hand_made_case():
    positives = np.array([[1, 2], [0, -1], [-1, -1], [1, 4], [3, 0]])
    result = positive_precision(positives, ["a", "a", "a", "b", "b"])
    # right: 0-1, 0-2, 1-0, 3-4, 4-3; wrong: 3-1, 4-0
    assert result["precision"] == pytest.approx(5 / 7)
    assert result["chance"] == pytest.approx((3 * 2 + 2 * 1) / (5 * 4))
    assert (result["pairs"], result["queries"], result["rows"]) == (7, 4, 5)


def test_positive_precision_of_random_positives_is_chance():
    generator = np.random.default_rng(0)
    labels = generator.choice(list("abc"), 600, p=[0.6, 0.3, 0.1])
    others = generator.integers(0, 599, (600, 40))
    positives = others + (others >= np.arange(600)[:, None])
    result = positive_precision(positives, labels)
    assert result["precision"] == pytest.approx(result["chance"], abs=0.02)
    assert positive_precision(positives, list(labels)) == result


@pytest.mark.parametrize(
    "positives, labels, message",
    [
        ([[1], [0], [-1]], None, "labels is None"),
        ([[1], [0], [-1]], ["a", "b"], "labels has 2 entries for 3 rows"),
        ([[1], [0], [-1]], ["a", "a", "a"], "labels has the single class 'a'"),
        ([[1], [3], [-2]], ["a", "b", "a"], r"2 rows of positives \(rows 1, 2\)"),
        ([[0], [0], [1]], ["a", "b", "a"], r"1 rows of positives \(rows 0\) name themselves"),
        ([[-1], [-1], [-1]], ["a", "b", "a"], "none of 3 rows has a positive"),
        ([1, 0, 1], ["a", "b", "a"], r"positives are int64 \(3,\)"),
        ([[1.0], [0.0], [1.0]], ["a", "b", "a"], "positives are float64"),
    ],
)
def test_positive_precision_names_what_does_not_fit(positives, labels, message):
    with pytest.raises(EvaluationError, match=message):
        positive_precision(positives, labels)


def test_collapse_of_one_direction():
    result = collapse(np.outer(np.arange(1, 9), [3.0, 0.0, 4.0]))
    assert result["mean_norm"] == pytest.approx(1)
    assert result["std"] == pytest.approx(0, abs=1e-12)
    assert result["effective_rank"] == pytest.approx(1)


def test_collapse_of_evenly_spread_directions():
    result = collapse(np.vstack([np.eye(16), -np.eye(16)]))
    assert result["mean_norm"] == pytest.approx(0, abs=1e-12)
    assert result["std"] == pytest.approx(result["std_spread"])
    assert result["std_spread"] == 0.25
    assert result["effective_rank"] == pytest.approx(16)


def test_collapse_equals_the_definition_in_float64():
    x = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 0.1, 0.01] + 2
    unit = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
    singular = np.sqrt(np.linalg.eigvalsh(unit.T @ unit))
    p = singular / singular.sum()
    result = collapse(x)
    assert result["effective_rank"] == pytest.approx(np.prod(p**-p))
    assert result["mean_norm"] == pytest.approx(np.sqrt((unit.mean(axis=0) ** 2).sum()))
    assert result["std"] == pytest.approx(np.sqrt(((unit - unit.mean(axis=0)) ** 2).mean(axis=0)).mean())
    assert all(type(value) is float for value in result.values())


def test_collapse_is_the_same_at_any_scale():
    x = np.random.default_rng(1).normal(size=(30, 4))
    assert collapse(x * 1e200) == pytest.approx(collapse(x * 1e-200))


def test_collapse_refuses_nan():
    with pytest.raises(EvaluationError, match=r"1 of 3 rows of embeddings hold NaN or infinity \(rows 1\)"):
        collapse([[1.0, 0.0], [np.nan, 1.0], [0.0, 1.0]])
