"""What a run writes down while it trains: JSON lines and TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avssl import dist

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def drop_lines_after(path: Path, step: int) -> None:
    """Drop lines of steps later than `step`, and those a crash cut short; makes the file if there is none."""
    lines = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                keep = json.loads(line)["step"] <= step
            except (ValueError, KeyError):  # a line that a crash cut short
                continue
            if keep:
                lines.append(line + "\n")
    path.write_text("".join(lines))


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON object as a line."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


class MetricsLog:
    """Appends numbers to ``metrics.jsonl`` and to TensorBoard; a resumed run continues both.

    Parameters
    ----------
    folder : Path
        Run folder.
    step : int
        Step the run (re)starts from: lines of later steps, written after the checkpoint that is resumed, are
        dropped, since these steps are done again.

    Attributes
    ----------
    path : Path
        ``metrics.jsonl``.
    events : SummaryWriter
        TensorBoard's, for those who have more than scalars to tell it.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, needed only when training

        self.path = folder / "metrics.jsonl"
        drop_lines_after(self.path, step)
        self.events: SummaryWriter = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, epoch: int, numbers: dict[str, float]) -> None:
        """Add one line; numbers that are not finite are written as null, since JSON has no word for them."""
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        append_line(self.path, {"step": step, "epoch": epoch, **finite})
        for name, value in numbers.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the events."""
        self.events.close()


class RunningMeans:
    """Means of tensors over the steps since the last read, without waiting for the device at each step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one step."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Mean of each name, over processes too, which must all ask; starts afresh."""
        if not self._sums:
            return {}
        own = torch.stack([total / self._counts[name] for name, total in self._sums.items()])
        means = dict(zip(self._sums, dist.all_mean(own).tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return means
