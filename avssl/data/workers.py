"""Processes that read batches, and what happens when one of them dies or hangs.

A decoder that crashes in native code, or a process ended for want of memory, must not end a training of days.
`torch.utils.data.DataLoader` gives up then; here the workers are started again from the batch that was not
delivered, and the sample that was being read becomes a `Failure` of stage ``"worker"``. Batches are pure
functions of their keys, so the order and all other clips stay what they were. A worker that hangs is ended,
see `avssl.data.stall`, and is one that died from then on.
"""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.process
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from avssl.data.batch import ClipBatch
from avssl.data.dataset import NO_MEMORY, ClipKey, lacks_memory
from avssl.data.reading import Batches, BatchKey, Keys, start_worker
from avssl.data.stall import Stacks, Watch
from avssl.errors import AvsslError

FAULTS = frozenset(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
    if hasattr(signal, name)
)
"""Signals by which code ends its own process; others come from outside and may hit an innocent sample."""

MAX_DEATHS_IN_A_ROW = 5
"""With no batch between, and not by a fault in reading: there is something wrong with the machine."""

PATIENCE_SECONDS = 10.0


class WorkerError(AvsslError):
    """Workers die or hang again and again, whatever they read, or lack memory."""


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
    stall_seconds : float > 0
        How long a clip may take, see `avssl.data.stall.Watch`.
    options : dict
        Further arguments of the `DataLoader` of each start.

    Raises
    ------
    WorkerError
        When iterating: workers die or hang again and again with no batch between, or there is no memory for
        batches, for example no shared memory.
    DataGoneError
        When iterating, see `ClipDataset`.
    """

    def __init__(
        self,
        batches: Batches,
        sampler: Any,
        num_workers: int,
        stall_seconds: float,
        options: dict[str, Any],
    ) -> None:
        self.batches = batches
        self.sampler: Iterable[BatchKey] = sampler
        self.num_workers = num_workers
        self.stall_seconds = stall_seconds
        self.options = options
        self._deaths: Counter[ClipKey] = Counter()

    def __len__(self) -> int:
        assert isinstance(self.sampler, Sized)
        return len(self.sampler)

    def __iter__(self) -> Iterator[ClipBatch]:
        keys = Keys(self.sampler)
        deaths_in_a_row = 0
        with closing(Stacks()) as stacks:
            while True:
                keys.rewind()
                with self._started(keys, stacks) as (iterator, watch):
                    try:
                        while (batch := _next(iterator, keys, watch)) is not None:
                            self._check_memory(batch)
                            keys.delivered()
                            deaths_in_a_row = 0
                            yield batch
                        return
                    except (RuntimeError, OSError, EOFError, MemoryError) as error:
                        codes = watch.exit_codes(0.0 if _comes_from_worker(error) else PATIENCE_SECONDS)
                        if not codes and lacks_memory(error):
                            raise self._no_memory(str(error).strip().splitlines()[-1]) from error
                        if not codes:
                            raise  # no worker died: the error is what it seems
                        deaths_in_a_row = 0 if self._give_up(codes) else deaths_in_a_row + 1
                        if deaths_in_a_row >= MAX_DEATHS_IN_A_ROW:
                            raise self._too_many_deaths(watch.stalled, error) from error

    @contextmanager
    def _started(self, keys: Keys, stacks: Stacks) -> Iterator[tuple[Iterator[Any], Watch]]:
        """Batches of workers, and a watch over these; the workers end with the block."""
        iterator = self._start(keys, stacks)
        workers = getattr(iterator, "_workers", [])
        path_of, readings = self.batches.clips.manifest.path, self.batches.readings
        try:
            with Watch(
                readings, workers, self.stall_seconds, stacks, path_of, self._give_up_stalled
            ) as watch:
                yield iterator, watch
        finally:
            _shut_down(iterator, workers)

    def _start(self, keys: Keys, stacks: Stacks) -> Iterator[Any]:
        workers: dict[str, Any] = {}
        if self.num_workers > 0:
            start = partial(start_worker, stacks=stacks)
            workers = {"multiprocessing_context": worker_context(), "worker_init_fn": start}
            self.batches.readings.forget()
            _silence_torch()
        loader: DataLoader[Any] = DataLoader(
            self.batches,
            batch_size=None,
            sampler=keys,
            num_workers=self.num_workers,
            # A generator of its own: the loader's base seed must not move the random state of the training.
            generator=torch.Generator(),
            **workers,
            **self.options,
        )
        try:
            return iter(loader)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EAGAIN):
                raise
            raise self._no_memory(f"the processes cannot be started: {error.strerror}") from error

    def _give_up(self, codes: dict[int, int]) -> bool:
        """Give up the samples dead workers read, by their exit codes; whether a fault in reading is why."""
        suspects = [
            (reading.key, code)
            for worker, code in codes.items()
            if (reading := self.batches.readings.of(worker)) is not None
        ]
        for key, code in suspects:
            self._deaths[key] += 1
            if -code in FAULTS or self._deaths[key] > 1:
                self.batches.given_up.setdefault(key.row, _reason(code))
        return any(-code in FAULTS for _, code in suspects)

    def _give_up_stalled(self, key: ClipKey) -> None:
        self.batches.given_up[key.row] = (
            f"reading took longer than {self.stall_seconds:g} s; the process was ended"
        )

    # ---- errors

    def _check_memory(self, batch: ClipBatch) -> None:
        """One clip may be too large; several at a time say that memory is short."""
        count = sum(failure.reason == NO_MEMORY for failure in batch.failures)
        if count > 1:
            raise self._no_memory(f"for {count} clips of batch {batch.batch} of epoch {batch.epoch}")

    def _no_memory(self, what: str) -> WorkerError:
        return WorkerError(f"there is no memory left to read clips ({what}); {self._more_memory()}")

    def _too_many_deaths(self, stalled: str | None, error: BaseException) -> WorkerError:
        if stalled is None:
            return WorkerError(
                f"{MAX_DEATHS_IN_A_ROW} times in a row a process that reads clips died with no batch between "
                f"({error}); {self._more_memory()}"
            )
        return WorkerError(
            f"{MAX_DEATHS_IN_A_ROW} times in a row reading hung or broke off with no batch between, the last "
            f"time at {stalled}; see whether the storage answers, then give the same command again to go on; "
            f"if it is just slow, raise data.stall_seconds (now {self.stall_seconds:g})"
        )

    def _more_memory(self) -> str:
        if self.num_workers == 0:
            return "free memory, or make train.batch_size smaller"
        return (
            f"free memory and space in /dev/shm{_shared_space()}, in a container with docker run "
            f"--shm-size=16g, or use fewer processes: data.num_workers (now {self.num_workers}), 0 for none"
        )


def _shared_space() -> str:
    """How much shared memory there is, as far as it is known."""
    try:
        space = shutil.disk_usage("/dev/shm")
    except OSError:
        return ""
    return f" ({space.free / 1e9:.3g} of {space.total / 1e9:.3g} GB free)"


def _comes_from_worker(error: BaseException) -> bool:
    """Whether a worker raised and sent an error; if not, it may be the sign of one that dies."""
    return " in DataLoader worker process " in str(error).partition("\n")[0]


def _reason(code: int) -> str:
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return f"the process that read the file ended {how}, as when a decoder crashes or memory runs out"


def _next(iterator: Iterator[Any], keys: Keys, watch: Watch) -> ClipBatch | None:
    """Next batch, None at the end; RuntimeError at once when a worker dies, or died before."""
    with watch.waiting():
        if watch.workers and _may_handle_signals():
            batch = _next_unless_death(iterator, keys, watch)
        else:  # torch looks after its workers every five seconds
            batch = next(iterator, None)
    if isinstance(batch, AvsslError):
        raise batch
    return batch


def _next_unless_death(iterator: Iterator[Any], keys: Keys, watch: Watch) -> Any:
    before = signal.getsignal(signal.SIGCHLD)
    before = signal.SIG_DFL if before is None else before

    def check(*_: Any) -> None:
        if not keys.is_drawing and (codes := watch.exit_codes()):
            signal.signal(signal.SIGCHLD, before)  # wherever this raises, it does so once
            raise RuntimeError(f"workers ended with {sorted(codes.values())}")

    signal.signal(signal.SIGCHLD, check)
    try:
        check()
        return next(iterator, None)
    finally:
        signal.signal(signal.SIGCHLD, before)


def _may_handle_signals() -> bool:
    return threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")


def _silence_torch() -> None:
    """Take away torch's own handler of SIGCHLD: it raises wherever the training happens to be."""
    signal_handling._SIGCHLD_handler_set = True
    if _may_handle_signals():
        module = getattr(signal.getsignal(signal.SIGCHLD), "__module__", None) or ""
        if module.startswith("torch.utils.data"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _shut_down(iterator: Any, workers: Sequence[Any]) -> None:
    """End the workers, in peace if they can."""
    if workers:
        iterator._shutdown_workers()
    for worker in workers:
        # Torch sends SIGTERM, which it handles, and that wakes nobody who waits for a network mount.
        worker.kill()
        worker.join(1.0)
        if worker.exitcode is None:  # nothing wakes it: do not wait for it when this process ends
            multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]


def worker_context() -> str:
    """How workers start: "fork" (fast) on Linux while CUDA is untouched, else "forkserver" or "spawn"."""
    if sys.platform == "linux" and not torch.cuda.is_initialized():
        return "fork"
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
