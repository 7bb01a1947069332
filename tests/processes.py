"""Run a script in processes that form a gloo group, by hand or under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# The scripts have written their results by then; gloo threads now and then abort an interpreter that ends by
# itself ("terminate called without an active exception").
END = """
import os

os._exit(0)
"""


# Script RECIPES.json STEP for torchrun: trains each of the recipes; of those with "cut" in their name, the
# second process is told to stop after that step.
TRAIN_RECIPES = """
import json
import os
import signal
import sys

from avssl import dist
from avssl.build import Config
from avssl.config import config_from_dict
from avssl.errors import Interrupted
from avssl.train import pretrain
from avssl.train.parallel import no_progress
from avssl.train.trainer import Trainer

advance = Trainer._advance


def interrupt_the_second_process(trainer, last):
    advance(trainer, last)
    if trainer.position.step == int(sys.argv[2]) and dist.rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


with dist.process_group():
    for name, recipe in json.load(open(sys.argv[1])).items():
        Trainer._advance = interrupt_the_second_process if "cut" in name else advance
        try:
            pretrain(config_from_dict(recipe, Config), no_progress)
        except Interrupted as stop:
            open(f"{recipe['run']['folder']}/{name}-{dist.rank()}", "w").write(str(stop))
"""


def run_two(script_text: str, folder: Path, beside: str, processes: int = 2) -> Path:
    """Run ``script RANK FOLDER DIRECTORY`` as ranks 0 and 1, or more, one thread each; all must succeed.

    Parameters
    ----------
    script_text : str
        Python source.
    folder : Path
        Where the script and whatever it writes lie; returned.
    beside : str
        ``__file__`` of the test, in whose directory the script finds the test's own functions.
    processes : int
        How many ranks.
    """
    script = folder / "worker.py"
    script.write_text(script_text + END)
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent)}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder), str(Path(beside).parent)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    return folder


def start_torchrun(*arguments: object, processes: int = 2, restarts: int = 0) -> subprocess.Popen[str]:
    """Start ``torchrun --nproc-per-node PROCESSES --max-restarts RESTARTS arguments``, one thread each."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    torchrun.append(f"--max-restarts={restarts}")
    return subprocess.Popen(
        [sys.executable, *torchrun, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
