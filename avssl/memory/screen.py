"""Scores of tiles against tiles in the type that multiplies fastest, and which of them reach a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from avssl.memory.rows import FLOAT32_SLACK, Rows

STRIP = 64
"""Scores dismissed at once by their maximum; tile sides are multiples."""

FEW = 8
"""A strip of so many is looked at score by score; where more are, a product for all of them is faster."""

Blocks = list[Tensor]
"""Rows as one tensor a modality, (B, D) each, of the modalities that matter."""

Entries = tuple[Tensor, Tensor, Tensor]
"""Place of the query, place of the other and score; (E,) each."""


def screen_dtype(device: torch.device) -> torch.dtype:
    """Bfloat16 where a product in it is faster than in float32, found by trying (a few milliseconds).

    GPUs and CPUs with matrix units are; elsewhere on CPUs bfloat16 is many times slower. On a CPU the trial
    counts the time of one thread alone, so that whatever else the machine does cannot mislead it.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(4):
        for dtype in seconds:
            block = torch.ones(512, 128, device=device, dtype=dtype)
            start = clock()
            float((block @ block.T)[0, 0])  # reading a value waits for the device
            seconds[dtype] = min(seconds[dtype], clock() - start)
    torch.set_num_threads(threads)
    return min(seconds, key=lambda dtype: seconds[dtype])


class Screen:
    """Copy of the tiles in the type that multiplies fastest, and how far its scores may be off.

    Scores are kept as the integers that hold their bits: these compare like the floats where the floats
    are positive, which is all that matters to a positive bound, and compare several times faster.
    """

    def __init__(self, rows: Rows, tiles: Tensor, dtype: torch.dtype) -> None:
        self.agreement = rows.agreement
        self.integer = torch.int16 if dtype == torch.bfloat16 else torch.int32
        self.dtype = dtype
        self.blocks: list[Blocks] = []
        error = 0.0
        for ids in tiles:
            exact = [block for block in rows.take(ids.clamp_min(0)) if len(block)]
            rounded = [block.to(dtype) for block in exact]
            self.blocks.append(rounded)
            for x, y in zip(exact, rounded, strict=True):
                error = max(error, float((x - y).norm(dim=1).max()))
        self._local = threading.local()
        # |v w - v' w'| <= |v - v'| |w| + |v'| |w - w'| for unit v, w; products below 1 are rounded by 2^-9
        self.slack = FLOAT32_SLACK
        if dtype == torch.bfloat16:
            self.slack += error * (2 + error) + 2**-9

    def product(self, left: Blocks, right: Blocks, modality: int) -> Tensor:
        """Bits of the similarities in one modality, valid until this thread's next product in it; (Q, B)."""
        if not hasattr(self._local, "places"):  # used again: fresh memory costs a third of the product
            side = len(right[modality])
            self._local.places = [right[modality].new_empty(side, side) for _ in range(2)]
        place = self._local.places[modality][: len(left[modality])]
        return torch.mm(left[modality], right[modality].T, out=place).view(self.integer)

    def scores(self, left: Blocks, right: Blocks) -> Tensor:
        """Bits of the scores of rows against a tile; (Q, B)."""
        return self.combined(self.product(left, right, 0), left, right)

    def combined(self, first: Tensor, left: Blocks, right: Blocks) -> Tensor:
        """Scores from the similarities in the first modality, which are overwritten."""
        if len(left) == 1:
            return first
        combine = torch.minimum if self.agreement == "consensus" else torch.maximum
        return combine(first, self.product(left, right, 1), out=first)

    def meet(self, left: Blocks, right: Blocks, bounds: Sequence[Tensor]) -> list[Entries]:
        """Entries that reach the bound of their row of `left` and, if given, of their row of `right`."""
        scores, bits = self.product(left, right, 0), [self.bits(bound) for bound in bounds]
        strips = [reaching_strips(scores, bound, side) for side, bound in enumerate(bits)]
        # min(v, a) <= v: where few reach their bound by v alone, only these need a
        few = sum(len(query) for query, _ in strips) * STRIP <= scores.numel() // FEW
        singly = self.agreement == "consensus" and few
        if not singly and len(left) > 1:
            scores = self.combined(scores, left, right)
            strips = [reaching_strips(scores, bound, side) for side, bound in enumerate(bits)]
        found = []
        for side, bound in enumerate(bits):
            query, other, reached = reaching(scores, bound, side, *strips[side])
            found.append((query, other, self.floats(reached)))
        return self.refined(found, bounds, left[1], right[1]) if singly else found

    def refined(
        self, found: list[Entries], bounds: Sequence[Tensor], left: Tensor, right: Tensor
    ) -> list[Entries]:
        """Entries scored by the first modality that reach the bound by the second too, which is computed."""
        rows = torch.cat([entries[side] for side, entries in enumerate(found)])
        cols = torch.cat([entries[1 - side] for side, entries in enumerate(found)])
        second = (left[rows].float() * right[cols].float()).sum(dim=1)
        kept_of = []
        parts = second.split([len(entries[0]) for entries in found])
        for (query, other, first), bound, part in zip(found, bounds, parts, strict=True):
            scores = torch.minimum(first, part)
            kept = (scores >= bound[query]).nonzero()[:, 0]
            kept_of.append((query[kept], other[kept], scores[kept]))
        return kept_of

    def bits(self, bound: Tensor) -> Tensor:
        """Integers that the bits of every score >= bound reach."""
        rounded = bound.to(self.dtype)
        bits = rounded.view(self.integer) - (rounded > bound).to(self.integer)
        return bits.masked_fill_(bound <= 0, torch.iinfo(self.integer).min)

    def floats(self, bits: Tensor) -> Tensor:
        """Scores whose bits these are, float32."""
        return bits.contiguous().view(self.dtype).float()


def reaching_strips(scores: Tensor, bound: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Strips of scores whose maximum reaches the bound of their row (side 0) or of their column (side 1).

    Parameters
    ----------
    scores : Tensor, (Q, B)
        The axis of the others is a multiple of `STRIP`.
    bound : Tensor, (Q,) or (B,)
    side : {0, 1}
        The axis of the queries.

    Returns
    -------
    query, strip : Tensor, (S,), int64
    """
    if side == 0:
        query, strip = (scores.unflatten(1, (-1, STRIP)).amax(dim=2) >= bound[:, None]).nonzero(as_tuple=True)
    else:
        strip, query = (scores.unflatten(0, (-1, STRIP)).amax(dim=1) >= bound).nonzero(as_tuple=True)
    return query, strip


def reaching(scores: Tensor, bound: Tensor, side: int, query: Tensor, strip: Tensor) -> Entries:
    """Entries of some strips that reach the bound of their query."""
    if side == 0:
        inside = scores.unflatten(1, (-1, STRIP))[query, strip]
    else:
        inside = scores.unflatten(0, (-1, STRIP))[strip, :, query]
    entry, offset = (inside >= bound[query, None]).nonzero(as_tuple=True)
    return query[entry], strip[entry] * STRIP + offset, inside[entry, offset]


def own_bound(scores: Tensor, screen: Screen, k: int) -> Tensor:
    """Score that k others of its own tile reach, a lower bound of a row's k-th best of all; (B,).

    `scores` are the bits of the tile's scores against itself, the lowest where an other is not allowed.
    """
    while scores.shape[1] >= 8 * k and scores.shape[1] % 2 == 0:
        half = scores.shape[1] // 2  # the best of two are still different others, and fewer to choose from
        scores = torch.maximum(scores[:, :half], scores[:, half:])
    bound = torch.full((len(scores),), -torch.inf, device=scores.device)
    if k <= scores.shape[1]:
        bits = scores.topk(k, dim=1, sorted=False).values.amin(dim=1)
        bound[bits > 0] = screen.floats(bits[bits > 0]) - screen.slack
    return bound
