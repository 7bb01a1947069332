"""The training loop: clips to views, views to a loss, a step; again, until it is done or told to stop.

All randomness of a step is seeded by (seed, step) alone, that of augmentation also by the process, and that
of clips and order by (seed, epoch, row). A position and the states of objective and optimiser are therefore
all that a run needs to continue exactly as if it had not been interrupted.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from avssl import dist
from avssl.data import ClipBatch, SkipLedger
from avssl.errors import Interrupted, TrainingError
from avssl.objectives import Objective, collapse_signs, find_cma
from avssl.optim import set_learning_rate
from avssl.train.lockstep import Agreement, agree
from avssl.train.log import MetricsLog, RunningMeans
from avssl.train.position import LoopSettings, Position
from avssl.train.sharding import whole
from avssl.train.signals import StopRequest
from avssl.transforms import ViewMaker
from avssl.types import Progress


class Trainer:
    """Trains an objective, on one process or several in step.

    Parameters
    ----------
    objective, views, optimizer
        On one device.
    batches : iterable of ClipBatch
        The batches of all epochs from `position` on, in order, or this process's part of each.
    rate : callable
        Factor of the learning rate at an epoch with fraction.
    settings : LoopSettings
        Numbers of the loop.
    save : callable
        Called with the trainer, on all processes, to write a checkpoint of `state`.
    log : MetricsLog or None
        Takes the numbers, which are means over processes; None on all but the first.
    ledger : SkipLedger
        Takes the clips that could not be read, on the first process those of all.
    position : Position
        Where to begin; moved along.
    after_mining : callable, optional
        Called as ``after_mining(objective, epoch, step)`` when an objective has mined positives anew.
    say : callable
        Takes warnings for the user, such as of a collapse.
    model : nn.Module, optional
        What to call for a loss, such as the objective wrapped for several processes; the objective itself by
        default.
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
        log: MetricsLog | None,
        ledger: SkipLedger,
        position: Position,
        after_mining: Callable[[Any, int, int], object] | None = None,
        say: Callable[[str], None] = lambda line: None,
        model: nn.Module | None = None,
    ) -> None:
        self.objective = objective
        self.model = objective if model is None else model
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
        self._stop = StopRequest()
        self._last_save = self._window_start = time.monotonic()
        self._window_clips, self._window_mute, self._window_surplus, self._window_wait = 0, 0, 0, 0.0

    def state(self) -> dict[str, Any]:
        """All that changes while training, whole on the first process; all processes must call it."""
        return {
            "objective": whole(self.objective.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "position": vars(self.position).copy(),
        }

    def fit(self, progress: Progress) -> None:
        """Train to the end.

        Raises
        ------
        Interrupted
            After Ctrl-C or SIGTERM to any process, once a step is done and a checkpoint written.
        TooManySkippedError
            When more files cannot be read than the run allows.
        TrainingError
            When the loss is not finite.
        """
        self.objective.train()
        with self._stop.listening():
            for last, agreed in self._steps():
                if self.position.batch == 0:
                    self._begin_epoch(self.position.epoch, progress)
                self._step(agreed)
                self._advance(last)
                self._report(progress)
                self._maybe_save(agreed)
        self._write_log()
        self.save(self)

    def _steps(self) -> Iterator[tuple[ClipBatch, Agreement]]:
        """The last batch of each step and what processes agreed on for it; counts the time spent waiting."""
        waiting_since = time.monotonic()
        for parts in self._grouped():
            agreed = agree(
                parts, stop=self._stop.number, save=self._save_is_due, fill=self._warms_up(parts[0].epoch)
            )
            self._window_wait += time.monotonic() - waiting_since
            for failure, epoch in agreed.failures if self.log is not None else ():
                self.ledger.add(failure, epoch)
            yield parts[-1], agreed
            waiting_since = time.monotonic()

    def _grouped(self) -> Iterator[list[ClipBatch]]:
        """Batches in groups of `accumulate`, never across an epoch."""
        parts: list[ClipBatch] = []
        for batch in self.batches:
            parts.append(batch)
            last = batch.batch == self.settings.batches(batch.epoch) - 1
            if len(parts) == self.settings.accumulate or last:
                yield parts
                parts = []

    def _warms_up(self, epoch: int) -> bool:
        """Whether an epoch fills the memories and trains nothing."""
        return epoch < self.settings.warmup_epochs

    def _begin_epoch(self, epoch: int, progress: Progress) -> None:
        """Let the objective prepare an epoch of training; one that warms up the memories needs nothing."""
        if self._warms_up(epoch):
            return
        self._seed_step(salt=1)
        step = self.position.step
        numbers = self.objective.before_epoch(
            epoch - self.settings.warmup_epochs,
            progress=lambda done, total: progress.update(step, mining=f"{done / total:.0%}"),
        )
        if numbers and self.log is not None:
            self.log.write(step, epoch, numbers)
        cma = find_cma(self.objective)
        if numbers and cma is not None and self.after_mining is not None:
            self.after_mining(cma, epoch, step)

    def _seed_step(self, salt: int = 0) -> torch.Generator:
        """Seed all random numbers of this step; returns a generator for this process's augmentation."""
        entropy = (self.settings.seed, self.position.step, salt)
        words = np.random.SeedSequence(entropy).generate_state(2)
        torch.manual_seed(int(words[0]))
        if dist.rank() > 0:
            words = np.random.SeedSequence(entropy, spawn_key=(dist.rank(),)).generate_state(2)
        return torch.Generator().manual_seed(int(words[1]))

    def _step(self, agreed: Agreement) -> None:
        """One optimiser step; each part's loss is weighted by its share of the clips."""
        generator = self._seed_step()
        done_steps = max(0, self.position.step - self.settings.warmup_steps)
        self.objective.set_progress(done_steps, self.settings.epochs * self.settings.steps_per_epoch)
        set_learning_rate(self.optimizer, self.rate(done_steps / self.settings.steps_per_epoch))
        warming_up = self._warms_up(self.position.epoch)
        total = sum(len(part) for part in agreed.parts)
        for number, part in enumerate(agreed.parts, start=1):
            part = part.to(self.device, non_blocking=True)
            views = self.views(part.frames, part.waveform, part.index, generator, part.sounding)
            with self._gradients_kept(number < len(agreed.parts)):
                with self._autocast():
                    if warming_up:
                        self.objective.fill_memory(views)
                        continue
                    out = self.model(views)
                self.scaler.scale(out["loss"] * (len(part) / total)).backward()
            self.means.add(out)
        if agreed.parts and not warming_up:
            self._update()
        self._window_clips += agreed.clips
        self._window_mute += agreed.mute
        self._window_surplus += agreed.surplus

    def _autocast(self) -> torch.autocast:
        precision = self.settings.precision
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    def _gradients_kept(self, more: bool) -> AbstractContextManager[None]:
        """Where copies average gradients: wait with that while more parts of the step are to come."""
        if more and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _update(self) -> None:
        self.objective.before_step()
        if self.settings.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.settings.clip_grad_norm)
            self.means.add({"grad_norm": norm.full_tensor() if isinstance(norm, DTensor) else norm})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()

    def _advance(self, last: ClipBatch) -> None:
        self.position.step += 1
        self.position.epoch, self.position.batch = last.epoch, last.batch + 1
        if self.position.batch == self.settings.batches(last.epoch):
            self.position.epoch, self.position.batch = last.epoch + 1, 0

    def _report(self, progress: Progress) -> None:
        if self.position.step % self.settings.log_every == 0:
            numbers = self._write_log()
            if self.log is not None:
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
        if self._window_mute and self.views.spectrogram is not None:
            numbers["video_only_share"] = self._window_mute / self._window_clips
        if dist.world_size() > 1:
            numbers["surplus_clips"] = float(self._window_surplus)
        if "loss" in numbers and self.log is not None:
            self.log.write(self.position.step, self.position.epoch, numbers)
        if not np.isfinite(numbers.get("loss", 0.0)):
            raise TrainingError(
                f"the loss became {numbers['loss']} by step {self.position.step}; lower optim.lr, set "
                "optim.clip_grad_norm, or use train.precision=float32"
            )
        self._warn_of_collapse(numbers)
        self._window_start = time.monotonic()
        self._window_clips, self._window_mute, self._window_surplus, self._window_wait = 0, 0, 0, 0.0
        return numbers

    def _warn_of_collapse(self, numbers: dict[str, float]) -> None:
        """Say each sign of a collapse once, the first time it shows."""
        done = self.objective.done_steps / max(1, self.objective.total_steps)
        for sentence in collapse_signs(numbers, done):
            sign = sentence.partition(" ")[0]
            if sign not in self._warned:
                self._warned.add(sign)
                self.say(f"warning: step {self.position.step}: {sentence}")

    @property
    def _save_is_due(self) -> bool:
        return time.monotonic() - self._last_save > self.settings.checkpoint_seconds

    def _maybe_save(self, agreed: Agreement) -> None:
        """Save after an epoch and now and then; save and stop if that was asked for."""
        stop, due = agreed.stop, agreed.save
        if dist.world_size() == 1:  # nobody to agree with: what came up during the step counts at once
            stop, due = self._stop.number, self._save_is_due
        if self.position.batch == 0 or due or stop:
            self.save(self)
            self._last_save = time.monotonic()
        if stop:
            raise Interrupted(
                f"stopped by {signal.Signals(stop).name} after step {self.position.step}; the checkpoint is "
                "written: give the same command again to resume",
                stop,
            )
