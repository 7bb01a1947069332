"""How positives are mined: by comparing tiles of rows, or candidates that a FAISS index proposes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from avssl import dist
from avssl.memory.candidates import DEEPEST, CandidateSearch, search_flat
from avssl.memory.clusters import Router, search_probes, similar_order
from avssl.memory.exact import all_pairs, cut_tiles, default_side, search_pairs
from avssl.memory.rows import Rows, exact_rows

SAMPLE = 512
"""Rows on which an approximate method is tuned, and as many others on which its recall is measured."""


@dataclass(frozen=True)
class Found:
    """What a method returns: row numbers (n, k), -1 where fewer, and its part of the provenance."""

    ids: Tensor
    method: str
    certified_share: float = 0.0
    recall: float = 1.0
    recall_rows: int = 0
    compared_share: float = 1.0
    depth: int = 0


def run(rows: Rows, k: int, method: str, target: float, report: Callable[[float], None]) -> Found:
    """Mine by one method, its share on each rank."""
    if method == "exact":
        found = mine_tiles(rows, k, None, report)
    elif method == "clusters":
        found = mine_tiles(rows, k, target, report)
    elif method == "flat":
        mine = own_part(len(rows), rows.video.device)
        ids, depth = search_flat(rows, mine, k, lambda done: report(done / max(1, len(mine))))
        found = Found(gather_rows(ids, len(rows)), method, 1.0, depth=depth)
    else:
        found = mine_index(rows, k, method, target, report)
    report(1.0)
    return found


def sample_rows(rows: Rows, k: int) -> tuple[Tensor, Tensor]:
    """Evenly spread rows and their exact positives: even ones are tuned on, odd ones measured on."""
    num = min(2 * SAMPLE, len(rows))
    sample = torch.linspace(0, len(rows) - 1, num, device=rows.video.device).long()
    return sample, exact_rows(rows, sample, k)[1]


def recall_of(found: Tensor, exact: Tensor) -> float:
    """Share of the exact positives (Q, k) that were found (Q, k)."""
    hits = (exact[:, :, None] == found[:, None, :]).any(dim=2) & (exact >= 0)
    return float(hits.sum() / (exact >= 0).sum().clamp_min(1))


def mine_tiles(rows: Rows, k: int, target: float | None, report: Callable[[float], None]) -> Found:
    """Compare all pairs of tiles of similar rows, or each row with the tiles of its likely positives."""
    side, ranks = default_side(rows.video.device), dist.world_size()
    leaf, refine = (side, False) if target is None else (side // 2, True)
    tiles = cut_tiles(similar_order(rows, leaf, refine), side)
    if target is not None:
        router = Router(rows, tiles)
        sample, exact = sample_rows(rows, k)
        num_probes = router.needed_probes(sample[::2], exact[::2], target)
        if num_probes <= len(tiles) / 2:
            own = list(range(dist.rank(), len(tiles), ranks))
            done = search_probes(rows, k, tiles, router, num_probes, own, lambda n: report(n / len(own)))
            ids = best_of_ranks(*done)
            recall = recall_of(ids[sample[1::2]], exact[1::2])
            return Found(ids, "clusters", 0.0, recall, len(sample[1::2]), num_probes / len(tiles))
    pairs = all_pairs(len(tiles))[dist.rank() :: ranks]
    best, ids = search_pairs(rows, k, tiles, pairs, lambda n: report(n / len(pairs)), all_scores=ranks > 1)
    return Found(best_of_ranks(best, ids), "exact", 1.0)


def mine_index(
    rows: Rows, k: int, kind: str, target: float, report: Callable[[float], None], block: int = 1024
) -> Found:
    """Let an approximate index propose candidates; search harder until the tuned-on rows reach `target`."""
    search = CandidateSearch(rows, kind)
    sample, exact = sample_rows(rows, k)
    depth = min((16 if kind == "ivfpq" else 8) * k, DEEPEST, len(rows))
    effort, harder = 8 if kind != "hnsw" else depth, True
    while harder:
        harder = search.set_effort(effort)
        ids = torch.cat([search.search(part, k, depth)[0] for part in sample[::2].split(block)])
        if recall_of(ids, exact[::2]) >= target:
            break
        effort *= 2
    mine = own_part(len(rows), rows.video.device)
    found = torch.empty(len(mine), k, dtype=torch.int64, device=mine.device)
    for start in range(0, len(mine), block):
        found[start : start + block] = search.search(mine[start : start + block], k, depth)[0]
        report(min(start + block, len(mine)) / len(mine))
    found = gather_rows(found, len(rows))
    recall = recall_of(found[sample[1::2]], exact[1::2])
    return Found(found, kind, 0.0, recall, len(sample[1::2]), depth / len(rows), depth)


def own_part(num_rows: int, device: torch.device) -> Tensor:
    """Rows this rank searches: a run of equal length on all ranks but the last ones."""
    length = -(-num_rows // dist.world_size())
    return torch.arange(
        min(dist.rank() * length, num_rows), min((dist.rank() + 1) * length, num_rows), device=device
    )


def gather_rows(part: Tensor, num_rows: int) -> Tensor:
    """Join the parts that ranks searched (`own_part`) to all rows, (N, k)."""
    length = -(-num_rows // dist.world_size())
    padded = torch.nn.functional.pad(part, (0, 0, 0, length - len(part)), value=-1)
    return dist.all_gather(padded)[:num_rows]


def best_of_ranks(best: Tensor, ids: Tensor, block: int = 16384) -> Tensor:
    """Row numbers (N, k) of the k best of what all ranks found; `best` are their scores."""
    ranks = dist.world_size()
    if ranks == 1:
        return ids
    for part in torch.arange(len(ids), device=ids.device).split(block):
        scores = dist.all_gather(best[part]).view(ranks, len(part), -1).transpose(0, 1).flatten(1)
        others = dist.all_gather(ids[part]).view(ranks, len(part), -1).transpose(0, 1).flatten(1)
        ids[part] = others.gather(1, scores.topk(ids.shape[1], dim=1).indices)
    return ids
