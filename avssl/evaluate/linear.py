"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from avssl.errors import EvaluationError
from avssl.evaluate.checks import (
    FloatArray,
    IntArray,
    Labels,
    check_same_width,
    feature_rows,
    label_array,
    paired_class_numbers,
)

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

log = logging.getLogger(__name__)

# Inverse regularisation strengths tried, weakest last.
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
VALIDATION_SHARE = 0.2
MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class LinearResult:
    """Outcome of a linear probe.

    Parameters
    ----------
    accuracy : float
        Share of test rows classified rightly, in [0, 1].
    C : float
        Inverse regularisation strength chosen on the validation part of the training rows.
    converged : bool
        Whether the final fit reached its tolerance; if not, `accuracy` is that of an unfinished fit.
    """

    accuracy: float
    C: float
    converged: bool


def linear_probe(
    train: ArrayLike, train_labels: Labels, test: ArrayLike, test_labels: Labels, seed: int = 0
) -> LinearResult:
    """Fit a linear classifier on the training features and count its hits on the test features.

    Features are standardised with the training mean and standard deviation (a constant dimension becomes 0).
    C is chosen from 0.01, 0.1, 1 and 10 by the accuracy on a fifth of each class of the training rows (the
    smallest C among equals), then the classifier is fitted again on all of them. Test rows take no part in
    either.

    Parameters
    ----------
    train : (N, d) array
        Training features.
    train_labels : N labels
        Their classes, at least two; one class must have two rows or more.
    test : (M, d) array
        Test features.
    test_labels : M labels
        Their classes, all of them among `train_labels`.
    seed : int
        Decides which training rows validate.

    Raises
    ------
    EvaluationError
        If arrays and labels do not fit each other, rows are not finite, or no row can be spared to validate.
    """
    x_train, x_test = feature_rows(train, "train"), feature_rows(test, "test")
    check_same_width(x_train, x_test, ("train", "test"))
    y_train, y_test = paired_class_numbers(
        label_array(train_labels, len(x_train), "train_labels"),
        label_array(test_labels, len(x_test), "test_labels"),
        "train_labels",
        "test_labels",
    )
    probe = fit_probe(x_train, y_train, seed)
    accuracy = float(np.mean(probe.predict(x_test) == y_test))
    return LinearResult(accuracy, probe.C, probe.converged)


@dataclass(frozen=True)
class FittedProbe:
    """A linear classifier and what it was fitted with.

    Parameters
    ----------
    pipeline : sklearn Pipeline
        Standardisation, then the classifier.
    C : float
        Inverse regularisation strength.
    converged : bool
        Whether the fit reached its tolerance.
    """

    pipeline: Pipeline
    C: float
    converged: bool

    def predict(self, features: FloatArray) -> IntArray:
        """Class number of each row (M, d)."""
        return np.asarray(self.pipeline.predict(features), dtype=np.int64)


def fit_probe(
    features: FloatArray, classes: IntArray, seed: int, strength: float | None = None
) -> FittedProbe:
    """Standardise, choose C as `linear_probe` says unless `strength` gives it, and fit on all rows.

    Raises
    ------
    EvaluationError
        When no row can be spared to choose C.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    if strength is None:
        strength = _choose_strength(scaled, classes, seed)
    classifier, converged = _fit(scaled, classes, strength)
    if not converged:
        log.warning("linear probe: C=%g did not converge in %d iterations", strength, MAX_ITERATIONS)
    return FittedProbe(make_pipeline(scaler, classifier), strength, converged)


def _choose_strength(features: FloatArray, classes: IntArray, seed: int) -> float:
    """The C of largest validation accuracy; the smallest among equals."""
    held = validation_rows(classes, seed)
    accuracy = {}
    for strength in STRENGTHS:
        classifier, _ = _fit(features[~held], classes[~held], strength)
        accuracy[strength] = classifier.score(features[held], classes[held])
    return max(STRENGTHS, key=lambda strength: (accuracy[strength], -strength))


def validation_rows(classes: IntArray, seed: int) -> np.ndarray:
    """Mask (N,) of a fifth of each class, at least one row; a class of one row keeps it for the fit.

    Raises
    ------
    EvaluationError
        When every class has one row.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(classes), dtype=bool)
    for number in np.unique(classes):
        rows = np.flatnonzero(classes == number)
        if len(rows) > 1:
            held[generator.permutation(rows)[: max(1, round(VALIDATION_SHARE * len(rows)))]] = True
    if not held.any():
        raise EvaluationError(
            f"each of the {len(np.unique(classes))} classes of train_labels has one row; "
            "at least one class needs two, to choose the regularisation; add training rows"
        )
    return held


def _fit(features: FloatArray, classes: IntArray, strength: float) -> tuple[LogisticRegression, bool]:
    """A fitted classifier, and whether the solver reached its tolerance."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(features, classes)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return classifier, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
