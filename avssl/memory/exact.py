"""Exact search for the k best agreements of every row, tile by tile.

Both similarity matrices are symmetric, so the tile of rows I and rows J serves I as queries and J as
queries: half the arithmetic of scoring all queries against all rows. The k-th best score among a row's own
tile is a lower bound of its k-th best of all. A score under the bound cannot matter, and whole strips of
scores are dismissed by their maximum, so almost nothing is sorted. Tiles of similar rows make the bound
tight (`avssl.memory.clusters`); any order gives the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from itertools import groupby

import torch
from torch import Tensor

from avssl.memory.contenders import Contenders
from avssl.memory.rows import FLOAT32_SLACK, Rows

STRIP = 64
"""Scores dismissed at once by their maximum; tile sides are multiples."""

FEW = 8
"""A strip of so many is looked at score by score; where more are, a product for all of them is faster."""

Blocks = list[Tensor]
"""Rows as one tensor a modality, (B, D) each, of the modalities that matter."""

Entries = tuple[Tensor, Tensor, Tensor]
"""Place of the query, place of the other and score; (E,) each."""


def screen_dtype(device: torch.device) -> torch.dtype:
    """Bfloat16 where a product in it is faster than in float32, found by trying (a few milliseconds).

    GPUs and CPUs with matrix units are; elsewhere on CPUs bfloat16 is many times slower. On a CPU the trial
    counts the time of one thread alone, so that whatever else the machine does cannot mislead it.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(4):
        for dtype in seconds:
            block = torch.ones(512, 128, device=device, dtype=dtype)
            start = clock()
            float((block @ block.T)[0, 0])  # reading a value waits for the device
            seconds[dtype] = min(seconds[dtype], clock() - start)
    torch.set_num_threads(threads)
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


def all_pairs(num_tiles: int) -> list[tuple[int, int]]:
    """Every pair I <= J of tiles, ordered by I."""
    return [(i, j) for i in range(num_tiles) for j in range(i, num_tiles)]


class Screen:
    """Copy of the tiles in the type that multiplies fastest, and how far its scores may be off.

    Scores are kept as the integers that hold their bits: these compare like the floats where the floats
    are positive, which is all that matters to a positive bound, and compare several times faster.
    """

    def __init__(self, rows: Rows, tiles: Tensor, dtype: torch.dtype) -> None:
        self.agreement = rows.agreement
        self.integer = torch.int16 if dtype == torch.bfloat16 else torch.int32
        self.dtype = dtype
        self.blocks: list[Blocks] = []
        error = 0.0
        for ids in tiles:
            exact = [block for block in rows.take(ids.clamp_min(0)) if len(block)]
            rounded = [block.to(dtype) for block in exact]
            self.blocks.append(rounded)
            for x, y in zip(exact, rounded, strict=True):
                error = max(error, float((x - y).norm(dim=1).max()))
        # one place for the scores of each modality: fresh memory costs as much as a third of the product
        side = tiles.shape[1]
        self._places = [torch.empty(side, side, dtype=dtype, device=tiles.device) for _ in range(2)]
        # |v w - v' w'| <= |v - v'| |w| + |v'| |w - w'| for unit v, w; products below 1 are rounded by 2^-9
        self.slack = FLOAT32_SLACK
        if dtype == torch.bfloat16:
            self.slack += error * (2 + error) + 2**-9

    def product(self, left: Blocks, right: Blocks, modality: int) -> Tensor:
        """Bits of the similarities in one modality, valid until the next product in it; (Q, B)."""
        place = self._places[modality][: len(left[modality])]
        return torch.mm(left[modality], right[modality].T, out=place).view(self.integer)

    def scores(self, left: Blocks, right: Blocks) -> Tensor:
        """Bits of the scores of rows against a tile; (Q, B)."""
        return self.combined(self.product(left, right, 0), left, right)

    def combined(self, first: Tensor, left: Blocks, right: Blocks) -> Tensor:
        """Scores from the similarities in the first modality, which are overwritten."""
        if len(left) == 1:
            return first
        combine = torch.minimum if self.agreement == "consensus" else torch.maximum
        return combine(first, self.product(left, right, 1), out=first)

    def meet(self, left: Blocks, right: Blocks, bounds: Sequence[Tensor]) -> list[Entries]:
        """Entries that reach the bound of their row of `left` and, if given, of their row of `right`."""
        scores, bits = self.product(left, right, 0), [self.bits(bound) for bound in bounds]
        strips = [reaching_strips(scores, bound, side) for side, bound in enumerate(bits)]
        # min(v, a) <= v: where few reach their bound by v alone, only these need a
        few = sum(len(query) for query, _ in strips) * STRIP <= scores.numel() // FEW
        singly = self.agreement == "consensus" and few
        if not singly and len(left) > 1:
            scores = self.combined(scores, left, right)
            strips = [reaching_strips(scores, bound, side) for side, bound in enumerate(bits)]
        found = []
        for side, bound in enumerate(bits):
            query, other, reached = reaching(scores, bound, side, *strips[side])
            found.append((query, other, self.floats(reached)))
        return self.refined(found, bounds, left[1], right[1]) if singly else found

    def refined(
        self, found: list[Entries], bounds: Sequence[Tensor], left: Tensor, right: Tensor
    ) -> list[Entries]:
        """Entries scored by the first modality that reach the bound by the second too, which is computed."""
        rows = torch.cat([entries[side] for side, entries in enumerate(found)])
        cols = torch.cat([entries[1 - side] for side, entries in enumerate(found)])
        second = (left[rows].float() * right[cols].float()).sum(dim=1)
        kept_of = []
        parts = second.split([len(entries[0]) for entries in found])
        for (query, other, first), bound, part in zip(found, bounds, parts, strict=True):
            scores = torch.minimum(first, part)
            kept = (scores >= bound[query]).nonzero()[:, 0]
            kept_of.append((query[kept], other[kept], scores[kept]))
        return kept_of

    def bits(self, bound: Tensor) -> Tensor:
        """Integers that the bits of every score >= bound reach."""
        rounded = bound.to(self.dtype)
        bits = rounded.view(self.integer) - (rounded > bound).to(self.integer)
        return bits.masked_fill_(bound <= 0, torch.iinfo(self.integer).min)

    def floats(self, bits: Tensor) -> Tensor:
        """Scores whose bits these are, float32."""
        return bits.contiguous().view(self.dtype).float()


def reaching_strips(scores: Tensor, bound: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Strips of scores whose maximum reaches the bound of their row (side 0) or of their column (side 1).

    Parameters
    ----------
    scores : Tensor, (Q, B)
        The axis of the others is a multiple of `STRIP`.
    bound : Tensor, (Q,) or (B,)
    side : {0, 1}
        The axis of the queries.

    Returns
    -------
    query, strip : Tensor, (S,), int64
    """
    if side == 0:
        query, strip = (scores.unflatten(1, (-1, STRIP)).amax(dim=2) >= bound[:, None]).nonzero(as_tuple=True)
    else:
        strip, query = (scores.unflatten(0, (-1, STRIP)).amax(dim=1) >= bound).nonzero(as_tuple=True)
    return query, strip


def reaching(scores: Tensor, bound: Tensor, side: int, query: Tensor, strip: Tensor) -> Entries:
    """Entries of some strips that reach the bound of their query."""
    if side == 0:
        inside = scores.unflatten(1, (-1, STRIP))[query, strip]
    else:
        inside = scores.unflatten(0, (-1, STRIP))[strip, :, query]
    entry, offset = (inside >= bound[query, None]).nonzero(as_tuple=True)
    return query[entry], strip[entry] * STRIP + offset, inside[entry, offset]


def own_bound(scores: Tensor, screen: Screen, k: int) -> Tensor:
    """Score that k others of its own tile reach, a lower bound of a row's k-th best of all; (B,).

    `scores` are the bits of the tile's scores against itself, the lowest where an other is not allowed.
    """
    while scores.shape[1] >= 8 * k and scores.shape[1] % 2 == 0:
        half = scores.shape[1] // 2  # the best of two are still different others, and fewer to choose from
        scores = torch.maximum(scores[:, :half], scores[:, half:])
    bound = torch.full((len(scores),), -torch.inf, device=scores.device)
    if k <= scores.shape[1]:
        bits = scores.topk(k, dim=1, sorted=False).values.amin(dim=1)
        bound[bits > 0] = screen.floats(bits[bits > 0]) - screen.slack
    return bound


class TileSearch:
    """Collects the k best agreements of rows, tile by tile.

    Parameters
    ----------
    rows : Rows
    k : int >= 1
    tiles : Tensor, (T, B), int64
        From `cut_tiles`.
    with_own : container of int
        Tiles whose rows are offered the others of their own tile.

    Attributes
    ----------
    best : Tensor, (N, k), float32
        Scores of the rows of closed tiles, falling; ``-inf`` where fewer were found.
    best_ids : Tensor, (N, k), int64
        -1 where fewer were found.

    Notes
    -----
    Memory beyond the banks and the result: one copy of the banks in the type of the screen, at most ``4 k N``
    candidates of 20 bytes, and a few blocks of ``B * B`` scores; nothing grows with N squared.
    """

    def __init__(self, rows: Rows, k: int, tiles: Tensor, with_own: Container[int]) -> None:
        self.rows, self.k, self.tiles = rows, k, tiles
        self._with_own = with_own
        self.screen = Screen(rows, tiles, screen_dtype(tiles.device))
        self.best = torch.full((len(rows), k), -torch.inf, device=tiles.device)
        self.best_ids = torch.full((len(rows), k), -1, dtype=torch.int64, device=tiles.device)
        self._must_check = (tiles < 0).any(dim=1).tolist() if rows.groups is None else [True] * len(tiles)
        self._open: dict[int, Contenders] = {}

    def _contenders(self, tile: int) -> Contenders:
        """Those of a tile; the first time it is compared with itself, which bounds what others must reach."""
        if tile not in self._open:
            ids, screen = self.tiles[tile], self.screen
            scores = screen.scores(screen.blocks[tile], screen.blocks[tile])
            lowest = torch.iinfo(scores.dtype).min
            scores.fill_diagonal_(lowest)
            scores[:, ids < 0] = lowest
            if self.rows.groups is not None:
                scores.masked_fill_(~self.rows.allowed(ids[:, None], ids), lowest)
            bound = own_bound(scores, screen, self.k).masked_fill_(ids < 0, torch.inf)
            self._open[tile] = opened = Contenders(self.rows, ids, bound, self.k, screen.slack)
            if tile in self._with_own:
                bits = screen.bits(opened.bound)
                query, other, bits = reaching(scores, bits, 0, *reaching_strips(scores, bits, 0))
                fine = self.rows.allowed(ids[query], ids[other])
                opened.add(query[fine], ids[other[fine]], screen.floats(bits[fine]))
        return self._open[tile]

    def compare(self, i: int, j: int, places: Tensor | None = None) -> None:
        """Offer tile j to another tile i and i to j; or j to those rows of i alone that stand at `places`."""
        sides = [(i, j), (j, i)] if places is None else [(i, j)]
        left, bounds = self.screen.blocks[i], [self._contenders(queries).bound for queries, _ in sides]
        if places is not None:
            left, bounds = [block[places] for block in left], [bounds[0][places]]
        found = self.screen.meet(left, self.screen.blocks[j], bounds)
        for (queries, others), (query, other, scores) in zip(sides, found, strict=True):
            query = query if places is None else places[query]
            cols = self.tiles[others][other]
            if self._must_check[others]:
                fine = self.rows.allowed(self.tiles[queries][query], cols)
                query, cols, scores = query[fine], cols[fine], scores[fine]
            self._contenders(queries).add(query, cols, scores)

    def close(self, tile: int, all_scores: bool) -> None:
        """Settle a tile to which nothing more will be offered; `all_scores` asks for all in float32."""
        ids, real = self.tiles[tile], self.tiles[tile] >= 0
        scores, others = self._contenders(tile).settle(all_scores)
        self.best[ids[real]], self.best_ids[ids[real]] = scores[real], others[real]
        del self._open[tile]


def search_pairs(
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
    all_scores : bool
        Whether all scores of the result must be right to float32, to be compared with those of others.

    Returns
    -------
    scores : Tensor, (N, k), float32
        Falling; ``-inf`` where fewer were found.
    ids : Tensor, (N, k), int64
        -1 where fewer were found.
    """
    search = TileSearch(rows, k, tiles, with_own={i for i, j in pairs if i == j})
    done = 0
    for i, partners in groupby(pairs, key=lambda pair: pair[0]):
        for _, j in partners:
            if i != j:
                search.compare(i, j)
            done += 1
            progress(done)
        search.close(i, all_scores)  # pairs are ordered by their first tile and I <= J: nothing more comes
    for tile in {j for _, j in pairs} - {i for i, _ in pairs}:
        search.close(tile, all_scores)
    return search.best, search.best_ids
