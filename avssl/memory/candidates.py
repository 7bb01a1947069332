"""Agreements from FAISS: an index proposes candidates, exact scores choose among them.

The inner product of ``[v; a]`` vectors is ``sim_v + sim_a`` and ``min(a, b) <= (a + b) / 2``: everything an
exhaustive index leaves out of its M best sums agrees at most half the M-th sum. Where the k-th best
agreement among the candidates reaches that, the row is proved exact. The maximum (union) needs a search in
each modality, and is bounded by the larger of the two M-th similarities. An approximate index overlooks
rows within its M best, so there the bound proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avssl.memory.rows import FLOAT32_SLACK, Rows, exact_rows, joined, rescore

DEEPEST = 2048
"""Candidates a row at most; FAISS on a GPU returns no more."""


@contextmanager
def faiss_threads(num: int) -> Iterator[None]:
    """Let FAISS use `num` threads inside, and as many as before afterwards."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Index:
    """FAISS index of one kind of vectors of all rows.

    Parameters
    ----------
    vectors : callable
        Row numbers (Q,) to float32 vectors (Q, D).
    num_rows : int
    kind : {"flat", "ivf", "hnsw", "ivfpq"}
    device : torch.device
        On "cuda" the index lives there when FAISS was built for GPUs (HNSW stays on the CPU).
    block : int
        Rows added at once.
    """

    def __init__(
        self,
        vectors: Callable[[Tensor], Tensor],
        num_rows: int,
        kind: str,
        device: torch.device,
        block: int = 65536,
    ) -> None:
        import faiss

        if num_rows < 39 * 16:  # too few to train lists or codes on
            kind = "flat"
        self.vectors = vectors
        everything = torch.arange(num_rows, device=device)
        dim = vectors(everything[:1]).shape[1]
        num_lists = int(max(1, min(4 * num_rows**0.5, num_rows / 39)))
        num_codes = dim // 4 if dim % 4 == 0 else dim
        recipe = {
            "flat": "Flat",
            "hnsw": "HNSW32",
            "ivf": f"IVF{num_lists},Flat",
            # 8-bit codes are trained on 39 * 256 vectors
            "ivfpq": f"IVF{num_lists},PQ{num_codes}x{8 if num_rows >= 39 * 256 else 4}",
        }[kind]
        index = faiss.index_factory(dim, recipe, faiss.METRIC_INNER_PRODUCT)
        self.on_gpu = device.type == "cuda" and faiss.get_num_gpus() > 0 and kind != "hnsw"
        if self.on_gpu:
            resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(resources, device.index or 0, index)
        if not index.is_trained:
            step = max(1, num_rows // max(64 * num_lists, 39 * 256))
            index.train(self.numpy(everything[::step]))
        for part in everything.split(block):
            index.add(self.numpy(part))
        self.index: Any = index
        self.knob = {"ivf": "nprobe", "ivfpq": "nprobe", "hnsw": "efSearch"}.get(kind)
        self.most_effort = {"ivf": num_lists, "ivfpq": num_lists, "hnsw": DEEPEST}.get(kind, 1)

    def numpy(self, ids: Tensor) -> np.ndarray:
        """Vectors of some rows as FAISS takes them."""
        return np.ascontiguousarray(self.vectors(ids).cpu().numpy())

    def set_effort(self, effort: int) -> None:
        """Lists probed (IVF), or nodes kept in the search (HNSW)."""
        import faiss

        if self.knob:
            space = faiss.GpuParameterSpace() if self.on_gpu else faiss.ParameterSpace()
            space.set_index_parameter(self.index, self.knob, min(effort, self.most_effort))

    def search(self, queries: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Inner products (falling) and row numbers of the `depth` best; (Q, depth) each, -1 where fewer."""
        scores, ids = self.index.search(self.numpy(queries), depth)
        return torch.from_numpy(scores).to(queries.device), torch.from_numpy(ids).to(queries.device)


def unique_ids(ids: Tensor) -> Tensor:
    """Row numbers (Q, M), with -1 where a number occurs again in its row; the order changes."""
    ids = ids.sort(dim=1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return ids.masked_fill(again, -1)


class CandidateSearch:
    """Candidates of one or two indexes, chosen among by their agreement.

    Parameters
    ----------
    rows : Rows
    kind : {"flat", "ivf", "hnsw", "ivfpq"}
    """

    def __init__(self, rows: Rows, kind: str) -> None:
        self.rows = rows
        parts: list[Callable[[Tensor], Tensor]] = [lambda ids: joined(rows, ids)]
        if rows.agreement == "union":
            parts = [lambda ids: rows.take(ids)[0], lambda ids: rows.take(ids)[1]]
        self.indexes = [Index(part, len(rows), kind, rows.video.device) for part in parts]

    def set_effort(self, effort: int) -> bool:
        """Set how hard the indexes search; False when that is the most they can."""
        for index in self.indexes:
            index.set_effort(effort)
        return effort < self.indexes[0].most_effort

    def search(self, queries: Tensor, k: int, depth: int) -> tuple[Tensor, Tensor]:
        """The k best among `depth` candidates an index.

        Returns
        -------
        ids : Tensor, (Q, k), int64
            -1 where fewer were found.
        proved : Tensor, (Q,), bool
            Whether no row outside the candidates can be better; means something for "flat" only.
        """
        depth = min(depth, len(self.rows))
        results = [index.search(queries, depth) for index in self.indexes]
        candidates = unique_ids(torch.cat([ids for _, ids in results], dim=1))
        if candidates.shape[1] < k:
            candidates = torch.nn.functional.pad(candidates, (0, k - candidates.shape[1]), value=-1)
        scores, ids = rescore(self.rows, queries, candidates, k)
        bound = torch.stack([products[:, -1] for products, _ in results]).amax(dim=0)
        if self.rows.agreement == "consensus":
            bound = bound / 2  # min(a, b) <= (a + b) / 2
        everything = depth == len(self.rows)
        return ids, (scores[:, -1] >= bound + FLOAT32_SLACK) | everything


def search_flat(
    rows: Rows, queries: Tensor, k: int, progress: Callable[[int], None], block: int = 1024
) -> tuple[Tensor, int]:
    """Exact agreements of some rows from an exhaustive index, each row searched as deep as its proof needs.

    Rows without proof at `DEEPEST` candidates are compared with all rows.

    Returns
    -------
    ids : Tensor, (Q, k), int64
    deepest : int
        Candidates of the row that needed most.
    """
    search = CandidateSearch(rows, "flat")
    found = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
    open_rows = torch.arange(len(queries), device=queries.device)
    depth = deepest = min(8 * k, DEEPEST)
    while len(open_rows) and depth <= DEEPEST:
        deepest, still = depth, []
        for part in open_rows.split(block):
            ids, proved = search.search(queries[part], k, depth)
            found[part[proved]] = ids[proved]
            still.append(part[~proved])
        open_rows, depth = torch.cat(still), 2 * depth
        progress(len(queries) - len(open_rows))
    for part in open_rows.split(block):
        found[part] = exact_rows(rows, queries[part], k)[1]
    progress(len(queries))
    return found, deepest
