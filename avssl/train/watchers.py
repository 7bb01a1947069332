"""What goes on beside the training: the log, the account of unread clips, checkpoints, warnings.

All processes that train together have one and call it at the same moments; the first alone writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from avssl import dist
from avssl.data import SkipLedger
from avssl.objectives import Objective, collapse_signs, find_cma
from avssl.train.checkpoints import CheckpointWriter
from avssl.train.held_out import HeldOut
from avssl.train.lockstep import Agreement
from avssl.train.log import MetricsLog
from avssl.train.loss_guard import LossGuard
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
