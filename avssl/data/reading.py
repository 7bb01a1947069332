"""Batches: which are due, and how a process reads one."""

from __future__ import annotations

import gc
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from avssl.data.batch import ClipBatch, PackedFrames, collate
from avssl.data.dataset import ClipDataset, ClipKey, Failure
from avssl.data.stall import Readings, Stacks
from avssl.errors import AvsslError


@dataclass(frozen=True)
class BatchKey:
    """Which clips make up a batch, and which batch of the run it is (both counted from 0)."""

    epoch: int
    batch: int
    keys: tuple[ClipKey, ...]


class Keys:
    """Draws from a sampler; after `rewind`, the keys whose batches were not delivered come first.

    Parameters
    ----------
    sampler : iterable of BatchKey

    Attributes
    ----------
    is_drawing : bool
        Whether the sampler is at work: an error that a signal raises there would end it.
    """

    def __init__(self, sampler: Iterable[BatchKey]) -> None:
        self._keys = iter(sampler)
        self._undelivered: deque[BatchKey] = deque()
        self._again: Iterator[BatchKey] = iter(())
        self.is_drawing = False

    def __iter__(self) -> Keys:
        return self

    def __next__(self) -> BatchKey:
        for key in self._again:
            return key
        self.is_drawing = True
        try:
            key = next(self._keys)
            self._undelivered.append(key)
        finally:
            self.is_drawing = False
        return key

    def delivered(self) -> None:
        """The batch that was due has come."""
        self._undelivered.popleft()

    def rewind(self) -> None:
        """Before workers start again."""
        self._again = iter(tuple(self._undelivered))


class Batches(Dataset[ClipBatch | AvsslError]):
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
        self.readings = Readings(num_workers)

    def __getitem__(self, key: BatchKey) -> ClipBatch | AvsslError:
        try:
            batch = collate([self._clip(clip) for clip in key.keys], key.epoch, key.batch)
        except AvsslError as error:
            return error  # raised here, it would reach the user inside a traceback of this process
        if get_worker_info() is not None:
            _share(batch)
        return batch

    def _clip(self, key: ClipKey) -> Any:
        if key.row in self.given_up:
            sample, path = self.clips.manifest.row(key.row), self.clips.manifest.path(key.row)
            return Failure(key.row, sample.id, path, "worker", self.given_up[key.row])
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        self.readings.begin(number, key)
        try:
            return self.clips[key]
        finally:
            self.readings.end(number)


def _share(batch: ClipBatch) -> None:
    """Move a batch to shared memory here, where what goes wrong can be said.

    Torch would do it in a thread that prints the error and drops the batch, for which all would wait.
    """
    tensors = PackedFrames.pack(batch.frames).pixels, batch.waveform, batch.index, batch.sounding
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            tensor.share_memory_()


def start_worker(worker_id: int, stacks: Stacks) -> None:
    """Prepare a new process for reading."""
    # Ctrl-C, and SIGTERM of `timeout` or a scheduler, go to the whole process group: workers leave it, for
    # the trainer saves a checkpoint first and then ends them.
    if hasattr(os, "setsid"):
        os.setsid()
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):  # the last two SLURM may send to each process of a job
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    stacks.start()
    # A forked process that frees a codec of its parent waits for ever for threads which only the parent has.
    gc.freeze()
    torch.set_num_threads(1)
