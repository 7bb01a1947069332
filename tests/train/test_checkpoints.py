"""Checkpoints are written aside, named when whole, kept by rule, and passed over when damaged."""

import json
import os
import resource
import threading

import pytest
import torch

from avssl.checkpoint import load_checkpoint, save_checkpoint
from avssl.errors import CheckpointError
from avssl.train import checkpoints, pretrain
from avssl.train.checkpoints import CheckpointWriter, Keeping, copied, newest_whole


def state(step: int, epoch: int = 0, batch: int = 1) -> dict:
    position = {"step": step, "epoch": epoch, "batch": batch}
    return {"objective": {"w": torch.full((300,), float(step))}, "position": position}


TWO = Keeping(last=2)


def written(folder, keeping=TWO, steps=(1, 2, 3), **numbers):
    writer = CheckpointWriter(folder, keeping)
    for step in steps:
        writer.save(
            state(step, epoch=step, batch=0), {name: values[step] for name, values in numbers.items()}
        )
    writer.finish()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def step_of(path) -> int:
    return load_checkpoint(path)["position"]["step"]


def flip(path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 16
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("keeping", "names"),
    [
        (Keeping(last=1), ["checkpoint.pt"]),
        (Keeping(last=2), ["checkpoint.pt", "checkpoints/step_00000002.pt"]),
        (Keeping(last=9), ["checkpoint.pt", "checkpoints/step_00000001.pt", "checkpoints/step_00000002.pt"]),
        (Keeping(last=1, every_epochs=2), ["checkpoint.pt", "checkpoints/epoch_0002.pt"]),
    ],
)
def test_as_many_are_kept_as_asked_for(tmp_path, keeping, names):
    assert written(tmp_path, keeping) == names
    assert step_of(tmp_path) == 3
    for name in names[1:]:
        assert step_of(tmp_path / name) == int(name[-4])


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("held_out_a2v_r1", {1: 0.1, 2: 0.5, 3: 0.5}, 2),
        ("loss", {1: 3.0, 2: float("nan"), 3: 2.0}, 3),
        ("swav/loss", {1: 1.0, 2: 2.0, 3: 3.0}, 1),
    ],
)
def test_the_best_is_kept(tmp_path, metric, values, best):
    written(tmp_path, Keeping(best_by=metric), **{metric: values})
    assert step_of(tmp_path / "checkpoints" / "best.pt") == best
    record = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert record == {"metric": metric, "value": values[best], "step": best}
    again = CheckpointWriter(tmp_path, Keeping(best_by=metric), step=3)
    assert not again.is_best(values[best])  # a run that goes on knows what it had
    assert CheckpointWriter(tmp_path, Keeping(best_by="other"), step=3).is_best(-9.0)


def test_saving_returns_before_the_file_is_written_and_keeps_what_was_then(tmp_path, monkeypatch):
    may_write = threading.Event()

    def slow(path, content):
        assert may_write.wait(60)
        save_checkpoint(path, content)

    monkeypatch.setattr(checkpoints, "save_checkpoint", slow)
    writer = CheckpointWriter(tmp_path, Keeping())
    content = state(1)
    writer.save(content, {})
    content["objective"]["w"].zero_()  # the training goes on
    assert not (tmp_path / "checkpoint.pt").exists()
    may_write.set()
    writer.finish()
    assert load_checkpoint(tmp_path)["objective"]["w"].eq(1).all()


def test_a_copy_shares_what_was_shared():
    w = torch.arange(6.0)
    twin = {"a": w, "b": [w, w.view(2, 3)], "c": 3}
    copy = copied(twin)
    assert copy["a"] is copy["b"][0]
    assert copy["c"] == 3
    assert torch.equal(copy["b"][1], w.view(2, 3))
    w.zero_()
    assert torch.equal(copy["a"], torch.arange(6.0))


def test_a_full_disk_is_reported_and_the_checkpoints_before_stay(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, Keeping())
    writer.save(state(1), {})
    writer.finish()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        writer.save(state(2), {})
        with pytest.raises(CheckpointError, match=r"No space left on device; free some space"):
            writer.finish()
    writer.check()  # an error is reported once
    assert step_of(tmp_path) == 1
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("limit", [1, 700, 1500])
def test_a_write_that_ends_in_the_middle_says_why(tmp_path, limit):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # as on a full disk, the system refuses the rest
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written: File too large; free some space"):
            save_checkpoint(path, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert step_of(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_any_error_of_the_thread_reaches_the_training(tmp_path):
    writer = CheckpointWriter(tmp_path, TWO)
    writer.save({"objective": {}}, {})
    with pytest.raises(KeyError, match="position"):
        writer.finish()


def test_file_systems_without_hard_links_get_copies(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert written(tmp_path) == ["checkpoint.pt", "checkpoints/step_00000002.pt"]
    assert step_of(tmp_path / "checkpoints" / "step_00000002.pt") == 2


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.98])
def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(tmp_path, share):
    written(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    flip(tmp_path / "checkpoint.pt", share)
    said: list[str] = []
    found = newest_whole(tmp_path, said.append)
    if found["position"]["step"] == 3:  # the bit was in the padding between tensors
        assert torch.equal(found["objective"]["w"], torch.full((300,), 3.0))
        return
    assert found["position"]["step"] == 2
    assert f"{tmp_path}/checkpoint.pt: damaged" in said[0]
    assert "going on from step_00000002.pt, written after step 2" in said[0]
    assert len(said) == 1
    assert step_of(tmp_path) == 2
    assert len((tmp_path / "checkpoint.pt.damaged").read_bytes()) == len(before)


def test_torch_alone_would_not_notice(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", {"objective": {"w": torch.ones(10_000)}})
    flip(tmp_path / "checkpoint.pt", 0.5)
    assert not torch.load(tmp_path / "checkpoint.pt")["objective"]["w"].eq(1).all()
    with pytest.raises(
        CheckpointError, match=r"the checksum of '.*' is not the one written; use another copy"
    ):
        load_checkpoint(tmp_path)


def test_half_written_files_are_passed_over_and_a_run_with_none_left_says_so(tmp_path):
    written(tmp_path)
    (tmp_path / ".checkpoint.pt.77.tmp").write_bytes(b"half")
    for path in (tmp_path / "checkpoint.pt", tmp_path / "checkpoints" / "step_00000002.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"checkpoint.pt: .*holds no other that is whole; give --restart"
    ):
        newest_whole(tmp_path, lambda line: None)
    assert not list(tmp_path.glob(".*.tmp"))
    assert newest_whole(tmp_path / "empty", lambda line: None) is None


def test_a_name_that_is_missing_is_taken_from_the_earlier_ones(tmp_path):
    written(tmp_path, Keeping(last=3, every_epochs=1))
    (tmp_path / "checkpoint.pt").unlink()
    assert newest_whole(tmp_path, lambda line: None)["position"]["step"] == 2
    assert step_of(tmp_path) == 2


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(recipe, progress):
    whole = pretrain(recipe(run={"name": "whole"}), progress)
    folder = pretrain(recipe(train={"epochs": 3, "keep_last": 3}), progress)
    flip(folder / "checkpoint.pt", 0.5)
    flip(folder / "checkpoints" / "step_00000006.pt", 0.5)
    said: list[str] = []
    pretrain(recipe(train={"epochs": 3, "keep_last": 3}), progress, say=said.append)
    assert [line for line in said if "damaged" in line and "after step 3" in line] == said[:2]
    ended = load_checkpoint(folder)
    assert ended["position"]["step"] == 9
    for name, value in load_checkpoint(whole)["objective"].items():
        assert torch.equal(value, ended["objective"][name]), name
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 10))


def test_a_run_keeps_its_best_and_says_where_the_numbers_are_from(recipe, progress):
    folder = pretrain(recipe(train={"keep_best": "loss", "keep_every": 2}), progress)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.json", "best.pt", "epoch_0002.pt", "step_00000006.pt"]
    record = json.loads((folder / "checkpoints" / "best.json").read_text())
    losses = {
        line["step"]: line["loss"]
        for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if line["step"] % 3 == 0
    }
    assert record["value"] == min(losses.values())
    assert losses[record["step"]] == record["value"] == losses[step_of(folder / "checkpoints" / "best.pt")]
