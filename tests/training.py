"""What several tests of whole runs ask for."""

import json
import os
import signal

import torch

from avssl.train.trainer import Trainer


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def stop_after(monkeypatch, step):
    """Send this process what Ctrl-C sends once the given step is done."""
    advance = Trainer._advance

    def advance_and_stop(trainer, last):
        advance(trainer, last)
        if trainer.position.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_advance", advance_and_stop)


def assert_same_weights(one, other):
    for name, value in one["objective"].items():
        assert torch.equal(value, other["objective"][name]), name
