"""Order rows so that alike ones share a tile, and compare rows only with the tiles they are most like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from avssl import dist
from avssl.memory.candidates import faiss_threads
from avssl.memory.exact import TileSearch
from avssl.memory.rows import Rows, joined
from avssl.memory.threads import Threads

FANOUT = 32
"""Clusters into which a cluster too large for its tile is split."""


def similar_order(rows: Rows, leaf: int, refine: bool = False) -> Tensor:
    """Order of all rows in which neighbours are alike, by k-means of k-means.

    Parameters
    ----------
    rows : Rows
    leaf : int
        Clusters of at most so many rows are not split further.
    refine : bool
        Whether every row is assigned once more, to that of all clusters whose mean is most like it: takes
        longer, and puts rows right that a coarse cluster kept apart from their like.

    Returns
    -------
    Tensor, (N,), int64
        The same on all ranks (that of rank 0).
    """
    import faiss

    everything = torch.arange(len(rows), device=rows.video.device)

    def split(ids: Tensor) -> list[Tensor]:
        if len(ids) <= leaf:
            return [ids]
        num = min(FANOUT, -(-2 * len(ids) // leaf))
        sample = joined(rows, ids[:: max(1, len(ids) // (64 * num))]).cpu().numpy()
        kmeans = faiss.Kmeans(
            sample.shape[1], num, niter=6, seed=0, min_points_per_centroid=1, spherical=True
        )
        with faiss_threads(1):  # small, and starting threads takes longer
            kmeans.train(np.ascontiguousarray(sample))
        centroids = torch.from_numpy(chained(np.asarray(kmeans.centroids))).to(ids.device)
        nearest = most_alike(rows, ids, centroids)
        counts = nearest.bincount(minlength=num).tolist()
        members = ids[nearest.argsort(stable=True)].split(counts)
        if max(len(part) for part in members) == len(ids):  # all alike: nothing to order by
            return [ids]
        return [leaf_ids for part in members for leaf_ids in split(part)]

    leaves = split(everything)
    order = torch.cat(leaves)
    if refine:
        means = torch.nn.functional.normalize(
            torch.stack([joined(rows, ids).sum(dim=0) for ids in leaves]), dim=1
        )
        order = most_alike(rows, everything, means).argsort(stable=True)
    return dist.broadcast_(order)


def most_alike(rows: Rows, ids: Tensor, centroids: Tensor) -> Tensor:
    """Number of the centroid (C, D or 2 D) most like each row; (len(ids),)."""
    block = max(1, 2**22 // len(centroids))
    return torch.cat([(joined(rows, part) @ centroids.T).argmax(dim=1) for part in ids.split(block)])


def chained(centroids: np.ndarray) -> np.ndarray:
    """Centroids in an order in which each is followed by the one most like it of those left."""
    left, chain = list(range(1, len(centroids))), [0]
    while left:
        best = int(np.argmax(centroids[left] @ centroids[chain[-1]]))
        chain.append(left.pop(best))
    ordered: np.ndarray = centroids[chain]
    return ordered


MIN_ROWS = 8
"""Rows of one tile that must probe another."""

PARTS = 4
"""Runs of rows of a tile that are represented by a mean of their own."""


class Router:
    """Tells which tiles likely hold the positives of a row: those with a part whose mean is most like it.

    Parameters
    ----------
    rows : Rows
    tiles : Tensor, (T, B), int64
        From `avssl.memory.exact.cut_tiles`, of rows in `similar_order`.
    """

    def __init__(self, rows: Rows, tiles: Tensor) -> None:
        self.rows = rows
        sums = [
            (joined(rows, part.clamp_min(0)) * (part >= 0)[:, None]).sum(dim=0)
            for part in tiles.unflatten(1, (PARTS, -1)).transpose(0, 1).flatten(0, 1)
        ]
        self.means = torch.nn.functional.normalize(torch.stack(sums), dim=1)
        self.num_tiles = len(tiles)
        self.home = torch.empty(len(rows), dtype=torch.int64, device=tiles.device)
        real = tiles >= 0
        self.home[tiles[real]] = real.nonzero()[:, 0]

    def likeness_of(self, vectors: Tensor) -> Tensor:
        """How like each tile some `joined` vectors are; (Q, T)."""
        return (vectors @ self.means.T).unflatten(1, (PARTS, -1)).amax(dim=1)

    def likeness(self, ids: Tensor) -> Tensor:
        """How like each tile some rows are; their own one comes first in any case; (Q, T)."""
        likeness = self.likeness_of(joined(self.rows, ids))
        return likeness.scatter_(1, self.home[ids][:, None], torch.inf)

    def probes(self, ids: Tensor, num_probes: int) -> Tensor:
        """The most likely tiles of each row; (Q, P)."""
        return self.likeness(ids).topk(num_probes, dim=1, sorted=False).indices

    def needed_probes(self, sample: Tensor, exact: Tensor, target: float) -> int:
        """How many tiles a row must probe to find a `target` share of its positives, known for a sample.

        The search inside a tile is exact, so what it will find is known before it starts.

        Parameters
        ----------
        sample : Tensor, (Q,), int64
        exact : Tensor, (Q, k), int64
            Their exact positives, -1 where fewer.
        target : float in (0, 1]
        """
        homes = self.home[exact.clamp_min(0)].masked_fill(exact < 0, -1)
        ranks = probe_ranks(self.likeness(sample), homes).flatten()
        ranks = ranks[ranks >= 0].sort().values
        return int(ranks[min(len(ranks) - 1, int(target * len(ranks)))]) + 1 if len(ranks) else 1


def probe_ranks(likeness: Tensor, homes: Tensor) -> Tensor:
    """How many tiles rows of likeness (Q, T) probe before those numbered `homes` (Q, k); -1 for -1."""
    own = likeness.gather(1, homes.clamp_min(0))
    return (likeness[:, None] > own[:, :, None]).sum(dim=2).masked_fill(homes < 0, -1)


def search_probes(
    rows: Rows,
    k: int,
    tiles: Tensor,
    router: Router,
    num_probes: int,
    own: Sequence[int],
    progress: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """The k best agreements of every row of some tiles among the tiles it is most likely to find them in.

    Rows of one tile probe few different tiles, so that most products are of many rows. A tile that fewer than
    `MIN_ROWS` of them probe is left out: it would take as long as many, and hardly holds a positive.

    Parameters
    ----------
    rows, k, tiles
        As in `avssl.memory.exact.search_pairs`.
    router : Router
        Says which tiles are likely.
    num_probes : int >= 1
        Tiles a row is compared with, its own one among them.
    own : sequence of int
        Tiles whose rows are searched for.
    progress : callable
        Called with the number of tiles done.

    Returns
    -------
    scores : Tensor, (N, k), float32
    ids : Tensor, (N, k), int64
        As in `avssl.memory.exact.search_pairs`; ``-inf`` and -1 for rows of other tiles.
    """
    search = TileSearch(rows, k, tiles, with_own=set(own))

    def settle(i: int) -> None:
        probes = router.probes(tiles[i].clamp_min(0), num_probes)
        tile, place = probes.flatten().sort(stable=True)
        others, counts = tile.unique_consecutive(return_counts=True)
        for j, places in zip(others.tolist(), (place // num_probes).split(counts.tolist()), strict=True):
            if i != j and len(places) >= MIN_ROWS:
                search.compare(i, j, places)
        search.close(i, all_scores=False)

    with Threads(tiles.device) as threads:
        for done, _ in enumerate(threads.map(settle, own), 1):
            progress(done)
    return search.best, search.best_ids
