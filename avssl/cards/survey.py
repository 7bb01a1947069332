"""Look over a local copy of a data set: what is there, what is missing, and what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from avssl.cards.card import UNUSED, Card
from avssl.cards.entries import Entry, file_names
from avssl.cards.files import Copy, extra_files, few, match, misfit
from avssl.cards.listing import list_samples
from avssl.data import Manifest, Sample, ScanResult, Skipped, scan
from avssl.data.probing import Wish, probe_wishes
from avssl.errors import ManifestError


@dataclass(frozen=True)
class Split:
    """Account of one split.

    Parameters
    ----------
    card : int or None
        Samples by the card; None where it does not say.
    listed : int
        Samples by the label files; the files themselves where there are none.
    found : int
        Samples whose file is there.
    missing : list of str
        Ids of the others, sorted.
    """

    card: int | None
    listed: int
    found: int
    missing: list[str]


@dataclass(frozen=True)
class Survey:
    """What there is of a data set.

    Parameters
    ----------
    card : Card
        The data set.
    root : str
        Folder of the copy.
    label_files : list of str
        Label files that were read.
    splits : dict of str to Split
        Account of each split.
    problems : list of str
        What is not as the card says.
    notes : list of str
        What is worth knowing and no fault.
    extra : list of str
        Media files, below the root, that are no sample.
    skipped : list of Skipped
        Files that cannot be read, with the reason.
    manifest : Manifest or None
        Samples that can be read; None if none can, or when no file was opened.
    """

    card: Card
    root: str
    label_files: list[str]
    splits: dict[str, Split]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    manifest: Manifest | None = None

    def without(self, stream: str) -> list[str]:
        """Ids of the samples without ``"video"`` or ``"audio"`` stream, of those that were opened."""
        if self.manifest is None:
            return []
        has = self.manifest.table[f"has_{stream}"].to_pylist()
        return [name for name, there in zip(self.manifest.ids, has, strict=True) if not there]

    @property
    def unusable(self) -> float:
        """Share of the samples that are missing or cannot be read, of the splits that are there."""
        splits = [s for s in self.splits.values() if s.found or not self.card.vanishing]
        total = sum(split.listed for split in splits)
        if self.card.layout.kind == "scan":  # which lists what can be read
            total += len(self.skipped)
        lost = sum(split.listed - split.found for split in splits) + len(self.skipped)
        return lost / total if total else 0.0

    def failures(self, tolerated: float) -> list[str]:
        """Why the copy does not pass; empty if it does."""
        over = []
        if self.unusable > tolerated:
            share, limit = f"{self.unusable:.2%}", f"{tolerated:.2%}"
            over = [f"{share} of the samples are missing or unreadable, {limit} would be tolerated"]
        return [*self.problems, *over]

    def to_dict(self) -> dict[str, Any]:
        """Everything by plain types."""
        return {
            "data_set": self.card.name,
            "root": self.root,
            "label_files": self.label_files,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "problems": self.problems,
            "notes": self.notes,
            "extra": self.extra,
            "opened": self.manifest is not None or bool(self.skipped),
            "undecodable": [asdict(item) for item in self.skipped],
            "without_video": self.without("video"),
            "without_audio": self.without("audio"),
        }


def survey(
    card: Card,
    root: str | Path,
    *,
    lists: Sequence[Path] = (),
    fold: int | None = None,
    probe: bool = True,
    segments: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Compare a copy with its card.

    Parameters
    ----------
    card : Card
        The data set.
    root : str or Path
        Folder of the copy, or any folder above it.
    lists : sequence of Path
        Label files that are not below the root, or folders of them.
    fold : int, optional
        Which official split, counted from 1. Default: the first, but the label files of all are read and
        files that the first does not use count as samples.
    probe : bool
        Open the files; else names alone are compared.
    segments : bool
        A sample is the stretch of its file that the label files name, not the whole file.
    workers : int, optional
        Threads that open files.
    progress : callable, optional
        Called with the number of files opened and their total.

    Raises
    ------
    ManifestError
        When the folder is none of this data set, or a label file is missing or damaged.
    """
    if fold is not None and not 1 <= fold <= card.folds:
        has = "one official split" if card.folds == 1 else f"official splits 1 to {card.folds}"
        raise ManifestError(f"{card.title} has {has}; got {fold}")
    root = Path(os.path.abspath(root))
    if card.layout.kind == "scan":
        if not probe:
            raise ManifestError(f"{card.name} has no label files to compare names with; leave --no-probe out")
        return _of_scan(card, scan(root, workers=workers, progress=progress))
    copy = Copy(root, lists)
    media = copy.media(card.layout)
    listings = [list_samples(card, copy, media, n) for n in ([fold] if fold else range(1, card.folds + 1))]
    entries = listings[0].entries
    files = match(entries, media, card.layout)
    if not files:
        raise _unmatched(card, copy, entries, media)
    splits, problems = _account(card, entries, files, fold or 1)
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    if probe:
        used = [e for e in entries if e.id in files and (e.split != UNUSED or fold is None)]
        wishes = [_wish(entry, files[entry.id], segments) for entry in used]
        samples, skipped = probe_wishes(wishes, root, workers, progress)
    return Survey(
        card=card,
        root=str(root),
        label_files=_once(name for listing in listings for name in listing.label_files),
        splits=splits,
        problems=_once(text for listing in listings for text in listing.problems) + problems,
        notes=_once(text for listing in listings for text in listing.notes),
        extra=extra_files(media, set(files.values())),
        skipped=skipped,
        manifest=Manifest.from_samples(samples, root) if samples else None,
    )


def _of_scan(card: Card, result: ScanResult) -> Survey:
    """A layout without label files of its own: all that is found is all there is."""
    found = result.manifest.splits
    splits = {name: Split(None, count, count, []) for name, count in found.items()}
    root = str(result.manifest.root)
    return Survey(card, root, [], splits, skipped=result.skipped, manifest=result.manifest)


def _account(
    card: Card, entries: list[Entry], files: dict[str, str], fold: int
) -> tuple[dict[str, Split], list[str]]:
    """Account of each split, and where there are more files than the card says."""
    counts = card.counts(fold)
    by_split: dict[str, list[Entry]] = {split: [] for split in counts}
    for entry in entries:
        by_split.setdefault(entry.split, []).append(entry)
    splits, problems = {}, []
    for name, group in by_split.items():
        expected, listed = counts.get(name), len(group)
        by_files = all(entry.file for entry in group) and name in card.layout.paths
        if by_files and expected is not None and card.expected.exact:
            listed = max(listed, expected)
            if len(group) > expected:
                problems.append(f"split {name}: {len(group):,} files, {expected:,} by the card")
        missing = sorted(entry.id for entry in group if entry.id not in files)
        splits[name] = Split(expected, listed, len(group) - len(missing), missing)
    return splits, problems


def _unmatched(card: Card, copy: Copy, entries: list[Entry], media: list[str]) -> ManifestError:
    first = entries[0]
    names = list(dict.fromkeys(file_names(card.layout.names, first.key, first.start, first.end)))
    here = f"{len(media):,} media files, such as {few(media, 3)}" if media else "no media file"
    why = (
        f"none of the files of the {len(entries):,} samples in the label files is there (names like "
        f"{few(names, 3)}); below the root: {here}"
    )
    return misfit(card, copy, why)


def _wish(entry: Entry, file: str, segments: bool) -> Wish:
    if not segments or entry.start is None:
        return Wish(file, entry.id, label=entry.label, split=entry.split)
    return Wish(file, entry.id, entry.start, entry.end, entry.label, entry.split)


def _once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
