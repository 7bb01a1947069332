"""Cross-modal agreement: which instances are alike both in what is seen and in what is heard.

Morgado et al. (2021), section 3.2: the agreement of instances i and j is
``rho_ij = min(cos(v_i, v_j), cos(a_i, a_j))`` and the positive set of i holds its k largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from avssl import dist
from avssl.memory.candidates import DEEPEST, CandidateSearch, faiss_threads, search_flat
from avssl.memory.clusters import all_pairs, ranked_pairs, similar_order
from avssl.memory.exact import cut_tiles, default_side, search_tiles
from avssl.memory.rows import Agreement, Progress, Rows, agreement_scores, exact_rows

__all__ = ["Agreement", "Method", "Mining", "agreement_scores", "mine_positives"]

Method = Literal["auto", "exact", "clusters", "flat", "ivf", "hnsw", "ivfpq"]

EXACT_ROWS = {"cpu": 200_000, "cuda": 2_000_000}
"""Up to so many rows "auto" is exact: about half a minute on two CPU cores."""

SAMPLE = 512
"""Rows on which an approximate method is tuned, and as many others on which its recall is measured."""


@dataclass(frozen=True)
class Mining:
    """Positive sets and where they come from.

    Parameters
    ----------
    positives : Tensor, (N, k), int32
        Each row sorted by index, -1 (last) where fewer were available.
    method : str
        What was done: "exact", "clusters", "flat", "ivf", "hnsw" or "ivfpq".
    agreement : str
    num_rows : int
        Rows that took part.
    certified_share : float
        Share of rows proved exact: all by "exact" and "flat", none by the others.
    recall : float
        Share of the exact positives found, 1.0 where exact; otherwise measured on rows that nothing was
        tuned on.
    recall_rows : int
        Rows `recall` was measured on; 0 where it is proved.
    compared_share : float
        Share of all pairs of rows whose agreement was looked at.
    depth : int
        Candidates a row (of the row that needed most) that an index proposed; 0 without an index.
    seconds : float
        Wall time of the mining.
    """

    positives: Tensor
    method: str
    agreement: str
    num_rows: int
    certified_share: float
    recall: float
    recall_rows: int
    compared_share: float
    depth: int
    seconds: float

    def provenance(self) -> dict[str, str | float]:
        """How the sets were found, for a record in JSON."""
        return {"method": self.method, "agreement": self.agreement, **self.numbers()}

    def numbers(self) -> dict[str, float]:
        """Flat numbers for a log; names begin with ``mining_``."""
        names = ("num_rows", "certified_share", "recall", "recall_rows", "compared_share", "depth", "seconds")
        return {f"mining_{name}": float(getattr(self, name)) for name in names}


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


@torch.no_grad()
def mine_positives(
    video: Tensor,
    audio: Tensor,
    num_positives: int,
    agreement: Agreement = "consensus",
    *,
    seen: Tensor | None = None,
    groups: Tensor | None = None,
    method: Method = "auto",
    recall_target: float = 0.97,
    progress: Progress | None = None,
) -> Mining:
    """Find the positive set of every instance.

    An instance is never its own positive: it is left out by its row, not by being the best match, which
    a duplicate would defeat. Unseen instances neither have positives nor are any. Several ranks share the
    work and all return the same result; all must call this with the same banks.

    Parameters
    ----------
    video, audio : Tensor, (N, D)
        The two banks, unit rows; float32, float16 or bfloat16 (computed in float32 either way).
    num_positives : int >= 1
        Size k of a positive set.
    agreement : {"consensus", "union", "video", "audio"}
        See `agreement_scores`.
    seen : Tensor, (N,), bool, optional
        Instances that take part; all by default.
    groups : Tensor, (N,), int64, optional
        Rows with the same number are copies of one clip and never each other's positives.
    method : {"auto", "exact", "clusters", "flat", "ivf", "hnsw", "ivfpq"}
        "exact" compares all rows, each pair once (`avssl.memory.exact`). "clusters" compares only groups of
        rows likely to hold positives, and is "exact" if more than half of all pairs would be needed.
        The rest let a FAISS index propose candidates: "flat" exhaustively, with a proof for each row
        (`avssl.memory.candidates`). "auto" is "exact" up to `EXACT_ROWS` rows and "clusters" above.
    recall_target : float, above 0, at most 1
        Approximate methods search just hard enough to find this share of the positives of a sample.
    progress : callable, optional
        Called as ``progress(rows done, rows in all)``, never falling.

    Returns
    -------
    Mining

    Raises
    ------
    ValueError
        For arguments that fit no mining.

    Notes
    -----
    Memory beyond banks and result: ``4 N D`` bytes for the copy in bfloat16 (``8 N D`` in float32 where that
    is faster), at most ``80 k N`` bytes of candidates and some tiles of ``2^20`` scores (``2^26`` on a GPU).
    """
    start = time.perf_counter()
    check(video, audio, num_positives, agreement, method, seen, groups)
    if not 0 < recall_target <= 1:
        raise ValueError(f"recall_target must be above 0 and at most 1; got {recall_target}")
    device = video.device
    members = torch.arange(len(video), device=device) if seen is None else seen.nonzero().flatten()
    if len(members) < len(video):
        video_rows, audio_rows = video[members], audio[members]
        groups = None if groups is None else groups[members]
    else:
        video_rows, audio_rows = video, audio
    rows = Rows(video_rows, audio_rows, agreement, groups)
    positives = torch.full((len(video), num_positives), -1, dtype=torch.int32, device=device)
    k = min(num_positives, len(rows) - 1)
    if method == "auto":
        method = "exact" if len(rows) <= EXACT_ROWS.get(device.type, EXACT_ROWS["cpu"]) else "clusters"
    found = Found(members[:, None][:, :0], method, certified_share=1.0)
    if k >= 1:
        with faiss_threads(torch.get_num_threads()):
            found = run(rows, k, method, recall_target, monotone(progress, len(rows)))
        ids = found.ids.masked_fill(found.ids < 0, len(rows)).sort(dim=1).values
        numbers = torch.cat([members, members.new_full((1,), -1)])  # the last stands for none
        positives[members, :k] = numbers[ids].int()
    return Mining(
        positives,
        found.method,
        agreement,
        len(rows),
        found.certified_share,
        found.recall,
        found.recall_rows,
        found.compared_share,
        found.depth,
        time.perf_counter() - start,
    )


def check(
    video: Tensor,
    audio: Tensor,
    num_positives: int,
    agreement: str,
    method: str,
    seen: Tensor | None,
    groups: Tensor | None,
) -> None:
    """Refuse arguments that fit no mining."""
    if video.ndim != 2 or len(video) != len(audio) or video.device != audio.device:
        raise ValueError(
            "video and audio must be (N, D) banks of the same N on one device; "
            f"got {tuple(video.shape)} on {video.device} and {tuple(audio.shape)} on {audio.device}"
        )
    if num_positives < 1:
        raise ValueError(f"num_positives must be at least 1; got {num_positives}")
    for name, value, allowed in (
        ("agreement", agreement, get_args(Agreement)),
        ("method", method, get_args(Method)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    for name, mask in (("seen", seen), ("groups", groups)):
        if mask is not None and mask.shape != (len(video),):
            raise ValueError(f"{name} must have one entry a row, {len(video)}; got {tuple(mask.shape)}")


def monotone(progress: Progress | None, total: int) -> Callable[[float], None]:
    """Take the share of work that is done, and report rows whenever there are more."""
    reported = 0

    def report(share: float) -> None:
        nonlocal reported
        if progress is not None and int(share * total) > reported:
            reported = int(share * total)
            progress(reported, total)

    return report


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
    """Compare tiles of similar rows: all pairs of tiles, or those that hold a `target` share of positives."""
    side = default_side(rows.video.device)
    tiles = cut_tiles(similar_order(rows, leaf=side if target is None else side // 4), side)
    pairs, everything = all_pairs(len(tiles)), True
    if target is not None:
        sample, exact = sample_rows(rows, k)
        likely = ranked_pairs(rows, tiles)
        likely = likely[: needed_pairs(tiles, likely, sample[::2], exact[::2], target)]
        if len(likely) <= len(pairs) / 2:
            pairs, everything = sorted(likely), False
    compared = len(pairs) / len(all_pairs(len(tiles)))
    ranks = dist.world_size()
    mine = pairs[dist.rank() :: ranks]
    best, ids = search_tiles(
        rows, k, tiles, mine, lambda done: report(done / len(mine)), all_scores=ranks > 1
    )
    ids = best_of_ranks(best, ids)
    if everything:
        return Found(ids, "exact", 1.0)
    recall = recall_of(ids[sample[1::2]], exact[1::2])
    return Found(ids, "clusters", 0.0, recall, len(sample[1::2]), compared)


def needed_pairs(
    tiles: Tensor, likely: list[tuple[int, int]], sample: Tensor, exact: Tensor, target: float
) -> int:
    """How many of the likely pairs of tiles hold a `target` share of the exact positives of a sample.

    The search inside a pair is exact, so what it will find is known before it starts. All, if even they do
    not reach the target; each tile with itself in any case.
    """
    num = len(tiles)
    home = torch.empty(tiles.numel() + 1, dtype=torch.int64, device=tiles.device)
    home[tiles.flatten()] = torch.arange(tiles.numel(), device=tiles.device) // tiles.shape[1]
    own, other = home[sample][:, None].expand_as(exact)[exact >= 0], home[exact[exact >= 0]]
    place = torch.full((num, num), len(likely), device=tiles.device)
    at = torch.tensor(likely, device=tiles.device)
    place[at[:, 0], at[:, 1]] = torch.arange(len(likely), device=tiles.device)
    needed = place[torch.minimum(own, other), torch.maximum(own, other)].sort().values
    last = int(needed[min(len(needed) - 1, int(target * len(needed)))]) if len(needed) else 0
    return max(num, min(last + 1, len(likely)))


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
