"""Where a run stands, how long it is, and the random numbers of each of its steps."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from avssl import dist


@dataclass
class Position:
    """How far a run has come: steps done, and the batch (from 0) that comes next."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know; see `avssl.schema.TrainConfig` and `OptimConfig`."""

    epochs: int
    batches_per_epoch: int
    seed: int
    batch_size: int = 1  # clips a step, of all processes and parts
    warmup_epochs: int = 0  # of the memories, before the first epoch of training
    batches_per_warmup_epoch: int = 0
    accumulate: int = 1
    precision: torch.dtype = torch.float32
    clip_grad_norm: float | None = None
    log_every: int = 10
    held_out_every: int = 0
    checkpoint_seconds: float = 600.0

    def batches(self, epoch: int) -> int:
        """Batches of an epoch; those of warming up come first."""
        return self.batches_per_warmup_epoch if epoch < self.warmup_epochs else self.batches_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch of training; the last may have fewer parts than `accumulate`."""
        return -(-self.batches_per_epoch // self.accumulate)

    def steps_done(self, position: Position) -> int:
        """Steps of training, without those of warming up, that lie before a position."""
        if position.epoch < self.warmup_epochs:
            return 0
        whole_epochs = position.epoch - self.warmup_epochs
        return whole_epochs * self.steps_per_epoch + position.batch // self.accumulate

    def steps_after(self, position: Position) -> int:
        """Steps from a position to the end, those of warming up among them."""
        left = sum(
            -(-self.batches(epoch) // self.accumulate)
            for epoch in range(position.epoch, self.warmup_epochs + self.epochs)
        )
        return left - position.batch // self.accumulate


def seed_step(seed: int, step: int, salt: int = 0) -> torch.Generator:
    """Seed all global random numbers of a step, the same on all processes.

    A run that goes on needs no states of generators therefore, on any number of processes and workers.

    Parameters
    ----------
    seed, step : int >= 0
        Of the run.
    salt : int >= 0
        Tells apart what is done at one step.

    Returns
    -------
    torch.Generator
        For the augmentation of this process alone.
    """
    words = np.random.SeedSequence((seed, step, salt)).generate_state(4)
    torch.manual_seed(int(words[0]))
    random.seed(int(words[2]))  # this and the next for objectives and encoders from elsewhere
    np.random.seed(int(words[3]))  # noqa: NPY002
    if dist.rank() > 0:
        own = np.random.SeedSequence((seed, step, salt), spawn_key=(dist.rank(),))
        words = own.generate_state(2)
    return torch.Generator().manual_seed(int(words[1]))
