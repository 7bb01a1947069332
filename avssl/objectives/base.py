"""What every objective is: a plain module from views to a loss, and four optional moments.

An objective owns all that its method must remember (encoders, heads, banks, prototypes, queues), so its
`state_dict` is the method. It knows nothing of trainers, configurations or files: a loop of one's own is

    loss = objective(views)["loss"]
    loss.backward()
    objective.before_step()
    optimizer.step()
    objective.after_step()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from avssl.models import DualEncoder
from avssl.types import Views


class Objective(nn.Module):
    """Base of the objectives; `forward` returns ``{"loss": scalar, name: scalar to log, ...}``."""

    encoders: DualEncoder

    def forward(self, views: Views) -> dict[str, Tensor]:
        """Loss and named numbers to log for a batch of views."""
        raise TypeError(f"{type(self).__name__} must define forward(views)")

    def before_epoch(
        self, epoch: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Do what the method does between epochs (CMA mines agreements); return numbers to log."""
        return {}

    def before_step(self) -> None:
        """Do what the method does between backward and the optimiser's step."""

    def after_step(self) -> None:
        """Do what the method does once the parameters have moved."""

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Begin a new stage from the state dict of another objective on the same encoders."""
        encoders = {k.removeprefix("encoders."): v for k, v in state.items() if k.startswith("encoders.")}
        self.encoders.load_state_dict(encoders)

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimiser, with the method's exceptions to its settings."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]
