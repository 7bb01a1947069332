"""What goes on beside the training: the log, the account of unread clips, checkpoints, warnings.

All processes that train together have one and call it at the same moments; the first alone writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avssl import dist
from avssl.build import Config
from avssl.checkpoint import FILE_NAME
from avssl.config import config_to_dict
from avssl.data import Manifest, SkipLedger
from avssl.objectives import Objective, collapse_signs, find_cma
from avssl.train.checkpoints import CheckpointWriter, Keeping
from avssl.train.held_out import HeldOut
from avssl.train.lockstep import Agreement
from avssl.train.log import MetricsLog
from avssl.train.loss_guard import LossGuard
from avssl.train.mining_log import MiningObserver
from avssl.train.record import so_far, write_record
from avssl.types import Progress

if TYPE_CHECKING:
    from avssl.train.trainer import Trainer


@dataclass
class Watchers:
    """Told by the trainer what happens.

    Parameters
    ----------
    guard : LossGuard
        What becomes of losses that are not finite.
    log : MetricsLog or None
        Takes the numbers, which are means over processes; None on all but the first, as `writer`.
    writer : CheckpointWriter or None
        Takes the checkpoints.
    ledger : SkipLedger
        Takes the clips that could not be read, on the first process those of all.
    facts : dict
        What a checkpoint holds besides the trainer's state: the recipe and the hash of the manifest.
    max_skipped : float in [0, 1]
        Share of the files that may be unreadable.
    num_rows : int >= 1
        How many files there are.
    keep_best : str, optional
        Name of the number by which the best checkpoint is told.
    held_out : HeldOut, optional
        Measures the encoders on data they are not trained on.
    after_mining : callable, optional
        Called as ``after_mining(objective, epoch, step)`` when an objective has mined positives anew.
    say : callable
        Takes warnings for the user, such as of a collapse.
    """

    guard: LossGuard
    log: MetricsLog | None
    writer: CheckpointWriter | None
    ledger: SkipLedger
    facts: dict[str, Any]
    max_skipped: float
    num_rows: int
    keep_best: str | None = None
    held_out: HeldOut | None = None
    after_mining: Callable[[Any, int, int], object] | None = None
    say: Callable[[str], None] = lambda line: None
    latest: dict[str, float] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def count_failures(self, agreed: Agreement) -> None:
        """Enter the clips of a step that could not be read."""
        for failure, epoch in agreed.failures if self.log is not None else ():
            self.ledger.add(failure, epoch)

    def mined(self, objective: Objective, step: int, epoch: int, numbers: dict[str, float]) -> None:
        """Take what an objective did before an epoch."""
        if self.log is not None:
            self.log.write(step, epoch, numbers)
        cma = find_cma(objective)
        if cma is not None and self.after_mining is not None:
            self.after_mining(cma, epoch, step)

    def logged(self, trainer: Trainer, numbers: dict[str, float]) -> None:
        """Take the numbers of a line of the log."""
        step = trainer.position.step
        if self.guard.dropped:
            numbers["dropped_steps"] = float(self.guard.dropped)
            self.guard.dropped = 0
        if "loss" in numbers or "dropped_steps" in numbers:
            self._write(step, trainer.position.epoch, numbers)
        if self.log is not None:
            self.ledger.check(self.max_skipped, self.num_rows)
        best = self.keep_best or ""
        if "loss" in numbers and best not in self.latest and not best.startswith("held_out_") and best:
            names = ", ".join(sorted(numbers))
            self._warn_once("keep_best", f"train.keep_best is {best!r}, but the log has {names}")
        done = trainer.objective.done_steps / max(1, trainer.objective.total_steps)
        for sentence in collapse_signs(numbers, done):
            self._warn_once(sentence.partition(" ")[0], f"step {step}: {sentence}")

    def _warn_once(self, about: str, sentence: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            self.say(f"warning: {sentence}")

    def _write(self, step: int, epoch: int, numbers: dict[str, float]) -> None:
        self.latest |= numbers
        if self.log is not None:
            self.log.write(step, epoch, numbers)

    def measure(self, trainer: Trainer, progress: Progress) -> bool:
        """Measure the encoders on held-out data; whether this state deserves a checkpoint for it."""
        if self.held_out is None:
            return False
        position = trainer.position
        numbers = self.held_out.numbers(
            trainer.objective,
            lambda done, total: progress.update(position.step, held_out=f"{done / total:.0%}"),
        )
        self._write(position.step, position.epoch, numbers)
        return self.keep_best in numbers

    def save(self, trainer: Trainer) -> None:
        """Begin to write a checkpoint; raises what went wrong with the one before."""
        state = trainer.state() | self.facts
        if self.writer is not None:
            self.writer.save(state, self.latest)

    def check_writing(self) -> None:
        """Raise the error of a checkpoint that could not be written."""
        if self.writer is not None:
            self.writer.check()

    def finish_writing(self) -> None:
        """Wait until the last checkpoint is written, on all processes."""
        if self.writer is not None:
            self.writer.finish()
        dist.wait_for_all()


@contextmanager
def watched(
    config: Config,
    folder: Path,
    manifest: Manifest,
    whole: Manifest,
    objective: Objective,
    held_out: HeldOut | None,
    device: torch.device,
    command: str,
    say: Callable[[str], None],
    step: int,
    total_steps: int,
) -> Iterator[Watchers]:
    """Log, checkpoints and record of the run, kept up to date by the first process and closed at the end."""
    first = dist.rank() == 0
    train = config.train
    keeping = Keeping(train.keep_last, train.keep_every, train.keep_best)
    resuming = (folder / FILE_NAME).exists()
    with ExitStack() as stack:
        log = None
        if first:
            record = partial(write_record, folder, config, manifest, whole, device, command, total_steps)
            stack.enter_context(_recorded(folder, resuming, record))
            log = MetricsLog(folder, step, config.run.wandb, config_to_dict(config), say)
            stack.push(partial(_close, log))
        writer = CheckpointWriter(folder, keeping, step if resuming else None) if first else None
        watchers = Watchers(
            LossGuard(train.nonfinite, objective, partial(_names, manifest), folder),
            log,
            writer,
            SkipLedger(folder / "skipped.jsonl" if first else None),
            {"config": config_to_dict(config), "manifest_hash": manifest.hash},
            config.data.max_skipped,
            len(manifest),
            train.keep_best,
            held_out,
            MiningObserver(log, step, manifest.label_indices()),
            say,
        )
        if writer is not None:
            stack.callback(writer.finish)  # what is being written when an error ends the training is not lost
        yield watchers


def _close(log: MetricsLog, kind: type[BaseException] | None, *_: object) -> None:
    log.close(finished=kind is None)


@contextmanager
def _recorded(folder: Path, resuming: bool, record: Callable[..., None]) -> Iterator[None]:
    """Keep ``run.json`` up to date."""
    started, seconds = so_far(folder, resuming)
    began = time.monotonic() - seconds
    record(started, status="running", seconds=time.monotonic() - began)
    status = "stopped"
    try:
        yield
        status = "finished"
    finally:
        record(started, status=status, seconds=time.monotonic() - began)


def _names(manifest: Manifest, rows: Tensor) -> list[dict[str, str]]:
    """Id and path of rows, for reports."""
    return [{"id": manifest.row(i).id, "path": manifest.path(i)} for i in rows.tolist()]
