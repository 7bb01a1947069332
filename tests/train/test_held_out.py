"""Numbers on held out data: those of an evaluation, from any number of processes; nothing is disturbed."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from media import write_media
from processes import run_two
from training import losses

from avssl.build import Config, build_objective
from avssl.checkpoint import load_checkpoint
from avssl.config import config_from_dict, config_to_dict
from avssl.data import Manifest, scan
from avssl.errors import ConfigError
from avssl.evaluate.suite import evaluate_encoders
from avssl.train import held_out as held_out_module
from avssl.train import pretrain
from avssl.train.held_out import HeldOut, find_held_out
from avssl.train.parallel import place

CPU = torch.device("cpu")
IMAGES = {
    "data": {"num_frames": 1},
    "views": {
        "video": {"size": 32},
        "crops": [{"size": 32}, {"size": 32}],
        "spectrogram": {},
    },
    "model": {"video": {"name": "RegNetY", "stages_as": [[1, 16, 8], [2, 32, 16]]}, "audio": None},
    "objective": {"name": "SwAV", "num_prototypes": 7, "head_dims": [16, 8]},
}


def write_videos(root, train, test):
    """Videos that all look and sound different, so many of each of two classes."""
    for split, count in (("train", train), ("test", test)):
        for number, label in enumerate(("high", "low")):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                place, tone = 331 * i + 100 * number + 50 * (split == "test"), 900 - 600 * number + 20 * i
                path = root / split / label / f"{i}.mp4"
                write_media(path, seconds=1.2, size=(48, 40), tone_hz=tone, first_number=place)
    return root


@pytest.fixture(scope="module")
def different(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("different"), train=6, test=3)


@pytest.fixture(scope="module")
def whole(different):
    return scan(different).manifest


@pytest.fixture
def on(recipe, different):
    """Recipe that measures every other step, with sections updated."""

    def make(**changes):
        data = {"root": str(different)} | changes.pop("data", {})
        return recipe(data=data, train={"held_out_every": 2} | changes.pop("train", {}), **changes)

    return make


def objective_of(config, seed=0):
    torch.manual_seed(seed)
    return build_objective(config, 12)


def without_labels(manifest):
    table = manifest.table
    nothing = pa.nulls(len(manifest), pa.string())
    return Manifest(table.set_column(table.column_names.index("label"), "label", nothing), manifest.root)


def test_numbers_are_those_of_an_evaluation(on, whole):
    config, objective = on(), objective_of(on())
    held_out = HeldOut(config, whole, CPU)
    numbers = held_out.numbers(objective)
    train, test = whole.select(split="train"), whole.select(split="test")
    row, _ = evaluate_encoders(objective.encoders, config, train, test, num_clips=1, num_workers=0)
    names = ("knn_video", "knn_audio", "a2v_r1", "v2a_r1")
    assert numbers == {f"held_out_{name}": row[name] for name in names} | {
        "held_out_pool": 6.0,
        "held_out_skipped": 0.0,
    }
    assert numbers["held_out_knn_audio"] == 1.0  # one tone or another


def test_a_visual_model_has_its_neighbours_alone(on, whole):
    config = on(**IMAGES)
    numbers = HeldOut(config, whole, CPU).numbers(objective_of(config))
    assert numbers.keys() == {"held_out_knn_video", "held_out_pool", "held_out_skipped"}
    assert 0 <= numbers["held_out_knn_video"] <= 1


def test_data_without_labels_have_retrieval_alone(on, whole):
    held_out = HeldOut(on(), without_labels(whole), CPU)
    numbers = held_out.numbers(objective_of(on()))
    assert numbers.keys() == {
        "held_out_a2v_r1",
        "held_out_v2a_r1",
        "held_out_pool",
        "held_out_skipped",
    }


class Drawing(torch.nn.Module):
    """A trunk that draws random numbers also in evaluation."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk
        self.dim = trunk.dim

    def forward(self, x):
        return self.trunk(x) + 0.01 * torch.rand(self.dim)


def test_nothing_is_disturbed(on, whole):
    config, objective = on(), objective_of(on())
    objective.encoders.video = Drawing(objective.encoders.video)
    objective.train()
    objective.encoders.audio.eval()  # a part that is frozen
    modes = [module.training for module in objective.modules()]
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    HeldOut(config, whole, CPU).numbers(objective)
    assert [module.training for module in objective.modules()] == modes
    torch.testing.assert_close(objective.state_dict(), state, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1][1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert not any(p.is_inference() for p in objective.parameters())


def test_a_run_is_the_same_with_and_without_and_keeps_its_best(on, progress):
    without = on(run={"name": "without"}, train={"epochs": 2, "held_out_every": 0})
    measured = on(run={"name": "with"}, train={"epochs": 2, "keep_best": "held_out_a2v_r1"})
    folders = [pretrain(recipe, progress) for recipe in (without, measured)]
    one, two = (load_checkpoint(folder) for folder in folders)
    assert one["objective"].keys() == two["objective"].keys()
    assert all(torch.equal(value, two["objective"][name]) for name, value in one["objective"].items())
    assert losses(folders[0]) == losses(folders[1])
    lines = [json.loads(line) for line in (folders[1] / "metrics.jsonl").read_text().splitlines()]
    recalls = {line["step"]: line["held_out_a2v_r1"] for line in lines if "held_out_a2v_r1" in line}
    assert sorted(recalls) == [2, 4, 6]
    best = json.loads((folders[1] / "checkpoints" / "best.json").read_text())
    assert best["value"] == recalls[best["step"]] == max(recalls.values())
    position = load_checkpoint(folders[1] / "checkpoints" / "best.pt")["position"]
    assert position["step"] == min(step for step, value in recalls.items() if value == best["value"])


def test_a_best_by_numbers_that_are_never_measured_is_refused_or_said(on, progress):
    with pytest.raises(
        ConfigError, match=r"keep_best is 'held_out_a2v_r1', but .* set train\.held_out_every"
    ):
        pretrain(on(train={"held_out_every": 0, "keep_best": "held_out_a2v_r1"}), progress)
    said: list[str] = []
    pretrain(on(train={"epochs": 1, "keep_best": "losss"}), progress, say=said.append)
    (warning,) = [line for line in said if "keep_best" in line]
    assert "train.keep_best is 'losss', but the log has clips_per_second, data_wait_share" in warning


def test_a_collapsed_network_and_one_that_is_not_finite_give_nan(on, whole):
    config = on()
    for value in (0.0, math.nan):
        objective = objective_of(config)
        with torch.no_grad():
            for parameter in objective.encoders.video.parameters():
                parameter.fill_(value)
        numbers = HeldOut(config, whole, CPU).numbers(objective)
        assert math.isnan(numbers["held_out_knn_video"])
        assert math.isnan(numbers["held_out_a2v_r1"])
        assert numbers["held_out_knn_audio"] == 1.0
        assert numbers["held_out_pool"] == 6.0


def test_files_that_cannot_be_read_are_counted(on, different, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(different, root)
    whole = scan(root).manifest
    for name in ("test/low/0", "test/high/1", "train/low/2"):
        (root / f"{name}.mp4").write_bytes(b"no video")
    config = on()
    numbers = HeldOut(config, whole, CPU).numbers(objective_of(config))
    assert (numbers["held_out_pool"], numbers["held_out_skipped"]) == (4.0, 3.0)
    assert not (tmp_path / "run").exists()
    for path in (root / "test").rglob("*.mp4"):
        path.write_bytes(b"no video")
    numbers = HeldOut(config, whole, CPU).numbers(objective_of(config))
    assert (numbers["held_out_pool"], numbers["held_out_skipped"]) == (0.0, 7.0)
    assert math.isnan(numbers["held_out_knn_audio"])
    assert math.isnan(numbers["held_out_v2a_r1"])


def test_many_samples_are_thinned_evenly(on, whole, monkeypatch):
    monkeypatch.setattr(held_out_module, "MAX_HELD_OUT", 3)
    monkeypatch.setattr(held_out_module, "MAX_KNOWN", 4)
    held_out, known = find_held_out(on(), whole)
    ids = [f"test/{label}/{i}.mp4" for label in ("high", "low") for i in range(3)]
    assert held_out.ids == [ids[0], ids[2], ids[5]]
    assert len(known) == 4
    assert known.classes == ["high", "low"]


def test_val_goes_before_test_and_a_named_manifest_before_both(on, whole, tmp_path):
    def moved(manifest, **splits):
        old = manifest.table["split"].to_pylist()
        ids = manifest.ids
        new = [splits.get(ids[i].partition("/")[2][:-4].replace("/", "_"), old[i]) for i in range(len(old))]
        return Manifest(
            manifest.table.set_column(manifest.table.column_names.index("split"), "split", pa.array(new)),
            manifest.root,
        )

    with_val = moved(whole.select(split="test"), low_0="val", high_2="val")
    both = Manifest(pa.concat_tables([whole.select(split="train").table, with_val.table]), whole.root)
    assert find_held_out(on(), both)[0].ids == ["test/high/2.mp4", "test/low/0.mp4"]
    alone = with_val.select(split="test")
    named = tmp_path / "other.parquet"
    Manifest(
        alone.table.set_column(
            alone.table.column_names.index("split"), "split", pa.array(["train"] * len(alone))
        ),
        whole.root,
    ).save(named)
    assert len(find_held_out(on(data={"held_out": str(named)}), both)[0]) == 4


def test_what_cannot_be_held_out_is_refused_with_a_remedy(on, whole, tmp_path):
    training = whole.select(split="train")
    with pytest.raises(
        ConfigError, match=r"only train \(12\); .* data\.held_out=FILE, or .* data\.val_share"
    ):
        find_held_out(on(), training)
    with pytest.raises(ConfigError, match=r"data\.held_out is '.*none\.parquet'"):
        find_held_out(on(data={"held_out": str(tmp_path / "none.parquet")}), whole)
    training.save(tmp_path / "same.parquet")
    with pytest.raises(ConfigError, match="all 12 samples held out are copies of training samples"):
        find_held_out(on(data={"held_out": str(tmp_path / "same.parquet")}), whole)
    (tmp_path / "list.csv").write_text("path\n" + whole.path(0) + "\n")
    with pytest.raises(ConfigError, match="have no duration"):
        find_held_out(on(data={"held_out": str(tmp_path / "list.csv")}), whole)
    with pytest.raises(ConfigError, match=r"no sound to retrieve by, .*; label the manifest"):
        find_held_out(on(**IMAGES), without_labels(whole))


WORKER = """
import json
import sys
import torch

sys.path.insert(0, sys.argv[3])
from test_held_out import measure_all

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
json.dump(measure_all(folder), open(f"{folder}/{rank}.json", "w"))
torch.distributed.destroy_process_group()
"""


class Telling(HeldOut):
    """Says what features the first process measures."""

    def _measure(self, known, held_out):
        arrays = known.video, held_out.video, held_out.video_embedding, known.audio
        sums = {f"sum{i}": float(np.abs(x).sum()) for i, x in enumerate(arrays) if x is not None}
        return super()._measure(known, held_out) | sums


def measure_all(folder):
    """Numbers of each recipe after a pass in training mode, and again after another."""
    found = {}
    whole = Manifest.load(f"{folder}/manifest.parquet")
    for name, recipe in json.loads((Path(folder) / "recipes.json").read_text()).items():
        config = config_from_dict(recipe, Config)
        objective = place(objective_of(config), config, CPU, torch.float32)
        measure = Telling(config, whole, CPU).numbers
        if torch.distributed.is_initialized() and name == "avid":  # statistics of a process's own clips
            for buffer in objective.encoders.buffers():
                buffer.add_(torch.distributed.get_rank())
        found[name] = []
        for _ in range(2):
            if name != "avid":
                train_once(objective)
            found[name].append(measure(objective))
    return found


def train_once(objective):
    """A step without a change: lets sharded networks gather and scatter as in training."""
    from avssl.types import Views

    objective.train()
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(4, 3, 1, 32, 32, generator=generator) for _ in range(2))
    for norm in objective.modules():  # statistics stay what they are, however the clips are shared
        if hasattr(norm, "momentum") and isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.momentum = 0.0
    objective(Views(views, (), torch.arange(4)))["loss"].backward()
    assert all(p.grad is not None for p in objective.encoders.parameters())
    objective.zero_grad()


def test_two_processes_measure_what_one_does(on, tmp_path):
    """Also where the network is sharded, and one process can read nothing of some batches."""
    root = write_videos(tmp_path / "videos", train=5, test=4)
    whole = scan(root).manifest
    whole = Manifest(whole.table.slice(0, 17), whole.root)  # seven to train on: they do not divide
    whole.save(tmp_path / "manifest.parquet")
    for i in range(4):  # the first process's share
        (root / "test" / "high" / f"{i}.mp4").write_bytes(b"no video")
    sharded = IMAGES | {"train": {"sharding": "full"}}
    recipes = {"avid": on(), "swav": on(**IMAGES), "sharded": on(**sharded)}
    text = json.dumps({name: config_to_dict(recipe) for name, recipe in recipes.items()})
    (tmp_path / "recipes.json").write_text(text)
    run_two(WORKER, tmp_path, __file__)
    alone = measure_all(tmp_path)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, both in alone.items():
            assert found[name] == [pytest.approx(numbers, rel=1e-4) for numbers in both], name
    assert alone["sharded"][0]["held_out_skipped"] == 4.0
