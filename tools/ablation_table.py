"""Tables of `ablation.py`: means over seeds, their intervals, and paired differences between rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from scipy.stats import t as student_t  # type: ignore[import-untyped]

Result = dict[str, Any]
Results = Mapping[str, Mapping[int, Result]]  # stage -> seed -> what its result.json holds

METRICS = {
    "linear_video": "linear video",
    "linear_audio": "linear audio",
    "knn_video": "kNN video",
    "knn_audio": "kNN audio",
    "a2v_r1": "A→V R@1",
    "a2v_r10": "A→V R@10",
    "v2a_r1": "V→A R@1",
    "v2a_r10": "V→A R@10",
    "positive_precision": "mined positives",
}
LAST_STEP = {"log_z": "log Z", "spread": "spread", "effective_rank": "effective rank"}
CURVE = {"first_loss": "first loss", "last_loss": "last loss", **LAST_STEP}
SHOWS_CURVE = ("partition", "visual")
"""Studies whose losses say something beside their metrics."""


def estimate(values: Mapping[int, float]) -> dict[str, Any]:
    """Mean over seeds and half the width of its 95 % interval, ``t(0.975, n - 1) s / sqrt(n)``.

    The half width is None for a single seed, which says nothing of the spread.
    """
    n = len(values)
    half = None
    if n > 1:
        half = float(student_t.ppf(0.975, n - 1)) * statistics.stdev(values.values()) / math.sqrt(n)
    return {"mean": statistics.fmean(values.values()), "half_width": half, "n": n, "values": dict(values)}


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> dict[str, Any] | None:
    """Estimate of ``values - reference`` seed by seed, over the seeds both have; None if there is none."""
    both = {seed: values[seed] - reference[seed] for seed in values if seed in reference}
    return estimate(both) if both else None


def summarise(
    study: str,
    data: str,
    results: Results,
    titles: Mapping[str, str],
    parents: Mapping[str, str | None],
    references: Mapping[str, str | None],
    command: str,
) -> dict[str, Any]:
    """Everything a table shows, as plain numbers and texts.

    Parameters
    ----------
    study : str
        Name of the study.
    data : str
        What its files are.
    results : mapping
        Stage to seed to result; a stage may lack seeds.
    titles, parents, references : mapping
        Of each stage: its name in the table, the stage it starts from, the one it is compared with.
    command : str
        What makes the table.
    """
    by_metric = {name: _values_by_metric(of_seed) for name, of_seed in results.items()}
    rows = []
    for name, of_seed in results.items():
        reference = references[name]
        compared = by_metric.get(reference, {}) if reference else {}
        differences = {
            key: paired_difference(values, compared[key])
            for key, values in by_metric[name].items()
            if key in METRICS and key in compared
        }
        rows.append(
            {
                "name": name,
                "title": titles[name],
                "epochs": _epochs(name, results, parents),
                "metrics": {key: estimate(values) for key, values in by_metric[name].items()},
                "failed": {seed: r["failed"] for seed, r in of_seed.items() if "failed" in r},
                "reference": reference if differences else None,
                "differences": {key: value for key, value in differences.items() if value},
            }
        )
    made = [result for of_seed in results.values() for result in of_seed.values()]
    return {
        "study": study,
        "data": data,
        "seeds": sorted({seed for of_seed in results.values() for seed in of_seed}),
        "files": made[0]["files"],
        "dates": sorted({result["date"] for result in made}),
        "devices": sorted({result["device"] for result in made}),
        "versions": sorted({f"avssl {r['versions']['avssl']}, torch {r['versions']['torch']}" for r in made}),
        "command": command,
        "rows": rows,
    }


def _values_by_metric(of_seed: Mapping[int, Result]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for seed, result in of_seed.items():
        for key, value in result.get("metrics", {}).items():
            found.setdefault(key, {})[seed] = value
    return found


def _epochs(name: str, results: Results, parents: Mapping[str, str | None]) -> str:
    """``60 + 24`` for a stage of 24 epochs after one of 60; "" for no training, and for no result."""
    trained = [r for r in results[name].values() if "seconds" in r]
    if not trained:
        return ""
    own, parent = str(trained[0]["config"]["train"]["epochs"]), parents[name]
    return f"{_epochs(parent, results, parents)} + {own}" if parent else own


def as_markdown(content: Mapping[str, Any]) -> str:
    """Tables of a summary, with what one needs to read and to repeat them."""
    rows, seeds = content["rows"], content["seeds"]
    columns = METRICS | (CURVE if content["study"] in SHOWS_CURVE else {})
    used = {key for row in rows for key in row["metrics"]} or set(columns)
    columns = {key: title for key, title in columns.items() if key in used}
    parts = [f"# Ablation: {content['study']}", _reading(content), _main_table(rows, columns)]
    if "first_loss" in columns:
        parts.append("The losses are means over the first and the last logged steps of a row's own stage.")
    compared = [row for row in rows if row["reference"]]
    if compared:
        titles = {row["name"]: row["title"] for row in rows}
        parts += ["## Differences, paired by seed", _difference_reading(len(seeds))]
        parts.append(_difference_table(compared, titles))
    notes = [
        f"- {row['title']}, seed {seed}: failed: {message}"
        for row in rows
        for seed, message in row["failed"].items()
    ]
    if notes:
        parts += ["## Failed", "\n".join(notes)]
    parts += ["## How to repeat it", f"```\n{content['command']}\n```"]
    return "\n\n".join(parts) + "\n"


def _reading(content: Mapping[str, Any]) -> str:
    seeds, (train, test) = content["seeds"], content["files"]
    when = " to ".join(dict.fromkeys([content["dates"][0], content["dates"][-1]]))
    spread = "One seed: there are no intervals, and a difference may be chance."
    if len(seeds) > 1:
        factor = float(student_t.ppf(0.975, len(seeds) - 1)) / math.sqrt(len(seeds))
        spread = (
            "Cells are mean ± half the 95 % interval (Student t over seeds). Intervals over "
            f"{len(seeds)} seeds are wide: {factor:.1f} standard deviations to each side."
        )
    return (
        f"{content['data']}, {train} training and {test} held-out files "
        f"of each class. Seeds: {', '.join(map(str, seeds))}; files, initialisation and training depend on "
        f"the seed; n is the number of seeds of a row. {spread}\n\nMade {when} on "
        f"{', '.join(content['devices'])} with {'; '.join(content['versions'])}."
    )


def _difference_reading(num_seeds: int) -> str:
    text = "Row minus reference, seed by seed: what both owe to the files of a seed cancels."
    if num_seeds > 1:
        text += (
            " `*` marks intervals that exclude 0. Where nothing differs one interval in twenty does so by "
            "chance; and one that holds 0 does not show that nothing differs."
        )
    return text


def _main_table(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> str:
    lines = []
    for row in rows:
        counts = [value["n"] for value in row["metrics"].values()]
        cells = [_cell(row["metrics"].get(key)) for key in columns]
        if not counts:
            cells = ["failed" if row["failed"] else "not run", *[""] * (len(columns) - 1)]
        lines.append([row["title"], row["epochs"], str(max(counts, default=0)), *cells])
    return _table(["", "epochs", "n", *columns.values()], lines)


def _difference_table(rows: list[dict[str, Any]], titles: Mapping[str, str]) -> str:
    columns = {k: title for k, title in METRICS.items() if any(k in row["differences"] for row in rows)}
    lines = []
    for row in rows:
        count = max(value["n"] for value in row["differences"].values())
        cells = [_cell(row["differences"].get(key), signed=True) for key in columns]
        lines.append([row["title"], titles[row["reference"]], str(count), *cells])
    return _table(["", "reference", "n", *columns.values()], lines)


def _cell(value: Mapping[str, Any] | None, signed: bool = False) -> str:
    if value is None:
        return ""
    mean, half = value["mean"], value["half_width"]
    text = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    if half is None:
        return text
    return f"{text} ± {half:.3f}{'*' if signed and abs(mean) > half else ''}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---" if i == 0 else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])
