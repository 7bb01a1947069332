"""The samples of a data set in one of its official splits, from label files or, without them, from paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from avssl.cards.card import Card
from avssl.cards.entries import Entry, file_names, read_entries, read_label_names, read_subset
from avssl.cards.files import Copy, entries_of_paths, few, misfit


@dataclass
class Listing:
    """Samples, each id once, and what was seen on the way to them.

    Parameters
    ----------
    entries : list of Entry
        Samples in the order of the label files.
    label_files : list of str
        Label files that were read.
    problems : list of str
        What is not as the card says.
    notes : list of str
        What is worth knowing and no fault.
    """

    entries: list[Entry] = field(default_factory=list)
    label_files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_samples(card: Card, copy: Copy, media: Sequence[str], fold: int) -> Listing:
    """Samples of a fold, counted from 1.

    Raises
    ------
    ManifestError
        When a label file that must be there is missing, or one is damaged.
    """
    layout, listing = card.layout, Listing()
    names = _label_names(card, copy)
    found = {split: copy.find_lists(wanted, fold) for split, wanted in layout.lists.items()}
    for split, files in found.items():
        listing.label_files += map(str, files)
        entries = read_entries(layout, split, files, fold, names)
        if files and split in layout.subset:
            entries = _only_subset(card, copy, split, entries, listing)
        listing.entries += entries
    taken: set[str] = set()
    for split in layout.paths:
        if not found.get(split):
            entries = entries_of_paths(layout, split, media, taken)
            taken.update(entry.file for entry in entries if entry.file)
            listing.entries += entries
    there = {entry.split for entry in listing.entries}
    absent = [split for split, files in found.items() if not files and split not in there]
    _refuse_without_lists(card, copy, listing, absent, fold)
    _keep_each_once(listing)
    _compare(card, listing, absent, fold)
    return listing


def _label_names(card: Card, copy: Copy) -> dict[str, str]:
    table = card.layout.label_names
    if table is None:
        return {}
    files = copy.find_lists([table.file])
    if not files:
        raise misfit(card, copy, f"the table of class names is not there: {table.file}")
    return read_label_names(files[0], table)


def _only_subset(card: Card, copy: Copy, split: str, entries: list[Entry], listing: Listing) -> list[Entry]:
    """Those of the entries that the list of the subset names."""
    wanted = card.layout.subset[split]
    files = copy.find_lists([wanted])
    if not files:
        raise misfit(card, copy, f"the list of the samples of {split} is not there: {wanted}")
    listing.label_files.append(str(files[0]))
    subset = read_subset(files[0])
    kept: list[Entry] = []
    known: set[str] = set()
    for entry in entries:
        names = file_names(card.layout.names, entry.key, entry.start, entry.end)
        if (name := next((name for name in names if name in subset), None)) is not None:
            kept.append(entry)
            known.add(name)
    if unknown := sorted(subset - known):
        listing.problems.append(
            f"{len(unknown):,} names of {files[0].name} are in no label file of {split}: {few(unknown)}"
        )
    return kept


def _refuse_without_lists(card: Card, copy: Copy, listing: Listing, absent: list[str], fold: int) -> None:
    """Refuse a folder without the label files that must be there; note those that may be left out."""
    wanted = ", ".join(card.layout.lists[split][0].format(fold=fold) for split in absent)
    if not listing.entries and not wanted:
        raise misfit(card, copy, "no file lies as its files do")
    if absent and not (listing.entries and card.vanishing):
        raise misfit(card, copy, f"label files are not there: {wanted}")
    if absent:
        listing.notes.append(f"no label file of {', '.join(absent)} ({wanted}): left out")


def _keep_each_once(listing: Listing) -> None:
    once: dict[str, Entry] = {}
    for entry in listing.entries:
        once.setdefault(entry.id, entry)
    if len(once) < len(listing.entries):
        counts = Counter(entry.id for entry in listing.entries)
        repeated = [name for name, count in counts.items() if count > 1]
        listing.notes.append(f"listed more than once, the first counts: {len(repeated):,} ({few(repeated)})")
    listing.entries = list(once.values())


def _compare(card: Card, listing: Listing, absent: list[str], fold: int) -> None:
    """Note where the label files differ from the card."""
    expected = card.expected
    which = f" of fold {fold}" if card.folds > 1 else ""
    sink, about = (listing.problems, "") if expected.exact else (listing.notes, "about ")
    listed = Counter(entry.split for entry in listing.entries)
    # Where the files themselves are the list, too few of them are missing files, not a wrong list.
    of_files = {entry.split for entry in listing.entries if entry.file} | set(card.layout.paths) - set(listed)
    for split, count in card.counts(fold).items():
        if split not in of_files and split not in absent and listed[split] != count:
            says = f"{listed[split]:,} samples in the label files, {about}{count:,} by the card"
            sink.append(f"split {split}{which}: {says}")
    classes = {entry.label for entry in listing.entries if entry.label is not None}
    if card.layout.label_delimiter is None and expected.classes not in (None, len(classes)):
        sink.append(f"{len(classes):,} classes{which}, {about}{expected.classes:,} by the card")
