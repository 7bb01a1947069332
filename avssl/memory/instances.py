"""What a memory knows of its instances before it has seen them: their keys, and random vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl import dist


def instance_keys(ids: Sequence[str]) -> Tensor:
    """Keys of sample ids: the first eight bytes of their BLAKE2 hash, int64 (N,), never 0.

    A bank stores them instead of the ids, eight bytes a row whatever the length of an id. Two of a million
    ids agree with probability 3e-8, two of a hundred million with 3e-4.

    Raises
    ------
    ValueError
        When two ids are equal or have the same key.
    """
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    keys = np.frombuffer(digests, dtype="<i8").astype(np.int64)
    keys[keys == 0] = 1
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    if same.size:
        first, second = (ids[order[same[0] + i]] for i in (0, 1))
        raise ValueError(f"ids {first!r} and {second!r} have the same key; ids must be unique: rename one")
    return torch.from_numpy(keys)


def random_rows(num_rows: int, dim: int, piece: int = 2**16) -> Iterator[tuple[int, Tensor]]:
    """Random unit rows of rank 0 in pieces, with the number of the first row of each.

    They are those of one draw of all (num_rows, dim), which the pieces do not hold at once: torch draws in
    sixteens, so pieces are multiples of sixteen rows and the last one is not a small one.
    """
    start = 0
    while start < num_rows:
        length = piece if num_rows - start >= 2 * piece else num_rows - start
        yield start, dist.broadcast_(F.normalize(torch.randn(length, dim), dim=1))
        start += length
