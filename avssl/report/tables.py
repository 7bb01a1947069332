"""The tables of a page: models compared, and what was left out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from avssl.report.charts import format_number
from avssl.report.reading import Record, RunFolder, mapping, number, records

# Groups of columns: prefix of the metric, heading. A prefix eats the metrics no earlier one took.
GROUPS = (
    ("linear_", "Linear probe"),
    ("knn_", "kNN"),
    ("a2v_", "Audio to video"),
    ("v2a_", "Video to audio"),
    ("positive_", "Mined positives"),
    ("", "Other"),
)
SHARE = re.compile(r"(linear|knn)|(^|_)r\d+$|precision|accuracy|recall")
LISTED_FILES, LISTED_REASONS = 50, 20


@dataclass(frozen=True)
class Cell:
    """One number of the comparison."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """The comparison table, ready to print.

    Parameters
    ----------
    groups : list of (heading, number of columns)
        First header row.
    columns : list of (name, first)
        Second header row; `first` marks the first column of a group.
    rows : list of (name, cells)
        One row a model.
    chance : list of str
        What a random order or guess would reach.
    absent : list of str
        Metrics that no model has a value for.
    """

    groups: list[tuple[str, int]]
    columns: list[tuple[str, bool]]
    rows: list[tuple[str, list[Cell]]]
    chance: list[str]
    absent: list[str]


def compare(results: Record) -> Comparison | None:
    """The comparison table of ``results.json``; None if it holds no rows."""
    rows = [
        (str(row.get("name", "unnamed")), mapping(row.get("metrics"))) for row in records(results.get("rows"))
    ]
    # Mean ranks stay in results.json: the median says enough, and the table has to fit a screen.
    names = {name for _, metrics in rows for name in metrics if not name.endswith("mean_rank")}
    absent = {name for name in names if all(number(metrics.get(name)) is None for _, metrics in rows)}
    grouped = _group(names - absent)
    if not grouped:
        return None
    metrics_in_order = [metric for _, members in grouped for metric, _ in members]
    columns = {
        metric: _column([number(metrics.get(metric)) for _, metrics in rows], metric)
        for metric in metrics_in_order
    }
    return Comparison(
        groups=[(heading, len(members)) for heading, members in grouped],
        columns=[(column, place == 0) for _, members in grouped for place, (_, column) in enumerate(members)],
        rows=[
            (name, [columns[metric][row] for metric in metrics_in_order])
            for row, (name, _) in enumerate(rows)
        ],
        chance=[_text(_chance(metric, results), metric) for metric in metrics_in_order],
        absent=sorted(absent),
    )


@dataclass
class LeftOut:
    """A file that was left out, and where that was noticed."""

    KEYS: ClassVar = ("path", "stage", "reason")

    path: str
    stage: str
    reason: str
    noticed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LeftOutTable:
    """What was left out, ready to print: counts by reason, and the first files."""

    total: int
    reasons: list[tuple[str, str, int]]
    more_reasons: int
    files: list[LeftOut]
    more: int
    unknown: list[str]


def left_out(run: RunFolder) -> LeftOutTable:
    """Files missing from training, from the manifests and the ledgers of all stages, each named once."""
    found: dict[tuple[str, str, str], LeftOut] = {}
    unknown = []
    for stage in run.stages:
        manifest = mapping(stage.run.get("manifest"))
        sources = [("manifest", records(manifest.get("left_out")))]
        if stage.skipped is not None:
            sources.append((f"training {stage.name}", stage.skipped))
        for key, how in (("silenced", "silence in its place"), ("video_only", "their video alone")):
            if mute := manifest.get(key):
                unknown.append(f"{stage.name}: {mute} files without sound took part with {how}")
        if "left_out" not in manifest:
            unknown.append(f"{stage.name}: which files the manifest left out is not recorded")
        for source, entries in sources:
            for entry in entries:
                path, failed_at, reason = (str(entry.get(key, "not recorded")) for key in LeftOut.KEYS)
                item = found.setdefault((path, failed_at, reason), LeftOut(path, failed_at, reason))
                if source not in item.noticed:
                    item.noticed.append(source)
    files = sorted(found.values(), key=lambda item: (item.path, item.stage, item.reason))
    counts = Counter((item.stage, item.reason) for item in files)
    reasons = [(*key, count) for key, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    return LeftOutTable(
        total=len({item.path for item in files}),
        reasons=reasons[:LISTED_REASONS],
        more_reasons=max(0, len(reasons) - LISTED_REASONS),
        files=files[:LISTED_FILES],
        more=max(0, len(files) - LISTED_FILES),
        unknown=unknown,
    )


def _group(metrics: set[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups in page order: heading, and its metrics with their column names."""
    left = sorted(metrics, key=_natural)
    groups = []
    for prefix, heading in GROUPS:
        members = [metric for metric in left if metric.startswith(prefix)]
        left = [metric for metric in left if metric not in members]
        if members:
            groups.append((heading, [(metric, _column_name(metric[len(prefix) :])) for metric in members]))
    return groups


def _natural(metric: str) -> tuple[int, bool, list[Any]]:
    """Recalls first and ranks last, video before audio, and r5 before r10."""
    kind = 0 if re.search(r"(^|_)r\d+$", metric) else 2 if "rank" in metric else 1
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", metric)]
    return kind, metric.endswith("_audio"), parts


def _column_name(metric: str) -> str:
    recall = re.fullmatch(r"r(\d+)", metric)
    return f"R@{recall[1]}" if recall else metric.replace("_", " ")


def _column(values: Sequence[float | None], metric: str) -> list[Cell]:
    """Cells of a column; the best finite values are marked, if there is anything to be better than."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    best = (min if "rank" in metric else max)(finite, default=None)
    rivals = len(values) > 1
    return [Cell(_text(value, metric), rivals and value is not None and value == best) for value in values]


def _text(value: float | None, metric: str) -> str:
    if value is None:
        return "–"
    if SHARE.search(metric) and math.isfinite(value):
        return f"{100 * value:.1f} %"
    return format_number(value)


def _chance(metric: str, results: Record) -> float | None:
    """Chance level of a metric: under its own name, without its direction, or without its modality."""
    chance = mapping(results.get("chance"))
    head, _, tail = metric.partition("_")
    kind = "linear" if head == "knn" else head
    for name in (metric, tail, metric.rpartition("_")[0], kind):
        if name and (value := number(chance.get(name))) is not None:
            return value
    pool_size = number(results.get("pool_size"))
    if pool_size is not None and metric.endswith(("median_rank", "mean_rank")):
        return (pool_size + 1) / 2
    return None
