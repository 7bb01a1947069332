"""Counting and metrics of one query at a time, compiled. Imported where it is first needed.

A *level* is a set of gallery rows that score the same: `size` rows after `before` better ones, `relevant` of
them relevant, `found` relevant rows before them. Metrics are sums over the levels that hold a relevant row.
With ties resolved by the mean rule each sum is the expectation over all orders within the levels, in the
closed forms of McSherry and Najork, Computing Information Retrieval Performance Measures Efficiently in the
Presence of Tied Scores, ECIR 2008:

    precision@k  adds  relevant / size * (places of the level among the first k) / k
    DCG@k        adds  relevant / size * sum of 1 / log2(1 + place) over these places
    AP           adds  relevant / size * sum_{j=1}^{size} (found + 1 + (j-1) c) / (before + j) / total
                       with c = (relevant - 1) / (size - 1)

and for the first relevant row, which is in the first of these levels:

    rank = before + (size + 1) / (relevant + 1)
    P(rank > k) = C(size - relevant, m) / C(size, m)  with m = places of the level among the first k
"""

from __future__ import annotations

import numpy as np

from avssl.transforms.kernels import compiled

MEAN, OPTIMISTIC, PESSIMISTIC = range(3)
CHUNK = 64
CELLS = 2**14
"""Parts of -1..1 in which a sieve counts scores: these counts stay in the innermost cache but one."""
GUARD = 1e-9
"""Scores so near a relevant one are kept by a sieve: much more than a tie, much less than a cell."""
RANK, AP, TIED, DEPTHS = range(4)
"""Columns of the values of a query; from DEPTHS on: hits, precisions, nDCGs, one a depth each."""


@compiled
def count_tile(  # type: ignore[no-untyped-def]
    scores, first, low, high, match, tie, queries, gallery, targets, own, most, better, equal, near
):
    """Add the rivals among some columns of float32 cosines; between `low` and `high` in float64."""
    rows, columns = scores.shape
    for i in range(rows):
        if near[i] > most:
            continue
        above_row = 0
        for start in range(0, columns, CHUNK):
            stop = min(start + CHUNK, columns)
            above, reached = np.int32(0), np.int32(0)
            for j in range(start, stop):
                above += np.int32(scores[i, j] > high[i])
                reached += np.int32(scores[i, j] >= low[i])
            above_row += above
            if reached == above:
                continue
            for j in range(start, stop):
                if scores[i, j] < low[i] or scores[i, j] > high[i]:
                    continue
                near[i] += 1
                row = first + j
                if row == targets[i] or row == own[i]:
                    continue
                exact = 0.0
                for n in range(queries.shape[1]):
                    exact += queries[i, n] * gallery[row, n]
                if exact > match[i] + tie:
                    better[i] += 1
                elif exact >= match[i] - tie:
                    equal[i] += 1
        better[i] += above_row
        mine = own[i] - first
        if 0 <= mine < columns and scores[i, mine] > high[i]:
            better[i] -= 1


@compiled
def add_level(before, size, relevant, found, total, ks, discounts, values):  # type: ignore[no-untyped-def]
    """Add one level to the values of a query that has `total` relevant rows."""
    depths = ks.size
    share = relevant / size
    slope = (relevant - 1) / (size - 1) if size > 1 else 0.0
    precision_sum = 0.0
    for j in range(size):
        precision_sum += (found + 1 + j * slope) / (before + 1 + j)
    values[AP] += share * precision_sum / total
    if found == 0:
        values[RANK] = before + (size + 1) / (relevant + 1)
    for n in range(depths):
        begin, end = min(ks[n], before), min(ks[n], before + size)
        values[DEPTHS + depths + n] += share * (end - begin) / ks[n]
        ideal = discounts[min(ks[n], total)]
        values[DEPTHS + 2 * depths + n] += share * (discounts[end] - discounts[begin]) / ideal
        if found == 0:
            missed = 1.0
            for i in range(min(end - begin, size - relevant + 1)):
                missed *= (size - relevant - i) / (size - i)
            values[DEPTHS + n] = 1 - missed


@compiled
def add_by_rule(before, size, relevant, found, total, ks, discounts, ties, values):  # type: ignore[no-untyped-def]
    """Add one level: in every order, its relevant rows first, or its relevant rows last."""
    if relevant < size:
        values[TIED] = 1
    if ties == OPTIMISTIC:
        add_level(before, relevant, relevant, found, total, ks, discounts, values)
    elif ties == PESSIMISTIC:
        add_level(before + size - relevant, relevant, relevant, found, total, ks, discounts, values)
    else:
        add_level(before, size, relevant, found, total, ks, discounts, values)


@compiled
def single_values(better, equal, ks, discounts, ties, values):  # type: ignore[no-untyped-def]
    """Values of queries that have one relevant row each, from the counts of its rivals."""
    for i in range(better.size):
        add_by_rule(better[i], equal[i] + 1, 1, 0, 1, ks, discounts, ties, values[i])


@compiled
def random_values(pool_size, totals, ks, discounts, values):  # type: ignore[no-untyped-def]
    """Values expected of a random order: the whole pool is one level."""
    for i in range(totals.size):
        add_level(0, pool_size, totals[i], 0, totals[i], ks, discounts, values[i])


@compiled
def cell_of(score, cells):  # type: ignore[no-untyped-def]
    """Number of the cell a score is in; that of a row left out is the lowest."""
    return max(int((score + 1) * (0.5 * (cells - 2))), 0)


@compiled
def sieve(scores, relevant, counts, holds, kept):  # type: ignore[no-untyped-def]
    """Keep scores in cells with a relevant one, count the others by cell; returns how many are kept.

    Between scores that are kept there may be others only in whole cells, so that places can be computed from
    the counts. With few relevant rows nearly all scores need not be sorted.
    """
    cells = counts.size
    counts[:] = 0
    holds[:] = 0
    for score in relevant:
        holds[cell_of(score - GUARD, cells)] = 1
        holds[cell_of(score + GUARD, cells)] = 1
    number = 0
    for score in scores:
        cell = cell_of(score, cells)
        counts[cell] += 1 - holds[cell]
        kept[number] = score
        number += holds[cell]
    return number


@compiled
def sorted_values(scores, relevant, counts, tie, ks, discounts, ties, values):  # type: ignore[no-untyped-def]
    """Fill in the values of one query from its scores and those of its relevant rows, both ascending.

    Neighbours closer than `tie` are on one level. `counts` says how many scores of each cell are not among
    `scores`; it is empty if all are. Returns False, with values that are not to be used, if a level goes on
    where scores may have been left out.
    """
    total, left, found = relevant.size, relevant.size, 0
    cell, above = counts.size - 1, 0
    while left > 0:
        best = relevant[left - 1]
        high = np.searchsorted(scores, best, side="right")
        while high < scores.size and scores[high] - scores[high - 1] <= tie:
            high += 1
        low = high - 1
        while low > 0 and scores[low] - scores[low - 1] <= tie:
            low -= 1
        here = 0
        while left > 0 and relevant[left - 1] >= scores[low]:
            left -= 1
            here += 1
        if counts.size > 0:
            if scores[high - 1] - best > GUARD / 2 or relevant[left] - scores[low] > GUARD / 2:
                return False
            while cell > cell_of(scores[high - 1], counts.size):
                above += counts[cell]
                cell -= 1
        before = above + scores.size - high
        add_by_rule(before, high - low, here, found, total, ks, discounts, ties, values)
        found += here
    return True
