"""Order rows so that alike ones share a tile, and choose the pairs of tiles worth comparing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avssl import dist
from avssl.memory.candidates import faiss_threads
from avssl.memory.rows import Rows, joined

FANOUT = 32
"""Clusters into which a cluster too large for its tile is split."""


def similar_order(rows: Rows, leaf: int, block: int = 65536) -> Tensor:
    """Order of all rows in which neighbours are alike, by k-means of k-means.

    Parameters
    ----------
    rows : Rows
    leaf : int
        Clusters of at most so many rows are not split further.
    block : int
        Rows handled at once.

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
        nearest = torch.cat([(joined(rows, part) @ centroids.T).argmax(dim=1) for part in ids.split(block)])
        counts = nearest.bincount(minlength=num).tolist()
        members = ids[nearest.argsort(stable=True)].split(counts)
        if max(len(part) for part in members) == len(ids):  # all alike: nothing to order by
            return [ids]
        return [leaf_ids for part in members for leaf_ids in split(part)]

    return dist.broadcast_(torch.cat(split(everything)))


def chained(centroids: np.ndarray) -> np.ndarray:
    """Centroids in an order in which each is followed by the one most like it of those left."""
    left, chain = list(range(1, len(centroids))), [0]
    while left:
        best = int(np.argmax(centroids[left] @ centroids[chain[-1]]))
        chain.append(left.pop(best))
    ordered: np.ndarray = centroids[chain]
    return ordered


def all_pairs(num_tiles: int) -> list[tuple[int, int]]:
    """Every pair I <= J of tiles, ordered by I."""
    return [(i, j) for i in range(num_tiles) for j in range(i, num_tiles)]


def ranked_pairs(rows: Rows, tiles: Tensor, depth: int = 64) -> list[tuple[int, int]]:
    """Pairs of tiles, those first whose rows most often have the other's mean among their nearest.

    Every fourth row votes for the `depth` tiles whose means are most like it; a nearer one counts more.
    Pairs no row votes for are left out; each tile is paired with itself.
    """
    num = len(tiles)
    depth = min(depth, num)
    real = tiles >= 0
    means = torch.stack([joined(rows, ids[good]).mean(dim=0) for ids, good in zip(tiles, real, strict=True)])
    means = torch.nn.functional.normalize(means, dim=1)
    votes = torch.zeros(num, num, device=tiles.device)
    weight = 1 / torch.arange(1, depth + 1, device=tiles.device)
    for tile, (ids, good) in enumerate(zip(tiles, real, strict=True)):
        nearest = (joined(rows, ids[good][::4]) @ means.T).topk(depth, dim=1).indices
        votes[tile].index_add_(0, nearest.flatten(), weight.repeat(len(nearest)))
    votes = votes + votes.T
    votes.fill_diagonal_(float("inf"))
    i, j = votes.triu().nonzero(as_tuple=True)
    best = votes[i, j].argsort(descending=True)
    return list(zip(i[best].tolist(), j[best].tolist(), strict=True))
