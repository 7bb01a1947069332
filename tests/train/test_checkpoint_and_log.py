import json
import os
import pickle

import pytest
import torch

from avssl.checkpoint import load_checkpoint, save_checkpoint
from avssl.errors import CheckpointError
from avssl.train.log import MetricsLog, RunningMeans


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {"objective": {"w": torch.arange(3.0)}, "position": {"step": 3}, "manifest_hash": "ab"}
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    for place in (tmp_path, tmp_path / "checkpoint.pt"):
        loaded = load_checkpoint(place)
        assert torch.equal(loaded["objective"]["w"], state["objective"]["w"])
        assert loaded["position"] == {"step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"objective": {"w": torch.ones(2)}})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; free some space"):
        save_checkpoint(path, {"objective": {"w": torch.zeros(2)}})
    assert torch.equal(load_checkpoint(path)["objective"]["w"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"objective": Malicious(), "avssl_version": "0"}, "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
            load_checkpoint(name)
    assert not (tmp_path / "executed").exists()


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path)
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of avssl"):
        load_checkpoint(tmp_path / "other.pt")


def test_the_log_drops_lines_of_steps_that_are_done_again(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, 0, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    log = MetricsLog(tmp_path, step=2)
    log.write(3, 1, {"loss": float("nan")})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, None)]


def test_running_means_start_afresh_after_reading():
    means = RunningMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    means.add({"a": torch.tensor(3.0)})
    assert means.read() == {"a": 2.0, "b": 5.0}
    assert means.read() == {}
