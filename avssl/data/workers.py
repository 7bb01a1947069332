"""Processes that read batches, and what happens when one of them dies.

A decoder that crashes in native code, or a process ended for want of memory, must not end a training of days.
`torch.utils.data.DataLoader` gives up then; here the workers are started again from the batch that was not
delivered, and the sample that was being read becomes a `Failure` of stage ``"worker"``. Batches are pure
functions of their keys, so the order and all other clips stay what they were.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from avssl.data.batch import ClipBatch, collate
from avssl.data.dataset import ClipDataset, ClipKey, Failure
from avssl.errors import AvsslError

FAULTS = frozenset(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
    if hasattr(signal, name)
)
"""Signals by which code ends its own process; others come from outside and may hit an innocent sample."""

MAX_DEATHS_IN_A_ROW = 5
"""Of workers that read nothing, with no batch between: there is something wrong with the machine."""


PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class BatchKey:
    """Which clips make up a batch, and which batch of the run it is (both counted from 0)."""

    epoch: int
    batch: int
    keys: tuple[ClipKey, ...]


class WorkerError(AvsslError):
    """Workers die again and again, whatever they read."""


class Batches(Dataset[ClipBatch]):
    """A dataset whose items are batches, so that a batch is made and packed inside one worker.

    Parameters
    ----------
    clips : ClipDataset
        Where clips come from.
    num_workers : int >= 0
        Processes it is read by.
    """

    def __init__(self, clips: ClipDataset, num_workers: int) -> None:
        self.clips = clips
        self.given_up: dict[int, str] = {}
        self._reading: Tensor = torch.full((num_workers, 3), -1, dtype=torch.int64).share_memory_()

    def __getitem__(self, key: BatchKey) -> ClipBatch:
        return collate([self._clip(clip) for clip in key.keys], key.epoch, key.batch)

    def _clip(self, key: ClipKey) -> Any:
        if key.row in self.given_up:
            sample, path = self.clips.manifest.row(key.row), self.clips.manifest.path(key.row)
            return Failure(key.row, sample.id, path, "worker", self.given_up[key.row])
        worker = get_worker_info()
        if worker is None:
            return self.clips[key]
        self._reading[worker.id] = torch.tensor(key)
        clip = self.clips[key]
        self._reading[worker.id] = -1
        return clip

    def reading(self, worker: int) -> ClipKey | None:
        """Which clip a worker reads, or read when it died; None between clips."""
        epoch, row, repeat = self._reading[worker].tolist()
        return None if row < 0 else ClipKey(epoch, row, repeat)

    def forget_readings(self) -> None:
        """Before workers start again."""
        self._reading.fill_(-1)


class ClipLoader:
    """Iterates over `ClipBatch`es in the order of a sampler; see `avssl.data.loader.make_loader`.

    Parameters
    ----------
    batches : Batches
        What workers read.
    sampler : iterable of BatchKey
        Which batches, with a length.
    num_workers : int >= 0
        Processes that read.
    options : dict
        Further arguments of the `DataLoader` of each start.

    Raises
    ------
    WorkerError
        When iterating: workers die though they read nothing, for example for want of shared memory.
    """

    def __init__(self, batches: Batches, sampler: Any, num_workers: int, options: dict[str, Any]) -> None:
        self.batches = batches
        self.sampler: Iterable[BatchKey] = sampler
        self.num_workers = num_workers
        self.options = options
        self._deaths: Counter[ClipKey] = Counter()

    def __len__(self) -> int:
        assert isinstance(self.sampler, Sized)
        return len(self.sampler)

    def __iter__(self) -> Iterator[ClipBatch]:
        keys = iter(self.sampler)
        undelivered: deque[BatchKey] = deque()
        deaths_in_a_row = 0
        while True:
            iterator = self._start(_noted(undelivered, keys))
            try:
                while (batch := _next(iterator)) is not None:
                    undelivered.popleft()
                    deaths_in_a_row = 0
                    yield batch
                return
            except (RuntimeError, OSError, EOFError) as error:
                codes = _exit_codes(iterator, patience=PATIENCE_SECONDS)
                if not codes:
                    raise  # no worker died: the error is what it seems
                has_culprit = self._give_up(codes)
                deaths_in_a_row = 0 if has_culprit else deaths_in_a_row + 1
                if deaths_in_a_row >= MAX_DEATHS_IN_A_ROW:
                    raise WorkerError(
                        f"{deaths_in_a_row} times in a row a process that reads clips died before it read "
                        f"any ({error}); free memory and space in /dev/shm, or set data.num_workers=0"
                    ) from error
            del iterator  # ends the workers that are left

    def _start(self, keys: Iterator[BatchKey]) -> Iterator[ClipBatch]:
        workers: dict[str, Any] = {}
        if self.num_workers > 0:
            workers = {"multiprocessing_context": worker_context(), "worker_init_fn": start_worker}
            self.batches.forget_readings()
        loader: DataLoader[ClipBatch] = DataLoader(
            self.batches,
            batch_size=None,
            sampler=keys,
            num_workers=self.num_workers,
            # A generator of its own: the loader's base seed must not move the random state of the training.
            generator=torch.Generator(),
            **workers,
            **self.options,
        )
        return iter(loader)

    def _give_up(self, codes: dict[int, int]) -> bool:
        """Give up the samples dead workers read, by their exit codes; whether any of them read one."""
        suspects = [(key, code) for worker, code in codes.items() if (key := self.batches.reading(worker))]
        for key, code in suspects:
            self._deaths[key] += 1
            if -code in FAULTS or self._deaths[key] > 1:
                self.batches.given_up[key.row] = _reason(code)
        return bool(suspects)


def _noted(undelivered: deque[BatchKey], keys: Iterator[BatchKey]) -> Iterator[BatchKey]:
    """What was not delivered, then the rest, which is noted as it is drawn."""
    yield from tuple(undelivered)
    for key in keys:
        undelivered.append(key)
        yield key


def _exit_codes(iterator: Any, patience: float = 0.0) -> dict[int, int]:
    """Exit codes of the workers that died, by number, minus the signal where it was one.

    A connection to a dying process breaks before its end is known: wait for that as long as `patience`.
    """
    workers = getattr(iterator, "_workers", [])
    if patience and workers:
        multiprocessing.connection.wait([worker.sentinel for worker in workers], patience)
    codes = {i: worker.exitcode for i, worker in enumerate(workers)}
    return {i: code for i, code in codes.items() if code}


def _reason(code: int) -> str:
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return f"the process that read the file ended {how}, as when a decoder crashes or memory runs out"


def _next(iterator: Iterator[ClipBatch]) -> ClipBatch | None:
    """Next batch, None at the end; RuntimeError at once when a worker dies, or died before.

    Torch's own handler of SIGCHLD raises wherever the training happens to be: outside it is taken away.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return next(iterator, None)  # torch looks after its workers every five seconds

    def check(*_: Any) -> None:
        if codes := _exit_codes(iterator):
            raise RuntimeError(f"workers ended with {sorted(codes.values())}")

    before = signal.signal(signal.SIGCHLD, check)
    is_torchs = getattr(before, "__module__", "").startswith("torch.utils.data")
    try:
        check()
        return next(iterator, None)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_torchs or before is None else before)


def worker_context() -> str:
    """How workers start: "fork" (fast) on Linux while CUDA is untouched, else "forkserver" or "spawn"."""
    if sys.platform == "linux" and not torch.cuda.is_initialized():
        return "fork"
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def start_worker(worker_id: int) -> None:
    """Prepare a new process for reading."""
    # Ctrl-C, and SIGTERM of `timeout` or a scheduler, go to the whole process group: workers leave it, for
    # the trainer saves a checkpoint first and then ends them.
    if hasattr(os, "setsid"):
        os.setsid()
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):  # the last two SLURM may send to each process of a job
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # A forked process that frees a codec of its parent waits for ever for threads which only the parent has.
    gc.freeze()
    torch.set_num_threads(1)
