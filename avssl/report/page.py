"""Write the page of a run: one HTML file that needs no network and no other file."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from avssl.report.charts import format_number
from avssl.report.curves import curves_of
from avssl.report.gallery import MediaStore, gallery_sections
from avssl.report.mining import mined_agreements
from avssl.report.reading import Record, RunFolder, Stage, mapping, number, read_run
from avssl.report.standing import last_written, state_of
from avssl.report.tables import compare, left_out


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
        curves=[curves_of(stage) for stage in run.stages],
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
    if None in seconds:
        sentences += [f"{stage.name} {_where_it_stands(stage)}" for stage in run.stages]
        sentences += [f"Trained{where}."] if where else []
    else:
        sentences.append(f"Training took {_duration(sum(value or 0.0 for value in seconds))}{where}.")
    return " ".join(sentences)


def _where_it_stands(stage: Stage) -> str:
    """End of a sentence on a stage, some of which is not finished."""
    at = _steps(stage)
    done, total = _last_step(stage), number(stage.run.get("total_steps"))
    if done is not None and total:
        at += f" ({done / total:.0%})"
    match _state(stage):
        case "running":
            return f"is running: step {at}."
        case "silent":
            return f"was running and then wrote nothing more: it was killed, or hangs. Last step: {at}."
        case "stopped":
            return f"was stopped: step {at}. The same command goes on with it."
        case _:
            return f"has come to step {at}."


def _state(stage: Stage) -> str:
    return state_of(stage.path, stage.run, time.time())


def _last_step(stage: Stage) -> float | None:
    return number(stage.metrics[-1]["step"]) if stage.metrics else None


def _steps(stage: Stage) -> str:
    """The last step in the log, of how many."""
    done, total = _shown(_last_step(stage)), number(stage.run.get("total_steps"))
    return done if total is None else f"{done} of {_shown(total)}"


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
    written = last_written(stage.path)
    return {
        "Stage": stage.name,
        "State": _state(stage),
        "Last written": f"{datetime.fromtimestamp(written):%Y-%m-%d %H:%M:%S}" if written else "–",
        "Last step": _steps(stage),
        "Last epoch": _shown(last.get("epoch")),
        "Last loss": _shown(next((r["loss"] for r in reversed(stage.metrics) if "loss" in r), None)),
        "Samples used": "–" if rows is None or used is None else f"{_shown(used)} of {_shown(rows)}",
        "Manifest": _short_hash(manifest),
        "Skipped in training": str(len(stage.skipped)) if stage.skipped else "none recorded",
        "Device": str(stage.run.get("device") or "–"),
        "Time": "not finished" if seconds is None else _duration(seconds),
    }


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
