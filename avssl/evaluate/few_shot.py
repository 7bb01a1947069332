"""Few-shot linear classification: a linear probe on n samples a class, drawn several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t  # type: ignore[import-untyped]

from avssl.errors import EvaluationError
from avssl.evaluate.checks import FloatArray, IntArray
from avssl.evaluate.labelled import LabelledClips, Predictions, common_classes
from avssl.evaluate.linear import fit_probe

SHOTS = (1, 5, 10, 20)
ONE_SHOT_STRENGTH = 1.0
"""C with one sample a class, where none can be spared to choose it."""


@dataclass(frozen=True, eq=False)
class Draw:
    """One drawn training set.

    Parameters
    ----------
    rows : int64 (n K,)
        Rows in the manifest of the samples drawn, rising.
    C : float
        Inverse regularisation strength, chosen among the drawn samples alone.
    converged : bool
        Whether the solver reached its tolerance.
    predictions : Predictions
        Of all test samples.
    """

    rows: IntArray
    C: float
    converged: bool
    predictions: Predictions


@dataclass(frozen=True, eq=False)
class ShotResult:
    """Accuracy with a number of samples a class.

    Parameters
    ----------
    shots : int
        Samples a class.
    mean : float
        Mean accuracy over the draws, in [0, 1].
    interval : (float, float)
        95% confidence interval of the mean, by Student's t over the draws: what another set of draws would
        give. The test samples are the same in all, so their own chance is not in it.
    draws : list of Draw
    """

    shots: int
    mean: float
    interval: tuple[float, float]
    draws: list[Draw]


@dataclass(frozen=True, eq=False)
class FewShotResult:
    """Accuracy by number of samples a class.

    Parameters
    ----------
    results : list of ShotResult
        By rising number of shots.
    left_out : list of int
        Numbers of shots that the smallest class does not have.
    num_train, num_test : int
        Samples to draw from, and to judge by.
    classes : list
        Names of the classes, sorted.
    """

    results: list[ShotResult]
    left_out: list[int]
    num_train: int
    num_test: int
    classes: list[object]


def few_shot(
    train: LabelledClips,
    test: LabelledClips,
    shots: Sequence[int] = SHOTS,
    num_draws: int = 5,
    seed: int = 0,
) -> FewShotResult:
    """Fit linear probes on few samples a class, and judge each on all test samples.

    The feature of a sample is the mean over its clips. Each draw takes n samples of each class without
    replacement. C is chosen as by `linear_probe`, on a fifth of the drawn samples (at least one of each
    class); with one shot it is 1. Neither samples that were not drawn nor test samples decide anything.

    Parameters
    ----------
    train, test : LabelledClips
        Samples to draw from, and to judge by.
    shots : sequence of int >= 1
        Samples a class; numbers above the size of the smallest class are left out.
    num_draws : int >= 2
        Draws of each.
    seed : int
        Decides the draws: draw i of n shots is the same whatever else is asked for.

    Raises
    ------
    EvaluationError
        When classes, features or numbers do not fit, or every number of shots is left out.
    """
    if num_draws < 2 or not shots or min(shots) < 1:
        raise EvaluationError(
            f"got shots={tuple(shots)} and num_draws={num_draws}; must be shots >= 1 and at least 2 draws, "
            "which an interval needs"
        )
    names, _, _ = common_classes(train, test)
    x_train, x_test = train.means(), test.means()
    y_train = np.searchsorted(names, train.sample_labels).astype(np.int64)
    y_test = np.searchsorted(names, test.sample_labels).astype(np.int64)
    smallest = int(np.bincount(y_train).min())
    possible = sorted({n for n in shots if n <= smallest})
    if not possible:
        raise EvaluationError(
            f"the smallest class has {smallest} training samples; got shots={tuple(shots)}; give smaller "
            "numbers, or leave out classes that small"
        )
    results = []
    for n in possible:
        draws = []
        for number in range(num_draws):
            drawn = draw_shots(y_train, n, seed, number)
            probe = fit_probe(x_train[drawn], y_train[drawn], seed, ONE_SHOT_STRENGTH if n == 1 else None)
            predictions = Predictions(test.samples, probe.predict(x_test), y_test, names)
            draws.append(Draw(train.samples[drawn], probe.C, probe.converged, predictions))
        accuracy = np.array([draw.predictions.accuracy for draw in draws])
        results.append(ShotResult(n, float(accuracy.mean()), confidence_interval(accuracy), draws))
    left_out = sorted(set(shots) - set(possible))
    return FewShotResult(results, left_out, len(x_train), len(x_test), names)


def draw_shots(classes: IntArray, shots: int, seed: int, number: int) -> IntArray:
    """Places of `shots` samples of each class, rising; `number` tells draws of one seed apart."""
    generator = np.random.default_rng([seed, shots, number])
    drawn = [generator.choice(np.flatnonzero(classes == c), shots, replace=False) for c in np.unique(classes)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def confidence_interval(values: FloatArray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of independent values (n,), n >= 2, by Student's t; not cut to [0, 1]."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(student_t.ppf((1 + confidence) / 2, len(values) - 1) * error)
    return float(values.mean()) - half, float(values.mean()) + half
