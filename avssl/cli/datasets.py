"""``avssl datasets``: what is known of a data set, whether a copy is whole, and its manifest."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from avssl.cards import Card, Survey, card_names, load_card, survey
from avssl.cli.accounts import account
from avssl.cli.prepare import check_output, write_skipped
from avssl.cli.progress import progress_bar
from avssl.data import ScanResult
from avssl.errors import ManifestError
from avssl.files import write_json

NAMED = 5
"""Samples and files that an account names; the report names all."""


@click.group(
    epilog="""\b
Examples:
  avssl datasets list
  avssl datasets show ucf101
  avssl datasets check ucf101 --root /data/ucf101
  avssl datasets manifest ucf101 --root /data/ucf101 --split 2 --output ucf101_2.parquet
"""
)
def datasets() -> None:
    """Known data sets: check a copy of one and make its manifest.

    NAME is a name of the list, or the path of a card of your own, a .yaml file like those in datasets/.
    """


def _copy_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say where a copy is."""
    folder = click.Path(path_type=Path)
    options = [
        click.argument("name"),
        click.option("--root", type=folder, required=True, help="Folder of the data set."),
        click.option(
            "--lists",
            type=folder,
            multiple=True,
            metavar="PATH",
            help="Label file, or folder of them, that is not below ROOT; may be given again.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            default=None,
            metavar="N",
            help="Threads that read files.  [default: 4 more than processors, at most 32]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@datasets.command("list")
def list_() -> None:
    """List the data sets."""
    row = "{:<18} {:<31} {:>7}  {}"
    lines = [row.format("name", "data set", "classes", "samples")]
    for card in map(load_card, card_names()):
        lines.append(row.format(card.name, card.title, card.expected.classes or "any", _expected(card)))
    click.echo("\n".join(lines))


@datasets.command()
@click.argument("name")
def show(name: str) -> None:
    """Say what is known of a data set.

    Source, licence, citation, how to obtain it, layout, label files, splits and counts.
    """
    card = load_card(name)
    click.echo("\n".join(_card_lines(card)))


@datasets.command()
@_copy_options
@click.option("--no-probe", is_flag=True, help="Compare names only; open no file.")
@click.option(
    "--tolerate",
    type=click.FloatRange(0, 1),
    default=None,
    metavar="SHARE",
    help="Share of samples that may be missing or unreadable.  [default: by the card]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Write everything, with all names, as JSON.",
)
@click.pass_context
def check(
    ctx: click.Context,
    name: str,
    root: Path,
    lists: tuple[Path, ...],
    workers: int | None,
    no_probe: bool,
    tolerate: float | None,
    report: Path | None,
) -> None:
    """Compare the copy in ROOT with the card of NAME.

    Names the samples whose file is missing, files that are no sample, files that cannot be decoded, and
    counts those without sound or picture. Exit status: 0 if the copy will do, 1 if more is missing or
    unreadable than the card tolerates (much, for videos that vanish from the internet) or label files differ
    from the card, 2 if ROOT is no copy of the data set.
    """
    card = load_card(name)
    with progress_bar("check", unit="files") as progress:
        result = survey(
            card, root, lists=lists, probe=not no_probe, workers=workers, progress=progress.update
        )
    limit = card.tolerated if tolerate is None else tolerate
    failures = result.failures(limit)
    click.echo("\n".join(_survey_lines(result, probed=not no_probe)))
    if report is not None:
        write_json(report, {**result.to_dict(), "tolerated": limit, "failures": failures})
        click.echo(f"all names: {report}")
    click.echo("\n".join(f"failed: {text}" for text in failures) or "passed")
    if failures:
        ctx.exit(1)


@datasets.command()
@_copy_options
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="The manifest to write, .parquet or .csv.",
)
@click.option(
    "--split",
    "--fold",
    "fold",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Official split of UCF101 and HMDB51, or fold of ESC-50 that becomes split 'test'.",
)
@click.option(
    "--segments",
    is_flag=True,
    help="Take of each file the seconds the label files name: for whole videos, and for the events of AVE.",
)
@click.option("--overwrite", is_flag=True, help="Replace the manifest if it exists.")
def manifest(
    name: str,
    root: Path,
    lists: tuple[Path, ...],
    workers: int | None,
    output: Path,
    fold: int,
    segments: bool,
    overwrite: bool,
) -> None:
    """Make a manifest of the copy in ROOT.

    Ids, classes and splits are those of the data set; several classes of one sample are joined by ';'. Every
    file is opened and measured. Missing samples are left out; files that cannot be read too, and these are
    written down, with the reason, in OUTPUT.skipped.jsonl beside the manifest.
    """
    card = load_card(name)
    check_output(root, output, overwrite)
    with progress_bar("manifest", unit="files") as progress:
        result = survey(
            card, root, lists=lists, fold=fold, segments=segments, workers=workers, progress=progress.update
        )
    if result.manifest is None:
        first = result.skipped[0]
        raise ManifestError(
            f"none of the {len(result.skipped)} files found can be read; the first: {first.path}: "
            f"{first.stage}: {first.reason}"
        )
    ledger = output.with_name(f"{output.stem}.skipped.jsonl")
    write_skipped(ledger, result.skipped)
    result.manifest.save(output)
    lines = account(ScanResult(result.manifest, result.skipped), output, ledger)
    for split, counts in result.splits.items():
        if counts.missing:
            lines.append(f"{split}: {len(counts.missing):,} of {counts.listed:,} samples are not there")
    lines += [f"note: {text}" for text in [*result.notes, *result.problems]]
    click.echo("\n".join(lines))


# ---- text


def _expected(card: Card) -> str:
    about = "" if card.expected.exact else "about "
    counts = ", ".join(f"{split} {count:,}" for split, count in card.counts().items())
    folds = f", {card.folds} official splits" if card.folds > 1 else ""
    return f"{about}{counts}{folds}" if counts else "any"


def _card_lines(card: Card) -> list[str]:
    expected, layout = card.expected, card.layout
    facts: dict[str, Any] = {
        "content": card.content,
        "source": card.source,
        "licence": card.licence,
        "citation": card.citation,
        "obtain": card.obtain,
        "notes": card.notes,
        "classes": f"{expected.classes:,}" if expected.classes else "",
        "samples": _expected(card) + (f" ({expected.source})" if expected.source else ""),
        "label files": "; ".join(
            f"{split}: {' or '.join(names).format(fold=1)}" for split, names in layout.lists.items()
        ),
        "tolerated": f"{card.tolerated:.0%} missing or unreadable" if card.tolerated else "",
    }
    lines = [f"{card.name}: {card.title}", ""]
    for name, text in facts.items():
        if text:
            lines.append(textwrap.fill(f"{name + ':':<12} {text}", 100, subsequent_indent=" " * 13))
    return [*lines, "layout:", *(f"    {line}" for line in layout.tree.rstrip().splitlines())]


def _survey_lines(result: Survey, probed: bool) -> list[str]:
    card = result.card
    lines = [f"{card.title} in {result.root}"]
    if result.label_files:
        names = result.label_files
        lines.append(f"label files: {_few([_below(name, result.root) for name in names])}")
    row = "{:<10} {:>11} {:>11} {:>11} {:>9}"
    lines.append(row.format("split", "by card", "listed", "found", "missing"))
    for name, split in result.splits.items():
        by_card = "" if split.card is None else f"{split.card:,}"
        if by_card and not card.expected.exact:
            by_card = f"~{by_card}"
        missing = split.listed - split.found
        lines.append(row.format(name, by_card, f"{split.listed:,}", f"{split.found:,}", f"{missing:,}"))
    for name, split in result.splits.items():
        if split.missing and not split.found and card.vanishing:
            lines.append(f"{name}: nothing of it is here; left out")
        elif split.missing:
            lines.append(f"missing of {name}: {_few(split.missing)}")
    if result.extra:
        lines.append(f"no samples of the data set: {len(result.extra):,} files ({_few(result.extra)})")
    lines += _stream_lines(result) if probed else ["files were not opened"]
    return lines + [f"note: {text}" for text in result.notes]


def _stream_lines(result: Survey) -> list[str]:
    """What opening the files showed."""
    skipped = result.skipped
    lines = [f"undecodable: {len(skipped):,}"]
    lines += [f"  {_below(item.path, result.root)}: {item.stage}: {item.reason}" for item in skipped[:NAMED]]
    if len(skipped) > NAMED:
        lines.append(f"  and {len(skipped) - NAMED:,} more")
    wanted = {"sound": ("audio", {"video", "audio"}), "picture": ("video", {"video", "image"})}
    for word, (stream, kinds) in wanted.items():
        if kinds & set(result.card.layout.media):
            names = result.without(stream)
            lines.append(f"without {word}: {len(names):,}" + (f" ({_few(names)})" if names else ""))
    return lines


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _below(path: str, root: str) -> str:
    """Path below the root where it is, which is shorter to read."""
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path
