"""``avssl weights``: what there is, what is in a file, and the file in the other layout."""

from __future__ import annotations

import json
from pathlib import Path

import click

from avssl.checkpoint import save_checkpoint
from avssl.weights import PUBLISHED, export_official, load, read_checkpoint, weights_folder
from avssl.weights.published import FOLDER_VARIABLE, OFFICIAL_FILE_NAME, published_file
from avssl.weights.release import Variant


@click.command(
    epilog="""\b
Examples:
  avssl weights
  avssl weights runs/avid
  avssl weights checkpoint.pth.tar --json
  avssl weights runs/avid --export avid.pth.tar
  avssl weights small.pth.tar --variant small --to-avssl small.pt
"""
)
@click.argument("file", required=False)
@click.option(
    "--variant",
    type=click.Choice(["released", "small"]),
    default="released",
    show_default=True,
    help="Of an official file: which network its weights belong to; small is that for 112 pixel frames.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--export", type=click.Path(path_type=Path), metavar="FILE", help="Write FILE in the official layout."
)
@click.option(
    "--to-avssl", type=click.Path(path_type=Path), metavar="FILE", help="Write FILE in the layout of avssl."
)
def weights(
    file: str | None, variant: Variant, as_json: bool, export: Path | None, to_avssl: Path | None
) -> None:
    """Describe the checkpoint FILE, or list the weights the authors of AVID and CMA published.

    FILE is a run folder, a checkpoint of avssl, an official checkpoint (.pth.tar), or the name of published
    weights. All commands that take a checkpoint take these.
    """
    if file is None:
        if export or to_avssl:
            raise click.UsageError("there is nothing to write; give the FILE to convert")
        click.echo(json.dumps(_listed(), indent=1) if as_json else "\n".join(_list_lines()))
        return
    if export is None and to_avssl is None:
        model = load(file, variant)
        click.echo(json.dumps(model.summary(), indent=1) if as_json else "\n".join(model.describe()))
        return
    if as_json:
        raise click.UsageError("--json describes a file; leave it out to write one")
    state = read_checkpoint(file, variant)
    if export is not None:
        notes = export_official(state, export)
        click.echo("\n".join([f"{export}: official layout", *(f"  without {note}" for note in notes)]))
    if to_avssl is not None:
        save_checkpoint(to_avssl, state)
        click.echo(f"{to_avssl}: layout of avssl")


def _listed() -> list[dict[str, object]]:
    """Published weights with the place of their file."""
    return [
        {"name": name, **published._asdict(), "file": str(file), "here": file.is_file()}
        for name, published in PUBLISHED.items()
        for file in [published_file(name)]
    ]


def _list_lines() -> list[str]:
    row = "{:<21} {:<11} {:<13} {:>9}  {:>4}  {:>4}  {:>9}  {}"
    lines = [row.format("name", "method", "data", "N", "UCF", "HMDB", "Kinetics", "here")]
    for name, one in PUBLISHED.items():
        here = "yes" if published_file(name).is_file() else "no"
        numbers = (one.ucf101, one.hmdb51, one.kinetics_linear)
        lines.append(row.format(name, one.method, one.data, f"{one.num_instances:,}", *numbers, here))
    return [
        *lines,
        "",
        "Published by the authors under CC-BY-NC 4.0. R2Plus1D of depth 18 and AudioConvNet, 21,286,784",
        "parameters, with memories of N videos. Accuracies in percent, of the release's README: finetuned on",
        "UCF-101 and HMDB-51, linear probe on Kinetics.",
        "",
        "avssl does not fetch them. The release (github.com/facebookresearch/AVID-CMA) does, from",
        "dl.fbaipublicfiles.com with its download_checkpoints.sh, to",
        *(f"  {one.folder}/.../{OFFICIAL_FILE_NAME}" for one in PUBLISHED.values()),
        "Give such a file by its path, or by name once it is here:",
        f"  {weights_folder()}/NAME/{OFFICIAL_FILE_NAME}  (another folder: set {FOLDER_VARIABLE})",
        "",
        "Spectrogram statistics are not part of the files; all bins take -28.5 and 19.7 dB, their average.",
    ]
