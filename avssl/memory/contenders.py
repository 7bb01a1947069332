"""Entries of tiles that may be among the k best agreements of a row, and which of them are."""

from __future__ import annotations

import torch
from torch import Tensor

from avssl.memory.rows import Rows, rescore


class Contenders:
    """Entries that may be among the k best of the queries of one tile.

    Parameters
    ----------
    rows : Rows
    ids : Tensor, (B,), int64
        Row numbers of the tile.
    bound : Tensor, (B,), float32
        True scores below cannot be among the k best.
    k : int
    slack : float
        How far the scores of entries may be off.
    """

    def __init__(self, rows: Rows, ids: Tensor, bound: Tensor, k: int, slack: float) -> None:
        self.rows, self.ids, self.k, self.slack = rows, ids, k, slack
        self.bound = bound - slack
        self.parts: list[tuple[Tensor, ...]] = []
        self.count = 0

    def add(self, query: Tensor, cols: Tensor, scores: Tensor) -> None:
        """Remember entries; once they are many, drop those that cannot be among the k best any more."""
        self.parts.append((query, cols, scores))
        self.count += len(query)
        limit = 4 * self.k * len(self.ids)
        if self.count > limit:
            query, cols, scores, _, _ = self.prune()
            if len(query) > limit // 2:  # too alike for the screen: settle them now
                best, ids = self.settle(all_scores=True)
                query, rank = (ids >= 0).nonzero(as_tuple=True)
                cols, scores = ids[query, rank], best[query, rank]
                self.bound = torch.maximum(self.bound, best[:, -1] - self.slack)
            self.parts, self.count = [(query, cols, scores)], len(query)

    def prune(self) -> tuple[Tensor, ...]:
        """Entries within rounding of the k best of their query, ordered by query and falling score.

        Returns query, column, score and rank (0 best) of each, and the k-th score of each query (-inf
        where there are fewer).
        """
        query, cols, scores = (torch.cat(column) for column in zip(*self.parts, strict=True))
        # bits of negative scores do not compare: all count as 0, and are told apart in float32 if need be
        scores = scores.clamp_min_(0).abs_()  # no -0.0 either: bits as integers have the order of the scores
        order = ((query << 32) - scores.view(torch.int32)).sort().indices
        query, cols, scores = query[order], cols[order], scores[order]
        counts = query.bincount(minlength=len(self.ids))
        rank = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        last = torch.full_like(self.bound, -torch.inf)
        is_last = rank == self.k - 1
        last[query[is_last]] = scores[is_last]
        self.bound = torch.maximum(self.bound, last - 2 * self.slack)
        kept = scores >= self.bound[query]
        return query[kept], cols[kept], scores[kept], rank[kept], last

    def settle(self, all_scores: bool) -> tuple[Tensor, Tensor]:
        """Scores and row numbers of the k best; (B, k) each, -inf and -1 where there are fewer.

        Where no more than k are left, these are they; elsewhere an entry further above the k-th than both
        may be off is one of them. Only the others are computed again in float32. `all_scores` asks for the
        float32 scores of all.
        """
        num, k = len(self.ids), self.k
        best = torch.full((num, k), -torch.inf, device=self.ids.device)
        ids = torch.full((num, k), -1, dtype=torch.int64, device=self.ids.device)
        if not self.count:
            return best, ids
        query, cols, scores, rank, last = self.prune()
        left = query.bincount(minlength=num)
        sure = (left[query] <= k) | (scores > last[query] + 2 * self.slack)
        sure &= not all_scores
        best[query[sure], rank[sure]], ids[query[sure], rank[sure]] = scores[sure], cols[sure]
        num_sure = query[sure].bincount(minlength=num)
        query, cols = query[~sure], cols[~sure]
        place = rank[~sure] - num_sure[query]
        if not len(query):
            return best, ids
        unsure = query.bincount(minlength=num)
        padded = ids.new_full((num, int(unsure.max())), -1)
        padded[query, place] = cols
        for some in unsure.argsort().split(256):  # rows of like need together: little padding
            width = int(unsure[some[-1]])
            if width == 0:
                continue
            exact, others = rescore(self.rows, self.ids[some], padded[some, :width], min(k, width))
            place = num_sure[some, None] + torch.arange(exact.shape[1], device=ids.device)
            row, col = (place < k).nonzero(as_tuple=True)
            best[some[row], place[row, col]] = exact[row, col]
            ids[some[row], place[row, col]] = others[row, col]
        return best, ids
