"""Several threads that work side by side on tensors of a CPU, each without threads of its own.

Small operations gain nothing from the threads inside torch: a thread for each tile keeps all cores busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """As many threads as torch would use; one on a GPU, which is busy enough with one.

    At the end of the ``with`` block everything submitted is done; after an error or an interruption it is
    given up.
    """

    def __init__(self, device: torch.device) -> None:
        self._torch_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._torch_threads if device.type == "cpu" else 1)
        self._submitted: list[Future[Any]] = []

    def __enter__(self) -> Threads:
        torch.set_num_threads(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._pool.shutdown(cancel_futures=kind is not None)
            for future in self._submitted if kind is None else ():
                future.result()
        finally:
            torch.set_num_threads(self._torch_threads)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items."""
        return self._pool.map(function, items)

    def submit(self, function: Callable[..., object], *arguments: Any) -> None:
        """Do this at some time before the end of the block."""
        self._submitted.append(self._pool.submit(function, *arguments))
