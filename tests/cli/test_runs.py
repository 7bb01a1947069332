"""What is said of runs, whole, unfinished, damaged and foreign ones."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from avssl.build import Config
from avssl.cli.main import main
from avssl.config import config_from_dict, dump_config
from avssl.report.standing import read_standing

LINES = [
    {"step": 10, "epoch": 0, "loss": 3.5, "clips_per_second": 20.0},
    {"step": 20, "epoch": 0, "loss": 2.25, "clips_per_second": 31.25},
    {"step": 30, "epoch": 1, "loss": 2.5, "clips_per_second": 30.0},
    {"step": 30, "epoch": 1, "mined": 7.0},
]


@pytest.fixture
def make_run(tmp_path):
    def make(name, status="finished", lr=1e-3, metrics=None, **objective):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        recipe = {"objective": {"name": "AVID", **objective}, "optim": {"lr": lr}, "run": {"name": name}}
        (folder / "config.yaml").write_text(dump_config(config_from_dict(recipe, Config)))
        record = {
            "status": status, "started": "2026-03-01T12:30:00+01:00", "total_steps": 1500,
            "settings": {"checkpoint_minutes": 1.0},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
        (folder / "checkpoint.pt").write_bytes(b"weights")
        if metrics is not None:
            rows = [{"name": "random init", "metrics": {"a2v_r1": 0.01}}, {"name": name, "metrics": metrics}]
            (folder / "results.json").write_text(json.dumps({"rows": rows}))
        return folder

    return make


def avssl(*arguments):
    result = CliRunner().invoke(main, ["runs", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_list_says_how_far_runs_are(make_run, tmp_path):
    make_run("one", metrics={"a2v_r1": 0.125, "linear_video": 0.5})
    make_run("group/two", status="stopped")
    result = avssl("list", tmp_path)
    two, one = (line for line in result.stdout.splitlines() if "AVID" in line)
    shown = [cell.strip() for cell in one.split("│")[1:-1]]
    assert shown == [
        "one",
        "AVID",
        "finished",
        "2026-03-01 12:30",
        "30 of 1,500",
        "2.5",
        "30.0",
        "0.5",
        "0.125",
    ]
    assert [cell.strip() for cell in two.split("│")[1:4]] == ["group/two", "AVID", "stopped"]

    found = json.loads(avssl("list", tmp_path, "--json").stdout)
    assert [run["name"] for run in found] == ["group/two", "one"]
    assert found[1] == {
        "name": "one", "objective": "AVID", "state": "finished", "step": 30, "total_steps": 1500, "loss": 2.5,
        "best_loss": 2.25, "clips_per_second": 30.0, "started": "2026-03-01T12:30:00+01:00",
        "has_checkpoint": True, "metrics": {"a2v_r1": 0.125, "linear_video": 0.5}, "problems": [],
    }  # fmt: skip


def test_a_run_that_says_running_but_writes_nothing_is_silent(make_run):
    folder = make_run("one", status="running")
    written = max((folder / name).stat().st_mtime for name in ("run.json", "metrics.jsonl", "checkpoint.pt"))
    assert read_standing(folder, "one", now=written + 400).state == "running"
    assert read_standing(folder, "one", now=written + 440).state == "silent"  # two minutes and five
    os.utime(folder / "metrics.jsonl", (written + 100, written + 100))
    assert read_standing(folder, "one", now=written + 440).state == "running"


def test_damaged_and_foreign_folders_are_named_and_do_not_stop_the_list(make_run, tmp_path):
    make_run("whole")
    damaged = make_run("damaged")
    (damaged / "run.json").write_text('{"status": "fini')
    (damaged / "config.yaml").write_bytes(b"objective: {name: [\xff")
    (damaged / "metrics.jsonl").write_text('{"step": 10, "loss": 3.0}\n{"step": 2')
    (damaged / "checkpoint.pt").unlink()
    (tmp_path / "photographs").mkdir()
    (tmp_path / "waiting" / "jobs").mkdir(parents=True)
    (tmp_path / "waiting" / "jobs" / "17_submitted.pkl").write_bytes(b"")
    (tmp_path / "file.txt").write_text("no folder")
    result = avssl("list", tmp_path, "--json")
    assert result.exit_code == 0
    states = {run["name"]: run["state"] for run in json.loads(result.stdout)}
    assert states == {"damaged": "unknown", "waiting": "submitted", "whole": "finished"}
    for line in (
        f"avssl: warning: {tmp_path / 'photographs'}: holds no run",
        "avssl: warning: damaged: config.yaml: cannot be read",
        "avssl: warning: damaged: run.json: cannot be read",
        "avssl: warning: damaged: metrics.jsonl: 1 damaged line left out",
    ):
        assert line in result.stderr
    assert "unknown, no checkpoint" in avssl("list", tmp_path).stdout


def test_a_run_itself_and_an_empty_folder_can_be_listed(make_run, tmp_path):
    folder = make_run("one")
    assert [run["name"] for run in json.loads(avssl("list", folder, "--json").stdout)] == ["one"]
    (tmp_path / "empty").mkdir()
    assert avssl("list", tmp_path / "empty").stdout == f"{tmp_path / 'empty'}: no runs\n"
    missing = avssl("list", tmp_path / "none")
    assert missing.exit_code == 2
    assert "none: no such folder; give the one that runs are in" in missing.stderr


def test_compare_shows_what_differs(make_run):
    one = make_run("one", metrics={"a2v_r1": 0.125})
    two = make_run("two", lr=5e-4, num_negatives=64, metrics={"a2v_r1": 0.25, "knn_video": 0.5})
    found = json.loads(avssl("compare", one, two, "--json").stdout)
    assert found["differing"] == {
        "optim.lr": [0.001, 0.0005],
        "run.name": ["one", "two"],
        "objective.num_negatives": [None, 64],
    }
    assert [run["best_loss"] for run in found["runs"]] == [2.25, 2.25]

    lines = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in avssl("compare", one, two).stdout.splitlines()
    ]
    for row in (
        ["optim.lr", "0.001", "0.0005"],
        ["objective.num_negatives", "–", "64"],
        ["steps", "30 of 1,500", "30 of 1,500"],
        ["last loss", "2.5", "2.5"],
        ["best loss", "2.25", "2.25"],
        ["a2v_r1", "0.125", "0.25"],
        ["knn_video", "–", "0.5"],
    ):
        assert row in lines


def test_compare_needs_two_runs(make_run, tmp_path):
    alone = avssl("compare", make_run("one"))
    assert (alone.exit_code, "give at least two runs" in alone.stderr) == (2, True)
    foreign = avssl("compare", tmp_path / "one", tmp_path)
    assert (foreign.exit_code, "holds no run" in foreign.stderr) == (2, True)
