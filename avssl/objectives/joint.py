"""Several objectives on one pair of encoders: the image methods beside AVID or CMA on the visual branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from avssl.objectives.base import Objective, TrunkOutputs
from avssl.objectives.cma import CMA
from avssl.types import Views


class Joint(Objective):
    """Weighted sum of objectives that share their encoders.

    ``loss = sum over parts of weight * loss of the part``. A view that several parts take through the trunk
    by itself goes through it once. SwAV concatenates views of one size, and teachers have weights of their
    own: these passes are not shared. In a batch without any sound the parts that learn from it rest.

    Parameters
    ----------
    encoders : nn.Module
        The very module that every part holds as its `encoders`.
    parts : mapping of str to Objective
        Objectives by name; the name comes before the names of their metrics.
    weights : mapping of str to float >= 0, optional
        Weight of each part, 1 where it is not given.
    end_weights : mapping of str to float >= 0, optional
        Weight of each part at the end of training, approached linearly; it stays where it is not given.

    Raises
    ------
    ValueError
        Without parts, for parts with other encoders, for weights of unknown parts, negative or all zero.

    Examples
    --------
    >>> encoders = DualEncoder.tiny()
    >>> parts = {"avid": AVID(encoders, 960), "simsiam": SimSiam(encoders)}
    >>> objective = Joint(encoders, parts, weights={"simsiam": 0.5})
    """

    needs_audio: ClassVar[bool] = False  # the parts say so themselves

    def __init__(
        self,
        encoders: nn.Module,
        parts: Mapping[str, Objective],
        weights: Mapping[str, float] | None = None,
        end_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        weights, end_weights = dict(weights or {}), dict(end_weights or {})
        unknown = sorted((weights.keys() | end_weights.keys()) - parts.keys())
        if not parts or unknown:
            raise ValueError(f"weights of {unknown} belong to no part; the parts are {sorted(parts)}")
        foreign = [name for name, part in parts.items() if part.encoders is not encoders]
        if foreign:
            raise ValueError(f"parts {foreign} have encoders of their own; give all parts the same module")
        self.weights = {name: float(weights.get(name, 1.0)) for name in parts}
        self.end_weights = {name: float(end_weights.get(name, w)) for name, w in self.weights.items()}
        given = [*self.weights.values(), *self.end_weights.values()]
        if min(given) < 0 or max(given) == 0:
            raise ValueError(
                f"weights must be at least 0 and not all 0; got {self.weights}, {self.end_weights}"
            )
        self.encoders = encoders
        self.parts = nn.ModuleDict(parts)

    @property
    def objectives(self) -> dict[str, Objective]:
        """The parts by name."""
        return {name: part for name, part in self.parts.items() if isinstance(part, Objective)}

    def weight(self, name: str) -> float:
        """Weight of a part at this point of the training."""
        done = min(1.0, self.done_steps / max(1, self.total_steps))
        return self.weights[name] + done * (self.end_weights[name] - self.weights[name])

    def loss(self, features: TrunkOutputs) -> dict[str, Tensor]:
        """Weighted sum of the losses; the parts' own numbers as ``name/metric``."""
        total: Tensor | None = None
        logs: dict[str, Tensor] = {}
        for name, part in self.objectives.items():
            weight = self.weight(name)
            if weight == 0 or _is_deaf(part, features.views):
                continue
            out = part.loss(features)
            total = weight * out["loss"] if total is None else total + weight * out["loss"]
            logs |= {f"{name}/{key}": value.detach() for key, value in out.items()}
        if total is None:  # no sound, and the weights of all other parts are 0 at this point
            total = 0 * features.video().sum()
        return {"loss": total, **logs}

    # ---- the moments: of each part in turn

    def set_progress(self, done_steps: int, total_steps: int) -> None:
        """Hand the progress on."""
        super().set_progress(done_steps, total_steps)
        for part in self.objectives.values():
            part.set_progress(done_steps, total_steps)

    def before_epoch(
        self, epoch: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Let each part do what it does between epochs."""
        return {
            f"{name}/{key}": value
            for name, part in self.objectives.items()
            for key, value in part.before_epoch(epoch, progress).items()
        }

    def before_step(self) -> None:
        """Let each part do what it does after the backward pass."""
        for part in self.objectives.values():
            part.before_step()

    def after_step(self) -> None:
        """Let each part do what it does once the parameters have moved."""
        for part in self.objectives.values():
            part.after_step()

    def name_instances(self, keys: Tensor, groups: Tensor) -> None:
        """Tell each part what the instances are."""
        for part in self.objectives.values():
            part.name_instances(keys, groups)

    @torch.no_grad()
    def fill_memory(self, views: Views) -> None:
        """Let each part remember a batch."""
        for part in self.objectives.values():
            if not _is_deaf(part, views):
                part.fill_memory(views)

    def start_from(self, state: dict[str, Tensor]) -> int:
        """Begin each part from the part of its name, or from the whole state of a single objective."""
        return max(part.start_from(_own(name, state)) for name, part in self.objectives.items())

    def heads_in(self, state: Mapping[str, Tensor]) -> dict[str, str | None]:
        """As every objective; the part's name comes before that of its head."""
        return {
            f"{name}.{head}": misfit
            for name, part in self.objectives.items()
            for head, misfit in part.heads_in(_own(name, state)).items()
        }

    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts; a parameter that several have is in the group of one of them."""
        taken: set[nn.Parameter] = set()
        groups = []
        # An audio-visual part first: the exceptions of an image method must not reach the encoders it shares.
        for part in sorted(self.objectives.values(), key=lambda part: not part.needs_audio):
            for group in part.param_groups():
                own = [p for p in group["params"] if p not in taken]
                taken.update(own)
                if own:
                    groups.append(group | {"params": own})
        return groups


def _is_deaf(part: Objective, views: Views) -> bool:
    """Whether a part learns from sound and there is none in a batch."""
    return part.needs_audio and not views.audio


def _own(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the part of this name, or the whole state where there is none."""
    prefix = f"parts.{name}."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return own or dict(state)


def find_cma(objective: Objective) -> CMA | None:
    """Return the CMA that an objective is, or has as a part; None without one."""
    parts = objective.objectives.values() if isinstance(objective, Joint) else [objective]
    return next((part for part in parts if isinstance(part, CMA)), None)


def memory_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the objective with memories: the one given, or its part that has a bank; empty without one."""
    name = next((key for key in state if key.endswith("bank.video")), None)
    if name is None:
        return {}
    prefix = name.removesuffix("bank.video")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
