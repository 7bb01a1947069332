"""The section on mined positives: how good, how stable, how popular and how alike they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from avssl.report.charts import Bars, Series, format_number, histogram_chart, line_chart
from avssl.report.reading import Record, Stage, mapping, number

PRECISION = ("used", "consensus", "union", "video", "audio", "chance")
OVERLAP = {"kept_share": "old positives kept", "jaccard": "Jaccard index"}
PAIRS = {"positives": "positives", "random": "random pairs"}


@dataclass(frozen=True)
class MinedAgreements:
    """What the page says about the positives of one stage.

    Parameters
    ----------
    name : str
        Of the stage.
    summary : str
        How often and how many were mined, and why a chart is missing.
    charts : list of Markup
        Precision and overlap over epochs; similarities of the last mining.
    popularity : str
        The in-degree of the last mining in words.
    in_degree : list of (times chosen, instances, share)
        Its distribution, ready to print; empty without one.
    """

    name: str
    summary: str
    charts: list[Markup]
    popularity: str
    in_degree: list[tuple[str, str, str]]


@dataclass(frozen=True)
class _Histogram:
    edges: list[float]
    counts: list[float]
    mean: float


def mined_agreements(stage: Stage) -> MinedAgreements:
    """The section of a stage that has mined at least once."""
    last = stage.mining[-1]
    precision = [_over_epochs(stage, kind, ("precision", kind)) for kind in PRECISION]
    overlap = [_over_epochs(stage, name, (key,)) for key, name in OVERLAP.items()]
    charts = [
        line_chart(title, [line for line in lines if line.y], x_label="epoch")
        for title, lines in (
            ("Precision of positives", precision),
            ("Overlap with the positives before", overlap),
        )
        if any(line.y for line in lines)
    ]
    sentences = [_mined(stage), _searched(last), _judged(last, any(line.y for line in precision))]
    if not any(line.y for line in overlap):
        sentences.append("There is no overlap to show before positives have been mined twice.")
    return MinedAgreements(
        name=stage.name,
        summary=" ".join(filter(None, sentences)),
        charts=charts + _similarity_charts(last),
        popularity=_popularity(last),
        in_degree=_in_degree_rows(last),
    )


def _over_epochs(stage: Stage, name: str, keys: tuple[str, ...]) -> Series:
    """A value found under `keys` in each record, over epochs; records without it are passed over."""
    points = []
    for record in stage.mining:
        value: Any = record
        for key in keys:
            value = mapping(value).get(key)
        epoch, y = number(record.get("epoch")), number(value)
        if epoch is not None and math.isfinite(epoch) and y is not None:
            points.append((epoch, y))
    return Series(name, [x for x, _ in points], [y for _, y in points])


def _mined(stage: Stage) -> str:
    last, times = stage.mining[-1], len(stage.mining)
    often = "once" if times == 1 else f"{times} times"
    size, epoch = number(last.get("num_positives")), number(last.get("epoch"))
    many = "" if size is None else f", {format_number(size)} for each instance"
    when = "" if epoch is None else f", last before epoch {format_number(epoch)}"
    return f"Positives were mined {often}{when}{many}."


def _searched(last: Record) -> str:
    """How the last sets were searched for; "" where that is not recorded."""
    found = mapping(last.get("mining"))
    recall, seconds = (number(found.get(f"mining_{key}")) for key in ("recall", "seconds"))
    if recall is None or seconds is None:
        return ""
    return (
        f"The last search ({found.get('method')}, {found.get('agreement')}) took {format_number(seconds)} s "
        f"and found {100 * recall:.1f} % of the best agreements."
    )


def _judged(last: Record, is_judged: bool) -> str:
    if not is_judged:
        return "Their precision is unknown: judging it takes a manifest that labels at least two classes."
    count = number(last.get("precision_queries"))
    sample = "a sample of instances" if count is None else f"{format_number(count)} instances"
    return (
        f"Precision is the share of positives of the instance's class, on {sample} mined anew and exactly "
        "for each kind of agreement; classes judge the positives and take no part in choosing them."
    )


def _similarity_charts(record: Record) -> list[Markup]:
    """Positives against random pairs, one chart a modality."""
    found = mapping(record.get("similarity"))
    charts = []
    for modality in ("video", "audio"):
        histograms = {name: _histogram(found.get(f"{modality}_{key}")) for key, name in PAIRS.items()}
        known = {name: histogram for name, histogram in histograms.items() if histogram is not None}
        if known and len({tuple(histogram.edges) for histogram in known.values()}) == 1:
            bars = [Bars(name, histogram.counts, histogram.mean) for name, histogram in known.items()]
            edges = next(iter(known.values())).edges
            charts.append(histogram_chart(f"Similarity of {modality}", edges, bars, x_label="cosine"))
    return charts


def _histogram(value: Any) -> _Histogram | None:
    """A histogram as ``mining.jsonl`` holds it; None if it is damaged or empty."""
    content = mapping(value)
    edges, counts = (_numbers(content.get(name)) for name in ("edges", "counts"))
    rising = all(low < high for low, high in pairwise(edges))
    if len(edges) != len(counts) + 1 or not rising or min(counts, default=-1) < 0 or not sum(counts):
        return None
    mean = number(content.get("mean"))
    return _Histogram(edges, counts, math.nan if mean is None else mean)


def _numbers(value: Any) -> list[float]:
    """A list of finite numbers; empty if it is anything else."""
    found = [number(item) for item in value] if isinstance(value, list) else []
    finite = [item for item in found if item is not None and math.isfinite(item)]
    return finite if len(finite) == len(found) else []


def _popularity(record: Record) -> str:
    histogram = _histogram(record.get("in_degree"))
    never, largest, gini = (
        number(record.get(k)) for k in ("never_chosen_share", "largest_in_degree", "gini")
    )
    parts = []
    if histogram is not None:
        parts.append(f"{format_number(histogram.mean)} times on average")
    if largest is not None:
        parts.append(f"at most {format_number(largest)} times")
    if never is not None:
        parts.append(f"never: {100 * never:.1f} % of the instances")
    if gini is not None:
        parts.append(f"Gini coefficient {format_number(gini)} (0: all alike, 1: one alone)")
    return f"At the last mining: {'; '.join(parts)}." if parts else ""


def _in_degree_rows(record: Record) -> list[tuple[str, str, str]]:
    histogram = _histogram(record.get("in_degree"))
    if histogram is None:
        return []
    total = sum(histogram.counts)
    rows = []
    for (low, high), count in zip(pairwise(histogram.edges), histogram.counts, strict=True):
        times = (
            format_number(low) if high - low <= 1 else f"{format_number(low)} to {format_number(high - 1)}"
        )
        rows.append((times, f"{count:,.0f}", f"{100 * count / total:.1f} %"))
    return rows
