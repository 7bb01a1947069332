"""What may change between two sessions of a run, what is refused, and what becomes of the rest."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from media import write_media
from training import assert_same_weights, losses, stop_after

from avssl.checkpoint import load_checkpoint
from avssl.data import Manifest, scan
from avssl.data.dataset import lacks_memory
from avssl.errors import CheckpointError, ConfigError, DataGoneError, Interrupted, TrainingError
from avssl.train import pretrain
from avssl.train.position import LoopSettings, Position
from avssl.train.resume import alone_in, place_in
from avssl.train.trainer import Trainer

CMA_SETTINGS = {"name": "CMA", "num_negatives": 4, "num_positives": 3, "refresh_epochs": 2}


@pytest.fixture
def cut(recipe, progress, monkeypatch):
    """Train up to a step, with sections of the recipe changed; returns the run folder."""

    def cut(step, **changes):
        with monkeypatch.context() as patch:
            stop_after(patch, step=step)
            with pytest.raises(Interrupted):
                pretrain(recipe(**changes), progress)
        return recipe().run.folder

    return cut


@pytest.fixture
def grown(videos, tmp_path):
    """Manifests of the training videos, and of these without one and with another."""
    whole = scan(str(videos)).manifest.select(split="train")
    whole.save(tmp_path / "whole.parquet")
    (tmp_path / "more").mkdir()
    write_media(tmp_path / "more" / "new.mp4", seconds=1.2, size=(48, 40), first_number=99)
    new = scan(str(tmp_path / "more"), val_share=0.0).manifest
    samples = [whole.row(i) for i in range(1, len(whole))]
    added = replace(new.row(0), path=str(new.path(0)), split="train")
    Manifest.from_samples([*samples, added], whole.root).save(tmp_path / "grown.parquet")
    return {
        name: {"root": None, "manifest": str(tmp_path / f"{name}.parquet")} for name in ("whole", "grown")
    }


def test_changes_of_the_recipe_are_named_and_go_on_when_allowed(recipe, progress, cut):
    cut(4)
    changed = {"optim": {"lr": 1e-4}, "train": {"epochs": 4}}
    with pytest.raises(CheckpointError, match=r"optim\.lr was 0\.001, is 0\.0001; train\.epochs was 3, is 4"):
        pretrain(recipe(**changed), progress)
    said: list[str] = []
    folder = pretrain(recipe(**changed), progress, say=said.append, allow_changes=True)
    assert said[:2] == [
        f"{folder}: goes on with a change: optim.lr was 0.001, is 0.0001",
        f"{folder}: goes on with a change: train.epochs was 3, is 4",
    ]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == [1e-3] * 4 + [1e-4] * 8
    (noted,) = map(json.loads, (folder / "changes.jsonl").read_text().splitlines())
    assert noted["step"] == 4
    assert len(noted["changes"]) == 2
    pretrain(recipe(**changed), progress)  # what was allowed once is the run's own now


def test_another_division_of_the_batch_goes_on_at_the_same_clips(recipe, progress, cut):
    cut(4)  # 12 files, batch 4: one batch into the second epoch
    folder = pretrain(recipe(train={"batch_size": 4, "accumulate": 2}), progress, allow_changes=True)
    assert sorted(losses(folder)) == list(range(1, 10))
    assert load_checkpoint(folder)["position"] == {"step": 9, "epoch": 3, "batch": 0}


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "batch", "epoch"),
    [(8, 1, 3, 5), (4, 1, 7, 5), (16, 1, 1, 5), (8, 2, 7, 5), (56, 1, 0, 5), (64, 1, 0, 5)],
)
def test_where_a_run_goes_on_when_its_batches_have_become_others(batch_size, accumulate, batch, epoch):
    train = {"batch_size": 8, "accumulate": 2}  # parts of 4; 7 of them are done, of an epoch of 100 clips
    checkpoint = {"position": {"step": 9, "epoch": 5, "batch": 7}, "config": {"train": train}}
    batches = 100 // (batch_size // accumulate)
    settings = LoopSettings(9, batches, 0, batch_size=batch_size, accumulate=accumulate)
    assert place_in(checkpoint, settings, same_data=True) == Position(9, epoch, batch)
    assert place_in(checkpoint, settings, same_data=False) == Position(9, 5, 0)


def test_what_the_model_is_made_of_cannot_change(recipe, progress, cut):
    cut(4)
    wider = {"video": {"name": "R2Plus1D", "depth": 10, "width": 8}}
    with pytest.raises(CheckpointError, match=r"does not fit this recipe: .*with run\.start_from"):
        pretrain(recipe(model=wider), progress, allow_changes=True)


@pytest.mark.parametrize("objective", [{"name": "AVID", "num_negatives": 4}, CMA_SETTINGS])
def test_other_samples_are_named_and_memories_follow_their_ids(recipe, progress, cut, grown, objective):
    start = {}
    if objective["name"] == "CMA":
        avid = pretrain(recipe(data=grown["whole"], run={"name": "avid"}), progress)
        start = {"run": {"start_from": str(avid)}}
    cut(4, data=grown["whole"], objective=objective, **start)
    changed = recipe(data=grown["grown"], objective=objective, **start)
    with pytest.raises(
        CheckpointError, match=r"the samples: 1 new \(such as 'new.*'\) and 1 gone \(such as 'train.*, of 12;"
    ):
        pretrain(changed, progress)
    run = Path(changed.run.folder) / "run"
    before = load_checkpoint(run)["objective"]
    old = Manifest.load(run / "manifest.parquet").ids
    folder = pretrain(changed, progress, allow_changes=True)
    now = Manifest.load(folder / "manifest.parquet").ids
    assert len(now) == 12
    assert now != old
    ended = load_checkpoint(folder)
    assert ended["position"] == {"step": 4 + 6, "epoch": 3, "batch": 0}  # the second epoch began anew
    assert ended["objective"]["bank.seen"].all()
    assert torch.equal(ended["objective"]["partition.log_z"], before["partition.log_z"])
    assert before["bank.keys"].ne(ended["objective"]["bank.keys"]).any()
    assert losses(folder).keys() >= set(range(1, 11))


def test_a_run_whose_data_vanish_keeps_all_that_was_trained_and_goes_on_when_they_are_back(
    recipe, progress, monkeypatch, videos, tmp_path
):
    data = {"root": str(tmp_path / "disk")}
    shutil.copytree(videos, tmp_path / "disk")
    whole = pretrain(recipe(data=data, run={"name": "whole"}), progress)
    advance = Trainer._advance

    def unmount(trainer, last):
        advance(trainer, last)
        if trainer.position.step == 5:
            (tmp_path / "disk").rename(tmp_path / "unmounted")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_advance", unmount)
        with pytest.raises(DataGoneError, match=r"disk.* is gone .*same command again"):
            pretrain(recipe(data=data), progress)
    folder = whole.parent / "run"
    assert load_checkpoint(folder)["position"]["step"] == 5
    assert not (folder / "skipped.jsonl").exists()
    (tmp_path / "unmounted").rename(tmp_path / "disk")
    pretrain(recipe(data=data), progress)
    assert losses(folder) == losses(whole)
    assert_same_weights(load_checkpoint(folder), load_checkpoint(whole))


def test_two_trainings_do_not_share_a_folder(recipe, progress, tmp_path):
    folder = pretrain(recipe(), progress)
    script = (
        "import sys; from pathlib import Path; from avssl.train.resume import alone_in\n"
        "with alone_in(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=rf"trained by another process \(.*process {holder.pid}\)"):
            pretrain(recipe(), progress)
        holder.kill()
    with alone_in(folder):  # the hold ends with the process
        pass


def test_a_folder_that_cannot_be_written_is_refused_before_anything_long(recipe, progress, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run: cannot be written: .*run\.folder="):
        pretrain(recipe(run={"folder": str(tmp_path / "file")}), progress)
    if os.path.ismount("/proc") and os.path.isdir("/proc/self"):
        with pytest.raises(ConfigError, match=r"/proc/run: cannot be written"):
            pretrain(recipe(run={"folder": "/proc"}), progress)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_memory_that_runs_out_is_explained(recipe, progress, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(Trainer, "_update", fails)
    with pytest.raises(
        TrainingError,
        match=r"out of memory on cpu in step 1: .*; raise train\.accumulate \(now 1; 4 clips at a time\).*"
        r"with --allow-changes the same command goes on",
    ):
        pretrain(recipe(), progress)


def test_other_errors_are_not_taken_for_want_of_memory(recipe, progress, monkeypatch):
    def fails(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "_update", fails)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pretrain(recipe(), progress)


def test_a_real_shortage_has_the_words_that_are_looked_for():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert lacks_memory(error.value)


def test_the_deterministic_mode_holds_while_a_run_lasts(recipe, progress, monkeypatch):
    seen = []
    step = Trainer._step

    def noted(trainer, agreed):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        step(trainer, agreed)

    monkeypatch.setattr(Trainer, "_step", noted)
    fast = pretrain(recipe(train={"epochs": 1}, run={"name": "fast"}), progress)
    exact = pretrain(recipe(train={"epochs": 1, "deterministic": True}), progress)
    assert_same_weights(load_checkpoint(fast), load_checkpoint(exact))  # a CPU does the same in any case
    assert losses(fast) == losses(exact)
    assert seen == [(False, True)] * 3 + [(True, False)] * 3
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
