"""Precision of positive sets by kind of agreement, on a sample of queries that is mined exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from avssl.memory.lookup import Vectors, own_run, take
from avssl.memory.methods import best_of_ranks
from avssl.memory.rows import agreement_scores, merged

SCORED_ROWS = 8192  # rows of the bank scored at once, which bounds the memory


def agreement_precision(
    video: Vectors,
    audio: Vectors,
    positives: Tensor,
    queries: Tensor,
    seen: Tensor,
    groups: Tensor,
    labels: Tensor,
) -> dict[str, float]:
    """Precision of the positives each kind of agreement would give the queries, and of those in use.

    Parameters
    ----------
    video, audio : Tensor or ShardedRows, (N, D)
        The two banks, unit rows.
    positives : Tensor, (N, k), integer
        The sets in use; -1 marks an empty place. The others are mined at the same k.
    queries : Tensor, (Q,), int64
        Instances the sets are judged on.
    seen, groups, labels : Tensor, (N,)
        As for `avssl.memory.diagnostics.diagnose`.

    Returns
    -------
    dict of str to float
        As `Diagnosis.precision`, without kinds for which no pair can be judged.
    """
    sets = _mine_sample(video, audio, positives.shape[1], queries, seen, groups)
    shares = {kind: _precision(queries, found, labels) for kind, found in sets.items()}
    shares["used"] = _precision(queries, positives[queries], labels)
    shares["chance"] = _chance(labels, seen, groups)
    return {kind: share for kind, share in shares.items() if share is not None}


def _mine_sample(
    video: Vectors, audio: Vectors, k: int, queries: Tensor, seen: Tensor, groups: Tensor
) -> dict[str, Tensor]:
    """Exact positives (Q, k) of the queries for each kind of agreement, from one pass over the bank."""
    asked = take(video, queries), take(audio, queries)
    (own_video, first), (own_audio, _) = own_run(video), own_run(audio)
    best = {
        kind: (
            torch.full((len(queries), k), -torch.inf, device=video.device),
            torch.full((len(queries), k), -1, device=video.device),
        )
        for kind in ("video", "audio", "consensus", "union")
    }
    for held in seen[first : first + len(own_video)].nonzero().flatten().split(SCORED_ROWS):
        part, rows = (take(own_video, held), take(own_audio, held)), held + first
        related = groups[queries][:, None] == groups[rows]  # the query itself among them
        by_sight = agreement_scores(*asked, *part, "video").masked_fill_(related, -torch.inf)
        by_sound = agreement_scores(*asked, *part, "audio").masked_fill_(related, -torch.inf)
        scores = {
            "video": by_sight,
            "audio": by_sound,
            "consensus": torch.minimum(by_sight, by_sound),
            "union": torch.maximum(by_sight, by_sound),
        }
        best = {kind: merged(*best[kind], scores[kind], rows) for kind in best}
    sets = {kind: found.masked_fill(score == -torch.inf, -1) for kind, (score, found) in best.items()}
    if isinstance(video, Tensor):
        return sets
    return {kind: best_of_ranks(best[kind][0], found) for kind, found in sets.items()}


def _precision(queries: Tensor, found: Tensor, labels: Tensor) -> float | None:
    """Share of pairs of one class among pairs of known classes; None if there is no such pair."""
    classes = labels[found.long().clamp_min(0)]
    known = (found >= 0) & (classes >= 0)
    same = known & (classes == labels[queries][:, None])
    return float(same.sum()) / float(known.sum()) if known.any() else None


def _chance(labels: Tensor, seen: Tensor, groups: Tensor) -> float | None:
    """Mean over instances of (same class, other group) / (known class, other group)."""
    rows = (seen & (labels >= 0)).nonzero().flatten()
    if not len(rows):
        return None
    group, in_group = _numbered(groups[rows])
    _, in_class = _numbered(labels[rows])
    _, in_both = _numbered(labels[rows] * (group.max() + 1) + group)
    others = len(rows) - in_group
    shares = (in_class - in_both)[others > 0].double() / others[others > 0]
    return float(shares.mean()) if len(shares) else None


def _numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each value's number among the distinct ones, and how often it occurs."""
    _, number, counts = values.unique(return_inverse=True, return_counts=True)
    return number, counts[number]
