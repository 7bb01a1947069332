"""Few-shot probes against scikit-learn by hand, and the statistics of their draws."""

import numpy as np
import pytest

from avssl.errors import EvaluationError
from avssl.evaluate.few_shot import confidence_interval, draw_shots, few_shot
from avssl.evaluate.labelled import LabelledClips


def _clips(samples=60, each=2, dims=10, classes=3, spread=2.0, seed=0):
    generator = np.random.default_rng(seed)
    classes_of = np.repeat(np.arange(samples) % classes, each)
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    features = centres[classes_of] + spread * generator.normal(size=(samples * each, dims))
    return LabelledClips(features, np.repeat(3 * np.arange(samples), each), np.array(list("xyz"))[classes_of])


def test_few_shot_equals_the_same_steps_by_hand():
    from sklearn.linear_model import LogisticRegression

    train, test = _clips(), _clips(seed=1)
    result = few_shot(train, test, shots=[5, 1], num_draws=3)
    assert [one.shots for one in result.results] == [1, 5]
    assert (result.num_train, result.num_test, result.classes) == (60, 60, ["x", "y", "z"])
    x_test = np.array([test.features[test.rows == row].mean(axis=0) for row in test.samples])
    y_test = np.array([test.labels[test.rows == row][0] for row in test.samples])
    for one in result.results:
        accuracies = []
        for draw in one.draws:
            x = np.array([train.features[train.rows == row].mean(axis=0) for row in draw.rows])
            y = np.array([train.labels[train.rows == row][0] for row in draw.rows])
            assert np.unique(y, return_counts=True)[1].tolist() == [one.shots] * 3
            mean, std = x.mean(axis=0), x.std(axis=0)
            model = LogisticRegression(C=draw.C, max_iter=5000).fit((x - mean) / std, y)
            predicted = model.predict((x_test - mean) / std)
            assert predicted.tolist() == [result.classes[c] for c in draw.predictions.predicted]
            accuracies.append(np.mean(predicted == y_test))
            assert draw.predictions.accuracy == pytest.approx(accuracies[-1])
            assert draw.converged
            assert draw.C == 1.0 if one.shots == 1 else draw.C in (0.01, 0.1, 1.0, 10.0)
        assert one.mean == pytest.approx(np.mean(accuracies))
        # Student's t for 2 degrees of freedom at 97.5%, from a table.
        half = 4.302653 * np.std(accuracies, ddof=1) / np.sqrt(3)
        assert one.interval == pytest.approx((np.mean(accuracies) - half, np.mean(accuracies) + half))


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        low, high = confidence_interval(generator.normal(0.5, 0.1, 5))
        inside += low <= 0.5 <= high
    assert 0.94 < inside / 4000 < 0.96


def test_draws_differ_and_repeat_with_the_seed():
    classes = np.arange(100) % 5
    draws = [tuple(draw_shots(classes, 4, 0, number)) for number in range(20)]
    assert len(set(draws)) == 20
    assert draws[3] == tuple(draw_shots(classes, 4, 0, 3))
    assert draws[3] != tuple(draw_shots(classes, 4, 1, 3))
    for draw in draws:
        assert len(set(draw)) == 20
        assert np.bincount(classes[list(draw)]).tolist() == [4] * 5
    train, test = _clips(), _clips(seed=1)
    alone, among = few_shot(train, test, [5], 2), few_shot(train, test, [1, 5], 2)
    for one, other in zip(alone.results[0].draws, among.results[1].draws, strict=True):
        assert one.rows.tolist() == other.rows.tolist()


def test_more_shots_find_more_and_separable_classes_need_one():
    train, test = _clips(300, spread=3.0), _clips(300, spread=3.0, seed=1)
    means = [one.mean for one in few_shot(train, test, num_draws=8).results]
    assert len(means) == 4
    assert means[0] < means[1] - 0.05 < means[3] - 0.05
    easy = few_shot(_clips(spread=0.05), _clips(spread=0.05, seed=1))
    assert [(one.mean, one.interval) for one in easy.results] == [(1.0, (1.0, 1.0))] * 4
    labels = np.repeat(np.random.default_rng(0).permutation(train.sample_labels), 2)
    noise = few_shot(LabelledClips(train.features, train.rows, labels), test, [20]).results[0]
    assert abs(noise.mean - 1 / 3) < 0.12


def test_test_labels_choose_nothing():
    train, test = _clips(), _clips(seed=1)
    moved = LabelledClips(test.features, test.rows, np.roll(test.labels, 2))
    one, other = (few_shot(train, judged, [5], 4).results[0] for judged in (test, moved))
    assert [draw.C for draw in one.draws] == [draw.C for draw in other.draws]
    assert one.mean != other.mean


def test_numbers_of_shots_a_class_does_not_have_are_left_out():
    train = _clips(21)
    result = few_shot(train, _clips(seed=1))
    assert [one.shots for one in result.results] == [1, 5]
    assert result.left_out == [10, 20]
    with pytest.raises(EvaluationError, match=r"the smallest class has 7 training samples; got shots=\(8,\)"):
        few_shot(train, train, [8])


@pytest.mark.parametrize("wrong", [{"shots": []}, {"shots": [0]}, {"num_draws": 1}])
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(EvaluationError, match="must be shots >= 1 and at least 2 draws"):
        few_shot(_clips(), _clips(), **wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array(["x"] * 120)}, "has the single class 'x'"),
        ({"labels": np.array(["x"] * 119)}, "labels has 119 entries for 120 rows"),
        ({"labels": np.array([*"xy"] * 60)}, r"clips of two classes \(rows 0, 3, 6, 9, 12, ...\)"),
        ({"rows": np.arange(5)}, "rows has 5 entries for 120 clips"),
        ({"features": np.zeros((120, 0))}, r"features have shape \(120, 0\)"),
        ({"features": np.zeros((120, 3))}, "train has 3 dimensions and test has 10"),
    ],
)
def test_clips_that_do_not_fit_are_named(change, message):
    clips = _clips()
    parts = {"features": clips.features, "rows": clips.rows, "labels": clips.labels} | change
    with pytest.raises(EvaluationError, match=message):
        few_shot(LabelledClips(**parts), _clips())
