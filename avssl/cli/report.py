"""``avssl report``: the page of a run, whenever it is wanted."""

from __future__ import annotations

from pathlib import Path

import click

from avssl.errors import AvsslError
from avssl.report import write_report


@click.command(
    epilog="""\b
Examples:
  avssl report runs/avid
  avssl report runs/avid --output avid.html
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="The page.  [default: RUN/report.html]")
def report(run: Path, output: Path | None) -> None:
    """Write the page of the run RUN (its folder) as it stands, also while it trains.

    It shows what is there so far: how far the run is, its curves, what was left out, its recipe, and the
    results of 'avssl evaluate' if there are any. 'pretrain' writes it too when it ends.
    """
    if any(run.glob("jobs/*_submitted.pkl")) and not (run / "config.yaml").is_file():
        raise AvsslError(f"{run}: its job has not begun; 'avssl runs list' shows when it does")
    click.echo(f"report  {write_report(run, 'report.html' if output is None else output.absolute())}")
