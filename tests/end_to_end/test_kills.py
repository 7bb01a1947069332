"""kill -9 at random points: in a step, in a write, in mining; the run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from media import write_media
from training import assert_same_weights, losses

from avssl.build import Config
from avssl.checkpoint import load_checkpoint
from avssl.config import config_from_dict, config_to_dict

SEED = 20261126
KINDS = [*["after"] * 12, *["step", "write", "rename", "mining"] * 4]
EPOCHS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    (folder / "videos" / "a").mkdir(parents=True)
    for i in range(12):
        path = folder / "videos" / "a" / f"{i:02d}.mp4"
        write_media(path, seconds=1.2, size=(48, 40), tone_hz=300 + 25 * i)
    return folder


@pytest.fixture(scope="module")
def train(home):
    """Train a recipe in a process that may be killed; returns its exit status."""
    command = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    def train(name: str, objective: dict, point=None, workers: int = 0, **run) -> int:
        recipe = {
            "data": {
                "root": str(home / "videos"), "val_share": 0, "num_frames": 4, "fps": 8, "short_side": 40,
                "audio_seconds": 0.5, "sample_rate": 8000, "num_workers": workers,
            },
            "views": {"video": {"size": 32}, "spectrogram": {"n_fft": 256, "hop_seconds": 0.02}},
            "model": {
                "video": {"name": "R2Plus1D", "depth": 10, "width": 4},
                "audio": {"name": "AudioConvNet", "width": 4}, "projection": [16, 8], "batch_norm": True,
            },
            "objective": objective,
            "optim": {"lr": 1e-3},
            "train": {
                "epochs": EPOCHS, "batch_size": 4, "log_every": 1, "threads": 1, "device": "cpu",
                "checkpoint_minutes": 0, "keep_last": 3,
            },
            "run": {"folder": str(home), "name": name, **run},
        }  # fmt: skip
        whole = config_to_dict(config_from_dict(recipe, Config))
        server.stdin.write(json.dumps({"recipe": whole, "point": point}) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    yield train
    server.stdin.close()
    server.stdout.close()
    server.wait()


def mined(run):
    lines = [json.loads(line) for line in (run / "mining.jsonl").read_text().splitlines()]
    for line in lines:
        line["mining"].pop("mining_seconds")
    return lines


@pytest.mark.slow
def test_a_run_killed_at_random_points_ends_bit_for_bit_alike(home, train):
    stage = {"start_from": str(home / "avid")}
    cma = {"name": "CMA", "num_negatives": 4, "num_positives": 3, "refresh_epochs": 1}
    assert train("avid", {"name": "AVID", "num_negatives": 6}) == 0
    assert train("whole", cma, **stage) == 0
    chance = random.Random(SEED)
    kinds = chance.sample(KINDS, len(KINDS))
    killed: dict[str, int] = {}
    runs = 0
    while kinds:
        kind = kinds.pop()
        value = chance.uniform(0.05, 1.5) if kind == "after" else chance.choice([1, 2, 3])
        status = train(f"cut{runs}", cma, [kind, value], workers=chance.choice([0, 1]), **stage)
        if status == 0:  # it came to its end first: another run, and this point once more
            compare(home / "whole", home / f"cut{runs}")
            runs += 1
            kinds.append("step" if kind == "after" else kind)
            continue
        assert status == -9
        killed[kind] = killed.get(kind, 0) + 1
    assert sum(killed.values()) == len(KINDS)
    assert train(f"cut{runs}", cma, **stage) == 0
    compare(home / "whole", home / f"cut{runs}")
    print(f"killed {killed} in {runs + 1} runs")


def compare(whole, cut):
    """Losses, mined positives, weights, memories and optimiser of two runs are equal, bit for bit."""
    assert losses(cut) == losses(whole)
    assert mined(cut) == mined(whole)
    one, other = load_checkpoint(whole), load_checkpoint(cut)
    assert one["position"] == other["position"]
    assert_same_weights(one, other)
    for index, values in one["optimizer"]["state"].items():
        assert all(value.equal(other["optimizer"]["state"][index][key]) for key, value in values.items())
    assert not list(cut.glob(".*.tmp"))
