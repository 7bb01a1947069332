"""Exact nearest neighbours by inner product, in bounded memory, with torch or FAISS."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor


def nearest(
    queries: Tensor, vectors: Tensor, k: int, backend: Literal["torch", "faiss"] = "torch", block: int = 1024
) -> tuple[Tensor, Tensor]:
    """Find the k vectors with the largest inner product with each query.

    Parameters
    ----------
    queries : Tensor, (Q, D)
        Query vectors; unit rows give cosine similarity.
    vectors : Tensor, (N, D)
        What is searched.
    k : int, 1 to N
        Neighbours a query.
    backend : {"torch", "faiss"}
        Blocked matrix products on the tensors' device, or ``faiss.IndexFlatIP`` on the CPU; same result.
    block : int >= 1
        Queries a block of the torch back end, which bounds its memory to ``block * N`` scores.

    Returns
    -------
    scores : Tensor, (Q, k), descending
    rows : Tensor, (Q, k), int64
    """
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k must be between 1 and the {len(vectors)} vectors searched; got {k}")
    if backend == "faiss":
        return _nearest_faiss(queries, vectors, k)
    parts = [torch.topk(part @ vectors.T, k, dim=1) for part in queries.split(block)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def _nearest_faiss(queries: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import faiss  # here, not above: its import takes half a second that training does not need

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(_as_numpy(vectors))
    scores, rows = index.search(_as_numpy(queries), k)
    return (
        torch.from_numpy(scores).to(queries.device),
        torch.from_numpy(rows).to(queries.device),
    )


def _as_numpy(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().float().cpu().numpy())
