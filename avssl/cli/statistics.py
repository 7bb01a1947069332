"""``avssl statistics``: mean and std of each spectrogram bin of the user's data."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from avssl.build import Config
from avssl.cli.pretrain import show_progress
from avssl.config import load_config
from avssl.data import Manifest, SkipLedger
from avssl.errors import ConfigError
from avssl.statistics import Statistics, compute_statistics
from avssl.train.start import find_manifest

LISTED = 10
"""Skipped clips that the account names; the file names all."""


@click.command(
    epilog="""\b
Examples:
  avssl statistics configs/avid/kinetics400.yaml data.root=/videos -o stats.json
  avssl statistics configs/avid/folder.yaml data.manifest=m.parquet -o stats.json --max-clips 5000
  avssl pretrain configs/avid/kinetics400.yaml data.root=/videos views.statistics=stats.json
"""
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="The JSON file to write."
)
@click.option(
    "--max-clips",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Read at most N files, in the order of the first epoch.  [default: all]",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def statistics(
    recipe: Path, overrides: tuple[str, ...], output: Path, max_clips: int | None, overwrite: bool
) -> None:
    """Compute mean and std of each spectrogram bin over the training data of RECIPE.

    One clip a file is read, the one the first epoch of training reads; no video is decoded. Give the
    result to training with views.statistics=FILE. A recipe with views.statistics=auto does the same by
    itself, on at most 2,000 clips.
    """
    if output.is_dir():
        raise ConfigError(
            f"{output} is a folder; give the name of a file to -o, such as {output}/statistics.json"
        )
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists already; give another name, or --overwrite to replace it")
    config = load_config(recipe, overrides, schema=Config)
    manifest, unopened = _training_rows(config)
    with show_progress("statistics", min(len(manifest), max_clips or len(manifest)), 0) as progress:
        result = compute_statistics(config, manifest, max_clips, progress)
    result.save(output)
    click.echo("\n".join(_account(result, unopened, output)))


def _training_rows(config: Config) -> tuple[Manifest, list[dict[str, str]]]:
    """Samples the training reads, with sound at least, and the files the scan could not open."""
    ledger = SkipLedger(None)
    with TemporaryDirectory() as folder:
        whole = find_manifest(
            config,
            Path(folder),
            False,
            ledger,
            show_progress,
        )
    rows = whole.select(split=config.data.split, need_audio=True)
    if rows.table["has_video"].to_numpy().any():
        rows = rows.select(need_video=True, need_audio=True)
    return rows, list(ledger.records.values())


def _account(result: Statistics, unopened: list[dict[str, str]], output: Path) -> list[str]:
    """Lines that say what was read and what came out."""
    lines = [
        f"{output}: {len(result.mean)} bins from {result.num_clips} clips, {result.num_frames} frames",
        f"  mean: {min(result.mean):g} to {max(result.mean):g} dB",
        f"  std:  {min(result.std):g} to {max(result.std):g} dB",
    ]
    skipped = [*unopened, *result.skipped]
    if skipped:
        lines.append(f"{len(skipped)} skipped:")
        lines += [f"  {item['path']}: {item['stage']}: {item['reason']}" for item in skipped[:LISTED]]
        if len(skipped) > LISTED:
            lines.append(f"  and {len(skipped) - LISTED} more; those that could be opened are in the file")
    return lines
