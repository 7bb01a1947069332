"""Cross-modal agreement: which instances are alike both in what is seen and in what is heard.

Morgado et al. (2021), section 3.2: the agreement of instances i and j is
``rho_ij = min(cos(v_i, v_j), cos(a_i, a_j))`` and the positive set of i holds its k largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from avssl import dist
from avssl.memory.candidates import faiss_threads
from avssl.memory.exchange import padded
from avssl.memory.lookup import ShardedRows, Vectors
from avssl.memory.methods import Found, run
from avssl.memory.rows import Agreement, Progress, Rows, agreement_scores
from avssl.memory.streamed import StreamedSearch, mine_streamed

__all__ = ["Agreement", "Method", "Mining", "agreement_scores", "mine_positives"]

Method = Literal["auto", "exact", "clusters", "flat", "ivf", "hnsw", "ivfpq"]

STREAMED = ("auto", "exact", "clusters")
"""How banks spread over processes can be mined."""

EXACT_ROWS = {"cpu": 200_000, "cuda": 2_000_000}
"""Up to so many rows "auto" is exact: about a minute on two CPU cores."""


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


@torch.no_grad()
def mine_positives(
    video: Vectors,
    audio: Vectors,
    num_positives: int,
    agreement: Agreement = "consensus",
    *,
    seen: Tensor | None = None,
    groups: Tensor | None = None,
    method: Method = "auto",
    recall_target: float = 0.96,
    progress: Progress | None = None,
) -> Mining:
    """Find the positive set of every instance.

    An instance is never its own positive: it is left out by its row, not by being the best match, which
    a duplicate would defeat. Unseen instances neither have positives nor are any. Several ranks share the
    work and all return the same result; all must call this with the same banks.

    Parameters
    ----------
    video, audio : Tensor or ShardedRows, (N, D)
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
        "exact" compares all rows, each pair once (`avssl.memory.exact`). "clusters" compares a row only with
        the tiles likely to hold its positives, and is "exact" if it would need more than half of them.
        The rest let a FAISS index propose candidates: "flat" exhaustively, with a proof for each row
        (`avssl.memory.candidates`). "auto" is "exact" up to `EXACT_ROWS` rows and "clusters" above. Banks
        spread over processes are mined by "exact" or "clusters" (`avssl.memory.streamed`).
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
    Banks spread over processes are not copied: a process needs ``8 k`` bytes for each row it holds, twice the
    result, and tiles of 2048 rows (16,384 on a GPU) with ``2^20`` scores (``2^26``).
    """
    start = time.perf_counter()
    check(video, audio, num_positives, agreement, method, seen, groups)
    if not 0 < recall_target <= 1:
        raise ValueError(f"recall_target must be above 0 and at most 1; got {recall_target}")
    device = video.device
    members = torch.arange(len(video), device=device) if seen is None else seen.nonzero().flatten()
    k = min(num_positives, len(members) - 1)
    if method == "auto":
        method = "exact" if len(members) <= EXACT_ROWS.get(device.type, EXACT_ROWS["cpu"]) else "clusters"
    found = Found(members[:, None][:, :0], method, certified_share=1.0)
    positives = torch.full((len(video), num_positives), -1, dtype=torch.int32, device=device)
    if k >= 1:
        report = monotone(progress, len(members))
        with faiss_threads(torch.get_num_threads()):
            if isinstance(video, Tensor) and isinstance(audio, Tensor):
                found = mine_whole(video, audio, members, groups, agreement, k, method, recall_target, report)
                positives[members, :k] = found.ids.int()
            elif isinstance(video, ShardedRows) and isinstance(audio, ShardedRows):
                search = StreamedSearch(video, audio, agreement, members, groups, k)
                found = mine_streamed(search, method, recall_target, report)
                positives[:, :k] = gathered(ascending(found.ids, len(video)).int(), len(video))
    return Mining(
        positives,
        found.method,
        agreement,
        len(members),
        found.certified_share,
        found.recall,
        found.recall_rows,
        found.compared_share,
        found.depth,
        time.perf_counter() - start,
    )


def mine_whole(
    video: Tensor,
    audio: Tensor,
    members: Tensor,
    groups: Tensor | None,
    agreement: Agreement,
    k: int,
    method: str,
    target: float,
    report: Callable[[float], None],
) -> Found:
    """Positives of the members, (M, k), ascending row numbers, among banks that lie whole in this process."""
    if len(members) < len(video):
        video, audio = video[members], audio[members]
        groups = None if groups is None else groups[members]
    rows = Rows(video.detach(), audio.detach(), agreement, groups)
    found = run(rows, k, method, target, report)
    numbers = torch.cat([members, members.new_full((1,), -1)])  # the last stands for none
    return replace(found, ids=numbers[ascending(found.ids, len(rows))])


def ascending(ids: Tensor, num_rows: int) -> Tensor:
    """Row numbers of each set in order, -1 behind the others."""
    ids = ids.masked_fill(ids < 0, num_rows).sort(dim=1).values
    return ids.masked_fill_(ids == num_rows, -1)


def gathered(part: Tensor, num_rows: int, block: int = 2**16) -> Tensor:
    """Sets of the rows each process holds, (n, k), as those of all, (N, k)."""
    ranks, length = dist.world_size(), -(-num_rows // dist.world_size())
    part = padded(part, length, -1)
    whole = part.new_empty(ranks, length, part.shape[1])
    for rows in torch.arange(length, device=part.device).split(block):
        whole[:, rows] = dist.all_gather(part[rows]).view(ranks, len(rows), -1)
    return whole.flatten(0, 1)[:num_rows]


def check(
    video: Vectors,
    audio: Vectors,
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
    if isinstance(video, ShardedRows):
        check_streamed(method)
    for name, mask in (("seen", seen), ("groups", groups)):
        if mask is not None and mask.shape != (len(video),):
            raise ValueError(f"{name} must have one entry a row, {len(video)}; got {tuple(mask.shape)}")


def check_streamed(method: str) -> None:
    """Refuse a method that needs whole banks."""
    if method not in STREAMED:
        raise ValueError(
            f"mining is {method!r} and the banks are spread over the processes; they are mined by "
            f"{' or '.join(STREAMED)}: choose one of these, or replicated banks"
        )


def monotone(progress: Progress | None, total: int) -> Callable[[float], None]:
    """Take the share of work that is done, and report rows whenever there are more."""
    reported = 0

    def report(share: float) -> None:
        nonlocal reported
        if progress is not None and int(share * total) > reported:
            reported = int(share * total)
            progress(reported, total)

    return report
