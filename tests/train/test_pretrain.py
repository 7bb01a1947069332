"""Whole small runs on real files: what they write, and that they go on as if nothing had happened."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from media import write_media
from training import assert_same_weights, losses, stop_after

from avssl.build import build_objective, share_cores
from avssl.checkpoint import load_checkpoint
from avssl.data import Manifest
from avssl.errors import CheckpointError, ConfigError, Interrupted, TooManySkippedError
from avssl.train import pretrain
from avssl.weights import export_official


def test_a_run_leaves_everything_behind(recipe, progress):
    folder = pretrain(recipe(), progress, command="avssl pretrain x.yaml")
    present = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "checkpoint.pt", "manifest.parquet", "metrics.jsonl", "run.json"} <= present
    assert list((folder / "tensorboard").iterdir())
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["command"] == "avssl pretrain x.yaml"
    assert record["manifest"]["rows"] == record["manifest"]["used"] == 12
    assert sorted(losses(folder)) == list(range(1, 10))  # 12 files, batch 4, 3 epochs
    assert load_checkpoint(folder)["objective"]["bank.seen"].all()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_stopped_in_the_middle_of_an_epoch_ends_bit_for_bit_alike(
    recipe, progress, monkeypatch, accumulate
):
    train = {"accumulate": accumulate, "batch_size": 4 * accumulate}
    whole = pretrain(recipe(run={"name": "whole"}, train=train), progress)
    with monkeypatch.context() as patch:
        stop_after(patch, step=4)
        with pytest.raises(Interrupted, match=r"stopped by SIGINT after step 4.*same command again"):
            pretrain(recipe(run={"name": "cut"}, train=train), progress)
    cut = whole.parent / "cut"
    assert load_checkpoint(cut)["position"]["step"] == 4
    pretrain(recipe(run={"name": "cut"}, train=train), progress)
    assert losses(cut) == losses(whole)
    assert_same_weights(load_checkpoint(cut), load_checkpoint(whole))


def test_cma_starts_from_avid_and_resumes_exactly(recipe, progress, monkeypatch):
    avid = pretrain(recipe(run={"name": "avid"}), progress)
    cma = {"name": "CMA", "num_negatives": 4, "num_positives": 3, "refresh_epochs": 2}
    stage = {"start_from": str(avid)}
    whole = pretrain(recipe(objective=cma, run={"name": "whole", **stage}), progress)
    with monkeypatch.context() as patch:
        stop_after(patch, step=5)
        with pytest.raises(Interrupted):
            pretrain(recipe(objective=cma, run={"name": "cut", **stage}), progress)
    cut = pretrain(recipe(objective=cma, run={"name": "cut", **stage}), progress)
    assert losses(cut) == losses(whole)
    assert_same_weights(load_checkpoint(cut), load_checkpoint(whole))
    positives = load_checkpoint(whole)["objective"]["positive_set"]
    assert (positives >= 0).all()
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert first["instances_with_positives"] == 12
    assert first["mining_certified_share"] == 1
    mined, mined_again = (
        [json.loads(line) for line in (run / "mining.jsonl").read_text().splitlines()] for run in (whole, cut)
    )
    assert [(record["step"], record["epoch"]) for record in mined] == [(0, 0), (6, 2)]
    for record in (*mined, *mined_again):
        assert record["mining"].pop("mining_seconds") > 0
        assert record["mining"]["method"] == "exact"
    assert mined_again == mined


def test_loader_workers_change_nothing(recipe, progress):
    one = pretrain(recipe(run={"name": "none"}), progress)
    two = pretrain(recipe(run={"name": "two"}, data={"num_workers": 2}), progress)
    assert losses(one) == losses(two)


def test_a_finished_run_is_left_as_it_is(recipe, progress):
    folder = pretrain(recipe(), progress)
    before = load_checkpoint(folder)
    pretrain(recipe(), progress)
    assert_same_weights(before, load_checkpoint(folder))
    assert sorted(losses(folder)) == list(range(1, 10))


def test_another_recipe_in_the_same_folder_is_refused_by_name_of_the_keys(recipe, progress):
    folder = pretrain(recipe(), progress)
    found = (
        r"differs: optim\.lr was 0\.001, is 0\.5; train\.epochs was 3, is 9; give --allow-changes.*--restart"
    )
    with pytest.raises(CheckpointError, match=found):
        pretrain(recipe(optim={"lr": 0.5}, train={"epochs": 9}), progress)
    pretrain(recipe(optim={"lr": 0.5}), progress, restart=True)
    assert (folder.parent / "run.old1" / "checkpoint.pt").exists()
    assert load_checkpoint(folder)["config"]["optim"]["lr"] == 0.5


def test_unreadable_files_are_recorded_and_stop_the_run_above_the_limit(recipe, progress, videos, tmp_path):
    folder = tmp_path / "own"
    (folder / "a").mkdir(parents=True)
    for i in range(6):
        write_media(folder / "a" / f"{i}.mp4", seconds=1.2, size=(48, 40))
    write_media(folder / "a" / "mute.mp4", seconds=1.2, size=(48, 40), audio=False)
    write_media(folder / "a" / "silent.mp4", seconds=1.2, size=(48, 40), gains=[0.0])
    (folder / "a" / "corrupt.mp4").write_bytes(b"\x00" * 3000)
    data = {"root": str(folder), "val_share": 0.0, "max_skipped": 0.5}
    run = pretrain(recipe(data=data, run={"name": "own"}), progress)
    records = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert {(os.path.basename(r["path"]), r["stage"]) for r in records} == {
        ("corrupt.mp4", "open"), ("silent.mp4", "silent")
    }  # fmt: skip
    left_out = json.loads((run / "run.json").read_text())["manifest"]["left_out"]
    assert [(os.path.basename(r["path"]), r["reason"]) for r in left_out] == [
        ("mute.mp4", "the file has no audio stream")
    ]
    manifest = Manifest.load(run / "manifest.parquet").select(need_audio=True)
    seen = load_checkpoint(run)["objective"]["bank.seen"]
    assert [manifest.ids[i] for i in (~seen).nonzero().flatten()] == ["a/silent.mp4"]
    with pytest.raises(TooManySkippedError, match=r"1 of 9 samples.*data\.max_skipped="):
        pretrain(recipe(data=data | {"max_skipped": 0.1}, run={"name": "strict"}), progress)


def test_no_data_or_two_sources_are_refused(recipe, progress):
    for data in ({"root": None}, {"manifest": "x.parquet"}):
        with pytest.raises(ConfigError, match="give exactly one"):
            pretrain(recipe(data=data), progress)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch_size": 4, "accumulate": 3}, "divide into parts of at least 2 clips"),
        ({"batch_size": 4, "accumulate": 4}, "divide into parts of at least 2 clips"),
        ({"device": "gpu"}, "must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, r"torch sees \d+ GPUs here; use train\.device=auto"),
    ],
)
def test_impossible_training_settings_are_refused(recipe, progress, train, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(recipe(train=train), progress)


def test_cores_are_shared_between_torch_and_workers(recipe):
    threads = torch.get_num_threads()
    try:
        config = recipe(train={"threads": None}, data={"num_workers": None})
        workers = share_cores(config, torch.device("cpu"))
        cores = len(os.sched_getaffinity(0))
        assert workers == max(1, cores // 2)
        assert torch.get_num_threads() == max(1, cores - workers)
        assert share_cores(recipe(data={"num_workers": 0}), torch.device("cpu")) == 0
    finally:
        torch.set_num_threads(threads)


def test_precision_clipping_and_schedule_are_used(recipe, progress):
    optim = {"name": "sgd", "lr": 0.1, "schedule": "multistep", "milestones": [1], "clip_grad_norm": 0.5}
    folder = pretrain(recipe(optim=optim, train={"precision": "bfloat16"}), progress)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [round(line["lr"], 6) for line in lines] == [0.1] * 3 + [0.01] * 6
    assert all(line["grad_norm"] > 0 for line in lines)


@pytest.fixture
def other_data(tmp_path):
    """A folder with other files than `videos`."""
    (tmp_path / "other" / "a").mkdir(parents=True)
    for i in range(5):
        write_media(tmp_path / "other" / "a" / f"{i}.mp4", seconds=1.2, size=(48, 40), first_number=i)
    return {"root": str(tmp_path / "other"), "val_share": 0.0}


CMA_SETTINGS = {"name": "CMA", "num_negatives": 4, "num_positives": 3, "refresh_epochs": 2}


def test_cma_without_memories_of_its_samples_fills_them_first_or_is_refused(recipe, progress, other_data):
    first = pretrain(recipe(data=other_data, run={"name": "first"}), progress)
    second = {"name": "second", "start_from": str(first)}
    with pytest.raises(CheckpointError, match=r"no memories of these 12 samples.*memory_warmup_epochs=1"):
        pretrain(recipe(objective=CMA_SETTINGS, run=second), progress)
    train = {"memory_warmup_epochs": 1}
    folder = pretrain(recipe(objective=CMA_SETTINGS, run=second, train=train), progress)
    assert sorted(losses(folder)) == list(range(4, 13))  # three steps fill, nine train
    mined = [json.loads(line) for line in (folder / "mining.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in mined] == [(3, 1), (9, 3)]
    assert (load_checkpoint(folder)["objective"]["positive_set"] >= 0).all()


def test_filling_the_memories_leaves_the_weights_alone(recipe, progress, monkeypatch):
    train = {"memory_warmup_epochs": 1}
    stop_after(monkeypatch, step=3)
    with pytest.raises(Interrupted):
        pretrain(recipe(train=train), progress)
    state = load_checkpoint(Path(recipe().run.folder) / "run")["objective"]
    torch.manual_seed(recipe().train.seed)
    fresh = build_objective(recipe(), 12).state_dict()
    weights = [name for name in fresh if name.endswith("weight") and name.startswith("encoders.")]
    assert weights
    assert all(torch.equal(state[name], fresh[name]) for name in weights)
    assert state["bank.seen"].all()


def test_filling_the_memories_visits_rows_that_an_epoch_of_training_drops(recipe, progress, monkeypatch):
    train = {"memory_warmup_epochs": 1, "batch_size": 5}
    with monkeypatch.context() as patch:
        stop_after(patch, step=3)  # 5, 5 and 2 of 12 files, filled up to 5
        with pytest.raises(Interrupted):
            pretrain(recipe(train=train), progress)
    folder = Path(recipe().run.folder) / "run"
    assert load_checkpoint(folder)["objective"]["bank.seen"].all()
    assert load_checkpoint(folder)["position"] == {"step": 3, "epoch": 1, "batch": 0}
    pretrain(recipe(train=train), progress)
    assert sorted(losses(folder)) == list(range(4, 10))  # two steps in each of three epochs


def test_a_run_stopped_while_it_fills_the_memories_ends_bit_for_bit_alike(recipe, progress, monkeypatch):
    train = {"memory_warmup_epochs": 1}
    whole = pretrain(recipe(run={"name": "whole"}, train=train), progress)
    with monkeypatch.context() as patch:
        stop_after(patch, step=2)
        with pytest.raises(Interrupted):
            pretrain(recipe(run={"name": "cut"}, train=train), progress)
    cut = pretrain(recipe(run={"name": "cut"}, train=train), progress)
    assert losses(cut) == losses(whole)
    assert_same_weights(load_checkpoint(cut), load_checkpoint(whole))


def test_a_grown_data_set_keeps_the_memories_of_its_old_samples(recipe, progress, videos, tmp_path):
    avid = pretrain(recipe(run={"name": "avid"}), progress)
    grown = tmp_path / "grown"
    shutil.copytree(videos, grown)
    write_media(grown / "train" / "high" / "0a.mp4", seconds=1.2, size=(48, 40), first_number=77)
    said = []
    run = {"name": "cma", "start_from": str(avid)}
    settings = recipe(objective=CMA_SETTINGS, run=run, data={"root": str(grown)}, train={"epochs": 1})
    folder = pretrain(settings, progress, say=said.append)
    assert said == [f"{avid}: memories of 12 of the 13 samples were carried over"]
    ids = Manifest.load(folder / "manifest.parquet").select(split="train").ids
    positives = load_checkpoint(folder)["objective"]["positive_set"]
    assert (positives[ids.index("train/high/0a.mp4")] == -1).all()
    assert (positives >= 0).any(dim=1).sum() == 12


def test_an_official_checkpoint_begins_a_stage_on_other_files(recipe, progress, tmp_path):
    model = {"projection": [16, 8], "batch_norm": False}
    avid = pretrain(recipe(run={"name": "avid"}, model=model), progress)
    state = load_checkpoint(avid)
    export_official(state, tmp_path / "checkpoint.pth.tar")
    run = {"name": "cma", "start_from": str(tmp_path / "checkpoint.pth.tar")}
    with pytest.raises(CheckpointError, match=r"the release's memories belong to its authors' files"):
        pretrain(recipe(run=run, model=model, objective=CMA_SETTINGS), progress)
    train = {"memory_warmup_epochs": 1, "epochs": 1}
    settings = recipe(run=run, model=model, objective=CMA_SETTINGS, optim={"lr": 1e-9}, train=train)
    got = load_checkpoint(pretrain(settings, progress))["objective"]
    name = "encoders.video.conv2x.spt_conv1.weight"
    torch.testing.assert_close(got[name], state["objective"][name], atol=1e-6, rtol=0)
    assert (got["positive_set"] >= 0).all()


def test_statistics_of_the_own_data_are_computed_and_kept_with_the_run(recipe, progress, monkeypatch):
    views = {"statistics": "auto"}
    whole = pretrain(recipe(run={"name": "whole"}, views=views), progress)
    numbers = json.loads((whole / "statistics.json").read_text())
    assert len(numbers["mean"]) == 65
    assert numbers["num_clips"] == 12
    stored = load_checkpoint(whole)["config"]["views"]
    assert stored["spectrogram"]["mean"] == numbers["mean"]
    assert stored["statistics"] is None
    with monkeypatch.context() as patch:
        stop_after(patch, step=4)
        with pytest.raises(Interrupted):
            pretrain(recipe(run={"name": "cut"}, views=views), progress)
    cut = pretrain(recipe(run={"name": "cut"}, views=views), progress)
    assert losses(cut) == losses(whole)


def test_a_stage_takes_the_statistics_of_the_one_it_starts_from(recipe, progress, tmp_path, videos):
    views = {"statistics": "auto"}
    avid = pretrain(recipe(run={"name": "avid"}, views=views), progress)
    grown = tmp_path / "grown"
    shutil.copytree(videos, grown)
    write_media(grown / "train" / "high" / "0a.mp4", seconds=1.2, size=(48, 40), tone_hz=3000)
    run = {"name": "second", "start_from": str(avid)}
    second = pretrain(recipe(run=run, views=views, data={"root": str(grown)}, train={"epochs": 1}), progress)
    assert (second / "statistics.json").read_text() == (avid / "statistics.json").read_text()
    other = {"statistics": "auto", "spectrogram": {"n_fft": 128, "hop_seconds": 0.02}}
    with pytest.raises(ConfigError, match=r"computed with n_fft 256, but the recipe has 128.*both stages"):
        pretrain(recipe(run=run | {"name": "third"}, views=other), progress)


def test_what_a_user_may_not_expect_of_an_old_run_is_said(recipe, progress, videos, tmp_path):
    said = []
    folder = pretrain(recipe(train={"epochs": 1}), progress, say=said.append)
    assert said == []
    pretrain(recipe(train={"epochs": 1}), progress, say=said.append)
    assert said == [f"{folder}: finished already; choose another name with run.name=, or give --restart"]


def test_mistakes_in_the_objective_are_found_before_the_files_are_read(recipe, tmp_path):
    def never(description, total, completed):
        raise AssertionError("the scan began")

    for change in (
        {"objective": {"name": "AVID", "partition": "fresh"}},
        {"objective": CMA_SETTINGS | {"mining": "guess"}},
        {"run": {"start_from": str(tmp_path / "nowhere")}},
    ):
        with pytest.raises((ConfigError, CheckpointError)):
            pretrain(recipe(**change), never)


def test_an_epoch_of_several_passes_is_explained(recipe, progress):
    said = []
    pretrain(recipe(data={"clips_per_sample": 2}, train={"epochs": 1}), progress, say=said.append)
    assert said == [
        "an epoch of this recipe is 2 passes over 12 clips; 1 epochs = 2 passes, 6 steps of 4 clips (global)"
    ]


def test_the_record_counts_the_time_of_all_sessions(recipe, progress, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, step=4)
        with pytest.raises(Interrupted):
            pretrain(recipe(), progress)
    path = Path(recipe().run.folder) / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record["status"] == "stopped"
    path.write_text(json.dumps(record | {"seconds": 1000.0, "started": "2026-01-31T12:00:00+00:00"}))
    pretrain(recipe(), progress)
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    assert 1000 < record["seconds"] < 1100
    assert record["started"] == "2026-01-31T12:00:00+00:00"
    assert record["total_steps"] == 9


def test_a_run_goes_on_after_its_videos_have_moved(recipe, progress, videos, monkeypatch, tmp_path):
    whole = pretrain(recipe(run={"name": "whole"}), progress)
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(videos, old)
    with monkeypatch.context() as patch:
        stop_after(patch, step=4)
        with pytest.raises(Interrupted):
            pretrain(recipe(data={"root": str(old)}), progress)
    old.rename(new)
    moved = pretrain(recipe(data={"root": str(new)}), progress)
    assert losses(moved) == losses(whole)
    assert not (moved / "skipped.jsonl").exists()
