"""Trainings in forks of one process that has everything imported, killed at chosen points.

Reads one JSON object a line, {"recipe": ..., "point": null or [kind, value]}. Each training is a fork that
ends by SIGKILL: "after" so many seconds; or the value-th time it comes to a "step", between the backward pass
and the optimiser; a "write", in the midst of a checkpoint's bytes; a "rename", between these and the name; or
"mining" of positives. Writes the exit status, minus the signal where it was one, as a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from avssl import files
from avssl.build import Config
from avssl.config import config_from_dict
from avssl.objectives import cma
from avssl.train import pretrain
from avssl.train.parallel import no_progress
from avssl.train.trainer import Trainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_count(count: int) -> Callable[[], None]:
    """A function that ends the process the count-th time it is called."""
    calls = 0

    def passed() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            die()

    return passed


class CutShort:
    """A file that is half written when the process ends."""

    def __init__(self, file: Any, passed: Callable[[], None]) -> None:
        self.file, self.passed = file, passed

    def write(self, data: Any) -> int:
        written = self.file.write(data)
        self.file.flush()
        self.passed()
        return int(written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def lay_in_wait(kind: str, value: float) -> None:
    """Prepare this process to end at a point."""
    if kind == "after":
        timer = threading.Timer(value, die)
        timer.daemon = True
        timer.start()
        return
    passed = at_count(int(value))
    if kind == "step":
        update = Trainer._update
        Trainer._update = lambda *a: (passed(), update(*a))[1]  # type: ignore[method-assign]
    elif kind == "write":
        write = torch.save
        torch.save = lambda content, file: write(content, CutShort(file, passed))
    elif kind == "rename":
        replace = os.replace
        files.os.replace = lambda *a: (passed() if "checkpoint" in str(a[0]) else None, replace(*a))[1]
    elif kind == "mining":
        mine = cma.mine_positives
        cma.mine_positives = lambda *a, **k: (mine(*a, **k), passed())[0]
    else:
        raise ValueError(kind)


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            if job["point"] is not None:
                lay_in_wait(*job["point"])
            pretrain(config_from_dict(job["recipe"], Config), no_progress)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
