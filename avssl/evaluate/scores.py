"""Cosines of many queries with a whole gallery, a block at a time: how many rows stand before the match?

Counting is exact as of float64 cosines, but most cosines are never computed in float64. With unit vectors of
d dimensions a float32 product in any order of additions is off by at most gamma_{d+2} <= 1.01 (d + 2) 2^-24
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: sum |q_i g_i| <= |q| |g| = 1). So a row
whose float32 cosine is farther from the match than that stands where it seems to; the few nearer ones are
computed again in float64. Queries near which too much stands, as with a collapsed model, are counted in
float64 from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from avssl.evaluate.checks import FloatArray, IntArray

# Cosines closer than this are equal. Float64 rounding is below it, whatever order a matrix product adds in;
# the distance between two embeddings that differ in float32 is above it.
SCORE_TIE = 1e-12
# Scores held at a time: 64 MiB as float64, 32 MiB as float32.
BLOCK_SCORES = 8 * 2**20
# Queries of a float32 block, where there are so many: with fewer, a matrix product waits for memory.
BLOCK_QUERIES = 1024
# Pools up to so many scores are not worth the compiler: they take a tenth of a second in float64.
SMALL_SCORES = 8 * 2**20
# Of a gallery, one row in so many may be near a match before float32 is given up for this query.
NEAR_SHARE = 32
NOBODY = -1


def score_blocks(queries: FloatArray, gallery: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
    """Cosines of some queries at a time with the whole gallery: their rows, and (rows, N) float64."""
    step = max(1, BLOCK_SCORES // len(gallery))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        yield rows, queries[rows] @ gallery.T


def count_rivals(
    queries: FloatArray, gallery: FloatArray, targets: IntArray, own: IntArray | None = None
) -> tuple[IntArray, IntArray]:
    """How many gallery rows score higher than the match, and how many others score the same; both (M,).

    Parameters
    ----------
    queries, gallery : float64 (M, d) and (N, d)
        Unit rows.
    targets : int64 (M,)
        Gallery row of each query's match.
    own : int64 (M,), optional
        Gallery row that is left out for each query, `NOBODY` for none.
    """
    own = np.full(len(queries), NOBODY, np.int64) if own is None else own
    if len(queries) * len(gallery) <= SMALL_SCORES:
        return _count_in_float64(queries, gallery, targets, own)
    better, equal, crowded = _count_in_float32(queries, gallery, targets, own)
    again = np.flatnonzero(crowded)
    if again.size:
        better[again], equal[again] = _count_in_float64(queries[again], gallery, targets[again], own[again])
    return better, equal


def _count_in_float64(
    queries: FloatArray, gallery: FloatArray, targets: IntArray, own: IntArray
) -> tuple[IntArray, IntArray]:
    better, equal = np.empty(len(queries), np.int64), np.empty(len(queries), np.int64)
    for rows, scores in score_blocks(queries, gallery):
        match = np.take_along_axis(scores, targets[rows, None], axis=1)
        leave_out(scores, own[rows])
        better[rows] = (scores > match + SCORE_TIE).sum(axis=1)
        equal[rows] = (scores >= match - SCORE_TIE).sum(axis=1) - better[rows] - 1
    return better, equal


def leave_out(scores: FloatArray, own: IntArray) -> None:
    """Put each query's own row below every cosine."""
    has_own = np.flatnonzero(own != NOBODY)
    scores[has_own, own[has_own]] = -2.0


def _count_in_float32(
    queries: FloatArray, gallery: FloatArray, targets: IntArray, own: IntArray
) -> tuple[IntArray, IntArray, np.ndarray]:
    """Counts, and which queries they do not hold for because too many rows were near."""
    from avssl.evaluate import kernels  # here: loading the compiler takes half a second

    match = np.einsum("ij,ij->i", queries, gallery[targets])
    margin = SCORE_TIE + error_bound(queries.shape[1])
    low, high = (match - margin).astype(np.float32), (match + margin).astype(np.float32)
    better, equal, near = (np.zeros(len(queries), np.int64) for _ in range(3))
    most = max(64, len(gallery) // NEAR_SHARE)
    height = max(1, min(len(queries), BLOCK_QUERIES, BLOCK_SCORES))
    width = max(1, min(len(gallery), BLOCK_SCORES // height))
    columns = gallery.astype(np.float32)
    block = np.empty((height, width), np.float32)
    with ThreadPoolExecutor(threads()) as pool:
        for start in range(0, len(queries), height):
            asked = queries[start : start + height].astype(np.float32)
            for first in range(0, len(gallery), width):
                part = columns[first : first + width]
                scores = block.reshape(-1)[: len(asked) * len(part)].reshape(len(asked), len(part))
                np.matmul(asked, part.T, out=scores)

                def count(rows: slice) -> None:
                    at = slice(start + rows.start, start + rows.stop)  # noqa: B023
                    kernels.count_tile(
                        scores[rows], first, low[at], high[at], match[at], SCORE_TIE,  # noqa: B023
                        queries[at], gallery, targets[at], own[at], most, better[at], equal[at], near[at],
                    )  # fmt: skip

                share_rows(pool, count, len(asked))
    return better, equal, near > most


def error_bound(dimensions: int) -> float:
    """How far a float32 cosine of unit rows may be from the float64 one, rounding of limits included."""
    return float(1.01 * (dimensions + 8) * 2.0**-24)


def threads() -> int:
    """Threads that count and sort: as many as torch may use, so one in a process that shares its cores."""
    return torch.get_num_threads()


def share_rows(pool: ThreadPoolExecutor, work: Callable[[slice], None], rows: int) -> None:
    """Call `work` on parts of 0..rows, in as many threads as there are, and wait."""
    edges = np.linspace(0, rows, min(threads(), rows) + 1).astype(int).tolist()
    parts = [slice(start, stop) for start, stop in pairwise(edges)]
    if len(parts) == 1:
        work(parts[0])
    else:
        list(pool.map(work, parts))
