"""``avssl demo``: everything on a small generated data set, from video files to a report."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from avssl.build import Config, build_device
from avssl.checkpoint import load_checkpoint
from avssl.cli.evaluate import Judged, judge, print_table, random_encoders, write_results
from avssl.cli.pretrain import run_stage
from avssl.config import load_config
from avssl.data import Manifest, scan
from avssl.features import load_encoders
from avssl.report import write_report
from avssl.retrieve import write_gallery
from avssl.sounding_shapes import cache_folder, write_sounding_shapes

STAGES = {"avid": "AVID", "cma": "AVID+CMA"}
FILES = {"full": (80, 17), "quick": (24, 8)}  # training and held-out files of each class
QUICK = {"avid": "train.epochs=30", "cma": "train.epochs=10"}


@click.command(
    epilog="""\b
Examples:
  avssl demo
  avssl demo --quick --output /tmp/demo
"""
)
@click.option("--quick", is_flag=True, help="A smaller set and short training: about two minutes.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Run folder.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    envvar="AVSSL_CACHE",
    default=Path("~/.cache/avssl"),
    show_default=True,
    help="Where the generated videos are kept.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of data and training."
)
@click.option("--restart", is_flag=True, help="Move earlier stages in the run folder aside and begin anew.")
def demo(quick: bool, output: Path, cache: Path, seed: int, restart: bool) -> None:
    """Train AVID, then AVID+CMA, on generated videos with sound, and measure what they learnt.

    Writes several hundred short videos ("sounding shapes"), trains on them without labels, compares the
    encoders with randomly initialised ones on held-out files and writes OUTPUT/report.html. Uses a GPU if
    there is one. Interrupted, it goes on where it stopped when started again.
    """
    began = time.monotonic()
    files = _write_data(cache, quick, seed)
    output.mkdir(parents=True, exist_ok=True)
    manifest_path = output / "manifest.parquet"
    scan(files).manifest.save(manifest_path)
    recipes = {stage: _recipe(stage, manifest_path, output, quick, seed) for stage in STAGES}
    for recipe in recipes.values():
        run_stage(recipe, restart)
    judged, train, test = _judge(recipes, output)
    write_results(output, judged, train, test)
    galleries = {
        f"{title} ({one.name})": (one.features, direction)
        for one in judged[:0:-1]
        for title, direction in (("Audio to video", "a2v"), ("Video to audio", "v2a"))
    }
    write_gallery(output, galleries, test)
    page = write_report(output)
    print_table(judged, len(test), train)
    click.echo(f"took    {time.monotonic() - began:.0f} s\nreport  {page}")


def _write_data(cache: Path, quick: bool, seed: int) -> Path:
    num_train, num_test = FILES["quick" if quick else "full"]
    folder = cache_folder(cache.expanduser(), num_train, num_test, seed)
    return write_sounding_shapes(folder, num_train, num_test, seed, workers=os.cpu_count() or 1)


def _recipe(stage: str, manifest: Path, output: Path, quick: bool, seed: int) -> Config:
    overrides = [
        f"data.manifest={manifest}",
        f"run.folder={output}",
        f"run.name={stage}",
        f"train.seed={seed}",
        *((QUICK[stage],) if quick else ()),
    ]
    if stage == "cma":
        overrides.append(f"run.start_from={output / 'avid'}")
    return load_config(Path(__file__).parent / f"demo_{stage}.yaml", overrides, schema=Config)


def _judge(recipes: dict[str, Config], output: Path) -> tuple[list[Judged], Manifest, Manifest]:
    """Evaluate the random networks and the two stages on the held-out files."""
    config = recipes["avid"]
    whole = Manifest.load(output / "manifest.parquet")
    train, test = (whole.select(split=s, need_video=True, need_audio=True) for s in ("train", "test"))
    device = build_device(config.train.device)
    judged = [judge("random init", random_encoders(config), config, train, test, 2, device)]
    for stage, title in STAGES.items():
        state = load_checkpoint(output / stage)
        encoders, _ = load_encoders(state, output / stage)
        judged.append(judge(title, encoders, config, train, test, 2, device, state, train))
    return judged, train, test
