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

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from avssl.memory import MemoryBank
from avssl.types import Views


class TrunkOutputs:
    """Trunk features of the views of a batch, each computed when first asked for and only once.

    Objectives that train the same encoders together share it, and so the passes they have in common.

    Parameters
    ----------
    encoders : nn.Module
        Has the trunks `video` and, for sound, `audio`.
    views : Views
        The batch.
    """

    def __init__(self, encoders: nn.Module, views: Views) -> None:
        self.encoders = encoders
        self.views = views
        self._known: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def video(self, view: int = 0) -> Tensor:
        """Features (B, dim) of a video view, from a forward pass of its own (its own batch statistics)."""
        return self.videos((view,))

    def audio(self, view: int = 0) -> Tensor:
        """Features (A, dim) of an audio view, of the samples that have sound (all B by default)."""
        return self._once("audio", (view,), self.views.audio)

    def videos(self, group: tuple[int, ...]) -> Tensor:
        """Features (len(group) B, dim) of video views of one size that go through the trunk together."""
        return self._once("video", group, self.views.video)

    def _once(self, modality: str, group: tuple[int, ...], views: tuple[Tensor, ...]) -> Tensor:
        if max(group) >= len(views):
            raise ValueError(
                f"the objective needs {modality} view {max(group)} (counted from 0), the batch has "
                f"{len(views)}; add views to the recipe"
            )
        if (modality, group) not in self._known:
            x = views[group[0]] if len(group) == 1 else torch.cat([views[i] for i in group])
            self._known[modality, group] = getattr(self.encoders, modality)(x)
        return self._known[modality, group]


class Objective(nn.Module):
    """Base of the objectives.

    A method defines `loss`. Calling the module gives ``{"loss": scalar, name: scalar to log, ...}`` for a
    batch of views.

    Attributes
    ----------
    encoders : nn.Module
        What is trained, exported and evaluated: has the trunk `video`, and `audio` in audio-visual methods.
    needs_audio : bool
        Whether the method learns from sound.
    sync_trunks : bool
        Whether batch norms of the trunks count the samples of all processes that train together.
    heads : tuple of str
        Submodules besides the encoders that a later stage of the method goes on with, where they fit.
    memories : tuple of str
        How the names of buffers begin that hold something of each instance.
    """

    needs_audio: ClassVar[bool] = False
    sync_trunks: ClassVar[bool] = True
    heads: ClassVar[tuple[str, ...]] = ()
    memories: ClassVar[tuple[str, ...]] = ()
    encoders: Any
    done_steps: int = 0
    total_steps: int = 1

    def set_progress(self, done_steps: int, total_steps: int) -> None:
        """Say how far the training is, before each step: what the method's own schedules go by."""
        self.done_steps, self.total_steps = done_steps, total_steps

    def forward(self, views: Views) -> dict[str, Tensor]:
        """Loss and named numbers to log for a batch of views."""
        return self.loss(TrunkOutputs(self.encoders, views))

    def loss(self, features: TrunkOutputs) -> dict[str, Tensor]:
        """As `forward`, from the trunks' features, which other objectives may use too."""
        raise TypeError(f"{type(self).__name__} must define loss(features)")

    def before_epoch(
        self, epoch: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Do what the method does between epochs (CMA mines agreements); return numbers to log."""
        return {}

    def name_instances(self, keys: Tensor, groups: Tensor) -> None:
        """Learn what the instances are; methods that remember instances use it.

        Parameters
        ----------
        keys : Tensor, (N,), int64
            `avssl.memory.instance_keys` of the samples' ids.
        groups : Tensor, (N,), int64
            Equal for samples that are copies of one clip.
        """

    def fill_memory(self, views: Views) -> None:
        """Remember a batch without learning from it; methods without a memory have nothing to do."""

    def before_step(self) -> None:
        """Do what the method does between backward and the optimiser's step."""

    def after_step(self) -> None:
        """Do what the method does once the parameters have moved."""

    def start_from(self, state: dict[str, Tensor]) -> int:
        """Begin a new stage from the state dict of another objective on the same encoders.

        Heads whose names and shapes fit come along, see `heads_in`; the others begin afresh.

        Returns
        -------
        int
            How many of this objective's instances the other one remembered; 0 for methods without memory.
        """
        encoders = {k.removeprefix("encoders."): v for k, v in state.items() if k.startswith("encoders.")}
        if all(
            key.startswith("video.") for key in encoders
        ):  # a trunk alone begins any method's video branch
            self.encoders.video.load_state_dict({k.removeprefix("video."): v for k, v in encoders.items()})
        else:
            self.encoders.load_state_dict(encoders)
        for name, misfit in self.heads_in(state).items():
            if misfit is None:  # not strict, for counters of batches that old files lack
                self.get_submodule(name).load_state_dict(_below(name, state), strict=False)
        return 0

    def heads_in(self, state: Mapping[str, Tensor]) -> dict[str, str | None]:
        """Which heads a state dict holds: for each of `heads` None if it fits, else why it does not."""
        return {name: _misfit(self.get_submodule(name), _below(name, state)) for name in self.heads}

    def step_buffers(self) -> list[Tensor]:
        """Buffers that a step may change as a whole, such as running means: all but the memories."""
        own = [(m, m.memories) for m in self.modules() if isinstance(m, Objective)]
        memories = {id(b) for m, names in own for name, b in m.named_buffers() if name.startswith(names)}
        return [buffer for buffer in self.buffers() if id(buffer) not in memories]

    @contextmanager
    def in_parts(self) -> Iterator[None]:
        """Compute a batch in parts in the block: all of them see the memories as they were before it."""
        with ExitStack() as stack:
            for bank in (m for m in self.modules() if isinstance(m, MemoryBank)):
                stack.enter_context(bank.held())
            yield

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimiser, with the method's exceptions to its settings."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


def _below(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict that belongs to a submodule."""
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}


def _misfit(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """The first difference in names or shapes between a module and a state dict; None if it fits."""
    if not state:
        return "not there"
    here, there = ({key: tuple(x.shape) for key, x in one.items()} for one in (module.state_dict(), state))
    for key in {**here, **there}:
        counter = key.endswith("num_batches_tracked") and key not in there
        if here.get(key) != there.get(key) and not counter:
            return f"{key} is {there.get(key, 'missing')}, in the recipe {here.get(key, 'missing')}"
    return None
