"""Mining of memories that are spread over the processes.

Each process searches for the rows it holds. Tiles of rows, to which every process gives its part, are sent to
all one after another, so that no process ever holds more than its own rows and one tile. A tile is compared
with all rows ("exact"), or with those that find the tile's cluster among the ones they are most like
("clusters"); inside a tile nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from avssl import dist
from avssl.memory.clusters import Router, probe_ranks, similar_order
from avssl.memory.exact import cut_tiles, default_side
from avssl.memory.exchange import all_max, padded
from avssl.memory.lookup import ShardedRows, own_run, take
from avssl.memory.methods import SAMPLE, Found, best_of_ranks
from avssl.memory.rows import Agreement, Rows, joined, merged
from avssl.memory.screen import STRIP

QUERIES = 2**20
"""Rows of a process that are searched for at once; for more, all tiles are sent round again."""
SCORES = {"cpu": 2**20, "cuda": 2**26}
"""Scores computed at once."""
MOST_CLUSTERS = 8192
CLUSTER_SAMPLE = 2 * STRIP
"""Rows a cluster is found from: each process holds so many for each, at most 1 GiB in all at D = 128."""


@dataclass(frozen=True)
class Tile:
    """Rows of one cluster: this process's part, and the size of the largest part."""

    cluster: int
    ids: Tensor
    width: int


class StreamedSearch:
    """The rows this process holds, which are searched for among those of all.

    Parameters
    ----------
    video, audio : ShardedRows, (N, D)
    agreement
        See `avssl.memory.rows.agreement_scores`.
    members : Tensor, (M,), int64
        Rows that take part, ascending; the same on all processes.
    groups : Tensor, (N,), int64, optional
        As of `Rows`.
    k : int >= 1
    """

    def __init__(
        self,
        video: ShardedRows,
        audio: ShardedRows,
        agreement: Agreement,
        members: Tensor,
        groups: Tensor | None,
        k: int,
    ) -> None:
        self.video, self.audio, self.members, self.k = video, audio, members, k
        held_video, self.first = own_run(video)
        held_audio, _ = own_run(audio)
        self.rows = Rows(held_video, held_audio, agreement, groups)  # its `groups` are those of all rows
        here = (members >= self.first) & (members < self.first + len(held_video))
        self.ids = members[here] - self.first

    def sample(self, num: int) -> Tensor:
        """At most so many of the members, evenly spread."""
        places = torch.linspace(0, len(self.members) - 1, min(num, len(self.members)), dtype=torch.double)
        return self.members[places.round().long().to(self.members.device)]

    def taken(self, numbers: Tensor) -> Rows:
        """Rows of the whole memory by number, the same on all processes."""
        return Rows(take(self.video, numbers), take(self.audio, numbers), self.rows.agreement)

    def exact(self, numbers: Tensor) -> Tensor:
        """Exact positives (Q, k) of a few rows, of which all processes ask for the same."""
        asked = self.taken(numbers).take(slice(None))
        best = torch.full((len(numbers), self.k), -torch.inf, device=numbers.device)
        found = torch.full_like(best, -1, dtype=torch.int64)
        for ids in self.ids.split(max(1, scores_at_once(numbers) // len(numbers))):
            scores = self.rows.scores(asked, self.rows.take(ids))
            others = ids + self.first
            scores.masked_fill_(~self.rows.allowed(numbers[:, None], others), -torch.inf)
            best, found = merged(best, found, scores, others)
        return best_of_ranks(best, found.masked_fill_(best == -torch.inf, -1))

    # ---- clusters

    def router(self) -> Router:
        """Clusters of like rows, found from a sample of them."""
        side = default_side(self.members.device)
        num = min(MOST_CLUSTERS, -(-len(self.members) // side))
        sample = self.taken(self.sample(CLUSTER_SAMPLE * num))
        side = max(STRIP, len(sample) // num // STRIP * STRIP)
        return Router(sample, cut_tiles(similar_order(sample, side // 2, refine=True), side))

    def homes(self, router: Router) -> Tensor:
        """Cluster of each row held, (n,)."""
        everything = torch.arange(len(self.rows), device=self.ids.device)
        found = [likeness.argmax(dim=1) for likeness in self._likeness(router, everything)]
        return torch.cat([self.ids[:0], *found])

    def probes(self, router: Router | None, ids: Tensor, num_probes: int) -> Tensor:
        """Clusters that rows are compared with, (Q, P); without a router there is but one."""
        if router is None:
            return torch.zeros_like(ids)[:, None]
        found = [x.topk(num_probes, dim=1, sorted=False).indices for x in self._likeness(router, ids)]
        return torch.cat([ids.new_empty(0, num_probes), *found])

    def _likeness(self, router: Router, ids: Tensor) -> Iterator[Tensor]:
        for part in ids.split(max(1, scores_at_once(ids) // len(router.means))):
            if len(part):
                yield router.likeness_of(joined(self.rows, part))

    def needed_probes(self, router: Router, homes: Tensor, target: float) -> tuple[int, float, int]:
        """Clusters to probe for a `target` share of the positives of a sample.

        Also the share this finds on other rows, and how many rows these are: known before the search, for
        inside a cluster it is exact.
        """
        sample = self.sample(2 * SAMPLE)
        exact = self.exact(sample)
        all_homes = ShardedRows(padded(homes[:, None].float(), len(self.video.own)), len(self.video))
        their = take(all_homes, exact.clamp_min(0))[:, :, 0].long().masked_fill(exact < 0, -1)
        likeness = router.likeness_of(joined(self.taken(sample), torch.arange(len(sample)).to(sample)))
        ranks = probe_ranks(likeness, their)
        tuned, measured = (part[part >= 0].sort().values for part in (ranks[::2], ranks[1::2]))
        needed = int(tuned[min(len(tuned) - 1, int(target * len(tuned)))]) + 1 if len(tuned) else 1
        recall = float((measured < needed).double().mean()) if len(measured) else 1.0
        return needed, recall, len(sample[1::2])

    # ---- search

    def tiles(self, homes: Tensor | None, num_clusters: int) -> list[Tile]:
        """Own part of all tiles, cluster by cluster; as many tiles on every process."""
        cluster_of = torch.zeros_like(self.ids) if homes is None else homes[self.ids]
        counts = cluster_of.bincount(minlength=num_clusters)
        parts = self.ids[cluster_of.argsort(stable=True)].split(counts.tolist())
        most = max(1, 2 * default_side(self.ids.device) // dist.world_size())
        return [
            Tile(cluster, part[start : start + most], min(most, width - start))
            for cluster, (part, width) in enumerate(zip(parts, all_max(counts).tolist(), strict=True))
            for start in range(0, width, most)
        ]

    def sent(self, tile: Tile) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Numbers (B,), -1 for none, and vectors of a tile, from all processes to all."""
        numbers = dist.all_gather(padded(tile.ids + self.first, tile.width, -1))
        video, audio = (
            dist.all_gather(padded(held.index_select(0, tile.ids), tile.width))
            for held in (self.rows.video, self.rows.audio)
        )
        return numbers, Rows(video, audio, self.rows.agreement).take(slice(None))

    def run(
        self, router: Router | None, homes: Tensor | None, num_probes: int, report: Callable[[float], None]
    ) -> Tensor:
        """Positives of the rows held, as numbers of the whole memory; (n, k), -1 for none."""
        num_clusters = 1 if router is None else router.num_tiles
        tiles = self.tiles(homes, num_clusters)
        found = torch.full((len(self.rows), self.k), -1, dtype=torch.int64, device=self.ids.device)
        most = int(all_max(torch.tensor([len(self.ids)], device=self.ids.device)))
        for start in range(0, most, QUERIES):  # as often on every process
            ids = self.ids[start : start + QUERIES]
            cluster, place = self.probes(router, ids, num_probes).flatten().sort(stable=True)
            asking = (place // num_probes).split(cluster.bincount(minlength=num_clusters).tolist())
            best = torch.full((len(ids), self.k), -torch.inf, device=ids.device)
            best_ids = torch.full_like(best, -1, dtype=torch.int64)
            for done, tile in enumerate(tiles, 1):
                numbers, vectors = self.sent(tile)
                for part in asking[tile.cluster].split(max(1, scores_at_once(ids) // len(numbers))):
                    self._offer(best, best_ids, ids, part, numbers, vectors)
                report(min(1.0, (start + QUERIES * done / len(tiles)) / most))
            found[ids] = best_ids.masked_fill_(best == -torch.inf, -1)
        return found

    def _offer(
        self,
        best: Tensor,
        best_ids: Tensor,
        ids: Tensor,
        part: Tensor,
        numbers: Tensor,
        vectors: tuple[Tensor, Tensor],
    ) -> None:
        """Merge a tile into what has been found for the rows at places `part` of `ids`."""
        scores = self.rows.scores(self.rows.take(ids[part]), vectors)
        better = (scores.amax(dim=1) > best[part, -1]).nonzero().flatten()  # nothing is sorted of the others
        part, scores = part[better], scores[better]
        fine = self.rows.allowed((ids[part] + self.first)[:, None], numbers)
        scores.masked_fill_(~fine, -torch.inf)
        best[part], best_ids[part] = merged(best[part], best_ids[part], scores, numbers)


def scores_at_once(like: Tensor) -> int:
    """How many scores are computed at once on the device of a tensor."""
    return SCORES.get(like.device.type, SCORES["cpu"])


def mine_streamed(
    search: StreamedSearch, method: str, target: float, report: Callable[[float], None]
) -> Found:
    """Positives of the rows this process holds, (n, k), and how those of all were found.

    `method` is "exact" or "clusters"; the latter becomes "exact" if a row would need more than half of them.
    """
    if method == "clusters":
        router = search.router()
        homes = search.homes(router)
        num_probes, recall, recall_rows = search.needed_probes(router, homes, target)
        if num_probes <= router.num_tiles / 2:
            ids = search.run(router, homes, num_probes, report)
            return Found(ids, method, 0.0, recall, recall_rows, num_probes / router.num_tiles)
    ids = search.run(None, None, 1, report)
    return Found(ids, "exact", 1.0)
