"""The image methods through `pretrain`: on images, on clips, and jointly with AVID."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from media import write_media
from PIL import Image

from avssl.checkpoint import load_checkpoint
from avssl.cli.main import main
from avssl.errors import CheckpointError, ConfigError, Interrupted
from avssl.train import pretrain
from avssl.train.trainer import Trainer
from avssl.weights import load

VISUAL = {
    "SimSiam": {"hidden_dim": 16, "dim": 16, "predictor_dim": 8},
    "BYOL": {"hidden_dim": 16, "dim": 8},
    "BarlowTwins": {"hidden_dim": 16, "dim": 16},
    "SwAV": {"num_prototypes": 6, "head_dims": [16, 8], "queue_length": 8, "freeze_prototypes_steps": 2},
}
CROPS = [{"size": 32, "count": 2, "min_area": 0.3, "jitter": [0.4, 0.4, 0.4, 0.0]}]
SMALL_CROP = {"size": 16, "count": 2, "max_area": 0.3, "jitter": [0.4, 0.4, 0.4, 0.0]}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label, level in (("dark", 60), ("light", 180)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(level - 50, level + 50, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    return folder


@pytest.fixture
def visual(recipe):
    def make(name, **changes):
        crops = [*CROPS, SMALL_CROP] if name == "SwAV" else CROPS
        base = {
            "views": {"video": {"size": 32}, "crops": crops, "spectrogram": {}},
            "model": {"audio": None},
            "objective": {"name": name, "num_negatives": None} | VISUAL[name],
            "run": {"name": name.lower()},
        }
        del base["objective"]["num_negatives"]
        for section, values in changes.items():
            base[section] = base[section] | values if section in base else values
        config = recipe(**base)
        config.objective = base["objective"]
        return config

    return make


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("name", list(VISUAL))
def test_every_method_trains_on_images_and_is_evaluated(visual, progress, images, name):
    config = visual(
        name,
        data={"root": str(images), "num_frames": 1, "fps": 1.0},
        model={
            "audio": None,
            "video": {"name": "ResNetImage", "architecture": "resnet18", "small_stem": True},
        },
        train={"epochs": 1},
    )
    folder = pretrain(config, progress)
    assert sorted(losses(folder)) == [1, 2, 3]
    result = CliRunner().invoke(main, ["evaluate", str(folder)])
    assert result.exit_code == 0, result.output
    metrics = json.loads((folder / "results.json").read_text())["rows"][1]["metrics"]
    assert {"linear_video", "knn_video"} == set(metrics)


@pytest.mark.parametrize("name", ["BYOL", "SwAV"])
def test_a_visual_run_on_clips_stopped_in_the_middle_ends_bit_for_bit_alike(
    visual, progress, monkeypatch, name
):
    whole = pretrain(visual(name, run={"name": "whole"}), progress)
    advance = Trainer._advance

    def stop(trainer, last):
        advance(trainer, last)
        if trainer.position.step == 4:
            raise Interrupted("as if killed")

    cut = visual(name, run={"name": "cut"}, train={"checkpoint_minutes": 0.0})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_advance", stop)
        with pytest.raises(Interrupted):
            pretrain(cut, progress)
    folder = pretrain(cut, progress)
    assert losses(folder) == losses(whole)
    one, other = (load_checkpoint(f)["objective"] for f in (folder, whole))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_avid_and_visual_objectives_train_one_trunk(recipe, progress, tmp_path):
    for i in range(12):  # files that differ in what is seen and in what is heard
        place = tmp_path / "films" / ("test" if i % 3 == 0 else "train") / f"{i}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_media(place, seconds=1.2, size=(48, 40), first_number=300 * i, tone_hz=300 + 60 * i)
    views = {"video": {"size": 32}, "crops": CROPS, "statistics": "auto"}
    data = {"root": str(tmp_path / "films")}
    config = recipe(data=data, views=views, train={"epochs": 3}, run={"name": "joint"})
    config.objective = {
        "name": "Joint",
        "parts": {
            "avid": {"name": "AVID", "num_negatives": 6},
            "simsiam": {"name": "SimSiam"} | VISUAL["SimSiam"],
        },
        "weights": {"simsiam": 0.5},
    }
    folder = pretrain(config, progress)
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(line["avid/loss"] + 0.5 * line["simsiam/loss"], rel=1e-5)
    result = CliRunner().invoke(main, ["evaluate", str(folder), "--no-gallery"])
    assert result.exit_code == 0, result.output
    assert "a2v_r1" in json.loads((folder / "results.json").read_text())["rows"][1]["metrics"]


def test_a_visual_stage_gives_its_trunk_to_avid(recipe, visual, progress):
    first = pretrain(visual("SimSiam", train={"epochs": 1}), progress)
    config = recipe(run={"name": "avid", "start_from": str(first)}, train={"epochs": 1}, optim={"lr": 1e-12})
    second = pretrain(config, progress)
    name = "encoders.video.conv2x.spt_conv1.weight"
    one, other = (load_checkpoint(f)["objective"][name] for f in (first, second))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_cma_in_a_joint_run_is_diagnosed_and_refused_without_memories(recipe, progress):
    avid = pretrain(recipe(run={"name": "avid"}, train={"epochs": 1}), progress)
    parts = {
        "cma": {"name": "CMA", "num_negatives": 4, "num_positives": 3},
        "simsiam": {"name": "SimSiam"} | VISUAL["SimSiam"],
    }

    def joint(**run):
        config = recipe(views={"video": {"size": 32}, "crops": CROPS}, train={"epochs": 1}, run=run)
        config.objective = {"name": "Joint", "parts": parts}
        return config

    folder = pretrain(joint(name="joint", start_from=str(avid)), progress)
    (line,) = map(json.loads, (folder / "mining.jsonl").read_text().splitlines())
    assert line["mining"]["method"] == "exact"
    assert load(folder).memories.video.shape == (12, 8)
    simsiam = recipe(
        views={"video": {"size": 32}, "crops": CROPS}, train={"epochs": 1}, run={"name": "simsiam"}
    )
    simsiam.objective = parts["simsiam"]
    visual = pretrain(simsiam, progress)
    with pytest.raises(CheckpointError, match="no memories of these 12 samples"):
        pretrain(joint(name="other", start_from=str(visual)), progress)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"name": "AVID"}}, "objective.name is AVID, which learns from sound"),
        ({"views": {"crops": [{"size": 24}]}}, r"views.video.size is 32 and views.crops\[0\].size 24"),
        (
            {"views": {"video": {"size": 32, "flip": 0.1}}},
            r"views\.video\.flip does nothing beside views\.crops",
        ),
        ({"views": {"crops": [{"siz": 32}]}}, r"views\.crops\[0\].*siz.*size"),
        ({"views": {"statistics": "auto"}}, "model.audio is null, so there are no spectrograms"),
    ],
)
def test_contradictions_are_refused(visual, progress, change, message):
    config = visual("SimSiam", **{key: value for key, value in change.items() if key != "objective"})
    config.objective = change.get("objective", config.objective)
    with pytest.raises(ConfigError, match=message):
        pretrain(config, progress)


def test_a_collapse_is_reported_once(visual, progress, monkeypatch):
    from avssl.objectives import SimSiam

    loss = SimSiam.loss
    flat = {"spread": torch.tensor(0.0)}
    monkeypatch.setattr(SimSiam, "loss", lambda self, features: loss(self, features) | flat)
    said = []
    pretrain(visual("SimSiam"), progress, say=said.append)
    assert len([line for line in said if "spread is 0: embeddings hardly differ" in line]) == 1
    assert said[0].startswith("warning: step ")
