"""``avssl prepare``: from a folder or list of files to a manifest."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from avssl.cli.progress import progress_bar
from avssl.data import Manifest, ScanResult, Skipped, scan
from avssl.errors import ManifestError


@click.command(
    epilog="""\b
Examples:
  avssl prepare videos/ --output manifest.parquet
  avssl prepare videos/ --output manifest.parquet --val-share 0.1
  avssl prepare files.csv --output manifest.csv --overwrite
"""
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="The manifest to write, .parquet or .csv.",
)
@click.option(
    "--val-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of the files to hold out as split 'test', chosen by a hash of their path.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Threads that read files.  [default: 4 more than processors, at most 32]",
)
@click.option("--images", is_flag=True, help="Take up image files too, each as a video of one frame.")
@click.option("--overwrite", is_flag=True, help="Replace the manifest if it exists.")
def prepare(
    source: Path, output: Path, val_share: float, workers: int | None, images: bool, overwrite: bool
) -> None:
    """Make a manifest of the video files of SOURCE.

    SOURCE is a folder, searched through all its levels (first-level folders named train, val or test give
    the split, the next level the label; other first-level folders give the label), or a list of files: .txt
    with one path a line, or .csv, .tsv or .parquet with a column 'path' and, if wanted, id, start_seconds,
    end_seconds, label and split.

    Every file is opened and measured. Those that cannot be read are left out and written down, with the
    reason, in NAME.skipped.jsonl beside the manifest.
    """
    _check_output(source, output, overwrite)
    with progress_bar("prepare", unit="files") as progress:
        result = scan(source, val_share=val_share, images=images, workers=workers, progress=progress.update)
    ledger = output.with_name(f"{output.stem}.skipped.jsonl")
    _write_skipped(ledger, result.skipped)
    result.manifest.save(output)
    click.echo("\n".join(_account(result, output, ledger)))


def _check_output(source: Path, output: Path, overwrite: bool) -> None:
    """Refuse before the long work what would fail, or destroy something, after it."""
    if output.suffix not in (".parquet", ".csv"):
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


def _write_skipped(path: Path, skipped: list[Skipped]) -> None:
    """One JSON line a file; no file when nothing was skipped, so that none of an earlier run misleads."""
    if skipped:
        path.write_text("".join(f"{json.dumps(asdict(item))}\n" for item in skipped), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _account(result: ScanResult, output: Path, ledger: Path) -> list[str]:
    """Lines that say what became of every file."""
    manifest, skipped = result.manifest, result.skipped
    paths = set(manifest.table["path"].to_pylist())
    lines = [
        f"{output}: {len(manifest)} samples of {len(paths)} files, hash {manifest.hash[:12]}",
        f"  streams: {_streams(manifest)}",
        f"  splits:  {_counts(manifest.splits)}",
        f"  classes: {len(manifest.classes) or 'none (the files have no labels)'}",
    ]
    if result.ignored:
        lines.append(f"  not media: {_counts(result.ignored)}")
    if skipped:
        lines.append(f"{len(skipped)} skipped, listed in {ledger}:")
        reasons = Counter(f"{item.stage}: {item.reason}" for item in skipped)
        lines += [f"  {count} x {reason}" for reason, count in reasons.most_common(10)]
        if len(reasons) > 10:
            lines.append(f"  and {len(reasons) - 10} other reasons")
    return lines


def _streams(manifest: Manifest) -> str:
    names = {(True, True): "video and audio", (True, False): "video only", (False, True): "audio only"}
    kinds = zip(manifest.table["has_video"].to_pylist(), manifest.table["has_audio"].to_pylist(), strict=True)
    return _counts(Counter(names[kind] for kind in kinds))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
