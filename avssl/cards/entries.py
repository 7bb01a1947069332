"""Label files of a data set: which samples it has, with their classes, splits and times."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avssl.cards.card import LABEL_SEPARATOR, Column, LabelNames, Layout
from avssl.errors import ManifestError


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample that a data set has, whether or not its file is there.

    Parameters
    ----------
    id : str
        Id in a manifest.
    key : str
        YouTube id, or path without extension.
    split : str
        Split in the fold asked for.
    label : str or None
        Class; several are joined by `LABEL_SEPARATOR`.
    start, end : float or None
        Seconds of the original video that are the sample.
    file : str or None
        Path below the root, where the entry was made from the file itself.
    """

    id: str
    key: str
    split: str
    label: str | None = None
    start: float | None = None
    end: float | None = None
    file: str | None = None


def file_names(templates: Iterable[str], key: str, start: float | None, end: float | None) -> Iterator[str]:
    """What the file of a sample may be called; templates that need an unknown time are left out."""
    times: dict[str, int] = {}
    if start is not None:
        times |= {"start": int(start), "start_ms": round(start * 1000)}
    if end is not None:
        times |= {"end": int(end), "end_ms": round(end * 1000)}
    for template in templates:
        try:
            yield template.format(key=key, **times)
        except KeyError:
            continue


def read_entries(
    layout: Layout, split: str, files: Sequence[Path], fold: int, names: dict[str, str]
) -> list[Entry]:
    """Samples of the label files of one split.

    Parameters
    ----------
    layout : Layout
        Says how the files are read.
    split : str
        Split of the samples unless a column says it.
    files : sequence of Path
        Label files.
    fold : int
        Which official split, counted from 1.
    names : dict of str to str
        Names of classes by code, where the data set has such a table.

    Raises
    ------
    ManifestError
        Names file, line and rule of the first thing that cannot be understood.
    """
    read = _from_coco if layout.kind == "coco" else _from_table
    return [entry for path in files for entry in read(path, layout, split, fold, names)]


def read_label_names(path: Path, table: LabelNames) -> dict[str, str]:
    """Names of classes by code."""
    rows = _table_rows(path, ",", None, header=True)
    names = {}
    for place, row in rows:
        if table.code not in row or table.name not in row:
            raise ManifestError(f"{place}: no columns {table.code!r} and {table.name!r}; is it another file?")
        names[row[table.code]] = row[table.name]
    return names


def read_subset(path: Path) -> set[str]:
    """Names of a list with one a line, without folders and media extensions."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is no UTF-8 text ({error}); write it again") from error
    return {os.path.splitext(os.path.basename(line.strip()))[0] for line in lines if line.strip()}


# ---- tables


def _from_table(path: Path, layout: Layout, split: str, fold: int, names: dict[str, str]) -> Iterator[Entry]:
    columns = layout.columns
    header = any(isinstance(column, str) and column != "@file" for column in columns.values())
    column: Column = "key" if "key" in columns else "path"
    splits = {value.format(fold=fold): name for value, name in layout.split_names.items()}
    for place, row in _table_rows(path, layout.delimiter, layout.skip_lines, header):
        cells = {name: path.name if c == "@file" else row.get(c) for name, c in columns.items()}
        key = cells[column]
        if not key:
            raise ManifestError(
                f"{place}: no {column} of a sample in column {columns[column]!r}; if this is no label file "
                "of the data set, name the right one with --lists"
            )
        start = _seconds(cells.get("start"), place)
        end = _seconds(cells.get("end"), place)
        if end is None and start is not None and layout.clip_seconds is not None:
            end = start + layout.clip_seconds
        key = key if column == "key" else os.path.splitext(key)[0]
        name = next(file_names([layout.id], key, start, end), None)
        if name is None:
            raise ManifestError(f"{place}: the time of {key!r} is empty; its id needs it")
        yield Entry(
            id=name,
            key=key,
            split=_split(cells["split"], splits, place) if "split" in columns else split,
            label=_label(cells.get("label"), layout, names, place),
            start=start,
            end=end,
        )


def _table_rows(
    path: Path, delimiter: str, skip: str | None, header: bool
) -> Iterator[tuple[str, dict[str | int, str]]]:
    """Place of each row, and its cells by name of the column, or by number without header."""
    numbers: list[int] = []  # of the lines that were not passed over

    def lines(file: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(file, start=1):
            if line.strip() and not (skip and re.match(skip, line)):
                numbers.append(number)
                yield line

    names: list[str] | None = None
    # Only commas come with quotes: names of files in other lists may hold any sign.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(lines(file), delimiter=delimiter, quoting=quoting, skipinitialspace=True)
            for cells in reader:
                cells = [cell.strip() for cell in cells]
                if header and names is None:
                    names = cells
                    continue
                place = f"{path}, line {numbers[reader.line_num - 1]}"
                yield place, dict(zip(names or range(len(cells)), cells, strict=False))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} is no readable UTF-8 table ({error}); get it again") from error


def _seconds(cell: str | None, place: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        raise ManifestError(f"{place}: {cell!r} must be a time in seconds") from None


def _split(cell: str | None, splits: dict[str, str], place: str) -> str:
    if not splits and cell:
        return cell
    split = splits.get(cell or "", splits.get("*"))
    if split is None:
        raise ManifestError(f"{place}: split {cell!r} is none of {', '.join(splits) or 'any name'}")
    return split


def _label(cell: str | None, layout: Layout, names: dict[str, str], place: str) -> str | None:
    if not cell:
        return None
    if layout.label_pattern:
        found = re.search(layout.label_pattern, cell)
        if found is None:
            raise ManifestError(f"{place}: no class in {cell!r}; it must match {layout.label_pattern!r}")
        cell = found.group(1)
    codes = [cell] if layout.label_delimiter is None else cell.split(layout.label_delimiter)
    if layout.label_names is not None:
        if unknown := [code for code in codes if code not in names]:
            raise ManifestError(f"{place}: class {unknown[0]!r} is not in {layout.label_names.file}")
        codes = [names[code] for code in codes]
    return LABEL_SEPARATOR.join(codes)


# ---- JSON


def _from_coco(path: Path, layout: Layout, split: str, fold: int, names: dict[str, str]) -> Iterator[Entry]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        categories = {item["id"]: item["name"] for item in content.get("categories", [])}
        labels = {item["image_id"]: item["category_id"] for item in content.get("annotations", [])}
        for image in content["images"]:
            key = os.path.splitext(image["file_name"])[0]
            category = labels.get(image["id"])
            label = None if category is None else str(categories.get(category, category))
            yield Entry(id=key, key=key, split=split, label=label)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"{path} is no JSON list of images ({type(error).__name__}: {error}); it needs 'images' with "
            "'id' and 'file_name', and may have 'annotations' and 'categories'"
        ) from error
