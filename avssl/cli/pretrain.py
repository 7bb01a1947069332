"""``avssl pretrain``: train a recipe, or go on with it."""

from __future__ import annotations

import shlex
import sys
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import click

from avssl import dist
from avssl.build import Config
from avssl.cli.progress import progress_bar
from avssl.config import load_config
from avssl.errors import Interrupted
from avssl.report import write_report
from avssl.train import pretrain as run_pretrain
from avssl.train.signals import TO_BE_CONTINUED
from avssl.types import Progress

UNITS = {"scan": "files", "statistics": "clips"}
"""What the work before the training counts."""
CONTINUE_STATUS = 75
"""Exit status (EX_TEMPFAIL) after a scheduler's signal that the run is to go on later; 130 after others."""


@click.command(
    epilog="""\b
Examples:
  avssl pretrain configs/avid/folder.yaml data.root=/videos
  avssl pretrain configs/avid/folder.yaml data.root=/videos optim.lr=5e-4 run.name=faster
  avssl pretrain configs/cma/folder.yaml data.root=/videos run.start_from=runs/avid
"""
)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--restart", is_flag=True, help="Move an earlier run of that name aside and begin anew.")
@click.option(
    "--allow-changes", is_flag=True, help="Go on with a run though its recipe or its samples have changed."
)
def pretrain(config: Path, overrides: tuple[str, ...], restart: bool, allow_changes: bool) -> None:
    """Train encoders without labels by the recipe CONFIG.

    KEY=VALUE changes a key of the recipe, such as data.root=/videos or train.epochs=50.

    The run lives in run.folder/run.name. If that folder holds a checkpoint of the same recipe, training goes
    on where it stopped. Ctrl-C saves a checkpoint first; a second Ctrl-C does not.

    On several GPUs: torchrun --nproc-per-node N -m avssl pretrain CONFIG ...
    """
    with dist.process_group():
        recipe = load_config(config, overrides, schema=Config)
        folder = run_stage(recipe, restart, allow_changes)
        if dist.rank() == 0:
            click.echo(f"run     {folder}\nreport  {write_report(folder)}")


def run_stage(recipe: Config, restart: bool = False, allow_changes: bool = False) -> Path:
    """Train one stage with a progress bar; after a requested stop exit with `CONTINUE_STATUS` or 130."""
    try:
        say = partial(click.echo, err=True)
        return run_pretrain(recipe, show_progress, restart, command_line(), say, allow_changes)
    except Interrupted as stop:
        if dist.rank() == 0:
            click.echo(f"avssl: {stop}", err=True)
        raise SystemExit(CONTINUE_STATUS if stop.number in TO_BE_CONTINUED else 130) from stop


def command_line() -> str:
    """What the user typed."""
    return shlex.join(["avssl", *sys.argv[1:]])


def show_progress(description: str, total: int, completed: int) -> AbstractContextManager[Progress]:
    """Progress bar for work of so many units (0: not known yet), of which some are done."""
    return progress_bar(description, total or None, start=completed, unit=UNITS.get(description, "steps"))
