"""Write the page of a run: one HTML file that needs no network and no other file."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from avssl.report.charts import Series, format_number, line_chart
from avssl.report.gallery import MediaStore, gallery_sections
from avssl.report.mining import mined_agreements
from avssl.report.reading import Record, RunFolder, Stage, mapping, number, read_run
from avssl.report.tables import compare, left_out

# Curves that share a chart: title and pattern of their names. Any other numeric key gets a chart of its own.
LOSS_CHARTS = (("Loss", "loss"), ("Loss terms", "loss_.*"))
OTHER_CHARTS = (
    ("Mean norm of embeddings", "mean_norm.*"),
    ("Log Z", "log_z.*"),
    ("Learning rate", "lr"),
    ("Share of time waiting for data", "data_wait_share"),
    ("Clips a second", "clips_per_second"),
)
NOT_CURVES = {"step", "epoch"}
# What mining.jsonl says too, which has a section of its own; parts of a joint objective put their name first.
MINED = re.compile(r"positives/.*|(.*/)?(mining_.*|instances_with_positives)")


def write_report(run_folder: str | Path, output: str | Path = "report.html") -> Path:
    """Make one self-contained HTML page of what a run folder holds.

    Reads ``config.yaml``, ``results.json``, ``gallery.json`` and the stages' ``metrics.jsonl``,
    ``mining.jsonl``, ``skipped.jsonl`` and ``run.json``. Each may be missing or damaged, and the run may
    still be going; the page says so.

    Parameters
    ----------
    run_folder : str or Path
        The folder of a run: its stages are the folders inside it, or it is the only stage itself.
    output : str or Path
        The page, replaced in one move; a relative path is taken from `run_folder`.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    AvsslError
        If the folder does not exist or holds no file of a run.
    """
    run = read_run(run_folder)
    page = run.path / output
    page.parent.mkdir(parents=True, exist_ok=True)
    unfinished = page.with_name(f".{page.name}.{os.getpid()}")
    unfinished.write_text(_render(run), encoding="utf-8")
    unfinished.replace(page)
    return page


def _render(run: RunFolder) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("avssl", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    store = MediaStore(run.path)
    sections = gallery_sections(run.gallery, store)
    return environment.get_template("page.html.j2").render(
        title=run.path.resolve().name,
        summary=_summary(run),
        stages=[_stage_row(stage) for stage in run.stages],
        comparison=compare(run.results),
        train_size=number(run.results.get("train_size")),
        pool_size=number(run.results.get("pool_size")),
        curves=[(stage.name, *_charts(stage)) for stage in run.stages],
        mined=[mined_agreements(stage) for stage in run.stages if stage.mining],
        left_out=left_out(run),
        sections=sections,
        media=store.encoded,
        refused=store.refused,
        configs=run.configs,
        versions=_versions(run),
        commands=_commands(run),
        problems=run.problems,
    )


def _summary(run: RunFolder) -> str:
    """What was run, in one paragraph."""
    if not run.stages:
        return "This folder holds no training log; the page shows what else was found."
    count = "one stage" if len(run.stages) == 1 else f"{len(run.stages)} stages"
    sentences = [f"The run has {count}: {_names(run.stages)}."]
    sentences += [
        f"{stage.name} started from {stage.start_from}." for stage in run.stages if stage.start_from
    ]
    trained_on: dict[str, list[Stage]] = {}
    for stage in run.stages:
        trained_on.setdefault(_samples(stage), []).append(stage)
    sentences += [f"Trained on {data} ({_names(stages)})." for data, stages in trained_on.items() if data]
    devices = sorted({str(stage.run["device"]) for stage in run.stages if stage.run.get("device")})
    where = f" on {', '.join(devices)}" if devices else ""
    seconds = [_seconds(stage) for stage in run.stages]
    going = [stage for stage, value in zip(run.stages, seconds, strict=True) if value is None]
    if going:
        sentences.append(f"Still going or interrupted{where}: {_names(going)}.")
    else:
        sentences.append(f"Training took {_duration(sum(value or 0.0 for value in seconds))}{where}.")
    return " ".join(sentences)


def _names(stages: Sequence[Stage]) -> str:
    return ", ".join(stage.name for stage in stages)


def _samples(stage: Stage) -> str:
    """How much of which manifest a stage trained on; "" where that is not recorded."""
    manifest = mapping(stage.run.get("manifest"))
    rows, used = number(manifest.get("rows")), number(manifest.get("used"))
    if rows is None or used is None:
        return ""
    return f"{format_number(used)} of {format_number(rows)} samples of manifest {_short_hash(manifest)}"


def _stage_row(stage: Stage) -> dict[str, str]:
    """One row of the table of stages."""
    manifest = mapping(stage.run.get("manifest"))
    last = stage.metrics[-1] if stage.metrics else {}
    seconds = _seconds(stage)
    rows, used = number(manifest.get("rows")), number(manifest.get("used"))
    return {
        "Stage": stage.name,
        "Last step": _shown(last.get("step")),
        "Last epoch": _shown(last.get("epoch")),
        "Last loss": _shown(last.get("loss")),
        "Samples used": "–" if rows is None or used is None else f"{_shown(used)} of {_shown(rows)}",
        "Manifest": _short_hash(manifest),
        "Skipped in training": str(len(stage.skipped)) if stage.skipped else "none recorded",
        "Device": str(stage.run.get("device") or "–"),
        "Time": "not finished" if seconds is None else _duration(seconds),
    }


def _charts(stage: Stage) -> tuple[list[Markup], list[Markup]]:
    """Charts of a stage: of its losses, and of everything else it logged."""
    keys = list(dict.fromkeys(key for record in stage.metrics for key in record))
    shown = NOT_CURVES | {key for key in keys if stage.mining and MINED.fullmatch(key)}
    left = [key for key in keys if key not in shown and _series(stage, key).y]
    loss = _take(stage, left, LOSS_CHARTS)
    other = _take(stage, left, OTHER_CHARTS)
    return loss, other + [_chart(stage, key.replace("_", " ").capitalize(), [key]) for key in left]


def _take(stage: Stage, left: list[str], groups: Sequence[tuple[str, str]]) -> list[Markup]:
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


def _versions(run: RunFolder) -> list[tuple[str, str]]:
    """Library and version; where stages differ, each value with the stages that had it."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, content in _run_records(run):
        for library, version in mapping(content.get("versions")).items():
            found.setdefault(library, {}).setdefault(str(version), []).append(name)
    return [
        (
            library,
            ", ".join(v if len(values) == 1 else f"{v} ({', '.join(names)})" for v, names in values.items()),
        )
        for library, values in sorted(found.items())
    ]


def _commands(run: RunFolder) -> list[tuple[str, str]]:
    """Where a command came from, and the command."""
    sources = [*_run_records(run), ("evaluation", run.results)]
    found = [(name, content.get("command")) for name, content in sources]
    return [
        (name, shlex.join(map(str, command)) if isinstance(command, list) else str(command))
        for name, command in found
        if command
    ]


def _run_records(run: RunFolder) -> list[tuple[str, Record]]:
    """Every ``run.json`` with the name of its stage, the folder's own first and once."""
    stages = [(stage.name, stage.run) for stage in run.stages]
    own = (run.path.resolve().name, run.run)
    return stages if own in stages else [own, *stages]


def _seconds(stage: Stage) -> float | None:
    """How long a finished stage took; None for one that is still going or was interrupted."""
    finished = stage.run.get("status", "finished") == "finished"
    return number(stage.run.get("seconds")) if finished else None


def _short_hash(manifest: Record) -> str:
    return str(manifest.get("hash") or "–")[:12]


def _shown(value: Any) -> str:
    return "–" if number(value) is None else format_number(float(value))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
