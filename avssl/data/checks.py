"""What the rows of a manifest must be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avssl.data.tables import PLACES
from avssl.errors import ManifestError


def check_rows(table: pa.Table) -> None:
    """Refuse a table sorted by id with repeated ids, impossible times or places outside any file.

    Raises
    ------
    ManifestError
        Names the first bad row, its values and what they must be.
    """
    _check_ids(table)
    _check_times(table)
    if PLACES.names[0] in table.column_names:
        for kind in ("video", "audio"):
            _check_places(table, kind)


def _check_ids(table: pa.Table) -> None:
    ids = table["id"].to_pylist()
    if len(set(ids)) < len(ids):
        repeated = [name for name, count in Counter(ids).items() if count > 1]
        raise ManifestError(
            f"ids must be unique; more than once: {named(repeated)}; remove the repeated rows, or give "
            "them ids of their own in an 'id' column"
        )


def _check_times(table: pa.Table) -> None:
    names = ("start_seconds", "end_seconds", "duration_seconds", "fps")
    start, end, duration, fps = (table[name].to_numpy() for name in names)
    # A row that was never probed has duration 0 and may have end 0: "to the end of the file".
    ordered = (end > start) | ((end == 0) & (duration == 0))
    good = np.isfinite(start + end + duration + fps) & (start >= 0) & (duration >= 0) & (fps >= 0) & ordered
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise ManifestError(
            f"sample {table['id'][i].as_py()!r} runs from {start[i]} s to {end[i]} s of "
            f"{duration[i]} s at {fps[i]} fps; must be finite, with 0 <= start < end"
        )


def _check_places(table: pa.Table, kind: str) -> None:
    offset, length = (table[f"{kind}_{what}_bytes"] for what in ("offset", "num"))
    good = pc.and_(pc.greater_equal(offset, 0), pc.greater(length, 0))
    none = pc.and_(pc.is_null(offset), pc.is_null(length))
    bad = np.flatnonzero(~pc.or_(none, pc.fill_null(good, False)).to_numpy())
    if len(bad):
        i = int(bad[0])
        raise ManifestError(
            f"sample {table['id'][i].as_py()!r} has {kind}_offset_bytes {offset[i].as_py()} and "
            f"{kind}_num_bytes {length[i].as_py()}; must be >= 0 and > 0, or both empty"
        )


def named(names: Sequence[str], at_most: int = 5) -> str:
    """Some of the names, quoted, and how many more there are."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(repr(name) for name in names[:at_most]) + more
