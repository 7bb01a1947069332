"""How a process of a job leaves it, and what it says when the job cannot go back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from submitit.core.utils import UncompletedJobError

from avssl.cli import job, pretrain
from avssl.errors import Interrupted


@pytest.fixture
def left(monkeypatch):
    """Ending the process raises instead."""

    class Left(Exception):
        pass

    def leave(status):
        raise Left(status)

    monkeypatch.setattr(os, "_exit", leave)
    return Left


def test_a_requeued_job_leaves_with_the_status_of_its_executor(left):
    def submitits(number, frame):
        raise SystemExit(-1)

    with pytest.raises(left, match="255"):
        job._requeue(submitits)


@pytest.mark.parametrize(
    "error",
    [
        UncompletedJobError("Job not requeued because: timed-out too many times."),
        subprocess.CalledProcessError(1, ["scontrol", "requeue", "17"]),
        FileNotFoundError("no scontrol"),
    ],
)
def test_a_job_that_cannot_be_requeued_says_how_to_go_on(left, capsys, error):
    def submitits(number, frame):
        raise error

    with pytest.raises(left, match="1"):
        job._requeue(submitits, signal.SIGUSR2)
    said = f"avssl: error: {error}; submit the same again: it goes on from the last checkpoint\n"
    assert capsys.readouterr().out == said


def test_what_starts_again_is_the_same_command():
    first = job.PretrainJob(("recipe.yaml", "run.name=a"))
    assert first.checkpoint().function.arguments == ("recipe.yaml", "run.name=a")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)],
)
def test_the_status_tells_whether_a_scheduler_stopped_the_run(monkeypatch, number, status):
    def interrupted(*_, **__):
        raise Interrupted("stopped", number)

    monkeypatch.setattr(pretrain, "run_pretrain", interrupted)
    with pytest.raises(SystemExit) as stop:
        pretrain.run_stage(None)
    assert stop.value.code == status
