"""The training loop: clips to views, views to a loss, a step; again, until it is done or told to stop.

All randomness of a step (augmentation, negatives) is seeded by (seed, step) alone, and that of clips and
order by (seed, epoch, row). A position and the states of objective and optimiser are therefore all that a run
needs to continue exactly as if it had not been interrupted.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from avssl.data import ClipBatch, SkipLedger
from avssl.errors import Interrupted, TrainingError
from avssl.objectives import Objective, collapse_signs, find_cma
from avssl.optim import set_learning_rate
from avssl.train.log import MetricsLog, RunningMeans
from avssl.transforms import ViewMaker
from avssl.types import Progress


@dataclass
class Position:
    """How far a run has come: steps done, and the batch (from 0) that comes next."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know; see `avssl.build.TrainConfig` and `OptimConfig`."""

    epochs: int
    batches_per_epoch: int
    seed: int
    warmup_epochs: int = 0  # of the memories, before the first epoch of training
    accumulate: int = 1
    precision: torch.dtype = torch.float32
    clip_grad_norm: float | None = None
    log_every: int = 10
    checkpoint_seconds: float = 600.0
    max_skipped: float = 1.0
    num_rows: int = 1


class Trainer:
    """Trains an objective.

    Parameters
    ----------
    objective, views, optimizer
        On one device.
    batches : iterable of ClipBatch
        The batches of all epochs from `position` on, in order.
    rate : callable
        Factor of the learning rate at an epoch with fraction.
    settings : LoopSettings
        Numbers of the loop.
    save : callable
        Called without arguments to write a checkpoint of `state`.
    log : MetricsLog
        Takes the numbers.
    ledger : SkipLedger
        Takes the clips that could not be read.
    position : Position
        Where to begin; moved along.
    after_mining : callable, optional
        Called as ``after_mining(objective, epoch, step)`` when an objective has mined positives anew.
    say : callable
        Takes warnings for the user, such as of a collapse.
    """

    def __init__(
        self,
        objective: Objective,
        views: ViewMaker,
        optimizer: Optimizer,
        batches: Any,
        rate: Callable[[float], float],
        settings: LoopSettings,
        save: Callable[[Trainer], None],
        log: MetricsLog,
        ledger: SkipLedger,
        position: Position,
        after_mining: Callable[[Any, int, int], object] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.objective = objective
        self.views = views
        self.optimizer = optimizer
        self.batches = batches
        self.rate = rate
        self.settings = settings
        self.save = save
        self.log = log
        self.ledger = ledger
        self.position = position
        self.after_mining = after_mining
        self.say = say
        self._warned: set[str] = set()
        self.device = next(objective.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == torch.float16)
        self.means = RunningMeans()
        self._stop_signal: int | None = None
        self._last_save = self._window_start = time.monotonic()
        self._window_clips, self._window_wait = 0, 0.0

    def state(self) -> dict[str, Any]:
        """All that changes while training."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": vars(self.position).copy(),
        }

    def fit(self, progress: Progress) -> None:
        """Train to the end.

        Raises
        ------
        Interrupted
            After Ctrl-C or SIGTERM, once the step is done and a checkpoint written.
        TooManySkippedError
            When more files cannot be read than the run allows.
        TrainingError
            When the loss is not finite.
        """
        self.objective.train()
        with self._catch_signals():
            for parts in self._grouped():
                if parts[0].batch == 0:
                    self._begin_epoch(parts[0].epoch, progress)
                self._step(parts)
                self._advance(parts[-1])
                self._report(progress)
                self._maybe_save()
        self._write_log()
        self.save(self)

    def _grouped(self) -> Iterator[list[ClipBatch]]:
        """Batches in groups of `accumulate`, never across an epoch; counts the time spent waiting."""
        parts: list[ClipBatch] = []
        waiting_since = time.monotonic()
        for batch in self.batches:
            self._window_wait += time.monotonic() - waiting_since
            for failure in batch.failures:
                self.ledger.add(failure, batch.epoch)
            parts.append(batch)
            last = batch.batch == self.settings.batches_per_epoch - 1
            if len(parts) == self.settings.accumulate or last:
                yield parts
                parts = []
            waiting_since = time.monotonic()

    def _begin_epoch(self, epoch: int, progress: Progress) -> None:
        """Let the objective prepare an epoch of training; one that warms up the memories needs nothing."""
        if epoch < self.settings.warmup_epochs:
            return
        self._seed_step(salt=1)
        step = self.position.step
        numbers = self.objective.before_epoch(
            epoch - self.settings.warmup_epochs,
            progress=lambda done, total: progress.update(step, mining=f"{done / total:.0%}"),
        )
        if numbers:
            self.log.write(step, epoch, numbers)
        cma = find_cma(self.objective)
        if numbers and cma is not None and self.after_mining is not None:
            self.after_mining(cma, epoch, step)

    def _seed_step(self, salt: int = 0) -> torch.Generator:
        """Seed all random numbers of this step; returns a generator for the augmentation."""
        words = np.random.SeedSequence((self.settings.seed, self.position.step, salt)).generate_state(2)
        torch.manual_seed(int(words[0]))
        return torch.Generator().manual_seed(int(words[1]))

    def _step(self, parts: list[ClipBatch]) -> None:
        """One optimiser step; each part's loss is weighted by its share of the clips."""
        generator = self._seed_step()
        parts = [part for part in parts if len(part) > 1]  # batch norm needs two
        total = sum(len(part) for part in parts)
        warming_up = bool(parts) and parts[0].epoch < self.settings.warmup_epochs
        done_steps = max(0, self.position.step - self.settings.warmup_epochs * self._steps_per_epoch)
        self.objective.set_progress(done_steps, self.settings.epochs * self._steps_per_epoch)
        set_learning_rate(self.optimizer, self.rate(done_steps / self._steps_per_epoch))
        for part in parts:
            part = part.to(self.device, non_blocking=True)
            views = self.views(part.frames, part.waveform, part.index, generator)
            with torch.autocast(
                self.device.type, self.settings.precision, enabled=self.settings.precision != torch.float32
            ):
                if warming_up:
                    self.objective.fill_memory(views)
                    continue
                out = self.objective(views)
            self.scaler.scale(out["loss"] * (len(part) / total)).backward()
            self.means.add(out)
        if parts and not warming_up:
            self._update()
        self._window_clips += total

    def _update(self) -> None:
        self.objective.before_step()
        if self.settings.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.settings.clip_grad_norm)
            self.means.add({"grad_norm": norm})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()

    @property
    def _steps_per_epoch(self) -> int:
        return -(-self.settings.batches_per_epoch // self.settings.accumulate)

    def _advance(self, last: ClipBatch) -> None:
        self.position.step += 1
        self.position.epoch, self.position.batch = last.epoch, last.batch + 1
        if self.position.batch == self.settings.batches_per_epoch:
            self.position.epoch, self.position.batch = last.epoch + 1, 0

    def _report(self, progress: Progress) -> None:
        if self.position.step % self.settings.log_every == 0:
            numbers = self._write_log()
            self.ledger.check(self.settings.max_skipped, self.settings.num_rows)
            fields: dict[str, Any] = (
                {"loss": numbers["loss"]} if "loss" in numbers else {"memory": "warms up"}
            )
            rate = f"{numbers['clips_per_second']:.0f} clips/s"
            progress.update(self.position.step, **fields, rate=rate)

    def _write_log(self) -> dict[str, float]:
        """Write the means since the last line; raises on a loss that is not finite."""
        seconds = max(time.monotonic() - self._window_start, 1e-9)
        numbers = self.means.read() | {
            "lr": self.optimizer.param_groups[0]["lr"],
            "clips_per_second": self._window_clips / seconds,
            "data_wait_share": self._window_wait / seconds,
        }
        if "loss" in numbers:
            self.log.write(self.position.step, self.position.epoch, numbers)
        if not np.isfinite(numbers.get("loss", 0.0)):
            raise TrainingError(
                f"the loss became {numbers['loss']} by step {self.position.step}; lower optim.lr, set "
                "optim.clip_grad_norm, or use train.precision=float32"
            )
        self._warn_of_collapse(numbers)
        self._window_start, self._window_clips, self._window_wait = time.monotonic(), 0, 0.0
        return numbers

    def _warn_of_collapse(self, numbers: dict[str, float]) -> None:
        """Say each sign of a collapse once, the first time it shows."""
        done = self.objective.done_steps / max(1, self.objective.total_steps)
        for sentence in collapse_signs(numbers, done):
            sign = sentence.partition(" ")[0]
            if sign not in self._warned:
                self._warned.add(sign)
                self.say(f"warning: step {self.position.step}: {sentence}")

    def _maybe_save(self) -> None:
        due = time.monotonic() - self._last_save > self.settings.checkpoint_seconds
        if self.position.batch == 0 or due or self._stop_signal is not None:
            self.save(self)
            self._last_save = time.monotonic()
        if self._stop_signal is not None:
            name = signal.Signals(self._stop_signal).name
            raise Interrupted(
                f"stopped by {name} after step {self.position.step}; the checkpoint is written: "
                "give the same command again to resume"
            )

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the run after the step; a second Ctrl-C ends it at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self._stop_signal is not None:
                raise KeyboardInterrupt
            self._stop_signal = number

        in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python refuses handlers
        caught = (signal.SIGINT, signal.SIGTERM) if in_main else ()
        previous = {number: signal.signal(number, note) for number in caught}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
