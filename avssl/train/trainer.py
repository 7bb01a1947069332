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

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from avssl import dist
from avssl.data import ClipBatch
from avssl.data.workers import WorkerError
from avssl.errors import DataGoneError, Interrupted
from avssl.objectives import Objective
from avssl.optim import set_learning_rate
from avssl.train.lockstep import Agreement, agree, grouped
from avssl.train.log import peak_memory
from avssl.train.meter import Meter
from avssl.train.position import LoopSettings, Position, seed_step
from avssl.train.sharding import whole
from avssl.train.shortage import explained_shortage
from avssl.train.signals import StopRequest
from avssl.train.speed import DevicePrefetcher
from avssl.train.watchers import Watchers
from avssl.transforms import ViewMaker
from avssl.types import Progress

Logged = dict[str, Tensor]
"""What an objective returns: the loss and scalars by name."""


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
    watchers : Watchers
        Who is told what happens.
    position : Position
        Where to begin; moved along.
    model : nn.Module, optional
        What to call for a loss instead of the objective, such as its wrapper for several processes.
    """

    def __init__(
        self,
        objective: Objective,
        views: ViewMaker,
        optimizer: Optimizer,
        batches: Any,
        rate: Callable[[float], float],
        settings: LoopSettings,
        watchers: Watchers,
        position: Position,
        model: nn.Module | None = None,
    ) -> None:
        self.objective = objective
        self.model = objective if model is None else model
        self.views = views
        self.optimizer = optimizer
        self.batches = batches
        self.rate = rate
        self.settings = settings
        self.watchers = watchers
        self.guard = watchers.guard
        self.position = position
        self.device = next(objective.parameters()).device
        self.on_device = DevicePrefetcher(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == torch.float16)
        self.meter = Meter()
        self._stop = StopRequest()
        self._last_save = time.monotonic()

    def state(self) -> dict[str, Any]:
        """All that changes while training, whole on the first process; all processes must call it."""
        return {
            "objective": whole(self.objective.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "guard": self.guard.state(),
            "position": vars(self.position).copy(),
        }

    def load_scales(self, checkpoint: dict[str, Any]) -> None:
        """Take over from a checkpoint what the loop itself keeps beside objective, optimiser and position."""
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.guard.load_state(checkpoint.get("guard", {}))

    def fit(self, progress: Progress) -> None:
        """Train to the end.

        Raises
        ------
        Interrupted
            After Ctrl-C or SIGTERM to any process, once a step is done and a checkpoint written.
        TooManySkippedError
            When more files cannot be read than the run allows.
        TrainingError
            When the loss is not finite, as `train.nonfinite` says, and when memory runs out.
        WorkerError, DataGoneError
            When processes that read die again and again, and when the folder of the data has vanished.
        """
        self.objective.train()
        with self._stop.listening(), explained_shortage(self):
            for last, agreed in self._steps():
                if self.position.batch == 0:
                    self._begin_epoch(self.position.epoch, progress)
                self._step(agreed)
                self._advance(last)
                self._report(progress)
                self._maybe_save(agreed, deserved=self._measure(progress))
            self._write_log()
            self.watchers.finish_writing()

    def _steps(self) -> Iterator[tuple[ClipBatch, Agreement]]:
        """The last batch of each step and what processes agreed on for it; counts the time spent waiting."""
        waiting_since = time.monotonic()
        for parts in self._saved_when_data_fail(grouped(self.batches, self.settings)):
            agreed = agree(
                parts, stop=self._stop.number, save=self._save_is_due, fill=self._warms_up(parts[0].epoch)
            )
            self.meter.waited(time.monotonic() - waiting_since)
            self.watchers.count_failures(agreed)
            yield parts[-1], agreed
            waiting_since = time.monotonic()

    def _saved_when_data_fail(self, groups: Iterator[list[ClipBatch]]) -> Iterator[list[ClipBatch]]:
        """Hand groups on; when reading ends for good, nothing of what was trained on till then is lost."""
        try:
            yield from groups
        except (DataGoneError, WorkerError):
            if dist.world_size() == 1:  # the others of several know nothing of it
                self._save()
            raise

    def _warms_up(self, epoch: int) -> bool:
        """Whether an epoch fills the memories and trains nothing."""
        return epoch < self.settings.warmup_epochs

    def _begin_epoch(self, epoch: int, progress: Progress) -> None:
        """Let the objective prepare an epoch of training; one that warms up the memories needs nothing."""
        if self._warms_up(epoch):
            return
        step = self.position.step
        seed_step(self.settings.seed, step, salt=1)
        numbers = self.objective.before_epoch(
            epoch - self.settings.warmup_epochs,
            progress=lambda done, total: progress.update(step, mining=f"{done / total:.0%}"),
        )
        if numbers:
            self.watchers.mined(self.objective, step, epoch, numbers)

    def _step(self, agreed: Agreement) -> None:
        """One optimiser step; each part's loss is weighted by its share of the clips."""
        generator = seed_step(self.settings.seed, self.position.step)
        done_steps = self.settings.steps_done(self.position)
        self.objective.set_progress(done_steps, self.settings.epochs * self.settings.steps_per_epoch)
        rate = self.rate(done_steps / self.settings.steps_per_epoch)
        set_learning_rate(self.optimizer, rate * self.guard.rate_factor)
        self.guard.begin()
        warming_up = self._warms_up(self.position.epoch)
        with self.objective.in_parts() if len(agreed.parts) > 1 else nullcontext():
            logged = self._backward(agreed.parts, generator, warming_up)
        if logged:
            self._update(logged)
        self.meter.add_clips(agreed)

    def _backward(self, parts: list[ClipBatch], generator: torch.Generator, warming_up: bool) -> list[Logged]:
        """Sum up the gradients of all parts; returns what each has to log. Warming up only fills memories."""
        total, kind = sum(len(part) for part in parts), self.settings.precision
        logged: list[Logged] = []
        for number, part in enumerate(self.on_device(parts), start=1):
            views = self.views(part.frames, part.waveform, part.index, generator, part.sounding)
            with self._gradients_kept(number < len(parts)):
                with torch.autocast(self.device.type, kind, enabled=kind != torch.float32):
                    if warming_up:
                        self.objective.fill_memory(views)
                        continue
                    out = self.model(views)
                self.scaler.scale(out["loss"] * (len(part) / total)).backward()
            self.guard.saw(self.position.step + 1, self.position.epoch, out["loss"], parts[number - 1].index)
            logged.append(out)
        return logged

    def _gradients_kept(self, more: bool) -> AbstractContextManager[None]:
        """Where copies average gradients: wait with that while more parts of the step are to come."""
        if more and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _update(self, logged: list[Logged]) -> None:
        """Move the parameters, unless the step must be taken back; then as if it had never been."""
        self.objective.before_step()
        norm = self._gradient_norm()
        # Gradients scaled for float16 overflow now and then; the scaler leaves out such steps by itself.
        if self.guard.spoils(self.position.step + 1, None if self.scaler.is_enabled() else norm):
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        for numbers in logged:
            self.meter.add(numbers)
        if norm is not None:
            self.meter.add({"grad_norm": norm})

    def _gradient_norm(self) -> Tensor | None:
        """Norm of the whole gradient, which is clipped if so asked; None in steps that nobody asks it of."""
        limit = self.settings.clip_grad_norm
        is_logged = (self.position.step + 1) % self.settings.log_every == 0
        if limit is None and not is_logged and self.guard.policy == "stop":
            return None
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.objective.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _advance(self, last: ClipBatch) -> None:
        self.position.step += 1
        self.position.epoch, self.position.batch = last.epoch, last.batch + 1
        if self.position.batch == self.settings.batches(last.epoch):
            self.position.epoch, self.position.batch = last.epoch + 1, 0

    def _report(self, progress: Progress) -> None:
        if self.position.step % self.settings.log_every == 0:
            numbers = self._write_log()
            fields: dict[str, Any] = {"rate": f"{numbers['clips_per_second']:.0f} clips/s"}
            if self._warms_up(self.position.epoch):
                fields["memory"] = "warms up"
            elif "loss" in numbers:
                fields["loss"] = numbers["loss"]
            progress.update(self.position.step, **fields)

    def _write_log(self) -> dict[str, float]:
        """Write the means since the last line; raises on a loss that is not finite."""
        self.guard.check()
        numbers = self.meter.read(hears=self.views.spectrogram is not None)
        numbers |= {"lr": self.optimizer.param_groups[0]["lr"], **peak_memory(self.device)}
        self.watchers.logged(self, numbers)
        return numbers

    def _save(self) -> None:
        """Begin to write a checkpoint, if all is finite."""
        self.guard.check()
        self.guard.check_weights(self.objective, self.position.step)
        self.watchers.save(self)
        self._last_save = time.monotonic()

    @property
    def _save_is_due(self) -> bool:
        return time.monotonic() - self._last_save > self.settings.checkpoint_seconds

    def _measure(self, progress: Progress) -> bool:
        """Measure the encoders on held-out data when it is time; whether that deserves a checkpoint."""
        every = self.settings.held_out_every
        if not every or self.position.step % every or self._warms_up(self.position.epoch):
            return False
        began = time.monotonic()
        deserved = self.watchers.measure(self, progress)
        self.meter.leave_out(time.monotonic() - began)
        return deserved

    def _maybe_save(self, agreed: Agreement, deserved: bool) -> None:
        """Save after an epoch and now and then; save and stop if that was asked for."""
        self.watchers.check_writing()
        stop, due = agreed.stop, agreed.save
        if dist.world_size() == 1:  # nobody to agree with: what came up during the step counts at once
            stop, due = self._stop.number, self._save_is_due
        if self.position.batch == 0 or due or deserved or stop:
            self._save()
        if stop:
            self.watchers.finish_writing()
            raise Interrupted(
                f"stopped by {signal.Signals(stop).name} after step {self.position.step}; the checkpoint is "
                "written: give the same command again to resume",
                stop,
            )
