"""What runs inside a job that ``avssl launch`` submitted: ``avssl pretrain``, and its return to the queue.

A job has one task for each GPU; each is a process of the training. SLURM says by a signal that time runs out.
Then all processes stop after the same step with a checkpoint, and only after that does the first put the job
back into the queue, where the same command goes on from the checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from submitit import SlurmExecutor
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from avssl.cli.main import main
from avssl.cli.pretrain import CONTINUE_STATUS
from avssl.train.signals import TO_BE_CONTINUED


class PretrainJob:
    """``avssl pretrain`` as one of the processes of a job.

    Parameters
    ----------
    arguments : sequence of str
        Recipe and overrides.
    """

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self.arguments = arguments

    def __call__(self) -> None:
        """Train; leaves the process unless the training is finished."""
        environment = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        is_first = environment.rank == 0
        requeue = partial(_requeue, _submitits_handler())
        for number in TO_BE_CONTINUED:  # until the training listens, and again after it
            signal.signal(number, requeue if is_first else signal.SIG_IGN)
        sys.argv = ["avssl", "pretrain", *self.arguments]
        try:
            main()
        except SystemExit as end:
            if end.code == CONTINUE_STATUS:
                requeue() if is_first else _leave(0)
            if end.code:
                raise

    def checkpoint(self) -> DelayedSubmission:
        """What to run when the job starts again: the same, for the command finds its checkpoint."""
        return DelayedSubmission(self)


class Slurm(SlurmExecutor):
    """submitit's executor; its script can be had where there is no SLURM, too."""

    @classmethod
    def affinity(cls) -> int:
        """Say that SLURM is here: `avssl.cli.launch` looks for it where it is needed."""
        return 1

    def script(self) -> str:
        """What would be given to sbatch."""
        return self._make_submission_file_text(self._submitit_command_str, "")


def slurm_executor(folder: Path, max_timeouts: int, parameters: dict[str, Any]) -> Slurm:
    """Executor that writes its files into a folder; parameters by sbatch's names, None for unset ones."""
    executor = Slurm(folder, max_num_timeout=max_timeouts)
    executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
    return executor


def _submitits_handler() -> Callable[[int, FrameType | None], Any]:
    """The handler submitit set before it called the job."""
    found = [handler for number in TO_BE_CONTINUED if callable(handler := signal.getsignal(number))]
    return found[0]


def _requeue(
    handler: Callable[[int, FrameType | None], Any],
    number: int = signal.SIGUSR2,
    frame: FrameType | None = None,
) -> NoReturn:
    """Put the job back into the queue and leave."""
    try:
        handler(number, frame)
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 1)
    except (UncompletedJobError, subprocess.SubprocessError, OSError) as error:
        print(
            f"avssl: error: {error}; submit the same again: it goes on from the last checkpoint", flush=True
        )
    _leave(1)


def _leave(status: int) -> NoReturn:
    """End the process at once: other processes may be anywhere, and are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 255)
