"""Exact search for the k best agreements of every row, tile by tile.

Both similarity matrices are symmetric, so the tile of rows I and rows J serves I as queries and J as
queries: half the arithmetic of scoring all queries against all rows. The k-th best score among a row's own
tile is a lower bound of its k-th best of all. A score under the bound cannot matter, and whole strips of
scores are dismissed by their maximum, so almost nothing is sorted; nor is a second similarity computed where
the first is under the bound already. Tiles of similar rows make the bound tight (`avssl.memory.clusters`);
any order gives the same result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from avssl.memory.contenders import Contenders
from avssl.memory.rows import Rows
from avssl.memory.screen import STRIP, Screen, own_bound, reaching, reaching_strips, screen_dtype
from avssl.memory.threads import Threads


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


class TileSearch:
    """Collects the k best agreements of rows, tile by tile; several threads may compare at once.

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
        self._locks = [threading.RLock() for _ in tiles]

    def _contenders(self, tile: int) -> Contenders:
        """Those of a tile; the first time it is compared with itself, which bounds what others must reach."""
        with self._locks[tile]:
            if tile not in self._open:
                self._open[tile] = self._opened(tile)
            return self._open[tile]

    def _opened(self, tile: int) -> Contenders:
        ids, screen = self.tiles[tile], self.screen
        scores = screen.scores(screen.blocks[tile], screen.blocks[tile])
        lowest = torch.iinfo(scores.dtype).min
        scores.fill_diagonal_(lowest)
        scores[:, ids < 0] = lowest
        if self.rows.groups is not None:
            scores.masked_fill_(~self.rows.allowed(ids[:, None], ids), lowest)
        bound = own_bound(scores, screen, self.k).masked_fill_(ids < 0, torch.inf)
        opened = Contenders(self.rows, ids, bound, self.k, screen.slack)
        if tile in self._with_own:
            bits = screen.bits(opened.bound)
            query, other, bits = reaching(scores, bits, 0, *reaching_strips(scores, bits, 0))
            fine = self.rows.allowed(ids[query], ids[other])
            opened.add(query[fine], ids[other[fine]], screen.floats(bits[fine]))
        return opened

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
            with self._locks[queries]:
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
        Called with the number of pairs of different tiles done.
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
    with Threads(tiles.device) as threads:
        for i, partners in groupby(pairs, key=lambda pair: pair[0]):
            others = [j for _, j in partners if j != i]
            for _ in threads.map(partial(search.compare, i), others):
                done += 1
                progress(done)
            # pairs are ordered by their first tile and I <= J: nothing more comes
            threads.submit(search.close, i, all_scores)
        for tile in {j for _, j in pairs} - {i for i, _ in pairs}:
            threads.submit(search.close, tile, all_scores)
    return search.best, search.best_ids
