"""Which clips make up which batch, and a loader of them.

One loader runs through the whole training: its workers start once, not once an epoch, and each batch says
its epoch and number. The order is a pure function of (seed, epoch), so a run resumes in the middle of an
epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from avssl.data.dataset import ClipDataset, ClipKey
from avssl.data.reading import Batches, BatchKey
from avssl.data.workers import ClipLoader


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
    fill_last : bool
        Fill the last batch with further clips of rows that are not in it, so that all rows come and all
        batches are of one size; then `drop_last` plays no part.
    rank, world_size : int
        This process reads the part of this number of each batch: put together in the order of the ranks, the
        parts are the batch of one process. When a batch does not divide, the first ranks read one clip more.
    draw : callable, optional
        Draws a permutation of the rows from a generator; by default any, see `avssl.data.locality` for one
        that suits shards far away.
    has_sound : ndarray, bool (num_rows,), optional
        Which rows have sound: they are spread evenly over each batch, and so over the parts of the ranks.
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
        fill_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        draw: Callable[[np.random.Generator], np.ndarray] | None = None,
        has_sound: np.ndarray | None = None,
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
        self.fill_last = fill_last
        self.start_batch = start_batch
        self.rank = rank
        self.world_size = world_size
        self.draw = draw
        self.has_sound = has_sound
        batches, rest = divmod(num_rows * repeats, self.batch_size)
        self.batches_per_epoch = batches + (rest > 0 and (fill_last or not drop_last))
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(f"start_batch must lie in [0, {self.batches_per_epoch}]; got {start_batch}")

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch

    def __iter__(self) -> Iterator[BatchKey]:
        order = self._order()
        for batch in range(self.start_batch, self.batches_per_epoch):
            positions = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, len(order)))
            if self.has_sound is not None:
                positions = positions[_spread(self.has_sound[order[positions]])]
            mine = np.array_split(positions, self.world_size)[self.rank]
            keys = (ClipKey(self.epoch, int(order[i]), int(i) // self.num_rows) for i in mine)
            yield BatchKey(self.epoch, batch, tuple(keys))

    def _order(self) -> np.ndarray:
        """Rows of the epoch: `repeats` permutations, and the start of one more that fills the last batch."""
        stream = np.random.SeedSequence(self.seed, spawn_key=(0, self.epoch))
        rng = np.random.Generator(np.random.Philox(stream))
        draw = self.draw or (lambda generator: generator.permutation(self.num_rows))
        passes = [draw(rng)]
        for repeat in range(1, self.repeats + self.fill_last):
            order = draw(rng)
            begun = repeat * self.num_rows % self.batch_size
            if begun:
                # The last batch of the previous pass goes on: first come rows that are not in it yet.
                other = np.isin(order, passes[-1][-begun:], invert=True)
                first = np.flatnonzero(other)[: self.batch_size - begun]
                order = np.concatenate([order[first], np.delete(order, first)])
            passes.append(order)
        length = self.batches_per_epoch * self.batch_size if self.fill_last else self.num_rows * self.repeats
        return np.concatenate(passes)[:length]


def _spread(marked: np.ndarray) -> np.ndarray:
    """Order of places, int64 (B,), in which the marked ones, bool (B,), stand at equal distances."""
    counts = np.where(marked, marked.cumsum(), (~marked).cumsum()) - 0.5
    return np.argsort(counts / np.where(marked, marked.sum(), (~marked).sum()), kind="stable")


class RunSampler(Sampler[BatchKey]):
    """Batches of a whole run: one `EpochSampler` after another, with its parameters.

    Parameters
    ----------
    epochs : int >= 1
        Epochs of the run, those before `start` included.
    start : (epoch, batch)
        First batch; the one after the last of an epoch is the first of the next.
    warmup_epochs : int >= 0
        First epochs, which leave no row out: their last batch is filled.

    Attributes
    ----------
    batches_per_epoch, batches_per_warmup_epoch : int
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
        warmup_epochs: int = 0,
        rank: int = 0,
        world_size: int = 1,
        draw: Callable[[np.random.Generator], np.ndarray] | None = None,
        has_sound: np.ndarray | None = None,
    ) -> None:
        self.epochs = epochs
        self.start = start
        self.warmup_epochs = warmup_epochs
        self._epoch_sampler = partial(
            EpochSampler,
            num_rows=num_rows,
            batch_size=batch_size,
            seed=seed,
            repeats=repeats,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            draw=draw,
            has_sound=has_sound,
        )
        self.batches_per_epoch = self._epoch_sampler(epoch=0).batches_per_epoch
        self.batches_per_warmup_epoch = self._epoch_sampler(epoch=0, fill_last=True).batches_per_epoch
        next(self._epochs(), None)  # refuses a start that is none

    def __len__(self) -> int:
        return sum(len(epoch) for epoch in self._epochs())

    def __iter__(self) -> Iterator[BatchKey]:
        for epoch in self._epochs():
            yield from epoch

    def _epochs(self) -> Iterator[EpochSampler]:
        for epoch in range(self.start[0], self.epochs):
            start_batch = self.start[1] if epoch == self.start[0] else 0
            fill = epoch < self.warmup_epochs
            yield self._epoch_sampler(epoch=epoch, start_batch=start_batch, fill_last=fill)


def ordered_batches(num_rows: int, batch_size: int, num_clips: int = 1) -> list[BatchKey]:
    """Batches for evaluation: rows in order, the clips of a row one after another, none left out."""
    keys = [ClipKey(0, row, clip) for row in range(num_rows) for clip in range(num_clips)]
    starts = range(0, len(keys), batch_size)
    return [BatchKey(0, i, tuple(keys[start : start + batch_size])) for i, start in enumerate(starts)]


def make_loader(
    dataset: ClipDataset,
    sampler: Sampler[BatchKey] | list[BatchKey],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 4,
    stall_seconds: float = 300.0,
) -> ClipLoader:
    """Loader of `ClipBatch`es in the order of the sampler; the same batches for any number of workers.

    A worker that dies or hangs is replaced, and the sample it read is a `Failure`, see `avssl.data.workers`;
    without workers a crash of a decoder ends this process, and one that hangs is waited for.

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
    stall_seconds : float > 0
        After so long a wait for a batch, a worker whose clip takes longer is ended. With none, or without
        workers, it is said which clips are being read.
    """
    options: dict[str, Any] = {"pin_memory": pin_memory}
    if num_workers > 0:
        options["prefetch_factor"] = prefetch_factor
    return ClipLoader(Batches(dataset, num_workers), sampler, num_workers, stall_seconds, options)
