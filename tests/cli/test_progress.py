from __future__ import annotations

import io
from itertools import count

import pytest

from avssl.cli.progress import progress_bar


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_names_share_rate_fields_and_remaining_time():
    file, clock = io.StringIO(), Clock()
    with progress_bar("train", 800, file=file, clock=clock) as progress:
        clock.now += 23.0
        progress.update(120, rate="98.2 clips/s", loss=3.2101)
    assert file.getvalue() == "train 120/800 (15%) 98.2 clips/s loss 3.21 eta 2:10\n"


def test_lines_come_at_most_every_so_often_and_the_last_always():
    file, clock = io.StringIO(), Clock()
    with progress_bar("prepare", 100, unit="files", every_seconds=10, file=file, clock=clock) as progress:
        for done in range(1, 101):
            clock.now += 0.25
            progress.update(done)
    assert file.getvalue().splitlines() == [
        "prepare 40/100 (40%) 4 files/s eta 0:15",
        "prepare 80/100 (80%) 4 files/s eta 0:05",
        "prepare 100/100 (100%) 4 files/s",
    ]


def test_total_may_come_later_and_resumed_work_does_not_count_for_the_rate():
    file, clock = io.StringIO(), Clock()
    with progress_bar("train", start=1000, every_seconds=0, file=file, clock=clock) as progress:
        clock.now += 10
        progress.update(1010)
        clock.now += 10
        progress.update(1020, 8220, epoch=3)
    assert file.getvalue().splitlines() == [
        "train 1010 1 steps/s",
        "train 1020/8220 (12%) 1 steps/s epoch 3 eta 2:00:00",
    ]


def test_nothing_done_writes_nothing_and_errors_pass():
    file = io.StringIO()
    with pytest.raises(ValueError, match="work"), progress_bar("train", 5, file=file):
        raise ValueError("work failed")
    assert file.getvalue() == ""


def test_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    file, ticks = Terminal(), count()
    with progress_bar("train", 4, file=file, clock=lambda: float(next(ticks))) as progress:
        progress.update(2, loss=0.5)
        progress.update(4, loss=0.25)
    assert "4/4 (100%)" in file.getvalue()
    assert "loss 0.25" in file.getvalue()
