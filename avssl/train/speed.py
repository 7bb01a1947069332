"""What makes a step quick on the hardware at hand and changes no number beyond rounding.

Trunks lie in memory as convolutions like it best and are compiled if asked, and clips travel to the GPU on a
stream of their own. Objectives stay as they are: memories, random draws and logging are not compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from avssl.data import ClipBatch, PackedFrames
from avssl.errors import ConfigError
from avssl.models.image import ImageEncoder
from avssl.models.recompute import RecomputedStage
from avssl.objectives import Objective
from avssl.objectives.teacher import Teacher
from avssl.schema import TrainConfig

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats by the number of axes."""

MOST_COMPILED = 6
"""Kinds of batches (by shape, training, gradients) a module is compiled for; others run as they are."""


def quicken(objective: Objective, config: TrainConfig, device: torch.device) -> None:
    """Make an objective quick, in place, as the recipe says; once it is on its device, before it is wrapped.

    Parameters
    ----------
    objective : Objective
        On `device`, sharded if it is to be; not yet in `DistributedDataParallel`, which remembers strides.
    config : TrainConfig
        `channels_last` (None is yes) and `compile`.
    device : torch.device
        Of this process.

    Raises
    ------
    ConfigError
        When it is to be compiled and torch finds no compiler that works.
    """
    if config.channels_last is not False:
        lay_channels_last(objective)
    if config.compile:
        check_compiler(device)
        compile_trunks(objective)


def trunks(objective: Objective) -> list[nn.Module]:
    """The networks that take nearly all the time: those of the encoders, and a teacher's."""
    own = [getattr(objective.encoders, name, None) for name in ("video", "audio")]
    teachers = [module.trunk for module in objective.modules() if isinstance(module, Teacher)]
    return [trunk for trunk in (*own, *teachers) if trunk is not None]


# ---- layout in memory


def lay_channels_last(objective: Objective) -> None:
    """Let the trunks compute with channels last in memory, in place, as tensor cores and oneDNN like it.

    Convolutions follow their weights and hand the layout on. Sharded weights must stay as they are; there the
    inputs are turned round instead. Values, shapes and names of the state stay.
    """
    for trunk in trunks(objective):
        if any(isinstance(p, DTensor) for p in trunk.parameters()):
            trunk.register_forward_pre_hook(_turn_round)
            continue
        for p in trunk.parameters():
            if p.ndim in LAYOUTS:
                # Not `p.to(memory_format=...)`, which leaves the strides of axes of length 1: gradients have
                # all those of the format, and DistributedDataParallel warns where the two differ.
                p.data = torch.empty_like(p, memory_format=LAYOUTS[p.ndim]).copy_(p.detach())


def _turn_round(trunk: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=LAYOUTS[x.ndim]) for x in inputs)


# ---- compilation


def check_compiler(device: torch.device) -> None:
    """Raise `ConfigError` unless torch can compile on a device, by compiling a little."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        if device.type == "cpu":
            get_cpp_compiler()
        torch.compile(_twice)(torch.zeros(8, device=device))
    except Exception as error:  # of many classes, one a backend and stage
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        tools = {"cpu": "a C++ compiler such as g++"}.get(device.type, "triton and a C compiler such as gcc")
        raise ConfigError(
            f"train.compile is true, but torch cannot compile on {device.type} here: {reason}; install "
            f"{tools}, or use train.compile=false"
        ) from error


def _twice(x: Tensor) -> Tensor:
    return 2 * x


def compile_trunks(objective: Objective, backend: str = "inductor") -> None:
    """Compile the trunks in place; names of the state stay.

    Blocks that are sharded or computed again in the backward pass are compiled one by one, for what happens
    between them happens outside.

    Parameters
    ----------
    objective : Objective
        With its trunks where they stay.
    backend : str
        Of `torch.compile`.
    """
    dynamo: Any = torch._dynamo.config
    # One function serves many modules, each of which counts as compiling it once more.
    dynamo.recompile_limit = max(dynamo.recompile_limit, 512)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 2048)
    for trunk in trunks(objective):
        for module in _compiled_alone(trunk):
            module.compile(backend=backend, dynamic=False)
            module._compiled_call_impl = _ForFewShapes(module)


def _compiled_alone(trunk: nn.Module) -> list[nn.Module]:
    """The trunk, or its blocks."""
    if isinstance(trunk, ImageEncoder) and any(
        isinstance(module, RecomputedStage) or isinstance(parameter, DTensor)
        for module in trunk.modules()
        for parameter in (None, *module.parameters(recurse=False))
    ):
        return trunk.blocks()
    return [trunk]


class _ForFewShapes:
    """Calls a compiled module for the first kinds of batches it meets, the module as it is for others.

    Clips that cannot be read leave batches of many sizes. Compiling takes minutes, and code for any size is
    slower than for the one that nearly all batches have.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: nn.Module = module
        self.compiled: Any = module._compiled_call_impl
        self.known: set[tuple[object, ...]] = set()

    def __call__(self, x: Tensor) -> Any:
        kind = (x.shape, self.module.training, torch.is_grad_enabled())
        if kind in self.known:
            return self.compiled(x)
        if len(self.known) == MOST_COMPILED:
            return self.module._call_impl(x)
        self.known.add(kind)
        with warnings.catch_warnings():  # torch looks for a gradient of what comes from the block before
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            return self.compiled(x)


# ---- copies to the device


class DevicePrefetcher:
    """Copies the parts of a step to the device, on a GPU while the step before still runs.

    A GPU works off what it is told some time after it has been told. Called when the step before has been
    handed over but is not done, all copies begin at once on a stream of their own, beside the kernels of that
    step; only those handed over later wait for them. Copies from pinned memory keep no processor waiting.

    Parameters
    ----------
    device : torch.device
        Where the parts go.

    Examples
    --------
    >>> on_device = DevicePrefetcher(device)
    >>> for part in on_device(parts):
    ...     train(part)
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, parts: Sequence[ClipBatch]) -> Iterator[ClipBatch]:
        """The parts in order, each ready for the current stream; elsewhere than on GPUs one by one."""
        if self.stream is None:
            yield from (part.to(self.device) for part in parts)
            return
        for part, arrived in [self._begin(part, self.stream) for part in parts]:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(arrived)
            for tensor in _tensors(part):
                tensor.record_stream(current)  # its memory is not given away before this stream is through
            yield part

    def _begin(self, part: ClipBatch, stream: torch.cuda.Stream) -> tuple[ClipBatch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            copy = part.to(self.device, non_blocking=True)
            return copy, stream.record_event()


def _tensors(part: ClipBatch) -> list[Tensor]:
    """What a batch holds, each memory once."""
    tensors = [PackedFrames.pack(part.frames).pixels, part.waveform, part.index, part.sounding]
    return [tensor for tensor in tensors if tensor is not None]
