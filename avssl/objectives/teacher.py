"""The teacher: a copy of the student that follows it without gradient."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A trunk and a projector that start as the student's and move only when told to.

    Parameters alone follow the student. Buffers do not: the norms of the teacher count the batches that go
    through the teacher, and while training normalise by the batch at hand, as in the release of BYOL.

    Parameters
    ----------
    trunk, projector : nn.Module
        The student's; copied.

    Examples
    --------
    >>> teacher = Teacher(trunk, projector)
    >>> targets = teacher(x)
    >>> optimizer.step()
    >>> teacher.follow(trunk, projector, momentum=0.996)
    """

    def __init__(self, trunk: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.trunk = deepcopy(trunk).requires_grad_(False)
        self.projector = deepcopy(projector).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Projections (B, D) of the trunk's inputs, without gradient."""
        z: Tensor = self.projector(self.trunk(x))
        return z

    @torch.no_grad()
    def follow(self, trunk: nn.Module, projector: nn.Module, momentum: float) -> None:
        """Move towards the student: ``teacher <- momentum teacher + (1 - momentum) student``.

        Parameters
        ----------
        trunk, projector : nn.Module
            The student's, built like those this teacher was made from.
        momentum : float in [0, 1]
            1 stays, 0 copies the student's parameters.
        """
        student: list[Tensor] = [*trunk.parameters(), *projector.parameters()]
        torch._foreach_lerp_([*self.parameters()], student, 1.0 - momentum)

    def start_from(self, trunk: nn.Module, projector: nn.Module) -> None:
        """Become the student, with its buffers: where a new stage starts."""
        self.trunk.load_state_dict(trunk.state_dict())
        self.projector.load_state_dict(projector.state_dict())
