"""``avssl runs``: which runs there are and how far they are, and what sets some of them apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from avssl.errors import AvsslError
from avssl.report.standing import Standing, read_standing

HEADLINES = {
    "linear_video": "linear video",
    "linear_audio": "linear audio",
    "a2v_r1": "A→V R@1",
    "v2a_r1": "V→A R@1",
}
"""Metrics the list has room for."""
MEDIA = "media"
"""Folder of the previews in a gallery."""
MIN_WIDTH = 150
ABSENT = "–"


@click.group(
    epilog="""\b
Examples:
  avssl runs list
  avssl runs list runs/demo --json
  avssl runs compare runs/avid runs/cma
"""
)
def runs() -> None:
    """List runs and how far they are, or compare some of them."""


@runs.command("list")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (default: runs), and those one folder deeper.

    A run is 'running', 'finished' or 'stopped', as it wrote last; 'submitted' if it is a job that has not
    begun; 'silent' if it was running, but has written nothing for twice the time between two checkpoints: it
    was killed, or hangs. Steps are those in its log. Evaluation is that of 'avssl evaluate RUN'.
    """
    if not folder.is_dir():
        raise AvsslError(
            f"{folder}: no such folder; give the one that runs are in, run.folder of their recipes"
        )
    found: list[Standing] = []
    for place, name in _places(folder):
        try:
            found.append(read_standing(place, name))
        except (AvsslError, OSError) as error:
            click.echo(f"avssl: warning: {error}", err=True)
    _warn(found)
    if as_json:
        click.echo(json.dumps([asdict(standing) for standing in found], indent=1))
    elif found:
        _print_list(found)
    else:
        click.echo(f"{folder}: no runs")


@runs.command()
@click.argument("folders", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(folders: tuple[Path, ...], as_json: bool) -> None:
    """Compare runs: the keys of their recipes that differ, losses, and metrics of their evaluation."""
    if len(folders) < 2:
        raise click.UsageError("give at least two runs to compare")
    standings = [read_standing(folder, str(folder)) for folder in folders]
    _warn(standings)
    differing = _differences(folders)
    if as_json:
        content = {"runs": [asdict(standing) for standing in standings], "differing": differing}
        click.echo(json.dumps(content, indent=1))
    else:
        _print_comparison(standings, differing)


def _places(folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders that may hold a run, and their names: the folder itself if it does, else those in it."""
    if _is_run(folder):
        yield folder, folder.resolve().name
        return
    for child in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        if child.name == MEDIA:
            continue
        try:
            inside = [] if _is_run(child) else sorted(filter(_is_run, child.iterdir()))
        except OSError:  # said when it is to be read
            inside = []
        yield from ((stage, f"{child.name}/{stage.name}") for stage in inside)
        if not inside:
            yield child, child.name


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file() or (path / "config.yaml").is_file()


def _warn(standings: Sequence[Standing]) -> None:
    """Say what could not be read."""
    for standing in standings:
        for problem in standing.problems:
            click.echo(f"avssl: warning: {standing.name}: {problem}", err=True)


def _print_list(found: Sequence[Standing]) -> None:
    metrics = [key for key in HEADLINES if any(key in standing.metrics for standing in found)]
    table = Table()
    for title in ("run", "objective", "state", "started"):
        table.add_column(title, no_wrap=title == "run")
    for title in ("steps", "loss", "clips/s", *(HEADLINES[key] for key in metrics)):
        table.add_column(title, justify="right")
    for one in found:
        table.add_row(
            one.name,
            one.objective or ABSENT,
            one.state if one.has_checkpoint or one.state == "submitted" else f"{one.state}, no checkpoint",
            _when(one.started),
            _steps(one),
            _text(one.loss),
            ABSENT if one.clips_per_second is None else f"{one.clips_per_second:.1f}",
            *(_text(one.metrics.get(key)) for key in metrics),
        )
    _print(table)


def _differences(folders: Sequence[Path]) -> dict[str, list[Any]]:
    """Values of the keys in which recipes differ, one for each run; None where there is no such key."""
    from avssl.build import Config  # takes a second, and the list does not need it
    from avssl.config import config_diff, config_to_dict, load_config

    recipes = [load_config(folder / "config.yaml", schema=Config) for folder in folders]
    keys = dict.fromkeys(key for recipe in recipes[1:] for key in config_diff(recipes[0], recipe))
    plain = [config_to_dict(recipe) for recipe in recipes]
    return {key: [_value_at(one, key) for one in plain] for key in keys}


def _value_at(recipe: Any, key: str) -> Any:
    for part in key.split("."):
        recipe = recipe.get(part) if isinstance(recipe, dict) else None
    return recipe


def _print_comparison(standings: Sequence[Standing], differing: dict[str, list[Any]]) -> None:
    table = Table()
    table.add_column("")
    for one in standings:
        table.add_column(one.name, overflow="fold")
    for key, values in differing.items():
        table.add_row(key, *(ABSENT if value is None else str(value) for value in values))
    table.add_section()
    table.add_row("state", *(one.state for one in standings))
    table.add_row("steps", *map(_steps, standings))
    table.add_row("last loss", *(_text(one.loss) for one in standings))
    table.add_row("best loss", *(_text(one.best_loss) for one in standings))
    table.add_section()
    for metric in dict.fromkeys(metric for one in standings for metric in one.metrics):
        table.add_row(metric, *(_text(one.metrics.get(metric)) for one in standings))
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    console.print(table)


def _steps(one: Standing) -> str:
    done = ABSENT if one.step is None else f"{one.step:,}"
    return f"{done} of {one.total_steps:,}" if one.total_steps is not None else done


def _text(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"


def _when(started: str | None) -> str:
    try:
        return datetime.fromisoformat(started or "").strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ABSENT
