"""One objective on several processes: their devices, what they share, what each may ask of a recipe.

What W processes compute is what one computes, up to rounding: order and windows of the clips, the negatives
AVID and CMA draw, memories and queues, mined positives, heads' batch norms, losses, gradients and steps are
those of the global batch. Three things are not. Augmentation is drawn by each process for its own clips, so
views differ with W, and are independent between processes. Trunks' batch norms count the process's own clips
where `train.sync_batchnorm` says so, as by default for AVID and CMA. And a step in which clips could not be
read leaves out a few more, see `avssl.train.lockstep`.

Torch's global random numbers are the same on all processes: what an objective draws with them for the global
batch (`avssl.dist.own_rows`) is then what one process draws. Networks that draw their own, such as dropout,
draw the same on each process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from avssl import dist
from avssl.build import Config, build_device
from avssl.errors import ConfigError
from avssl.objectives import Joint, Objective
from avssl.objectives.sync_norm import synchronise
from avssl.train.sharding import shard
from avssl.types import Progress


def check_batch(config: Config, processes: int) -> None:
    """Raise `ConfigError` unless batches divide into parts, and these among the processes."""
    size, parts = config.train.batch_size, config.train.accumulate
    if size % (parts * processes) == 0 and size >= 2 * parts * processes:
        return
    among = f", with {processes} processes" if processes > 1 else ""
    part = "clips for each process" if processes > 1 else "clips"
    raise ConfigError(
        f"train.batch_size is {size} and train.accumulate {parts}{among}; a batch must divide into parts of "
        f"at least 2 {part}; change one of them"
    )


def process_device(name: str) -> torch.device:
    """Device of this process: with several processes and ``"auto"`` or ``"cuda"`` a GPU of its own.

    Raises
    ------
    ConfigError
        As `avssl.build.build_device`; for one GPU named for several processes, and for too few GPUs.
    """
    device = build_device(name)
    if device.type != "cuda" or dist.world_size() == 1:
        return device
    count = torch.cuda.device_count()
    if device.index is not None:
        raise ConfigError(
            f"train.device is {name!r}, with {dist.world_size()} processes; each needs a GPU of its own: use "
            "train.device=auto"
        )
    if dist.local_world_size() > count:
        raise ConfigError(
            f"{dist.local_world_size()} processes were started on this machine, but torch sees {count} GPUs; "
            f"start torchrun with --nproc-per-node {count}, or use train.device=cpu"
        )
    torch.cuda.set_device(dist.local_rank())
    return torch.device("cuda", dist.local_rank())


def place(objective: Objective, config: Config, device: torch.device, precision: torch.dtype) -> Objective:
    """Objective on its device, ready for the optimiser: norms synchronised, parameters sharded if so asked.

    Raises
    ------
    ConfigError
        For sharding in float16.
    """
    if dist.world_size() == 1:
        return objective.to(device)
    sync = objective.sync_trunks if config.train.sync_batchnorm is None else config.train.sync_batchnorm
    trunks = [getattr(objective.encoders, name, None) for name in ("video", "audio")]
    synchronise(
        objective, device.type, leave=[] if sync else [trunk for trunk in trunks if trunk is not None]
    )
    if config.train.sharding == "none":
        return objective.to(device)
    if precision == torch.float16:
        raise ConfigError(
            "train.precision is float16 and train.sharding full; gradients that are scaled for float16 "
            "cannot be sharded; use train.precision=bfloat16"
        )
    return shard(objective, device, precision)


@contextmanager
def reproducible(exactly: bool, device: torch.device) -> Iterator[None]:
    """Let torch choose, while the block runs, the fastest algorithms, or those that always do the same."""
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if exactly and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks, before its first use
    torch.backends.cudnn.benchmark = not exactly
    torch.use_deterministic_algorithms(exactly)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])


def replicate(objective: Objective, config: Config) -> nn.Module:
    """What the loop calls for a loss: the objective, with gradients averaged where it is on each process."""
    if dist.world_size() == 1 or config.train.sharding == "full":
        return objective
    # A part of weight 0 leaves its parameters without a gradient, as do batches without sound.
    unused = isinstance(objective, Joint) and (
        config.data.without_audio == "video_only"
        or 0 in (*objective.weights.values(), *objective.end_weights.values())
    )
    return DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=unused)


class _Unseen:
    def update(self, completed: int, total: int | None = None, **fields: object) -> None:
        """Show nothing."""


@contextmanager
def no_progress(description: str, total: int, completed: int) -> Iterator[Progress]:
    """Progress of a process that shows none, for the first does."""
    yield _Unseen()
