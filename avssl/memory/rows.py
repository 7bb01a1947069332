"""The banks as they are searched: scores of blocks, and exact answers for a few rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Agreement = Literal["consensus", "union", "video", "audio"]
Progress = Callable[[int, int], None]

FLOAT32_SLACK = 2e-6
"""By how much float32 products of unit vectors may differ between two shapes of matrix product."""


def agreement_scores(
    video_queries: Tensor, audio_queries: Tensor, video: Tensor, audio: Tensor, agreement: Agreement
) -> Tensor:
    """Agreement of queries with all instances.

    Parameters
    ----------
    video_queries, audio_queries : Tensor, (Q, D)
        Unit rows of the query instances.
    video, audio : Tensor, (N, D)
        Unit rows of all instances.
    agreement : {"consensus", "union", "video", "audio"}
        ``min`` or ``max`` of the two similarities, or one of them alone.

    Returns
    -------
    Tensor, (Q, N)
    """
    if agreement == "video":
        return video_queries @ video.T
    if agreement == "audio":
        return audio_queries @ audio.T
    by_sight, by_sound = video_queries @ video.T, audio_queries @ audio.T
    combine = torch.minimum if agreement == "consensus" else torch.maximum
    return combine(by_sight, by_sound, out=by_sight)


@dataclass(frozen=True)
class Rows:
    """What is searched: both banks, how they are combined and which rows are one clip.

    Parameters
    ----------
    video, audio : Tensor, (N, D)
        Unit rows, float32 or half precision; blocks are converted to float32 as they are needed.
    agreement : {"consensus", "union", "video", "audio"}
        See `agreement_scores`.
    groups : Tensor, (N,), int64, optional
        Rows of one number are never each other's positives.
    """

    video: Tensor
    audio: Tensor
    agreement: Agreement
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.video)

    def take(self, ids: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Video and audio of some rows as float32."""
        video = _select(self.video, ids) if self.agreement != "audio" else self.video[:0]
        audio = _select(self.audio, ids) if self.agreement != "video" else self.audio[:0]
        return video, audio

    def scores(self, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
        """`agreement_scores` of two blocks that `take` returned."""
        return agreement_scores(*left, *right, self.agreement)

    def allowed(self, left: Tensor, right: Tensor) -> Tensor:
        """Whether row numbers `right` may be positives of `left`; the two broadcast. -1 never may."""
        fine = (left != right) & (right >= 0)
        if self.groups is not None:
            fine &= self.groups[left.clamp_min(0)] != self.groups[right.clamp_min(0)]
        return fine


def _select(vectors: Tensor, ids: Tensor | slice) -> Tensor:
    """Rows as float32; `index_select` is several times faster than indexing with the tensor."""
    if isinstance(ids, slice):
        return vectors[ids].float()
    return vectors.index_select(0, ids.flatten()).float().view(*ids.shape, vectors.shape[1])


def joined(rows: Rows, ids: Tensor) -> Tensor:
    """Vectors whose inner product ranks agreement: ``[v; a]`` gives ``sim_v + sim_a``; (Q, D or 2 D)."""
    return torch.cat([block for block in rows.take(ids) if len(block)], dim=1)


def rescore(rows: Rows, queries: Tensor, others: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each query among its own candidates.

    Parameters
    ----------
    queries : Tensor, (Q,), int64
    others : Tensor, (Q, M), int64
        Candidates of each query; those that are -1, or may not be its positives, are left out.
    k : int <= M

    Returns
    -------
    scores : Tensor, (Q, k), float32
        Falling; ``-inf`` where fewer were left.
    ids : Tensor, (Q, k), int64
        -1 where fewer were left.
    """
    left, right = rows.take(queries.clamp_min(0)), rows.take(others.clamp_min(0))
    parts = [torch.bmm(y, x[:, :, None])[:, :, 0] for x, y in zip(left, right, strict=True) if len(x)]
    combine = torch.minimum if rows.agreement == "consensus" else torch.maximum
    scores = combine(*parts) if len(parts) == 2 else parts[0]
    scores = scores.masked_fill(~rows.allowed(queries[:, None], others), -torch.inf)
    best, at = scores.topk(k, dim=1)
    return best, others.gather(1, at).masked_fill_(best == -torch.inf, -1)


def exact_rows(rows: Rows, queries: Tensor, k: int, block: int = 16384) -> tuple[Tensor, Tensor]:
    """The k best agreements of some rows among all, in float32, without symmetry.

    Parameters
    ----------
    rows : Rows
    queries : Tensor, (Q,), int64
    k : int >= 1
    block : int
        Rows compared at once; memory is ``256 * block`` scores.

    Returns
    -------
    scores : Tensor, (Q, k), float32
        ``-inf`` where fewer are allowed; falling.
    ids : Tensor, (Q, k), int64
        -1 where fewer are allowed.
    """
    best = torch.full((len(queries), k), -torch.inf, device=queries.device)
    ids = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
    for part in torch.arange(len(queries), device=queries.device).split(256):
        left = rows.take(queries[part])
        for start in range(0, len(rows), block):
            others = torch.arange(start, min(start + block, len(rows)), device=queries.device)
            scores = rows.scores(left, rows.take(slice(start, start + block)))
            scores.masked_fill_(~rows.allowed(queries[part, None], others), -torch.inf)
            best[part], ids[part] = merged(best[part], ids[part], scores, others)
    return best, ids.masked_fill_(best == -torch.inf, -1)


def merged(best: Tensor, ids: Tensor, scores: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The k best of those found so far (Q, k), and of rows `others` (B,) whose scores are (Q, B)."""
    k = best.shape[1]
    new = scores.topk(min(k, len(others)), dim=1)
    best, place = torch.cat([best, new.values], dim=1).topk(k, dim=1)
    return best, torch.cat([ids, others[new.indices]], dim=1).gather(1, place)
