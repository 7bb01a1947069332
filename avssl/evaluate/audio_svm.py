"""Linear support vector machines on frozen features of sound: ESC-50 and DCASE as in AVID's paper.

Piczak, "ESC: Dataset for Environmental Sound Classification", ACM Multimedia 2015, has five folds; the paper
fits one machine a class against the rest on 2 s clips and averages the scores of the ten clips of a file.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from avssl.data import Manifest
from avssl.errors import EvaluationError
from avssl.evaluate.checks import FloatArray, IntArray, first_rows
from avssl.evaluate.labelled import LabelledClips, Predictions, common_classes, predict_samples
from avssl.evaluate.linear import validation_rows

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC

log = logging.getLogger(__name__)

STRENGTHS = (0.001, 0.1, 10.0)
"""Inverse regularisation strengths tried, weakest last; the paper has 10 for ESC-50 and 1 for DCASE."""

SOFTENING = 1e-2  # added to the standard deviation a feature is divided by, so that dead ones stay small
TOLERANCE, MAX_ITERATIONS = 1e-4, 200
ESC_NAME = re.compile(r"(?:.*/)?([1-9])-\d+-[A-Z]-\d+$")  # fold, recording, take, class
FOLD_NAME = re.compile(r"(?:fold)?[ _-]?(\d+)$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Fold:
    """Which samples are for what, by their rows in the manifest.

    Parameters
    ----------
    name : str
        What it is called.
    train, test : int64 (N,), (M,)
        Fitted on the ones, judged on the others.
    validation : int64 (V,), optional
        Those of `train` that choose the regularisation. Default: a fifth of each class.
    """

    name: str
    train: IntArray
    test: IntArray
    validation: IntArray | None = None

    def __post_init__(self) -> None:
        if (both := np.intersect1d(self.train, self.test)).size:
            raise EvaluationError(
                f"fold {self.name}: {both.size} samples both train and test (rows {first_rows(both)}); a "
                "sample has one part; correct the splits"
            )
        if self.validation is not None and (alien := np.setdiff1d(self.validation, self.train)).size:
            raise EvaluationError(
                f"fold {self.name}: {alien.size} samples for validation are not in train (rows "
                f"{first_rows(alien)}); choose among the training samples"
            )


@dataclass(frozen=True, eq=False)
class FoldResult:
    """Outcome of one fold.

    Parameters
    ----------
    name : str
        Name of the fold.
    strength : float
        Inverse regularisation strength C.
    validation : dict of float to float
        Accuracy of each C on the validation samples; empty when there was no choice.
    converged : bool
        Whether the final fit reached its tolerance.
    num_train, num_train_clips : int
        Samples and clips of the final fit.
    predictions : Predictions
        Of the test samples.
    """

    name: str
    strength: float
    validation: Mapping[float, float]
    converged: bool
    num_train: int
    num_train_clips: int
    predictions: Predictions


@dataclass(frozen=True, eq=False)
class SvmResult:
    """Outcome over all folds.

    Parameters
    ----------
    accuracy : float
        Mean of the folds' accuracies, in [0, 1]: what papers print for ESC-50.
    folds : list of FoldResult
    """

    accuracy: float
    folds: list[FoldResult] = field(default_factory=list)


def folds_of(manifest: Manifest) -> list[Fold]:
    """Folds that a manifest means: each fold tests once, and the one after it validates.

    1. Files named as those of ESC-50 (``1-100032-A-0``) begin with the number of their fold; with at least
       three folds there, splits play no part, so the manifest of any fold will do.
    2. At least three splits named ``fold1``, ``fold2`` ... or ``1``, ``2`` ...
    3. Splits ``train`` and ``test``: one fold. A split ``val`` trains and validates; without it a fifth of
       each class does.

    Raises
    ------
    EvaluationError
        When it means none of these.
    """
    splits = np.array(manifest.table["split"].to_pylist(), dtype=object)
    for texts, pattern in ((manifest.ids, ESC_NAME), (splits.tolist(), FOLD_NAME)):
        found = [pattern.match(text or "") for text in texts]
        numbers = np.array([int(match[1]) if match else -1 for match in found])
        if (numbers >= 0).all() and len(np.unique(numbers)) > 2:
            return _leave_one_out(numbers)
    train, test, validation = (np.flatnonzero(splits == name) for name in ("train", "test", "val"))
    if train.size and test.size:
        known = np.sort(np.concatenate([train, validation]))
        return [Fold("test", known, test, validation if validation.size else None)]
    raise EvaluationError(
        f"the manifest has splits {', '.join(manifest.splits)}; must be train and test, or fold1, fold2 and "
        "so on, or files named as those of ESC-50; make it with `avssl datasets manifest`"
    )


def _leave_one_out(numbers: IntArray) -> list[Fold]:
    names = np.unique(numbers)
    rows = {name: np.flatnonzero(numbers == name) for name in names}
    return [
        Fold(
            f"fold {test}",
            np.flatnonzero(numbers != test),
            rows[test],
            rows[names[(place + 1) % len(names)]],
        )
        for place, test in enumerate(names)
    ]


def audio_svm(
    clips: LabelledClips,
    folds: Sequence[Fold],
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> SvmResult:
    """Fit one linear machine a class against the rest on clips, and judge files by their mean score.

    Features are centred by the training mean and divided by the training standard deviation + 0.01. Of
    several strengths the one of largest accuracy on the validation samples is taken, fitted without them (the
    smallest among equals); then all training samples are fitted. Test samples take no part in either.

    A fit holds its clips as float64, and again in the solver's form of 16 bytes a number.

    Parameters
    ----------
    clips : LabelledClips
        Clips of all samples, for example of the block ``"audio.conv4x"``.
    folds : sequence of Fold
        See `folds_of`.
    strengths : sequence of float > 0
        Inverse regularisation strengths to choose from; of a single one nothing is chosen.
    seed : int
        Of the solver, and of the validation samples where a fold names none.

    Raises
    ------
    EvaluationError
        When numbers, classes or folds do not fit, or a feature is not finite.
    """
    if not strengths or min(strengths) <= 0 or not folds:
        raise EvaluationError(
            f"got strengths={tuple(strengths)} and {len(folds)} folds; must be strengths > 0 and at least "
            "one of each"
        )
    results = [_fold_result(clips, fold, sorted(strengths), seed) for fold in folds]
    return SvmResult(float(np.mean([result.predictions.accuracy for result in results])), results)


def _fold_result(clips: LabelledClips, fold: Fold, strengths: Sequence[float], seed: int) -> FoldResult:
    train, test = clips.of(fold.train), clips.of(fold.test)
    validation: dict[float, float] = {}
    if len(strengths) > 1:
        held = train.samples[_held(train, fold, seed)]
        fit, judge = train.of(np.setdiff1d(train.samples, held)), train.of(held)
        judged = _judge(fit, judge, strengths, seed)
        validation = {strength: predictions.accuracy for strength, (predictions, _) in judged.items()}
    best = max(strengths, key=lambda strength: (validation.get(strength, 0.0), -strength))
    predictions, converged = _judge(train, test, [best], seed)[best]
    if not converged:
        log.warning("%s: C=%g did not converge in %d iterations", fold.name, best, MAX_ITERATIONS)
    return FoldResult(fold.name, best, validation, converged, len(train.samples), len(train), predictions)


def _held(train: LabelledClips, fold: Fold, seed: int) -> np.ndarray:
    """Which samples choose the regularisation, a mask over `train.samples`."""
    if fold.validation is not None:
        return np.isin(train.samples, fold.validation)
    classes = np.unique(train.sample_labels, return_inverse=True)[1].astype(np.int64)
    return validation_rows(classes, seed)


def _judge(
    fit: LabelledClips, judge: LabelledClips, strengths: Sequence[float], seed: int
) -> dict[float, tuple[Predictions, bool]]:
    """Predictions for the one's samples after a fit on the other's clips, and whether it converged."""
    names, classes, true = common_classes(fit, judge)
    mean, scale = _moments(fit)
    features = _standardised(fit, mean, scale)
    outcome = {}
    for strength in strengths:
        machine, converged = _fitted(features, classes, strength, seed)
        scores = np.concatenate([_scores(machine, (block - mean) / scale) for _, block in judge.blocks()])
        outcome[strength] = (predict_samples(scores, judge, true, names), converged)
    return outcome


def _moments(clips: LabelledClips) -> tuple[FloatArray, FloatArray]:
    """Mean and softened standard deviation of each dimension, in two passes over the clips."""
    mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in clips.blocks()) / len(clips)
    squares = sum(((block - mean) ** 2).sum(axis=0) for _, block in clips.blocks())
    return np.asarray(mean), np.sqrt(np.asarray(squares) / len(clips)) + SOFTENING


def _standardised(clips: LabelledClips, mean: FloatArray, scale: FloatArray) -> FloatArray:
    features = np.empty(clips.features.shape)
    for part, block in clips.blocks():
        features[part] = (block - mean) / scale
    return features


def _fitted(features: FloatArray, classes: IntArray, strength: float, seed: int) -> tuple[LinearSVC, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        C=strength,
        loss="hinge",
        dual=True,
        tol=TOLERANCE,
        max_iter=MAX_ITERATIONS,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(features, classes)
    return machine, bool(np.max(machine.n_iter_) < MAX_ITERATIONS)


def _scores(machine: Any, features: FloatArray) -> FloatArray:
    """Signed distances (M, K), also of two classes, for which there is one machine."""
    scores = np.asarray(machine.decision_function(features), dtype=np.float64)
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
