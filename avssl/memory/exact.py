"""Exact search for the k best agreements of every row, tile by tile.

Both similarity matrices are symmetric, so the tile of rows I and rows J serves I as queries and J as
queries: half the arithmetic of scoring all queries against all rows. The k-th best score among a row's own
tile is a lower bound of its k-th best of all. A score under the bound cannot matter, and whole strips of
scores are dismissed by their maximum, so almost nothing is sorted. Tiles of similar rows make the bound
tight (`avssl.memory.clusters`); any order gives the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from avssl.memory.rows import FLOAT32_SLACK, Rows, rescore

STRIP = 64
"""Scores dismissed at once by their maximum; tile sides are multiples."""


def screen_dtype(device: torch.device) -> torch.dtype:
    """Bfloat16 where a product in it is faster than in float32, found by trying (a few milliseconds).

    GPUs and CPUs with matrix units are; elsewhere on CPUs bfloat16 is many times slower.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        block = torch.ones(512, 128, device=device, dtype=dtype)
        trials = []
        for _ in range(4):
            start = time.perf_counter()
            float((block @ block.T)[0, 0])  # reading a value waits for the device
            trials.append(time.perf_counter() - start)
        seconds[dtype] = min(trials)
    return min(seconds, key=lambda dtype: seconds[dtype])


def default_side(device: torch.device) -> int:
    """Rows a tile: tiles of scores fit the cache of a CPU, and fill a GPU."""
    return 1024 if device.type == "cpu" else 8192


def cut_tiles(order: Tensor, side: int) -> Tensor:
    """Cut an order of rows into tiles of equal size, the last ones padded with -1.

    Parameters
    ----------
    order : Tensor, (N,), int64
    side : int
        Rows a tile at most, a multiple of `STRIP`.

    Returns
    -------
    Tensor, (T, B), int64
        B is a multiple of `STRIP`.
    """
    num_tiles = -(-len(order) // side)
    side = -(-len(order) // (num_tiles * STRIP)) * STRIP
    tiles = order.new_full((-(-len(order) // side), side), -1)
    tiles.view(-1)[: len(order)] = order
    return tiles


class Screen:
    """Copy of the tiles in the type that multiplies fastest, and how far its scores may be off.

    Scores are kept as the integers that hold their bits: these compare like the floats where the floats
    are positive, which is all that matters to a positive bound, and compare several times faster.
    """

    def __init__(self, rows: Rows, tiles: Tensor, dtype: torch.dtype) -> None:
        self.agreement = rows.agreement
        self.integer = torch.int16 if dtype == torch.bfloat16 else torch.int32
        self.dtype = dtype
        self.blocks: list[tuple[Tensor, ...]] = []
        error = 0.0
        for ids in tiles:
            exact = rows.take(ids.clamp_min(0))
            rounded = tuple(x.to(dtype) for x in exact)
            self.blocks.append(rounded)
            for x, y in zip(exact, rounded, strict=True):
                if len(x):
                    error = max(error, float((x - y).norm(dim=1).max()))
        # |v w - v' w'| <= |v - v'| |w| + |v'| |w - w'| for unit v, w; products below 1 are rounded by 2^-9
        self.slack = FLOAT32_SLACK
        if dtype == torch.bfloat16:
            self.slack += error * (2 + error) + 2**-9

    def scores(self, i: int, j: int) -> Tensor:
        """Bits of the scores of tile i against tile j; (B, B)."""
        left, right = self.blocks[i], self.blocks[j]
        products = [(x @ y.T).view(self.integer) for x, y in zip(left, right, strict=True) if len(x)]
        if len(products) == 1:
            return products[0]
        combine = torch.minimum if self.agreement == "consensus" else torch.maximum
        return combine(*products, out=products[0])

    def bits(self, bound: Tensor) -> Tensor:
        """Integers that the bits of every score >= bound reach."""
        rounded = bound.to(self.dtype)
        bits = rounded.view(self.integer) - (rounded > bound).to(self.integer)
        return bits.masked_fill_(bound <= 0, torch.iinfo(self.integer).min)

    def floats(self, bits: Tensor) -> Tensor:
        """Scores whose bits these are, float32."""
        return bits.contiguous().view(self.dtype).float()


def reaching(scores: Tensor, bound: Tensor, by_row: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of a tile that reach the bound of their row (or of their column).

    Parameters
    ----------
    scores : Tensor, (B, B)
        B a multiple of `STRIP`.
    bound : Tensor, (B,)
    by_row : bool
        Whether rows are the queries, or columns.

    Returns
    -------
    query, other, score : Tensor, (E,)
    """
    if by_row:
        strips = scores.unflatten(1, (-1, STRIP))
        query, strip = (strips.amax(dim=2) >= bound[:, None]).nonzero(as_tuple=True)
        inside = strips[query, strip]
    else:
        strips = scores.unflatten(0, (-1, STRIP))
        strip, query = (strips.amax(dim=1) >= bound).nonzero(as_tuple=True)
        inside = strips[strip, :, query]
    entry, offset = (inside >= bound[query, None]).nonzero(as_tuple=True)
    return query[entry], strip[entry] * STRIP + offset, inside[entry, offset]


def own_tile_bound(rows: Rows, ids: Tensor, screen: Screen, tile: int, k: int) -> Tensor:
    """Score that k others of its own tile reach, a lower bound of a row's k-th best of all; (B,)."""
    scores = screen.scores(tile, tile)
    lowest = torch.iinfo(scores.dtype).min
    scores.fill_diagonal_(lowest)
    scores[:, ids < 0] = lowest
    if rows.groups is not None:
        scores.masked_fill_(~rows.allowed(ids[:, None], ids), lowest)
    while scores.shape[1] >= 8 * k and scores.shape[1] % 2 == 0:
        half = scores.shape[1] // 2  # the best of two are still different others, and fewer to choose from
        scores = torch.maximum(scores[:, :half], scores[:, half:])
    bound = torch.full((len(ids),), -torch.inf, device=ids.device)
    if k <= scores.shape[1]:
        bits = scores.topk(k, dim=1, sorted=False).values.amin(dim=1)
        bound[bits > 0] = screen.floats(bits[bits > 0]) - screen.slack
    return bound.masked_fill_(ids < 0, torch.inf)


class Candidates:
    """Entries that may be among the k best of the queries of one tile.

    Parameters
    ----------
    rows : Rows
    ids : Tensor, (B,), int64
        Row numbers of the tile.
    bound : Tensor, (B,), float32
        True scores below cannot be among the k best.
    k : int
    slack : float
        How far the scores of entries may be off.
    """

    def __init__(self, rows: Rows, ids: Tensor, bound: Tensor, k: int, slack: float) -> None:
        self.rows, self.ids, self.k, self.slack = rows, ids, k, slack
        self.bound = bound - slack
        self.parts: list[tuple[Tensor, ...]] = []
        self.count = 0

    def add(self, query: Tensor, cols: Tensor, scores: Tensor) -> None:
        """Remember entries; once they are many, drop those that cannot be among the k best any more."""
        # bits of negative scores do not compare: all count as 0, and are told apart in float32 if need be
        self.parts.append((query, cols, scores.clamp_min(0)))
        self.count += len(query)
        limit = 4 * self.k * len(self.ids)
        if self.count > limit:
            query, cols, scores, _, _ = self.prune()
            if len(query) > limit // 2:  # too alike for the screen: settle them now
                best, ids = self.settle(all_scores=True)
                query, rank = (ids >= 0).nonzero(as_tuple=True)
                cols, scores = ids[query, rank], best[query, rank].clamp_min(0)
                self.bound = torch.maximum(self.bound, best[:, -1] - self.slack)
            self.parts, self.count = [(query, cols, scores)], len(query)

    def prune(self) -> tuple[Tensor, ...]:
        """Entries within rounding of the k best of their query, ordered by query and falling score.

        Returns query, column, score and rank (0 best) of each, and the k-th score of each query (-inf
        where there are fewer).
        """
        query, cols, scores = (torch.cat(column) for column in zip(*self.parts, strict=True))
        bits = scores.view(torch.int32)
        rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats as integers of the same order
        order = ((query << 32) - rising.long()).sort().indices
        query, cols, scores = query[order], cols[order], scores[order]
        counts = query.bincount(minlength=len(self.ids))
        rank = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        last = torch.full_like(self.bound, -torch.inf)
        is_last = rank == self.k - 1
        last[query[is_last]] = scores[is_last]
        self.bound = torch.maximum(self.bound, last - 2 * self.slack)
        kept = scores >= self.bound[query]
        return query[kept], cols[kept], scores[kept], rank[kept], last

    def settle(self, all_scores: bool) -> tuple[Tensor, Tensor]:
        """Scores and row numbers of the k best; (B, k) each, -inf and -1 where there are fewer.

        An entry further above the k-th than both may be off is one of the k best; only the others are
        computed again in float32. `all_scores` asks for the float32 scores of all.
        """
        num, k = len(self.ids), self.k
        best = torch.full((num, k), -torch.inf, device=self.ids.device)
        ids = torch.full((num, k), -1, dtype=torch.int64, device=self.ids.device)
        if not self.count:
            return best, ids
        query, cols, scores, rank, last = self.prune()
        sure = scores > last[query] + 2 * self.slack
        sure &= not all_scores
        best[query[sure], rank[sure]], ids[query[sure], rank[sure]] = scores[sure], cols[sure]
        num_sure = query[sure].bincount(minlength=num)
        query, cols = query[~sure], cols[~sure]
        place = rank[~sure] - num_sure[query]
        if not len(query):
            return best, ids
        unsure = query.bincount(minlength=num)
        padded = ids.new_full((num, int(unsure.max())), -1)
        padded[query, place] = cols
        for some in unsure.argsort().split(256):  # rows of like need together: little padding
            width = int(unsure[some[-1]])
            if width == 0:
                continue
            exact, others = rescore(self.rows, self.ids[some], padded[some, :width], min(k, width))
            place = num_sure[some, None] + torch.arange(exact.shape[1], device=ids.device)
            row, col = (place < k).nonzero(as_tuple=True)
            best[some[row], place[row, col]] = exact[row, col]
            ids[some[row], place[row, col]] = others[row, col]
        return best, ids


def search_tiles(
    rows: Rows,
    k: int,
    tiles: Tensor,
    pairs: Sequence[tuple[int, int]],
    progress: Callable[[int], None],
    all_scores: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k best agreements of every row among the tiles its own tile is paired with.

    Parameters
    ----------
    rows : Rows
    k : int >= 1
    tiles : Tensor, (T, B), int64
        From `cut_tiles`.
    pairs : sequence of (int, int)
        Pairs I <= J of tiles to compare, ordered by I. With all of them the search is exact.
    progress : callable
        Called with the number of pairs done.

    Returns
    -------
    scores : Tensor, (N, k), float32
        Falling; ``-inf`` where fewer were found.
    ids : Tensor, (N, k), int64
        -1 where fewer were found.

    Notes
    -----
    Memory beyond the banks and the result: one copy of the banks in the type of the screen, at most ``4 k N``
    candidates of 20 bytes, and a few blocks of ``B * B`` scores; nothing grows with N squared.
    """
    screen = Screen(rows, tiles, screen_dtype(tiles.device))
    found = [
        Candidates(rows, ids, own_tile_bound(rows, ids, screen, tile, k), k, screen.slack)
        for tile, ids in enumerate(tiles)
    ]
    padded = (tiles < 0).any(dim=1).tolist()
    best = torch.full((len(rows), k), -torch.inf, device=tiles.device)
    best_ids = torch.full((len(rows), k), -1, dtype=torch.int64, device=tiles.device)

    def offer(scores: Tensor, queries: int, others: int, by_row: bool) -> None:
        query, other, bits = reaching(scores, screen.bits(found[queries].bound), by_row)
        cols = tiles[others][other]
        if queries == others or padded[others] or rows.groups is not None:
            fine = rows.allowed(tiles[queries][query], cols)
            query, cols, bits = query[fine], cols[fine], bits[fine]
        found[queries].add(query, cols, screen.floats(bits))

    def close(tile: int) -> None:
        real = tiles[tile] >= 0
        scores, ids = found[tile].settle(all_scores)
        best[tiles[tile][real]], best_ids[tiles[tile][real]] = scores[real], ids[real]
        found[tile].parts, found[tile].count = [], 0

    done = 0
    for i, partners in groupby(pairs, key=lambda pair: pair[0]):
        for _, j in partners:
            scores = screen.scores(i, j)
            offer(scores, i, j, by_row=True)
            if i != j:
                offer(scores, j, i, by_row=False)
            done += 1
            progress(done)
        close(i)  # pairs are ordered by their first tile and I <= J: nothing more comes
    for tile in {j for _, j in pairs} - {i for i, _ in pairs}:
        close(tile)
    return best, best_ids
