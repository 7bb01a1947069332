"""Who asks, what is ranked, and what counts as right: the part of a retrieval result that models share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avssl.errors import EvaluationError
from avssl.evaluate.checks import IntArray, Labels, first_rows
from avssl.evaluate.scores import NOBODY

Names = NDArray[np.str_]
NO_QUERY_LABEL, NO_GALLERY_LABEL = "queries without a label", "gallery rows without a label"
NO_MATCH = "queries without a match"


@dataclass(frozen=True, eq=False)
class Pool:
    """Queries and gallery of a retrieval task, with what is relevant; made by `make_pool`.

    Parameters
    ----------
    relevance : {"instance", "class"}
        A gallery row is relevant to a query that has its id, or its label.
    query_rows, gallery_rows : int64 (M,) and (N,)
        Rows of the embeddings that take part.
    query_ids, gallery_ids : str (M,) and (N,)
        Their ids.
    query_groups, gallery_groups : int64 (M,) and (N,)
        Equal numbers: relevant.
    own : int64 (M,)
        Place among `gallery_ids` of the query itself, which is left out for it; `NOBODY` for none.
    excluded : dict of str to int
        Why samples do not take part, and how many.
    """

    relevance: Literal["instance", "class"]
    query_rows: IntArray
    gallery_rows: IntArray
    query_ids: Names
    gallery_ids: Names
    query_groups: IntArray
    gallery_groups: IntArray
    own: IntArray
    excluded: dict[str, int]

    @cached_property
    def num_relevant(self) -> IntArray:
        """Relevant gallery rows of each query, the query itself not among them, (M,)."""
        return _num_relevant(self.query_groups, self.gallery_groups, self.own)

    @property
    def size(self) -> int:
        """Gallery rows that are ranked for a query."""
        return len(self.gallery_rows) - int((self.own != NOBODY).any())

    @cached_property
    def hash(self) -> str:
        """SHA-256 of ids and relevance, whatever the order of the rows and the names of the classes."""
        digest = hashlib.sha256(f"{self.relevance} {len(self.query_ids)} {len(self.gallery_ids)}\n".encode())
        gallery, queries = np.argsort(self.gallery_ids), np.argsort(self.query_ids)
        groups = self.gallery_groups[gallery]
        values, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
        # Groups are counted in the order in which the sorted ids first meet them.
        order = np.argsort(np.argsort(first))
        asked = order[np.searchsorted(values, self.query_groups[queries])]
        digest.update("\n".join(self.gallery_ids[gallery].tolist()).encode())
        digest.update(order[numbers].astype("<i8").tobytes())
        digest.update("\n".join(self.query_ids[queries].tolist()).encode())
        digest.update(asked.astype("<i8").tobytes())
        digest.update((self.own[queries] != NOBODY).tobytes())
        return digest.hexdigest()


def make_pool(
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_labels: Labels = None,
    gallery_labels: Labels = None,
    *,
    exclude_self: bool = False,
    excluded: Mapping[str, int] | None = None,
) -> Pool:
    """Say what is relevant: with labels, gallery rows of the query's class; without, the row of its id.

    Rows without a label take no part. Queries for which nothing is relevant do not ask, but stay in the
    gallery. Both are counted in `excluded`.

    Parameters
    ----------
    query_ids, gallery_ids : M and N ids
        Unique on each side; numbers become text.
    query_labels, gallery_labels : M and N labels or neither
        None or NaN for a row without one.
    exclude_self : bool
        Leave the gallery row that has the query's id out for this query.
    excluded : mapping, optional
        Samples that did not get this far, such as ``{"failed to read": 3}``; kept with the result.

    Raises
    ------
    EvaluationError
        If ids repeat, labels do not fit, fewer than two rows can be ranked, or no query has a relevant row.
    """
    asking, ranked = _names(query_ids, "query_ids"), _names(gallery_ids, "gallery_ids")
    if (query_labels is None) != (gallery_labels is None):
        raise EvaluationError("got labels of one side only; relevance by class needs both; give both or none")
    counts = dict(excluded or {})
    relevance: Literal["instance", "class"] = "instance"
    query_rows, gallery_rows = np.arange(len(asking)), np.arange(len(ranked))
    asked, there = asking, ranked
    if query_labels is not None and gallery_labels is not None:
        relevance = "class"
        query_rows, asked = _labelled(query_labels, len(asking), "query_labels")
        gallery_rows, there = _labelled(gallery_labels, len(ranked), "gallery_labels")
        _count(counts, NO_QUERY_LABEL, len(asking) - len(query_rows))
        _count(counts, NO_GALLERY_LABEL, len(ranked) - len(gallery_rows))
    numbers = np.unique(np.concatenate([there, asked]), return_inverse=True)[1].astype(np.int64)
    gallery_groups, query_groups = numbers[: len(there)], numbers[len(there) :]
    query_ids, gallery_ids = asking[query_rows], ranked[gallery_rows]
    own = _places(query_ids, gallery_ids) if exclude_self else np.full(len(query_ids), NOBODY, np.int64)
    answered = _num_relevant(query_groups, gallery_groups, own) > 0
    _count(counts, NO_MATCH, len(answered) - int(answered.sum()))
    if not answered.any() or len(gallery_rows) - exclude_self < 2:
        without = ", the query itself left out" if exclude_self else ""
        raise EvaluationError(
            f"{int(answered.sum())} of {len(answered)} queries have a relevant row among {len(gallery_rows)} "
            f"({relevance} relevance{without}); one query and a pool of 2 are needed; check ids and labels, "
            "or look for matches by class"
        )
    return Pool(
        relevance,
        query_rows[answered],
        gallery_rows,
        query_ids[answered],
        gallery_ids,
        query_groups[answered],
        gallery_groups,
        own[answered],
        counts,
    )


def _count(counts: dict[str, int], reason: str, number: int) -> None:
    if number:
        counts[reason] = counts.get(reason, 0) + number


def _names(ids: ArrayLike, what: str) -> Names:
    names = np.asarray(ids).astype(np.str_)
    if names.ndim != 1:
        raise EvaluationError(f"{what} has shape {names.shape}; must be (rows,); give one id a row")
    values, counts = np.unique(names, return_counts=True)
    if len(values) < len(names):
        twice = values[counts > 1]
        raise EvaluationError(
            f"{len(twice)} of {len(values)} {what} occur more than once ({first_rows(twice)}); each must be "
            "unique, since results are compared by them; average the rows of a sample, or add a number"
        )
    return names


def _labelled(labels: Sequence[Any] | NDArray[Any], rows: int, what: str) -> tuple[IntArray, Names]:
    """Rows that have a label, and these labels as text."""
    values = list(labels)
    if len(values) != rows:
        raise EvaluationError(f"{what} has {len(values)} entries for {rows} rows; must be one a row")
    # A missing label in a table that went through pandas is a float NaN: the one value unequal to itself.
    there = [row for row, value in enumerate(values) if value is not None and value == value]
    return np.array(there, np.int64), np.array([values[row] for row in there]).astype(np.str_)


def _places(names: Names, among: Names) -> IntArray:
    """Where each name stands in `among`, `NOBODY` if it does not."""
    order = np.argsort(among)
    place = np.minimum(np.searchsorted(among, names, sorter=order), len(among) - 1)
    found = order[place]
    return np.where(among[found] == names, found, NOBODY).astype(np.int64)


def _num_relevant(query_groups: IntArray, gallery_groups: IntArray, own: IntArray) -> IntArray:
    """Gallery rows of the query's group, itself not counted."""
    size = 1 + max(int(query_groups.max(initial=0)), int(gallery_groups.max(initial=0)))
    counts = np.bincount(gallery_groups, minlength=size)[query_groups]
    mine = (own != NOBODY) & (gallery_groups[own] == query_groups) if len(gallery_groups) else False
    return (counts - mine).astype(np.int64)
