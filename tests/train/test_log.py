"""Where the numbers of a run go: to Weights & Biases when asked, where nothing that fails ends the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from avssl.build import Config
from avssl.config import config_from_dict
from avssl.errors import ConfigError
from avssl.train.log import MetricsLog, check_wandb, drop_lines_after, peak_memory


class StandIn:
    """A module that notes what it is told, and fails where asked to."""

    def __init__(self, failing=""):
        self.failing, self.begun, self.told, self.ended = failing, [], [], []

    Settings = dict

    def setup(self, settings):
        assert settings["silent"]

    def init(self, **arguments):
        self._fail("init")
        self.begun.append(arguments)
        return SimpleNamespace(log=self._log, finish=self._finish, offline=False, url="https://there/run")

    def _log(self, numbers, step):
        self._fail("log")
        self.told.append((step, numbers))

    def _finish(self, exit_code):
        self._fail("finish")
        self.ended.append(exit_code)

    def _fail(self, place):
        if place == self.failing:
            raise ConnectionError("no network\n here")


@pytest.fixture
def stand_in(monkeypatch):
    def make(failing=""):
        module = StandIn(failing)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return make


def open_log(folder, step=0, said=None):
    said = [] if said is None else said
    return MetricsLog(folder, step, "project", {"optim": {"lr": 0.1}}, said.append)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_same_numbers_go_to_wandb_with_recipe_and_place(tmp_path, stand_in):
    there, said = stand_in(), []
    log = open_log(tmp_path, said=said)
    log.write(10, 0, {"loss": 1.5})
    log.write(10, 0, {"mined": 3.0})
    log.close(finished=False)
    assert there.told == [(10, {"epoch": 0, "loss": 1.5}), (10, {"epoch": 0, "mined": 3.0})]
    assert there.ended == [1]
    assert said == ["Weights & Biases: https://there/run"]
    (begun,) = there.begun
    assert (begun["project"], begun["name"], begun["dir"]) == ("project", tmp_path.name, str(tmp_path))
    assert begun["config"] == {"optim": {"lr": 0.1}}
    assert begun["resume"] == "allow"


def test_a_resumed_run_goes_on_under_its_id_and_tells_no_step_twice(tmp_path, stand_in):
    there = stand_in()
    log = open_log(tmp_path)
    for step in (10, 20, 30):
        log.write(step, 0, {"loss": float(step)})
    del log  # killed
    log = open_log(tmp_path, step=10)
    for step in (20, 30, 40):
        log.write(step, 0, {"loss": float(step)})
    log.close()
    assert [step for step, _ in there.told] == [10, 20, 30, 40]
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40]
    assert there.begun[0]["id"] == there.begun[1]["id"]
    open_log(tmp_path / "..").close()
    assert there.begun[2]["id"] != there.begun[0]["id"]


def test_a_run_that_is_shown_only_from_its_second_session_on_tells_all_steps_of_it(tmp_path, stand_in):
    log = MetricsLog(tmp_path)
    for step in (10, 20):
        log.write(step, 0, {"loss": 1.0})
    log.close()
    there = stand_in()
    log = open_log(tmp_path, step=10)
    log.write(20, 0, {"loss": 1.0})
    log.close()
    assert [step for step, _ in there.told] == [20]


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_whatever_fails_there_is_said_once_and_ends_nothing(tmp_path, stand_in, place):
    stand_in(failing=place)
    said = []
    log = open_log(tmp_path, said=said)
    for step in (10, 20):
        log.write(step, 0, {"loss": 1.0})
    log.close()
    warnings = [line for line in said if line.startswith("warning")]
    assert warnings == [
        "warning: Weights & Biases: no network here; the run goes on without it, and metrics.jsonl has all "
        "numbers"
    ]
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]


@pytest.fixture
def real():
    """The package, which keeps what it read from the environment until it is torn down."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    yield wandb
    wandb.teardown()


def test_the_package_itself_takes_a_run_and_its_continuation_offline(tmp_path, monkeypatch, real):
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = []
    for step in (0, 10):
        log = open_log(tmp_path, step, said)
        for later in (10, 20):
            log.write(step + later, 0, {"held_out_a2v_r1": float("nan"), "loss": 1.0})
        log.close()
    assert said == 2 * [f"Weights & Biases: offline, in {tmp_path / 'wandb'}"]
    name = json.loads((tmp_path / "wandb.json").read_text())["id"]
    real.teardown()  # waits until all is on the disk
    files = list(tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
    assert 1 <= len(files) <= 2  # the seconds in their names may be the same
    assert all(b"held_out_a2v_r1" in file.read_bytes() for file in files)


def test_without_a_key_the_run_goes_on(tmp_path, monkeypatch, real):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    said = []
    log = open_log(tmp_path, said=said)
    log.write(10, 0, {"loss": 1.0})
    log.close()
    (warning,) = said
    assert "No API key configured" in warning
    assert len(lines(tmp_path)) == 1


def test_a_missing_package_is_refused_before_anything_begins(tmp_path, monkeypatch):
    check_wandb(None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run\.wandb is 'project', .*pip install 'avssl\[wandb\]'"):
        check_wandb("project")
    folder = SimpleNamespace(origin=None)  # what W&B itself leaves in the working folder is found as one
    monkeypatch.setattr("importlib.util.find_spec", lambda name: folder)
    with pytest.raises(ConfigError, match="not installed"):
        check_wandb("project")
    with pytest.raises(ConfigError, match=r"run\.wandb"):
        config_from_dict({"run": {"wandb": ""}}, Config)


def test_dropping_lines_tells_the_last_step_there_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert drop_lines_after(path, 5) == 5
    path.write_text('{"step": 4}\n{"step": 9}\n[1]\n{"step": 12, "lo')
    assert drop_lines_after(path, 5) == 9
    assert path.read_text() == '{"step": 4}\n'


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_this_process(monkeypatch):
    (status,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    assert peak_memory(torch.device("cpu")) == {
        "memory_gb": pytest.approx(int(status.split()[1]) * 1024 / 1e9, rel=0.05)
    }
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2_500_000_000)
    assert peak_memory(torch.device("cuda:0")) == {"memory_gb": 2.5}
