"""What becomes of a step whose loss or gradient is not finite: `train.nonfinite`.

``stop`` (the default) asks the device only where a line is logged or a checkpoint written, and ends the run
there: no checkpoint ever holds what came after such a step. ``skip`` asks in every step, and takes back one
that is not finite: weights, optimiser, teacher and running means stay as they were before it, and memories
take in finite vectors only. ``back_off`` does the same and halves the learning rate each time; after
`STEPS_TO_RECOVER` good steps it doubles again, up to the schedule's. All write down whose clips they were.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from avssl import dist
from avssl.errors import TrainingError
from avssl.objectives import Objective
from avssl.train.log import append_line

Policy = Literal["stop", "skip", "back_off"]

MAX_IN_A_ROW = 10
"""Steps taken back one after another before a run is given up."""
STEPS_TO_RECOVER = 200
FILE_NAME = "nonfinite.jsonl"


class LossGuard:
    """Watches the losses of a run; processes that train together call its methods together.

    Parameters
    ----------
    policy : {"stop", "skip", "back_off"}
        See above.
    objective : Objective
        Whose running means are taken back.
    names : callable
        ``names(rows)`` gives one dictionary a clip, such as its id and path, from rows of the manifest.
    folder : Path
        Where ``nonfinite.jsonl`` is written, by the first process.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        names: Callable[[Tensor], list[dict[str, str]]],
        folder: Path,
    ) -> None:
        self.policy = policy
        self.names = names
        self.path = folder / FILE_NAME
        self.rate_factor = 1.0
        self.in_a_row = self.good_steps = self.dropped = 0
        self._buffers = objective.step_buffers() if policy != "stop" else []
        self._before = [buffer.clone() for buffer in self._buffers]
        self._window: dict[int, tuple[int, list[Tensor], list[Tensor]]] = {}

    def state(self) -> dict[str, Any]:
        """What a run that goes on must know."""
        return {"rate_factor": self.rate_factor, "in_a_row": self.in_a_row, "good_steps": self.good_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for name, value in state.items():
            setattr(self, name, value)

    def begin(self) -> None:
        """Remember what a step may spoil."""
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def saw(self, step: int, epoch: int, loss: Tensor, rows: Tensor) -> None:
        """Note the loss of a part of a step, and the rows of the manifest it is of."""
        _, losses, all_rows = self._window.setdefault(step, (epoch, [], []))
        losses.append(loss.detach())
        all_rows.append(rows.cpu())

    def spoils(self, step: int, gradient_norm: Tensor | None) -> bool:
        """Whether the step must be taken back; if so, puts back the running means. False by policy "stop".

        Raises
        ------
        TrainingError
            When `MAX_IN_A_ROW` steps were taken back one after another.
        """
        if self.policy == "stop":
            return False
        numbers = [torch.stack(self._window[step][1]).sum().float()] if step in self._window else []
        numbers += [gradient_norm.float()] if gradient_norm is not None else []
        finite = bool(torch.stack(numbers).isfinite().all()) if numbers else True
        if bool(dist.all_gather(torch.tensor([finite])).all()):
            self._window.clear()
            self._recover()
            return False
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)
        self.in_a_row, self.good_steps, self.dropped = self.in_a_row + 1, 0, self.dropped + 1
        if self.policy == "back_off":
            self.rate_factor /= 2
        loss = self._write(step, self.policy)
        if self.in_a_row >= MAX_IN_A_ROW:
            raise TrainingError(
                f"{self.in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not "
                f"finite (the last loss: {loss}); their clips are in {self.path}; {REMEDY}"
            )
        return True

    def check(self) -> None:
        """By policy "stop": look at the losses since the last check.

        Raises
        ------
        TrainingError
            When one was not finite.
        """
        if self.policy != "stop" or not self._window:
            return
        sums = torch.stack([torch.stack(losses).sum() for _, losses, _ in self._window.values()])
        bad = [step for step, fine in zip(self._window, sums.isfinite().tolist(), strict=True) if not fine]
        first = torch.tensor([bad[0] if bad else torch.iinfo(torch.int64).max])
        step = int(dist.all_gather(first).min())
        if step in self._window:
            loss = self._write(step, "stop")
            raise TrainingError(
                f"the loss became {loss} in step {step}; its clips are in {self.path}; {REMEDY}"
            )
        self._window.clear()

    def check_weights(self, objective: Objective, step: int) -> None:
        """Before a checkpoint: a gradient may have been infinite where the loss was not.

        Raises
        ------
        TrainingError
            When a weight is not finite.
        """
        own = [p.to_local() if isinstance(p, DTensor) else p for p in objective.parameters()]
        norms = torch.stack(torch._foreach_norm([p.detach() for p in own if p.numel()]))
        if not bool(dist.all_gather(norms.isfinite().all().cpu()[None]).all()):
            raise TrainingError(f"weights are not finite after step {step}; {REMEDY}")

    def _recover(self) -> None:
        self.in_a_row = 0
        self.good_steps += 1
        if self.rate_factor < 1 and self.good_steps % STEPS_TO_RECOVER == 0:
            self.rate_factor = min(1.0, 2 * self.rate_factor)

    def _write(self, step: int, action: str) -> float:
        """Write down the clips of a step, those of all processes; returns its loss."""
        epoch, losses, rows = self._window.pop(step, (0, [], []))
        mine = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
        own = float(torch.stack(losses).sum()) if losses else 0.0
        found = dist.gather_objects((own, mine.tolist()))
        loss = next((value for value, _ in found if not torch.tensor(value).isfinite()), own)
        if dist.rank() == 0:
            clips = self.names(torch.tensor([row for _, part in found for row in part], dtype=torch.int64))
            line = {"step": step, "epoch": epoch, "loss": str(loss), "action": action, "clips": clips}
            append_line(self.path, line)
        return loss


REMEDY = (
    "lower optim.lr, set optim.clip_grad_norm, use train.precision=float32, or pass over such steps with "
    "train.nonfinite=skip; the last checkpoint is from before"
)
