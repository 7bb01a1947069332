"""Cross-modal agreement: which instances are alike both in what is seen and in what is heard.

Morgado et al. (2021), section 3.2: the agreement of instances i and j is
``rho_ij = min(cos(v_i, v_j), cos(a_i, a_j))`` and the positive set of i holds its k largest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Agreement = Literal["consensus", "union", "video", "audio"]


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


@torch.no_grad()
def mine_positives(
    video: Tensor,
    audio: Tensor,
    num_positives: int,
    agreement: Agreement = "consensus",
    seen: Tensor | None = None,
    block: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Find the positive set of every instance, exactly, by blocks of queries.

    An instance is never its own positive: it is left out by its row, not by being the best match, which
    a duplicate would defeat. Unseen instances neither have positives nor are any.

    Parameters
    ----------
    video, audio : Tensor, (N, D)
        The two banks, unit rows.
    num_positives : int >= 1
        Size k of a positive set.
    agreement : {"consensus", "union", "video", "audio"}
        See `agreement_scores`.
    seen : Tensor, (N,), bool, optional
        Instances that take part; all by default.
    block : int >= 1
        Queries a block; memory is bounded to ``2 * block * N`` scores.
    progress : callable, optional
        Called as ``progress(rows done, rows in all)`` after each block.

    Returns
    -------
    Tensor, (N, k), int32
        Rows sorted by index; -1 (last) where fewer than k instances were available.
    """
    num_rows = len(video)
    seen = torch.ones(num_rows, dtype=torch.bool, device=video.device) if seen is None else seen
    rows = seen.nonzero().flatten()
    positives = torch.full((num_rows, num_positives), -1, dtype=torch.int32, device=video.device)
    k = min(num_positives, len(rows) - 1)
    if k < 1:
        return positives
    seen_video, seen_audio = video[rows], audio[rows]
    for start in range(0, len(rows), block):
        queries = slice(start, min(start + block, len(rows)))
        scores = agreement_scores(seen_video[queries], seen_audio[queries], seen_video, seen_audio, agreement)
        own = torch.arange(queries.start, queries.stop, device=scores.device)
        scores[own - queries.start, own] = -torch.inf
        best = scores.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        positives[rows[queries], :k] = rows[best].int()
        if progress is not None:
            progress(queries.stop, len(rows))
    return positives
