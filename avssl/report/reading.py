"""Read what a run folder holds, however far the run has come.

A run may still be going or have been killed while it wrote: whatever is missing or damaged is put into words
for the page and never stops it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from avssl.errors import AvsslError

STAGE_FILES = ("metrics.jsonl", "run.json", "skipped.jsonl")
RUN_FILES = ("config.yaml", "results.json", "gallery.json")

Record = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Parameters
    ----------
    name, path : str, Path
        Of its folder.
    metrics : list of dict
        One record a logged step, by rising step.
    mining : list of dict
        One record a mining of positives, by rising step; empty without ``mining.jsonl``.
    skipped : list of dict or None
        Samples skipped in training; None without a ledger.
    run : dict
        Content of ``run.json``; empty without one.
    start_from : str or None
        The run or file it started from, by its ``config.yaml``.
    """

    name: str
    path: Path
    metrics: list[Record]
    mining: list[Record]
    skipped: list[Record] | None
    run: Record
    start_from: str | None


@dataclass(frozen=True)
class RunFolder:
    """Everything a page is made of.

    Parameters
    ----------
    path : Path
        The run folder.
    stages : list of Stage
        Sorted by name; the folder itself when the run has a single stage.
    run : dict
        ``run.json`` of the folder itself; empty without one.
    configs : dict of str to str
        Text of each ``config.yaml``, by its path in the folder.
    results, gallery : dict
        Content of ``results.json`` and ``gallery.json``; empty without them.
    problems : list of str
        What could not be read, in words.
    """

    path: Path
    stages: list[Stage]
    run: Record
    configs: dict[str, str]
    results: Record
    gallery: Record
    problems: list[str] = field(default_factory=list)


def read_run(folder: str | Path) -> RunFolder:
    """Read a run folder.

    Raises
    ------
    AvsslError
        If the folder does not exist or holds no file of a run.
    """
    path = Path(folder)
    if not path.is_dir():
        raise AvsslError(f"{path} is no folder; a report needs the folder of a run, such as runs/NAME")
    stage_folders = _stage_folders(path)
    if not stage_folders and not any((path / name).is_file() for name in RUN_FILES):
        raise AvsslError(
            f"{path} holds none of {', '.join(STAGE_FILES + RUN_FILES)}; at least one is needed; "
            "pass the folder a run was written to"
        )
    problems: list[str] = []
    return RunFolder(
        path=path,
        stages=[_read_stage(stage, path, problems) for stage in stage_folders],
        run=_read_json(path / "run.json", path, problems),
        configs=_read_configs(path, [path, *stage_folders]),
        results=_read_json(path / "results.json", path, problems),
        gallery=_read_json(path / "gallery.json", path, problems),
        problems=problems,
    )


def mapping(value: Any) -> Record:
    """`value` if it is a dictionary, else an empty one."""
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[Record]:
    """The dictionaries of a list; empty if `value` is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """`value` as a float if it is a number (NaN and infinity included), else None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _stage_folders(path: Path) -> list[Path]:
    """Folders of the stages: those in `path`, and `path` itself if it was trained in or is the only one."""
    inside = sorted(child for child in path.iterdir() if child.is_dir() and _is_stage(child))
    if (path / "metrics.jsonl").is_file() or (not inside and _is_stage(path)):
        return [path, *inside]
    return inside


def _is_stage(path: Path) -> bool:
    return any((path / name).is_file() for name in STAGE_FILES)


def _read_stage(path: Path, root: Path, problems: list[str]) -> Stage:
    skipped = path / "skipped.jsonl"
    return Stage(
        name=path.resolve().name,
        path=path,
        metrics=_read_steps(path / "metrics.jsonl", root, problems),
        mining=_read_steps(path / "mining.jsonl", root, problems),
        skipped=list(_read_lines(skipped, root, problems)) if skipped.is_file() else None,
        run=_read_json(path / "run.json", root, problems),
        start_from=_start_from(path / "config.yaml", root, problems),
    )


def _start_from(path: Path, root: Path, problems: list[str]) -> str | None:
    """``run.start_from`` of a stage's recipe."""
    try:
        recipe = yaml.safe_load(path.read_bytes()) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"{path.relative_to(root)}: cannot be read ({str(error).splitlines()[0]})")
        return None
    start_from = mapping(mapping(recipe).get("run")).get("start_from")
    return None if start_from is None else str(start_from)


def _read_steps(path: Path, root: Path, problems: list[str]) -> list[Record]:
    """One record a step, by rising step.

    A step may have several lines, such as its loss and what was mined after it. A resumed run logs some steps
    again: the later value of a key is the one the weights come from.
    """
    by_step: dict[float, Record] = {}
    for line in _read_lines(path, root, problems):
        step = number(line.get("step"))
        if step is not None and math.isfinite(step):
            by_step[step] = by_step.get(step, {}) | line
    return [by_step[step] for step in sorted(by_step)]


def _read_lines(path: Path, root: Path, problems: list[str]) -> Iterator[Record]:
    """Records of a JSON-lines file; lines that hold none are counted into `problems`."""
    if not path.is_file():
        return
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record
            else:
                damaged += bool(line.strip())
    if damaged:
        lines = "1 damaged line" if damaged == 1 else f"{damaged} damaged lines"
        problems.append(f"{path.relative_to(root)}: {lines} left out")


def _read_json(path: Path, root: Path, problems: list[str]) -> Record:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{path.relative_to(root)}: cannot be read ({error})")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.relative_to(root)}: holds a {type(content).__name__}, not an object")
    return mapping(content)


def _read_configs(root: Path, folders: list[Path]) -> dict[str, str]:
    files = [folder / "config.yaml" for folder in folders]
    return {
        str(file.relative_to(root)): file.read_text(encoding="utf-8", errors="replace")
        for file in files
        if file.is_file()
    }
