"""The curves of a stage: which logged numbers share a chart, and where on the page it stands."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from avssl.report.charts import Series, line_chart
from avssl.report.reading import Stage, number

Groups = tuple[tuple[str, str], ...]

# Title and pattern of the names that share a chart. Parts of a joint objective put their name before a slash.
HELD_OUT: Groups = (
    ("kNN accuracy", "held_out_knn_.*"),
    ("Retrieval: R@1", "held_out_.*_r1"),
    ("Samples held out", "held_out_(pool|skipped)"),
)
LOSSES: Groups = (("Loss", "loss"), ("Loss terms", r"(.*/)?loss_(?!over_ln_k).*|.*/loss"))
OTHERS: Groups = (
    ("Spread of embeddings", "(.*/)?spread.*"),
    ("Effective rank of embeddings", "(.*/)?effective_rank.*"),
    ("Mean norm of embeddings", "(.*/)?mean_norm.*"),
    ("Share of prototypes used", "(.*/)?prototypes_used.*"),
    ("Loss over ln K", "(.*/)?loss_over_ln_k.*"),
    ("Log Z", "(.*/)?log_z.*"),
    ("Learning rate", "lr"),
    ("Norm of the gradient", "grad_norm"),
    ("Share of time waiting for data", "data_wait_share"),
    ("Clips a second", "clips_per_second"),
    ("Memory in GB", "memory_gb"),
)
"""Any other numeric key gets a chart of its own."""
NOT_CURVES = {"step", "epoch"}
MINED = re.compile(r"positives/.*|(.*/)?(mining_.*|instances_with_positives)")
"""What mining.jsonl says too, which has a section of its own."""


@dataclass(frozen=True)
class Curves:
    """Charts of a stage, of what was measured on held out data, of its losses, and of everything else."""

    name: str
    held_out: list[Markup]
    losses: list[Markup]
    others: list[Markup]


def curves_of(stage: Stage) -> Curves:
    """Draw all that a stage logged."""
    keys = list(dict.fromkeys(key for record in stage.metrics for key in record))
    shown = NOT_CURVES | {key for key in keys if stage.mining and MINED.fullmatch(key)}
    left = [key for key in keys if key not in shown and _series(stage, key).y]
    held_out, losses, others = (_take(stage, left, groups) for groups in (HELD_OUT, LOSSES, OTHERS))
    others += [_chart(stage, key.replace("_", " ").capitalize(), [key]) for key in left]
    return Curves(stage.name, held_out, losses, others)


def _take(stage: Stage, left: list[str], groups: Groups) -> list[Markup]:
    """One chart a group, of the keys that match its pattern; those are taken out of `left`."""
    charts = []
    for title, pattern in groups:
        members = [key for key in left if re.fullmatch(pattern, key)]
        left[:] = [key for key in left if key not in members]
        if members:
            charts.append(_chart(stage, title, members))
    return charts


def _chart(stage: Stage, title: str, keys: Sequence[str]) -> Markup:
    return line_chart(title, [_series(stage, key) for key in keys])


def _series(stage: Stage, key: str) -> Series:
    """All logged values of a key. A log without a word for NaN writes null: that breaks the line too."""
    pairs = [
        (float(record["step"]), math.nan if record[key] is None else number(record[key]))
        for record in stage.metrics
        if key in record
    ]
    kept = [(step, value) for step, value in pairs if value is not None]
    return Series(key, [step for step, _ in kept], [value for _, value in kept])
