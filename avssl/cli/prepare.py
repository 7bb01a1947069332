"""``avssl prepare``: from a folder, a list of files or tars to a manifest or to shards."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from avssl.cli.accounts import account
from avssl.cli.progress import progress_bar
from avssl.cli.shards import LimitType, SizeType, prepare_shards, shard_settings, verify_shards
from avssl.data import ScanResult, Skipped, scan
from avssl.errors import ManifestError
from avssl.shards import SkipLimit

TABLES = (".parquet", ".csv")


@click.command(
    epilog="""\b
Examples:
  avssl prepare videos/ manifest.parquet
  avssl prepare videos/ prepared/ --val-share 0.1
  avssl prepare files.csv prepared/ --recipe configs/avid/folder.yaml --max-skipped 5%
  avssl prepare films/ prepared/ --scenes --segment-seconds 10
  avssl prepare photos/ prepared/ --images --short-side 256
  avssl prepare --verify prepared/
"""
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The same as OUT.")
@click.option(
    "--val-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of the files to hold out as split 'test', chosen by a hash of their path.",
)
@click.option("--images", is_flag=True, help="Take up images too, each as a video of one frame.")
@click.option(
    "--max-skipped",
    type=LimitType(),
    metavar="N|SHARE",
    help="Stop when more samples than this are skipped: 20, 0.05 or 5%.  [default: never]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that make shards (default: one a processor); for a manifest, threads that read files "
    "(default: 4 more than processors, at most 32).",
)
@click.option("--overwrite", is_flag=True, help="Replace the manifest or the shards of an earlier call.")
@click.option("--verify", is_flag=True, help="SOURCE is a folder of shards: compare them with their hashes.")
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="Shards: take size, fps and sample rate from its data."
)
@click.option(
    "--short-side",
    type=SizeType(),
    metavar="PIXELS|keep",
    help="Shards: short side of the frames; smaller ones are not enlarged.  [default: 128]",
)
@click.option(
    "--fps", type=click.FloatRange(0, min_open=True), help="Shards: frames a second.  [default: 16]"
)
@click.option(
    "--sample-rate", type=click.IntRange(min=1), help="Shards: samples of sound a second.  [default: 24000]"
)
@click.option(
    "--segment-seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Shards: cut longer files into pieces of S seconds.",
)
@click.option(
    "--scenes", is_flag=True, help="Shards: cut where the scene changes (pip install 'avssl[scenes]')."
)
@click.option(
    "--shard-samples", type=click.IntRange(min=1), metavar="N", help="Shards: samples each.  [default: 500]"
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="Shards: work on this Ray cluster, 'auto' for the one of this machine, 'local' for a new one here "
    "(pip install 'avssl[ray]').",
)
def prepare(
    source: Path,
    out: Path | None,
    output: Path | None,
    val_share: float,
    images: bool,
    max_skipped: SkipLimit | None,
    workers: int | None,
    overwrite: bool,
    verify: bool,
    **shards: Any,
) -> None:
    """Measure the files of SOURCE and write OUT: a manifest of them, or small copies in tar shards.

    SOURCE is a folder, searched through all its levels (first-level folders named train, val or test give
    the split, the next level the label; other first-level folders give the label), or a list of files: .txt
    with one path a line, or .csv, .tsv or .parquet with a column 'path' and, if wanted, id, start_seconds,
    end_seconds, label and split; or a .tar, or a folder of them, in the layout of WebDataset.

    OUT is a manifest if its name ends in .parquet or .csv. Any other name is a folder for shards: every
    sample is encoded again, small, with short groups of pictures and sound at the training rate, which makes
    it many times faster to read. Train on them with data.manifest=OUT/manifest.parquet.

    What cannot be read is left out and written down with the reason, in NAME.skipped.jsonl beside the
    manifest or in OUT/skipped.jsonl. Shards that were interrupted go on with the same command.
    """
    if verify:
        if out or output:
            raise click.UsageError("--verify takes one folder, that of the shards")
        verify_shards(source)
        return
    if (out is None) == (output is None):
        raise click.UsageError("give OUT, a folder for shards or a manifest that ends in .parquet or .csv")
    target = out or output
    assert target is not None

    def find(name: str, threads: int | None) -> ScanResult:
        with progress_bar(name, unit="files") as progress:
            return scan(source, val_share=val_share, images=images, workers=threads, progress=progress.update)

    if target.suffix in TABLES or output is not None:
        _refuse_shard_options(shards, target)
        check_output(source, target, overwrite)
        _write_manifest(find("prepare", workers), target, max_skipped)
        return
    address = shards.pop("ray_address")
    prepare_shards(
        source,
        lambda: find("scan", None),
        target,
        shard_settings(**shards),
        limit=max_skipped,
        workers=workers,
        ray_address=address,
        overwrite=overwrite,
    )


def _refuse_shard_options(options: dict[str, Any], target: Path) -> None:
    for name, value in options.items():
        if value:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is for shards, and {target} is a manifest; give a folder as OUT"
            )


def _write_manifest(result: ScanResult, target: Path, limit: SkipLimit | None) -> None:
    ledger = target.with_name(f"{target.stem}.skipped.jsonl")
    write_skipped(ledger, result.skipped)
    total = len(result.manifest) + len(result.skipped)
    if limit is not None:
        limit.check(len(result.skipped), total, ledger)
    result.manifest.save(target)
    click.echo("\n".join(account(result, target, ledger)))


def check_output(source: Path, output: Path, overwrite: bool) -> None:
    """Refuse before the long work what would fail, or destroy something, after it."""
    if output.suffix not in TABLES:
        raise ManifestError(
            f"cannot write a manifest to {output}; give a name that ends in .parquet or .csv to --output"
        )
    if output.exists() and source.exists() and output.samefile(source):
        raise ManifestError(f"{output} is the list to read; give another name to --output")
    if output.exists() and not overwrite:
        raise ManifestError(f"{output} exists already; give another name, or --overwrite to replace it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ManifestError(f"cannot make the folder {output.parent} of the manifest: {error}") from error


def write_skipped(path: Path, skipped: list[Skipped]) -> None:
    """One JSON line a file; no file when nothing was skipped, so that none of an earlier run misleads."""
    if skipped:
        path.write_text("".join(f"{json.dumps(asdict(item))}\n" for item in skipped), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
