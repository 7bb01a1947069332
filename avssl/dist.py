"""The processes that train together: their group, and the few collectives objectives and loop need.

Without a process group each collective is the identity, so one code path serves a laptop and many ranks.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

from avssl.errors import TrainingError

T = TypeVar("T")

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=7)
"""How long the others wait for what the first process does alone, such as probing a million files."""
_SPEAKING_SECONDS = 5.0
"""Time for the process that failed to say why: torchrun ends all as soon as one has gone."""
_patient_group: torch_dist.ProcessGroup | None = None


def is_distributed() -> bool:
    """Whether a process group is set up."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def world_size() -> int:
    """Number of processes that train together."""
    return torch_dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Number of this process, 0 to ``world_size() - 1``."""
    return torch_dist.get_rank() if is_distributed() else 0


def local_rank() -> int:
    """Number of this process among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if is_distributed() else 0


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if is_distributed() else 1


# ---- the group


@contextmanager
def process_group() -> Iterator[None]:
    """Group of the processes that torchrun started, while the block runs; started alone there is none.

    Tensors on the CPU are exchanged by gloo, those on GPUs by NCCL. An error in one process ends all: the
    first that fails raises it, the others, whose exchanges then break, leave in silence with status 1. When
    a process ends without a word, killed for memory say, one of the others says so.

    Raises
    ------
    TrainingError
        When another process has ended without a word.
    """
    global _patient_group
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or not all(name in os.environ for name in _LAUNCHED):
        yield
        return
    shared, own, size = next(torch_dist.rendezvous("env://"))
    # torchrun keeps its store when it starts the processes again: with the addresses of those that are gone.
    store = torch_dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch_dist.init_process_group(backend, store=store, rank=own, world_size=size)
    _patient_group = torch_dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield
    except SystemExit:  # agreed on by all; torchrun ends those left once one has gone: they go together
        torch_dist.barrier(group=_patient_group)
        raise
    except (Exception, KeyboardInterrupt) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it before what happened is said
        if not _is_first_failure(store):
            time.sleep(_SPEAKING_SECONDS)
            raise SystemExit(1) from error
        if _is_broken_exchange(error):
            raise TrainingError(
                "another process of this run ended without a word, perhaps killed for lack of memory; give "
                "the same command again to go on from the last checkpoint"
            ) from error
        raise
    finally:
        _patient_group = None
        torch_dist.destroy_process_group()


def _is_first_failure(store: torch_dist.Store) -> bool:
    try:
        return int(store.add("avssl/failures", 1)) == 1
    except torch_dist.DistError:  # it was kept by a process that is gone
        return True


def _is_broken_exchange(error: BaseException) -> bool:
    gloo = isinstance(error, RuntimeError) and "gloo" in str(error)  # gloo has no error class of its own
    return gloo or isinstance(error, torch_dist.DistError)


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, alone and however long it takes, for all of them."""
    if not is_distributed():
        return make()
    box: list[Any] = [make() if rank() == 0 else None]
    torch_dist.broadcast_object_list(box, src=0, group=_patient_group)
    made: T = box[0]
    return made


def wait_for_all() -> None:
    """Return once every process has come here."""
    if is_distributed():
        torch_dist.barrier(group=_patient_group)


# ---- collectives


def all_gather(x: Tensor) -> Tensor:
    """Concatenate `x` of all ranks along the first axis, in rank order, without gradient.

    Parameters
    ----------
    x : Tensor, (B, ...)
        Same shape on every rank.

    Returns
    -------
    Tensor, (world_size * B, ...)
    """
    x = x.detach().contiguous()
    if not is_distributed():
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    torch_dist.all_gather(parts, x)
    return torch.cat(parts)


def gather_objects(x: T) -> list[T]:
    """Objects that can be pickled, of all ranks in order."""
    if not is_distributed():
        return [x]
    found: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(found, x)
    return found


def own_rows(x: Tensor) -> Tensor:
    """Rows (B, ...) of this rank among those (world_size * B, ...) of all, in rank order."""
    return x.chunk(world_size())[rank()]


def all_mean(x: Tensor) -> Tensor:
    """Mean of `x` over ranks, without gradient."""
    x = x.detach().clone()
    if is_distributed():
        torch_dist.all_reduce(x)
        x /= world_size()
    return x


def broadcast_(x: Tensor) -> Tensor:
    """Overwrite `x` on every rank by its value on rank 0; what lies on "meta" has none."""
    if is_distributed() and not x.is_meta:
        torch_dist.broadcast(x, src=0)
    return x
