"""All protocols on one pair of feature sets: the row of numbers a model gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avssl.build import Config
from avssl.data import Manifest
from avssl.errors import EvaluationError
from avssl.evaluate.agreement import positive_precision
from avssl.evaluate.knn import knn_accuracy
from avssl.evaluate.linear import linear_probe
from avssl.evaluate.retrieval import class_precision, retrieval_metrics
from avssl.features import Features, extract_features
from avssl.memory import mine_positives
from avssl.models import DualEncoder, VisualEncoder


def retrieval_row(features: Features, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Retrieval from audio to video and back among the clips of `features`, as flat numbers.

    Each sample is one query and one gallery item; its own other half is the match. Names are ``a2v_r1``,
    ``a2v_median_rank`` and so on. Depths beyond the pool are left out. Nothing for a visual encoder alone.
    """
    if features.audio_embedding is None:
        return {}
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
        if fit is None:
            continue
        row[f"linear_{modality}"] = linear_probe(fit, train_labels, judge, test_labels, seed=seed).accuracy
        row[f"knn_{modality}"] = knn_accuracy(fit, train_labels, judge, test_labels)
    if test.audio_embedding is not None:
        row["a2v_class_precision"] = class_precision(
            test.audio_embedding, test_labels, test.video_embedding, test_labels, k=1, exclude_self=False
        )["precision"]
    return row


def agreement_row(
    state: Mapping[str, Tensor], labels: Sequence[str | None], num_positives: int
) -> dict[str, float]:
    """Share of agreements mined from the memories of a checkpoint that have the query's class.

    Parameters
    ----------
    state : mapping
        State dict of an objective with a bank.
    labels : sequence
        Label of each row of the bank.
    num_positives : int >= 1
        Agreements an instance.
    """
    found = mine_positives(
        state["bank.video"], state["bank.audio"], num_positives, "consensus", seen=state["bank.seen"]
    )
    return {"positive_precision": positive_precision(found.positives.numpy(), labels)["precision"]}


def labels_of(features: Features, manifest: Manifest, classes: Sequence[str]) -> np.ndarray | None:
    """Class number of each row of the features, or None when the manifest has unlabelled rows."""
    if any(label is None for label in manifest.labels) or len(classes) < 2:
        return None
    numbers: np.ndarray = manifest.label_indices(classes)[features.rows]
    return numbers


def evaluate_encoders(
    encoders: DualEncoder | VisualEncoder,
    config: Config,
    train: Manifest,
    test: Manifest,
    *,
    num_clips: int = 2,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[dict[str, float], Features]:
    """Measure a pair of encoders by all protocols the labels allow.

    Parameters
    ----------
    encoders, config, num_clips, num_workers, device, progress
        As for `extract_features`.
    train, test : Manifest
        Probes are fitted on the one and judged on the other; retrieval takes place within `test`.
    say : callable, optional
        Takes the reason why retrieval or probes cannot be measured (a collapsed or an untrained tiny network
        that says the same of everything), which are then left out; without it that is an error.

    Returns
    -------
    metrics : dict of str to float
        Retrieval between the modalities of a `DualEncoder`; probes when all
        samples of both manifests have labels.
    features : Features
        Of `test`.
    """
    extract = partial(
        extract_features,
        encoders,
        config,
        num_clips=num_clips,
        num_workers=num_workers,
        device=device,
        progress=progress,
    )
    judged = extract(test)
    measured = partial(_measured, say=say)
    row = measured("retrieval", lambda: retrieval_row(judged))
    classes = sorted({*train.classes, *test.classes})
    test_labels = labels_of(judged, test, classes)
    if test_labels is not None and None not in train.labels:
        fitted = extract(train)
        train_labels = labels_of(fitted, train, classes)
        assert train_labels is not None
        row = measured("probes", lambda: probe_row(fitted, train_labels, judged, test_labels)) | row
    return row, judged


def _measured(
    what: str, measure: Callable[[], dict[str, float]], say: Callable[[str], None] | None
) -> dict[str, float]:
    """Numbers of one kind; what cannot be measured is left out and said, if there is anybody to say it to."""
    try:
        return measure()
    except EvaluationError as error:
        if say is None:
            raise
        say(f"no {what}: {error}")
        return {}


def results_table(
    rows: list[dict[str, Any]], pool_size: int, train: Manifest, test: Manifest, command: str
) -> dict[str, Any]:
    """What ``results.json`` holds: named rows of metrics, chance levels and what they were measured on."""
    chance: dict[str, float] = {f"r{k}": k / pool_size for k in (1, 5, 10) if k <= pool_size}
    if len(train.classes) >= 2:
        chance["linear"] = 1 / len(train.classes)
        counts, others = Counter(train.labels).values(), Counter(test.labels).values()
        pairs = len(train) * (len(train) - 1)
        chance["positive_precision"] = sum(n * (n - 1) for n in counts) / pairs  # never with itself
        chance["class_precision"] = sum(n * n for n in others) / len(test) ** 2
    return {
        "rows": rows,
        "pool_size": pool_size,
        "train_size": len(train),
        "chance": chance,
        "command": command,
    }
