"""Memory that runs out while training: what was asked of it, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from avssl import dist
from avssl.data.dataset import lacks_memory
from avssl.errors import TrainingError

if TYPE_CHECKING:
    from avssl.train.trainer import Trainer


@contextmanager
def explained_shortage(trainer: Trainer) -> Iterator[None]:
    """Raise `TrainingError`, with a remedy, where the block runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise TrainingError(_explanation(trainer, str(error))) from error


def _explanation(trainer: Trainer, error: str) -> str:
    settings = trainer.settings
    part = settings.batch_size // settings.accumulate // dist.world_size()
    held = ""
    if trainer.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(trainer.device)
        used = torch.cuda.max_memory_allocated(trainer.device)
        held = f" (of {total / 1e9:.1f} GB, torch held up to {used / 1e9:.1f}, {free / 1e9:.1f} are free)"
    first_sentence = error.partition(". ")[0].strip() or "no more is said"
    remedies = [f"raise train.accumulate (now {settings.accumulate}; {part} clips at a time)"]
    if settings.precision == torch.float32 and trainer.device.type == "cuda":
        remedies.append("use train.precision=bfloat16")
    if trainer.device.type == "cpu":
        remedies.append("lower data.num_workers")
    remedies.append("take a smaller model or train.batch_size")
    return (
        f"out of memory on {trainer.device} in step {trainer.position.step + 1}{held}: {first_sentence}; "
        f"{', or '.join(remedies)}; with --allow-changes the same command goes on from the last checkpoint"
    )
