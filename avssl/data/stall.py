"""Reading that stalls: which clip each process reads and since when, and what becomes of one that hangs.

Native code that never returns, or a network mount that no longer answers, must not hang a training of days,
and the process that hangs cannot say so itself. So a thread of the process that waits looks at its workers.
"""

from __future__ import annotations

import faulthandler
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from avssl.data.dataset import ClipKey

STACK_SIGNAL = getattr(signal, "SIGQUIT", None) if hasattr(faulthandler, "register") else None
"""Makes a worker write down where it is, in native code that holds the interpreter's lock too."""

STACK_SECONDS = 2.0
"""How long to wait for that."""

DYING_SECONDS = 10.0
"""How long a process that is killed may take to end, before it counts as one that waits inside the system."""

INNARDS = os.path.join("torch", "utils", "data")
"""Where a stack begins to be the same for all workers."""

IDLE_SECONDS = 60.0
"""Least time for workers to start, or to put a batch together, before they are taken to hang."""

KILLED = -9
"""Exit code of a process that was killed."""

MAX_NAMED = 4
"""Clips that a message names."""


class Reading(NamedTuple):
    """A clip that is being read, and for how long."""

    key: ClipKey
    seconds: float


class Readings:
    """Which clip each worker reads, in memory that all processes see.

    Parameters
    ----------
    num_workers : int >= 0
        Processes that read; without any, this process counts as the first.
    """

    def __init__(self, num_workers: int) -> None:
        # Epoch, row, repeat and begin in nanoseconds; monotonic time is one for all processes of a machine.
        self._table = torch.full((max(1, num_workers), 4), -1, dtype=torch.int64)
        if num_workers > 0:
            self._table.share_memory_()

    def begin(self, worker: int, key: ClipKey) -> None:
        """Note what a worker reads from now on."""
        self._table[worker] = torch.tensor([*key, time.monotonic_ns()])

    def end(self, worker: int) -> None:
        """Note that it is done."""
        self._table[worker] = -1

    def of(self, worker: int) -> Reading | None:
        """What a worker reads, or read when it died; None between clips."""
        *key, begin = self._table[worker].tolist()
        if min(*key, begin) < 0:  # one of them alone: seen while it was being written
            return None
        return Reading(ClipKey(*key), (time.monotonic_ns() - begin) / 1e9)

    def all(self) -> dict[int, Reading]:
        """What is being read now, by worker."""
        return {i: reading for i in range(len(self._table)) if (reading := self.of(i)) is not None}

    def forget(self) -> None:
        """Before workers start again."""
        self._table.fill_(-1)


class Stacks:
    """A pipe through which workers say where they are."""

    def __init__(self) -> None:
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)
        if STACK_SIGNAL is not None:
            for end in (self._reader, self._writer):
                os.set_blocking(end.fileno(), False)

    def close(self) -> None:
        """Once no worker is left."""
        self._reader.close()
        self._writer.close()

    def start(self) -> None:
        """In a worker: write Python's stack into the pipe whenever `STACK_SIGNAL` comes."""
        if STACK_SIGNAL is not None:
            faulthandler.register(STACK_SIGNAL, self._writer, all_threads=False)

    def of(self, pid: int) -> str:
        """Python's stack in a worker, innermost call first."""
        text, end = "", time.monotonic() + STACK_SECONDS
        if STACK_SIGNAL is not None:
            self._read()
            with suppress(ProcessLookupError):
                os.kill(pid, STACK_SIGNAL)
            while time.monotonic() < end:
                time.sleep(0.05)
                more = self._read()
                if text and not more:
                    break
                text += more
        lines = takewhile(lambda line: INNARDS not in line, text.splitlines())
        return "\n".join(lines) or "  (unknown: it waits inside the system, as for a disk that is gone)"

    def _read(self) -> str:
        try:
            return os.read(self._reader.fileno(), 2**16).decode(errors="replace")
        except BlockingIOError:
            return ""


class Watch:
    """Looks after workers while a batch is waited for, in a thread, because the wait itself may hang.

    When no batch came for `stall_seconds`, workers whose clip takes longer than that are ended, and `give_up`
    is called with the clip. If there are none, it is said once what is being read; workers that read nothing
    for as long, and for `IDLE_SECONDS`, are ended too. Time is counted in looks, so that a machine that was
    suspended is not taken for a stall.

    Parameters
    ----------
    readings : Readings
        What workers read.
    workers : sequence of Process
        Empty when this process reads itself: nothing can be ended then.
    stall_seconds : float > 0
        See above.
    stacks : Stacks
        Started in each worker.
    path_of : callable
        Path of a row.
    give_up : callable
        Called from the thread with the `ClipKey` that hung, before its worker is ended.

    Attributes
    ----------
    stalled : str or None
        Path of the clip that hung last.
    """

    def __init__(
        self,
        readings: Readings,
        workers: Sequence[Any],
        stall_seconds: float,
        stacks: Stacks,
        path_of: Callable[[int], str],
        give_up: Callable[[ClipKey], None],
    ) -> None:
        self.readings = readings
        self.workers = workers
        self.stall_seconds = stall_seconds
        self.stacks = stacks
        self.path_of = path_of
        self.give_up = give_up
        self.stalled: str | None = None
        self._immortal: set[int] = set()
        self._is_waiting = self._is_said = False
        self._waited = self._idle = 0.0
        self._interval = min(1.0, stall_seconds / 4)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="avssl-stall", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if not sys.is_finalizing():  # it must not judge the workers that come next by what it saw of these
            self._thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        self._waited = self._idle = 0.0
        self._is_said = False
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False

    def exit_codes(self, patience: float = 0.0) -> dict[int, int]:
        """Exit codes of the workers that died, by number, minus the signal where it was one.

        A connection to a dying process breaks before its end is known: wait for that as long as `patience`.
        """
        if patience and self.workers and not self.exit_codes():
            dying = multiprocessing.connection.wait([worker.sentinel for worker in self.workers], patience)
            for worker in self.workers:
                if worker.sentinel in dying:  # which is closed a moment before there is an exit code
                    worker.join(patience)
        codes = {i: worker.exitcode for i, worker in enumerate(self.workers)}
        codes |= dict.fromkeys(self._immortal, KILLED)
        return {i: code for i, code in codes.items() if code}

    # ---- in the thread

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            if self._is_waiting:
                self._waited += self._interval
                now = self.readings.all()
                self._idle = 0.0 if now else self._idle + self._interval
                if self._waited >= self.stall_seconds and self._look(now):
                    return  # the workers start again, and with them another watch

    def _look(self, now: dict[int, Reading]) -> bool:
        """Look at workers after a long wait; whether some were ended."""
        stuck = {i: reading for i, reading in now.items() if reading.seconds > self.stall_seconds}
        if self.workers and stuck:
            ended = [i for i, reading in stuck.items() if self._end(i, reading)]
        elif self.workers and self._idle >= max(self.stall_seconds, IDLE_SECONDS):
            warn(f"no batch for {self._waited:.0f} s, and no clip is being read: workers are started again")
            ended = list(range(len(self.workers)))
            for worker in self.workers:
                worker.kill()
        else:
            ended = []
            self._say_slow(now)
        if not ended:
            return False
        wait = multiprocessing.connection.wait
        self._immortal.update(i for i in ended if not wait([self.workers[i].sentinel], DYING_SECONDS))
        if self._immortal and hasattr(signal, "SIGCHLD"):
            os.kill(os.getpid(), signal.SIGCHLD)  # wakes the wait, as the end of a worker does
        return True

    def _end(self, worker: int, reading: Reading) -> bool:
        """End a worker that hangs, unless it goes on after all."""
        stack = self.stacks.of(self.workers[worker].pid)
        if (still := self.readings.of(worker)) is None or still.key != reading.key:
            return False
        self.give_up(reading.key)
        self.stalled = self.path_of(reading.key.row)
        self.workers[worker].kill()
        warn(
            f"{self.stalled}: reading took {still.seconds:.0f} s, more than data.stall_seconds "
            f"({self.stall_seconds:g}); the process was ended and the file is given up. It was at:\n{stack}"
        )
        return True

    def _say_slow(self, now: dict[int, Reading]) -> None:
        """Say once a wait what takes so long."""
        # A clip that was begun just after the wait may yet turn out to hang.
        if self._is_said or not now or self._waited < self.stall_seconds + 2 * self._interval:
            return
        self._is_said = True
        oldest = sorted(now.values(), key=lambda reading: -reading.seconds)
        named = [f"{self.path_of(key.row)} ({seconds:.0f} s)" for key, seconds in oldest[:MAX_NAMED]]
        more = f" and {len(oldest) - MAX_NAMED} more" if len(oldest) > MAX_NAMED else ""
        hint = "the storage or decoding is slow" if self.workers else "data.num_workers=0, so nothing ends it"
        warn(f"no batch for {self._waited:.0f} s; being read: {', '.join(named)}{more}; {hint}")


def warn(text: str) -> None:
    """Tell the user at once: whoever waits for batches is in no place to."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
