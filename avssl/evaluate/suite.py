"""All protocols on one pair of feature sets: the row of numbers a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from avssl.data import Manifest
from avssl.evaluate.knn import knn_accuracy
from avssl.evaluate.linear import linear_probe
from avssl.evaluate.retrieval import class_precision, retrieval_metrics
from avssl.features import Features


def retrieval_row(features: Features, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Retrieval from audio to video and back among the clips of `features`, as flat numbers.

    Each sample is one query and one gallery item; its own other half is the match. Names are ``a2v_r1``,
    ``a2v_median_rank`` and so on. Depths beyond the pool are left out.
    """
    ks = [k for k in ks if k <= len(features.rows)]
    pairs = {
        "a2v_": (features.audio_embedding, features.video_embedding),
        "v2a_": (features.video_embedding, features.audio_embedding),
    }
    row: dict[str, float] = {}
    for prefix, (queries, gallery) in pairs.items():
        row |= retrieval_metrics(queries, gallery, ks=ks).as_dict(prefix)
    return row


def probe_row(
    train: Features, train_labels: np.ndarray, test: Features, test_labels: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """Linear probe and kNN accuracy of trunk features, and class precision of the first cross-modal match.

    Parameters
    ----------
    train, test : Features
        Fitted on the one, judged on the other.
    train_labels, test_labels : int64 (N,)
        Class of each row of the features.
    seed : int
        Of the validation part that chooses the regularisation.
    """
    row: dict[str, float] = {}
    for modality in ("video", "audio"):
        fit, judge = getattr(train, modality), getattr(test, modality)
        row[f"linear_{modality}"] = linear_probe(fit, train_labels, judge, test_labels, seed=seed).accuracy
        row[f"knn_{modality}"] = knn_accuracy(fit, train_labels, judge, test_labels)
    row["a2v_class_precision"] = class_precision(
        test.audio_embedding, test_labels, test.video_embedding, test_labels, k=1, exclude_self=False
    )["precision"]
    return row


def labels_of(features: Features, manifest: Manifest, classes: Sequence[str]) -> np.ndarray | None:
    """Class number of each row of the features, or None when the manifest has unlabelled rows."""
    if any(label is None for label in manifest.labels) or len(classes) < 2:
        return None
    numbers: np.ndarray = manifest.label_indices(classes)[features.rows]
    return numbers


def table_of(rows: list[dict[str, Any]], pool_size: int, train_size: int, num_classes: int) -> dict[str, Any]:
    """What ``results.json`` holds: named rows of metrics with what they were measured on."""
    chance: dict[str, float] = {f"r{k}": k / pool_size for k in (1, 5, 10) if k <= pool_size}
    if num_classes >= 2:
        chance["linear"] = 1 / num_classes
    return {"rows": rows, "pool_size": pool_size, "train_size": train_size, "chance": chance}
