"""Progress of long work: a moving bar in a terminal, a log line now and then everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from avssl.types import Progress


@contextmanager
def progress_bar(
    description: str,
    total: int | None = None,
    *,
    start: int = 0,
    unit: str = "steps",
    every_seconds: float = 10.0,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show the progress of the work inside the ``with`` block, on standard error.

    Parameters
    ----------
    description : str
        First word of the line.
    total : int, optional
        Number of `unit`; None while unknown.
    start : int
        What was done before, as after a resume; it does not count for the rate.
    unit : str
        What is counted.
    every_seconds : float
        Outside a terminal: at most one line in this time. The last state is always written.
    file : text file, optional
        Instead of standard error.
    clock : callable
        Seconds from any fixed moment.
    """
    console = Console(file=file or sys.stderr)
    meter = _Meter(description, total, start, unit, clock)
    if console.is_terminal and not console.is_dumb_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
        )
        with RichProgress(*columns, console=console) as bar:
            yield _Bar(meter, bar)
    else:
        lines = _Lines(meter, every_seconds, file or sys.stderr)
        yield lines
        lines.finish()


class _Meter:
    """Counts, rate and remaining time as text."""

    def __init__(
        self, description: str, total: int | None, start: int, unit: str, clock: Callable[[], float]
    ) -> None:
        self.description = description
        self.total = total
        self.start = self.completed = start
        self.unit = unit
        self.clock = clock
        self.began = clock()
        self.fields: dict[str, object] = {}

    def update(self, completed: int, total: int | None, fields: dict[str, object]) -> None:
        self.completed = completed
        self.total = self.total if total is None else total
        self.fields = fields

    def text(self) -> str:
        """``120/800 (15%) 98.2 clips/s loss 3.21 eta 2:10``."""
        fields = dict(self.fields)
        elapsed = self.clock() - self.began
        speed = (self.completed - self.start) / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.completed}"]
        if self.total:
            parts = [f"{self.completed}/{self.total} ({self.completed / self.total:.0%})"]
        parts.append(str(fields.pop("rate", f"{speed:.3g} {self.unit}/s")))
        for name, value in fields.items():
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        if self.total and self.completed < self.total and speed > 0:
            parts.append(f"eta {_clock_text((self.total - self.completed) / speed)}")
        return " ".join(parts)


class _Bar:
    def __init__(self, meter: _Meter, bar: RichProgress) -> None:
        self.meter = meter
        self.bar = bar
        self.task = bar.add_task(meter.description, total=meter.total, completed=meter.start, text="")

    def update(self, completed: int, total: int | None = None, **fields: object) -> None:
        self.meter.update(completed, total, fields)
        self.bar.update(self.task, completed=completed, total=self.meter.total, text=self.meter.text())


class _Lines:
    def __init__(self, meter: _Meter, every_seconds: float, file: TextIO) -> None:
        self.meter = meter
        self.every_seconds = every_seconds
        self.file = file
        self.last_line = meter.clock()
        self.pending = False

    def update(self, completed: int, total: int | None = None, **fields: object) -> None:
        self.meter.update(completed, total, fields)
        self.pending = True
        if self.meter.clock() - self.last_line >= self.every_seconds:
            self.finish()

    def finish(self) -> None:
        """Write the state unless it is written already."""
        if self.pending:
            print(f"{self.meter.description} {self.meter.text()}", file=self.file, flush=True)
            self.last_line = self.meter.clock()
            self.pending = False


def _clock_text(seconds: float) -> str:
    """``2:10`` or ``1:02:10``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
