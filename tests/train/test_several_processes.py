"""Two processes of torchrun on real files: what equals one process, and what becomes of missing clips."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from media import write_media
from processes import TRAIN_RECIPES, start_torchrun

from avssl.checkpoint import load_checkpoint
from avssl.config import config_to_dict
from avssl.data import Manifest, scan
from avssl.train import pretrain
from avssl.train.parallel import no_progress

pytestmark = pytest.mark.slow

# Each process draws its own augmentation, so there is none: the middle of the frame (frames as wide leave no
# choice of a crop), and that in gray and solarised. Rates and networks are such that rounding does not grow.
WHOLE = {"min_area": 1.0, "max_area": 1.0, "flip": 0.0, "jitter": [0.0] * 4}
CROPS = [{"size": 32, **WHOLE}, {"size": 32, **WHOLE, "gray": 1.0, "solarize": 1.0}]
REGNET = {"name": "RegNetY", "stages_as": [[1, 16, 8], [2, 32, 16]], "checkpoint_stages": True}
SOUND = {
    "views": {
        "video": {"size": 32, "min_area": 1.0, "flip": 0.0, "jitter": [0.0] * 4},
        "spectrogram": {"n_fft": 256, "hop_seconds": 0.02},
        "audio": {"gain": 0.0},
    },
    "data": {"audio_seconds": 1.0},
    "model": {"video": REGNET},
    "objective": {"name": "AVID", "num_negatives": 6, "temperature": 0.5},
    "optim": {"name": "sgd", "lr": 5e-4},
}
IMAGES = {
    "data": {"num_frames": 1},
    "views": {"video": {"size": 32}, "crops": CROPS, "spectrogram": {}},
    "model": {"video": REGNET, "audio": None},
}
SWAV = IMAGES | {
    "objective": {"name": "SwAV", "num_prototypes": 7, "head_dims": [16, 8], "queue_length": 10},
    "optim": {"name": "larc", "lr": 0.003},
}
METHODS = {
    "avid": SOUND | {"train": {"sync_batchnorm": True}},
    "swav": SWAV,
    "byol": IMAGES
    | {
        "objective": {"name": "BYOL", "hidden_dim": 16, "dim": 8, "base_tau": 0.9},
        "optim": {"name": "lars", "lr": 0.02},
    },
}


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Twelve videos that differ, and whose central crop is the largest there is."""
    root = tmp_path_factory.mktemp("wide")
    (root / "train" / "a").mkdir(parents=True)
    for i in range(12):
        path = root / "train" / "a" / f"{i:02d}.mp4"
        write_media(path, seconds=1.2, size=(64, 40), tone_hz=300 + 70 * i, first_number=331 * i)
    return root


@pytest.fixture(scope="module")
def damaged(wide, tmp_path_factory):
    """Manifest of copies of the videos, one of which was damaged after the scan."""
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(wide, root, dirs_exist_ok=True)
    scan(root).manifest.save(root / "manifest.parquet")
    (root / "train" / "a" / "03.mp4").write_bytes(b"no video " * 300)
    return root / "manifest.parquet"


@pytest.fixture(scope="module")
def runs(make_recipe, wide, damaged, tmp_path_factory):
    """Folder of the runs of two processes, and recipes by name to do the same in one."""
    folder, alone = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    missing = {"root": None, "manifest": str(damaged), "max_skipped": 0.2}
    kinds = {
        **METHODS,
        "cut": METHODS["avid"],
        "accumulated": SOUND | {"train": {"accumulate": 2, "batch_size": 12, "sync_batchnorm": True}},
        "sharded": SWAV | {"train": {"sharding": "full"}},
        "sharded-cut": SWAV | {"train": {"sharding": "full"}},
        "missing": SOUND | {"data": missing, "train": {"epochs": 4, "memory_warmup_epochs": 1}},
    }

    def recipe(where, name, kind):
        # Four steps; with channels last, convolutions of 3 and of 6 clips round differently, which grows.
        data, train = {"root": str(wide)}, {"batch_size": 6, "epochs": 2, "channels_last": False}
        merged = kind | {
            "data": data | kind.get("data", {}), "train": train | kind.get("train", {}), "run": {"name": name}
        }  # fmt: skip
        return make_recipe(where, **merged)

    recipes = {
        where: {name: recipe(where, name, kind) for name, kind in kinds.items()} for where in (folder, alone)
    }
    (folder / "worker.py").write_text(TRAIN_RECIPES)
    settings = {name: config_to_dict(recipe) for name, recipe in recipes[folder].items()}
    (folder / "recipes.json").write_text(json.dumps(settings))
    workers = start_torchrun(folder / "worker.py", folder / "recipes.json", 2)
    _, errors = workers.communicate()
    assert workers.returncode == 0, errors
    return folder, recipes[alone]


def assert_alike(one, two, rtol=1e-3, atol=2e-4):
    """Checkpoints of one and of two processes hold the same but for rounding.

    Rounding grows fast: where a flat part of a picture lies at a kink of the network, a whole area of it
    changes sides at once.
    """
    one, two = load_checkpoint(one), load_checkpoint(two)
    assert one["position"] == two["position"]
    for name, value in one["objective"].items():
        message = lambda text, name=name: f"{name}: {text}"  # noqa: E731
        torch.testing.assert_close(two["objective"][name], value, rtol=rtol, atol=atol, msg=message)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_trains(runs, method):
    folder, recipes = runs
    one = pretrain(recipes[method], no_progress)
    assert losses(folder / method) == pytest.approx(losses(one), rel=1e-4)
    assert_alike(one, folder / method)
    assert json.loads((folder / method / "run.json").read_text())["processes"] == 2


def test_parts_of_a_batch_add_up_to_the_same_gradient_on_two_processes(runs):
    folder, recipes = runs
    one = pretrain(recipes["accumulated"], no_progress)
    assert losses(folder / "accumulated") == pytest.approx(losses(one), rel=1e-4)
    assert_alike(one, folder / "accumulated")


def test_sharded_processes_train_what_whole_ones_train(runs):
    folder, _ = runs
    assert losses(folder / "sharded") == pytest.approx(losses(folder / "swav"), rel=1e-4)
    assert_alike(folder / "swav", folder / "sharded")


def test_a_signal_to_one_of_two_stops_both_after_the_same_step_and_one_goes_on(runs):
    folder, recipes = runs
    for rank in (0, 1):  # what the second caught during step 2 was agreed on before step 3
        assert "stopped by SIGTERM after step 3" in (folder / f"cut-{rank}").read_text()
    shutil.copytree(folder / "cut", recipes["cut"].run.folder + "/cut")
    rest = pretrain(recipes["cut"], no_progress)
    assert sorted(losses(rest)) == [1, 2, 3, 4]
    assert_alike(folder / "avid", rest)


def test_what_two_processes_sharded_goes_on_in_one(runs):
    folder, recipes = runs
    optimizers = [load_checkpoint(folder / name)["optimizer"]["state"] for name in ("swav", "sharded")]
    torch.testing.assert_close(optimizers[1], optimizers[0], rtol=1e-3, atol=1e-4)
    shutil.copytree(folder / "sharded-cut", recipes["sharded-cut"].run.folder + "/sharded-cut")
    rest = pretrain(recipes["sharded-cut"], no_progress)
    assert_alike(folder / "swav", rest)


def test_a_file_that_fails_on_one_of_two_is_written_down_once_and_all_others_are_remembered(runs):
    folder, recipes = runs
    records = [json.loads(line) for line in (folder / "missing" / "skipped.jsonl").read_text().splitlines()]
    assert [(record["id"], record["stage"]) for record in records] == [("train/a/03.mp4", "open")]
    names = Manifest.load(folder / "missing" / "manifest.parquet").select(split="train").ids
    for run in (folder / "missing", pretrain(recipes["missing"], no_progress)):
        seen = load_checkpoint(run)["objective"]["bank.seen"]
        assert [name for name, known in zip(names, seen, strict=True) if not known] == ["train/a/03.mp4"]
    lines = [json.loads(line) for line in (folder / "missing" / "metrics.jsonl").read_text().splitlines()]
    # Once in each of the four epochs of training the other process had one clip more.
    assert sum(line["surplus_clips"] for line in lines) == 4
