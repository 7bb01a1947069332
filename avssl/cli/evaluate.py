"""``avssl evaluate``: what a run has learnt, in numbers, a gallery and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from avssl.build import Config, build_device, build_encoders, share_cores
from avssl.checkpoint import FILE_NAME
from avssl.cli.pretrain import command_line
from avssl.cli.progress import progress_bar
from avssl.cli.protocols import PROTOCOLS, Subject, run_protocol
from avssl.data import Manifest
from avssl.errors import ManifestError
from avssl.evaluate.clip_features import MODALITIES
from avssl.evaluate.suite import agreement_row, evaluate_encoders, results_table
from avssl.features import Features, load_encoders
from avssl.files import write_json
from avssl.models import DualEncoder, VisualEncoder
from avssl.objectives import memory_state
from avssl.report import write_report
from avssl.retrieve import write_gallery
from avssl.train.checkpoints import FOLDER as CHECKPOINTS
from avssl.weights import read_checkpoint

COLUMNS = {
    "linear_video": "linear video",
    "linear_audio": "linear audio",
    "knn_video": "kNN video",
    "knn_audio": "kNN audio",
    "a2v_r1": "A→V R@1",
    "a2v_r5": "R@5",
    "a2v_r10": "R@10",
    "a2v_median_rank": "median",
    "v2a_r1": "V→A R@1",
    "v2a_r5": "R@5 ",
    "v2a_r10": "R@10 ",
    "v2a_median_rank": "median ",
    "positive_precision": "positives",
}


AGREEMENTS = 16
"""Agreements an instance whose classes are looked at; one number for all runs, so that they compare."""


@dataclass(frozen=True)
class Judged:
    """One evaluated model: its row of metrics and its features of the test split."""

    name: str
    metrics: dict[str, float]
    features: Features


@click.command(
    epilog="""\b
Examples:
  avssl evaluate runs/avid
  avssl evaluate runs/avid --manifest other.parquet --test-split val --no-gallery
  avssl evaluate avid-kinetics400 --manifest my.parquet --output runs/kinetics400
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("protocol", type=click.Choice(PROTOCOLS), required=False)
@click.option("--manifest", "--data", metavar="FILE|URL", help="Other data than the run was trained on.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder of the results.  [default: RUN, or runs/NAME]"
)
@click.option("--train-split", default="train", show_default=True, help="Split the probes are fitted on.")
@click.option("--test-split", default="test", show_default=True, help="Split everything is measured on.")
@click.option("--clips", type=click.IntRange(min=1), help="Clips a file.  [default: 2, for a PROTOCOL 10]")
@click.option("--modality", type=click.Choice(MODALITIES), help="Of a PROTOCOL.  [default: what it is for]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--gallery/--no-gallery", default=True, help="Write previews of queries and their matches.")
def evaluate(
    run: Path,
    protocol: str | None,
    manifest: str | None,
    output: Path | None,
    train_split: str,
    test_split: str,
    clips: int | None,
    modality: str | None,
    device: str,
    gallery: bool,
) -> None:
    """Measure the run RUN (its folder) next to the same networks at random initialisation.

    RUN may also be a checkpoint from elsewhere, official ones included, or a name that 'avssl weights' lists.
    These need --manifest, and their results go to runs/NAME unless --output says otherwise.

    Retrieval between sound and video takes place among the files of the test split. With labels, linear
    probe and kNN accuracy of the video and audio features are measured too, and how often agreements mined
    from the memories have the query's class. Writes results.json, gallery.json and report.html.

    PROTOCOL is one of the field's own instead: a linear classifier on each block of a network ('blocks'),
    support vector machines on each block over the folds of ESC-50 or DCASE ('audio-svm'), linear probes on
    few samples a class ('few-shot'). Their features stay in the folder of the results and serve again.
    """
    state = read_checkpoint(run)
    data, folder = _places(run, state["manifest_hash"] != "", manifest, output)
    whole = Manifest.load(data)
    place = build_device(device)
    encoders, config = load_encoders(state, run)
    if protocol is not None:
        sort = modality or ("audio" if protocol == "audio-svm" else "video")
        run_protocol(
            protocol,
            Subject(encoders, config, whole, train_split, test_split, sort, clips or 10, folder, place),
            str(run),
        )
        return
    if modality is not None:
        raise click.UsageError("--modality is for a PROTOCOL; without one both are measured")
    clips = clips or 2
    need_audio = encoders.audio is not None
    train = _split(whole, train_split, "--train-split", need_audio)
    test = _split(whole, test_split, "--test-split", need_audio)
    with_mute = _split(whole, train_split, "--train-split", need_audio=False)  # these may have taken part
    own = next((rows for rows in (train, with_mute) if rows.hash == state["manifest_hash"]), None)
    judged = [
        judge("random init", random_encoders(config), config, train, test, clips, place),
        judge(config.run.name, encoders, config, train, test, clips, place, state, own),
    ]
    write_results(folder, judged, train, test)
    if gallery and need_audio:
        features = judged[-1].features
        titles = {"Audio to video": (features, "a2v"), "Video to audio": (features, "v2a")}
        write_gallery(folder, titles, test)
    print_table(judged, len(test), train)
    click.echo(f"report  {write_report(folder)}")


def _places(run: Path, own: bool, manifest: str | None, output: Path | None) -> tuple[str | Path, Path]:
    """Manifest to read and folder to write; nothing is written beside a checkpoint that is not our own."""
    home = run if run.is_dir() else run.parent
    if own and run.exists() and (home / FILE_NAME).is_file():
        return manifest or home / "manifest.parquet", output or home
    if own and run.is_file() and home.name == CHECKPOINTS:  # an earlier one, or the best, of a run
        return manifest or home.parent / "manifest.parquet", output or home / run.stem
    if manifest is None:
        raise ManifestError(
            f"{run}: has no data of its own; a checkpoint from elsewhere needs some to be measured on; "
            "give --manifest FILE, made by `avssl prepare`"
        )
    name = run.name.partition(".")[0]
    if name == "checkpoint":  # all published files have this name; their folders tell them apart
        name = run.resolve().parent.name
    return manifest, output or Path("runs") / name


def random_encoders(config: Config) -> DualEncoder | VisualEncoder:
    """Build the networks of a recipe at random initialisation."""
    torch.manual_seed(config.train.seed)
    return build_encoders(config.model)


def judge(
    name: str,
    encoders: DualEncoder | VisualEncoder,
    config: Config,
    train: Manifest,
    test: Manifest,
    num_clips: int,
    device: torch.device,
    state: dict[str, Any] | None = None,
    instances: Manifest | None = None,
) -> Judged:
    """Evaluate one model; given its checkpoint and the samples of its memories, mined agreements too."""
    with progress_bar(f"evaluate {name}", None, unit="clips") as bar:
        metrics, features = evaluate_encoders(
            encoders,
            config,
            train,
            test,
            num_clips=num_clips,
            num_workers=share_cores(config, device),
            device=device,
            progress=lambda done, total: bar.update(done, total=total),
            say=lambda reason: click.echo(f"avssl: warning: {name}: {reason}", err=True),
        )
    memories = {} if state is None else memory_state(state["objective"])
    if memories and instances is not None and None not in instances.labels:
        metrics |= agreement_row(memories, instances.labels, AGREEMENTS)
    return Judged(name, metrics, features)


def write_results(folder: Path, judged: Sequence[Judged], train: Manifest, test: Manifest) -> None:
    """Write ``results.json`` for the report and for other programs."""
    rows = [{"name": one.name, "metrics": one.metrics} for one in judged]
    content = results_table(rows, len(judged[-1].features.rows), train, test, command_line())
    write_json(folder / "results.json", content)


def print_table(judged: Sequence[Judged], pool_size: int, train: Manifest) -> None:
    """Print the comparison as a table; columns that nobody has are left out."""
    used = [key for key in COLUMNS if any(key in one.metrics for one in judged)]
    table = Table(title=f"{pool_size} held-out files; probes fitted on {len(train)}", title_justify="left")
    table.add_column("model")
    for key in used:
        table.add_column(COLUMNS[key], justify="right")
    show: Callable[[str, float | None], str] = lambda key, value: (  # noqa: E731
        "" if value is None else f"{value:.1f}" if "rank" in key else f"{value:.3f}"
    )
    for one in judged:
        table.add_row(one.name, *(show(key, one.metrics.get(key)) for key in used))
    Console(width=max(Console().width, 150)).print(table)


def _split(whole: Manifest, name: str, option: str, need_audio: bool) -> Manifest:
    try:
        return whole.select(split=name, need_video=True, need_audio=need_audio)
    except ManifestError as error:
        raise ManifestError(f"{error}; choose one with {option}") from error
