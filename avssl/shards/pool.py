"""The same function over many tasks: in processes of this machine, or of a cluster through Ray."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeAlias, TypeVar

import torch

from avssl.data.workers import worker_context
from avssl.errors import PrepareError

T = TypeVar("T")
R = TypeVar("R")
TASKS_AHEAD = 4
"""Tasks waiting for each process, so that none is ever idle."""


class Died:
    """In place of a result: the process ended by itself, as when a decoder crashes or memory runs out."""


Results: TypeAlias = Generator[tuple[T, R | Died], None, None]


def run_tasks(
    function: Callable[[T], R], tasks: Iterable[T], workers: int, ray_address: str | None = None
) -> Results[T, R]:
    """Tasks with their results, in the order they are done.

    Parameters
    ----------
    function : callable
        Picklable; may run in any process.
    tasks : iterable
        Drawn as they are needed.
    workers : int >= 1
        Processes of this machine.
    ray_address : str, optional
        Run on this Ray cluster instead, on all its processors: an address, ``"auto"`` for the one this
        machine belongs to, or ``"local"`` to start one here.

    Raises
    ------
    PrepareError
        When Ray is not installed or the cluster does not answer.
    """
    if ray_address is not None:
        return _run_on_ray(function, tasks, ray_address)
    return _run_here(function, tasks, workers)


def _run_here(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Results[T, R]:
    source = iter(tasks)
    queue: deque[T] = deque()
    while True:
        waiting: dict[Future[R], T] = {}
        pool = _pool(workers)
        try:
            while True:
                queue.extend(islice(source, workers * TASKS_AHEAD - len(waiting) - len(queue)))
                while queue:
                    waiting[pool.submit(function, queue[0])] = queue[0]
                    queue.popleft()
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield waiting.pop(future), result
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(cancel_futures=True)
        # Nobody knows which of these ended its process: each gets one of its own.
        for task in waiting.values():
            yield task, _run_alone(function, task)


def _pool(workers: int) -> ProcessPoolExecutor:
    gc.collect()  # see _start_worker
    return ProcessPoolExecutor(workers, get_context(worker_context()), _start_worker)


def _run_alone(function: Callable[[T], R], task: T) -> R | Died:
    with _pool(1) as pool:
        try:
            return pool.submit(function, task).result()
        except BrokenProcessPool:
            return Died()


def _start_worker() -> None:
    # Ctrl-C goes to the whole process group: the parent alone answers it, and waits for the tasks begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A forked process that frees a codec of its parent waits for ever for threads which only the parent has.
    gc.freeze()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """A parent that is killed cannot end its workers, and they would wait for tasks for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _run_on_ray(function: Callable[[T], R], tasks: Iterable[T], address: str) -> Results[T, R]:
    try:
        import ray
    except ImportError as error:
        raise PrepareError(f"--ray-address needs Ray ({error}): pip install 'avssl[ray]'") from error
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PrepareError(f"no Ray cluster at {address!r}: {reason}; start one with: ray start") from error
    try:
        work: Any = ray.remote(num_cpus=1, max_retries=1)(lambda task: function(task))
        slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        source = iter(tasks)
        waiting: dict[Any, T] = {}
        while True:
            for task in islice(source, slots * TASKS_AHEAD - len(waiting)):
                waiting[work.remote(task)] = task
            if not waiting:
                return
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            try:
                result: R | Died = ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                result = Died()
            except (ray.exceptions.RaySystemError, ray.exceptions.LocalRayletDiedError) as error:
                raise PrepareError(f"the Ray cluster at {address!r} is gone; run again") from error
            yield waiting.pop(done), result
    finally:
        ray.shutdown()
