"""Which clips make up which batch, and the workers that read them.

One `DataLoader` runs through the whole training: its workers start once, not once an epoch, and each batch
says its epoch and number. The order is a pure function of (seed, epoch), so a run resumes in the middle of an
epoch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from avssl.data.batch import ClipBatch, collate
from avssl.data.dataset import ClipDataset, ClipKey


@dataclass(frozen=True)
class BatchKey:
    """Which clips make up a batch, and which batch of the run it is (both counted from 0)."""

    epoch: int
    batch: int
    keys: tuple[ClipKey, ...]


class EpochSampler(Sampler[BatchKey]):
    """Batches of one epoch: every row `repeats` times, in random order, no row twice in one batch.

    Parameters
    ----------
    num_rows : int >= 1
        Rows of the manifest.
    batch_size : int >= 1
        Clips a batch over all ranks; with fewer rows than that, a batch holds each row once.
    seed, epoch : int >= 0
        Decide the order, alone.
    repeats : int >= 1
        Clips of each row in an epoch.
    start_batch : int >= 0
        First batch, to resume within the epoch; ``batches_per_epoch`` gives nothing.
    drop_last : bool
        Leave out the last batch when it is smaller than the others (never when it is the only one).
    rank, world_size : int
        This process reads clips ``rank::world_size`` of each batch. When a batch does not divide, the first
        ranks read one clip more.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        epoch: int,
        repeats: int = 1,
        start_batch: int = 0,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("num_rows", num_rows), ("batch_size", batch_size), ("repeats", repeats)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size); got rank {rank} of {world_size}")
        self.num_rows = num_rows
        self.batch_size = min(batch_size, num_rows)
        self.seed = seed
        self.epoch = epoch
        self.repeats = repeats
        self.start_batch = start_batch
        self.rank = rank
        self.world_size = world_size
        batches, rest = divmod(num_rows * repeats, self.batch_size)
        self.batches_per_epoch = batches + (rest > 0 and not drop_last)
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(f"start_batch must lie in [0, {self.batches_per_epoch}]; got {start_batch}")

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch

    def __iter__(self) -> Iterator[BatchKey]:
        order = self._order()
        for batch in range(self.start_batch, self.batches_per_epoch):
            positions = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, len(order)))
            mine = positions[self.rank :: self.world_size]
            keys = (ClipKey(self.epoch, int(order[i]), int(i) // self.num_rows) for i in mine)
            yield BatchKey(self.epoch, batch, tuple(keys))

    def _order(self) -> np.ndarray:
        """Rows of the epoch: `repeats` permutations, one after another."""
        stream = np.random.SeedSequence(self.seed, spawn_key=(0, self.epoch))
        rng = np.random.Generator(np.random.Philox(stream))
        passes = [rng.permutation(self.num_rows)]
        for repeat in range(1, self.repeats):
            order = rng.permutation(self.num_rows)
            begun = repeat * self.num_rows % self.batch_size
            if begun:
                # The last batch of the previous pass goes on: first come rows that are not in it yet.
                other = np.isin(order, passes[-1][-begun:], invert=True)
                first = np.flatnonzero(other)[: self.batch_size - begun]
                order = np.concatenate([order[first], np.delete(order, first)])
            passes.append(order)
        return np.concatenate(passes)


class RunSampler(Sampler[BatchKey]):
    """Batches of a whole run: one `EpochSampler` after another, with its parameters.

    Parameters
    ----------
    epochs : int >= 1
        Epochs of the run, those before `start` included.
    start : (epoch, batch)
        First batch; ``(e, batches_per_epoch)`` is ``(e + 1, 0)``.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        epochs: int,
        repeats: int = 1,
        start: tuple[int, int] = (0, 0),
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.epochs = epochs
        self.start = start
        self._epoch_sampler = partial(
            EpochSampler,
            num_rows=num_rows,
            batch_size=batch_size,
            seed=seed,
            repeats=repeats,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        self.batches_per_epoch = self._epoch_sampler(epoch=start[0], start_batch=start[1]).batches_per_epoch

    def __len__(self) -> int:
        return max(0, (self.epochs - self.start[0]) * self.batches_per_epoch - self.start[1])

    def __iter__(self) -> Iterator[BatchKey]:
        for epoch in range(self.start[0], self.epochs):
            start_batch = self.start[1] if epoch == self.start[0] else 0
            yield from self._epoch_sampler(epoch=epoch, start_batch=start_batch)


def ordered_batches(num_rows: int, batch_size: int, num_clips: int = 1) -> list[BatchKey]:
    """Batches for evaluation: rows in order, the clips of a row one after another, none left out."""
    keys = [ClipKey(0, row, clip) for row in range(num_rows) for clip in range(num_clips)]
    starts = range(0, len(keys), batch_size)
    return [BatchKey(0, i, tuple(keys[start : start + batch_size])) for i, start in enumerate(starts)]


class _Batches(Dataset[ClipBatch]):
    """A dataset whose items are batches, so that a batch is made and packed inside one worker."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __getitem__(self, key: BatchKey) -> ClipBatch:
        return collate([self.clips[clip] for clip in key.keys], key.epoch, key.batch)


def make_loader(
    dataset: ClipDataset,
    sampler: Sampler[BatchKey] | list[BatchKey],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 4,
    timeout_seconds: float = 0.0,
) -> DataLoader[ClipBatch]:
    """Loader of `ClipBatch`es in the order of the sampler; the same batches for any number of workers.

    Parameters
    ----------
    dataset : ClipDataset
        Where clips come from.
    sampler : RunSampler, EpochSampler or list of BatchKey
        Which batches; for evaluation `ordered_batches`.
    num_workers : int >= 0
        Processes that read; 0 reads in this one.
    pin_memory : bool
        Put batches in page-locked memory, for copies to a GPU.
    prefetch_factor : int >= 1
        Batches each worker keeps ready.
    timeout_seconds : float >= 0
        With workers, the longest wait for a batch before the loader raises RuntimeError; 0 waits forever.
    """
    workers: dict[str, Any] = {}
    if num_workers > 0:
        workers = {
            "multiprocessing_context": worker_context(),
            "worker_init_fn": _start_worker,
            "persistent_workers": True,
            "prefetch_factor": prefetch_factor,
            "timeout": timeout_seconds,
        }
    return DataLoader(
        _Batches(dataset),
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # A generator of its own: the loader's base seed must not move the random state of the training.
        generator=torch.Generator(),
        **workers,
    )


def worker_context() -> str:
    """How workers start: "fork" (fast) on Linux while CUDA is untouched, else "forkserver" or "spawn"."""
    if sys.platform == "linux" and not torch.cuda.is_initialized():
        return "fork"
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _start_worker(worker_id: int) -> None:
    # Ctrl-C, and SIGTERM of `timeout` or a scheduler, go to the whole process group: workers leave it, for
    # the trainer saves a checkpoint first and then ends them.
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
