"""CMA on real files with memories spread over two processes of torchrun, gone on with in one."""

from __future__ import annotations

import json

import pytest
import torch
from media import write_media
from processes import TRAIN_RECIPES, start_torchrun

from avssl.checkpoint import load_checkpoint
from avssl.config import config_to_dict
from avssl.train import pretrain
from avssl.train.parallel import no_progress

pytestmark = pytest.mark.slow

CMA = {
    "name": "CMA",
    "num_negatives": 6,
    "num_negatives_positive": 3,
    "num_positives": 2,
    "refresh_epochs": 1,
    "temperature": 0.5,
}
RUNS = {"replicated": "replicated", "sharded": "sharded", "cut": "sharded"}


@pytest.fixture(scope="module")
def recipes(make_recipe, tmp_path_factory):
    """Recipes by name, whose runs two processes have made."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        name: make_recipe(
            folder / name,
            objective=CMA | {"bank_storage": storage},
            data={"root": str(folder / "data")},
            train={
                "epochs": 2,
                "memory_warmup_epochs": 1,
                "sync_batchnorm": True,
                "sharding": "full" if name == "cut" else "none",
            },
            optim={"name": "sgd", "lr": 1e-4},  # such that rounding does not grow
        )
        for name, storage in RUNS.items()
    }
    for name in made:
        (folder / name).mkdir()
    for i in range(12):  # videos that differ: norms over alike ones would magnify rounding
        path = folder / "data" / "train" / ("low", "high")[i // 6] / f"{i:02d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_media(path, seconds=1.2, size=(48, 40), tone_hz=300 + 70 * i, first_number=331 * i)
    recipes = folder / "recipes.json"
    recipes.write_text(json.dumps({name: config_to_dict(recipe) for name, recipe in made.items()}))
    (folder / "worker.py").write_text(TRAIN_RECIPES)
    torchrun = start_torchrun(folder / "worker.py", recipes, 4)
    _, errors = torchrun.communicate()
    assert torchrun.returncode == 0, errors
    return folder, made


def mined(folder):
    return [json.loads(line) for line in (folder / "run" / "mining.jsonl").read_text().splitlines()]


def losses(folder):
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_with_sharded_memories_equals_one_with_whole_ones(recipes):
    folder, _ = recipes
    plain, spread = (
        load_checkpoint(folder / name / "run")["objective"] for name in ("replicated", "sharded")
    )
    assert plain.keys() == spread.keys()
    for memory in ("bank.video", "bank.audio"):  # rounding grows through norms over few clips
        assert (plain.pop(memory) * spread.pop(memory)).sum(1).min() > 0.99
    for key, value in plain.items():
        torch.testing.assert_close(spread[key], value, rtol=1e-2, atol=1e-2, msg=lambda m, k=key: f"{k}: {m}")
    ours, theirs = losses(folder / "sharded"), losses(folder / "replicated")
    assert ours == pytest.approx(theirs, rel=1e-3)
    for whole, other in zip(mined(folder / "replicated"), mined(folder / "sharded"), strict=True):
        assert other["mining"]["method"] == whole["mining"]["method"] == "exact"
        assert other["precision"] == whole["precision"]
        assert other["in_degree"] == whole["in_degree"]


def test_a_run_with_sharded_memories_goes_on_in_one_process(recipes):
    folder, made = recipes
    stopped = load_checkpoint(folder / "cut" / "run")
    assert stopped["position"]["step"] == 5  # of 9; positives are mined anew before the seventh
    assert stopped["objective"]["bank.video"].shape == (12, 8)
    pretrain(made["cut"], no_progress)
    ended = load_checkpoint(folder / "cut" / "run")
    assert ended["position"]["step"] == load_checkpoint(folder / "sharded" / "run")["position"]["step"]
    assert ended["objective"]["bank.seen"].all()
    assert len(mined(folder / "cut")) == 2
