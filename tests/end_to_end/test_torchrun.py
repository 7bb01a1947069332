"""The command under torchrun: signals, a killed process, errors; none hangs, and each says why once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from media import write_media
from processes import start_torchrun

RECIPE = Path(__file__).parents[2] / "configs" / "avid" / "folder_small.yaml"
SMALL = (
    "model.video.width=4", "model.audio.width=4", "views.video.size=32", "data.num_frames=4",
    "data.short_side=40", "data.num_workers=0", "data.val_share=0", "train.batch_size=4", "train.log_every=1",
    "train.epochs=12", "objective.num_negatives=8", "train.device=cpu",
)  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    (root / "a").mkdir()
    for i in range(12):
        write_media(root / "a" / f"{i:02d}.mp4", seconds=2.0, size=(64, 48), tone_hz=300 + 25 * i)
    return root


def command(folder, home, *extra):
    return ("-m", "avssl", "pretrain", RECIPE, f"data.root={folder}", f"run.folder={home}", *SMALL, *extra)


def said(process):
    """Lines of the command itself, once all processes have ended; torchrun adds a report of its own."""
    _, errors = process.communicate()
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if "avssl: " in line]
    assert lines, errors
    return lines


def steps(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def wait_for_step(process, run, step):
    for _ in range(1200):
        assert process.poll() is None, process.communicate()[1]
        path = run / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the run did not get that far in two minutes")


def test_a_signal_or_a_killed_process_stops_all_and_loses_nothing(avssl, folder, tmp_path):
    run = tmp_path / "avid_small"
    process = start_torchrun(*command(folder, tmp_path))
    wait_for_step(process, run, 3)
    process.send_signal(signal.SIGTERM)
    (line,) = said(process)
    assert "stopped by SIGTERM after step" in line
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"

    process = start_torchrun(*command(folder, tmp_path))
    wait_for_step(process, run, max(steps(run)) + 4)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    (line,) = said(process)
    assert "avssl: error: another process of this run ended without a word" in line

    alone = avssl(*command(folder, tmp_path)[2:], cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert steps(run) == list(range(1, 37))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("train.batch_size=5", "train.batch_size is 5 and train.accumulate 1, with 2 processes"),
        ("data.max_skipped=0.01", "1 of 13 samples (7.7%) could not be read"),  # the first alone scans
    ],
)
def test_an_error_ends_all_processes_and_is_said_once(folder, tmp_path, extra, message):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in (folder / "a").iterdir():
        (damaged / path.name).symlink_to(path)
    (damaged / "corrupt.mp4").write_bytes(b"no video " * 300)
    (line,) = said(start_torchrun(*command(damaged, tmp_path, extra)))
    assert message in line


def test_torchrun_starts_a_run_again_whose_process_was_killed(folder, tmp_path):
    alone = start_torchrun(*command(folder, tmp_path, "run.name=whole"))
    _, errors = alone.communicate()
    assert alone.returncode == 0, errors
    begun_before = tmp_path / "cut"
    begun_before.mkdir()
    (begun_before / "notes.txt").write_text("of an earlier run")
    process = start_torchrun(*command(folder, tmp_path, "run.name=cut", "--restart"), restarts=2)
    for step in (4, 9):
        wait_for_step(process, begun_before, step)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        wait_for_death(workers)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")
    assert (tmp_path / "cut.old1" / "notes.txt").exists()  # --restart counted once, not at each new start
    assert not (tmp_path / "cut.old2").exists()
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def wait_for_death(workers):
    for _ in range(600):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            return
        time.sleep(0.1)
    raise AssertionError("the processes did not end within a minute")
