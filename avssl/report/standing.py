"""Where a run stands, from the files it has written so far."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from avssl.errors import AvsslError
from avssl.report.reading import Record, RunFolder, mapping, number, read_run, records

CHECKPOINT = "checkpoint.pt"
SIGNS_OF_LIFE = (CHECKPOINT, "metrics.jsonl", "run.json")
DEFAULT_CHECKPOINT_MINUTES = 10.0
SLACK_SECONDS = 300.0
"""What a step, a mining of positives and the writing may take beyond the time between two checkpoints."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands; None for what its files do not say.

    Parameters
    ----------
    name : str
        Its folder, below the one that was looked through.
    objective : str or None
        Name of the objective in its recipe.
    state : str
        ``"submitted"`` (a job that has not begun), ``"running"``, ``"silent"`` (was running, but nothing was
        written for twice the time between two checkpoints: killed or hung), ``"finished"`` or ``"stopped"``
        (``"unknown"`` without a readable ``run.json``).
    step, total_steps : int or None
        The last step in the log, and steps of the whole run.
    loss, best_loss : float or None
        The last loss in the log, and the lowest.
    clips_per_second : float or None
        Over all processes, at the last line of the log.
    started : str or None
        When the run began, ISO 8601.
    has_checkpoint : bool
        Whether there is something to go on from, or to evaluate.
    metrics : dict of str to float
        Of its last evaluation.
    problems : list of str
        What could not be read, in words.
    """

    name: str
    objective: str | None
    state: str
    step: int | None
    total_steps: int | None
    loss: float | None
    best_loss: float | None
    clips_per_second: float | None
    started: str | None
    has_checkpoint: bool
    metrics: dict[str, float]
    problems: list[str]


def read_standing(folder: Path, name: str, now: float | None = None) -> Standing:
    """Read where a run stands.

    Parameters
    ----------
    folder : Path
        The run folder.
    name : str
        What to call it.
    now : float, optional
        Seconds since the epoch; the present time by default.

    Raises
    ------
    AvsslError
        If the folder holds no run.
    """
    waiting = any(folder.glob("jobs/*_submitted.pkl"))
    if not any((folder / file).is_file() for file in ("config.yaml", "run.json", "metrics.jsonl")):
        if waiting:
            return Standing(name, None, "submitted", None, None, None, None, None, None, False, {}, [])
        raise AvsslError(f"{folder}: holds no run (neither config.yaml nor run.json nor metrics.jsonl)")
    run = read_run(folder)
    lines = run.stages[0].metrics if run.stages else []
    losses = _numbers(lines, "loss")
    return Standing(
        name=name,
        objective=_objective(run),
        state=state_of(folder, run.run, time.time() if now is None else now),
        step=_whole(max(_numbers(lines, "step"), default=None)),
        total_steps=_whole(number(run.run.get("total_steps"))),
        loss=losses[-1] if losses else None,
        best_loss=min(losses, default=None),
        clips_per_second=next(iter(_numbers(lines, "clips_per_second")[::-1]), None),
        started=str(run.run["started"]) if run.run.get("started") else None,
        has_checkpoint=(folder / CHECKPOINT).is_file(),
        metrics=_metrics(run.results),
        problems=run.problems,
    )


def state_of(folder: Path, record: Record, now: float) -> str:
    """One of the states of a `Standing`, from the ``run.json`` of a folder and the times of its files."""
    status = record.get("status")
    if status in ("finished", "stopped"):
        return str(status)
    if status != "running":
        return "unknown"
    minutes = number(mapping(record.get("settings")).get("checkpoint_minutes"))
    patience = 2 * 60 * (DEFAULT_CHECKPOINT_MINUTES if minutes is None else minutes) + SLACK_SECONDS
    return "silent" if now - last_written(folder) > patience else "running"


def last_written(folder: Path) -> float:
    """When a run last wrote anything, in seconds since the epoch; 0 for nothing at all."""
    files = (folder / file for file in SIGNS_OF_LIFE)
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _objective(run: RunFolder) -> str | None:
    try:
        recipe = yaml.safe_load(run.configs.get("config.yaml", ""))
    except yaml.YAMLError:  # said among the problems of the run
        return None
    name = mapping(mapping(recipe).get("objective")).get("name")
    return None if name is None else str(name)


def _metrics(results: Record) -> dict[str, float]:
    """Metrics of the trained model, the last row; before it come those it is compared with."""
    rows = records(results.get("rows"))
    found = {key: number(value) for key, value in mapping(rows[-1].get("metrics")).items()} if rows else {}
    return {key: value for key, value in found.items() if value is not None and math.isfinite(value)}


def _numbers(lines: Sequence[Record], key: str) -> list[float]:
    values = [number(line.get(key)) for line in lines]
    return [value for value in values if value is not None and math.isfinite(value)]


def _whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else int(value)
