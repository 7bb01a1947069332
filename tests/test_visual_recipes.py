"""Recipes of the image methods hold the numbers of their releases; the small ones train on real files."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from media import write_media
from PIL import Image
from torch import nn

import avssl
from avssl.build import Config, build_encoders, build_objective, build_optimizer, build_views
from avssl.checkpoint import load_checkpoint
from avssl.config import load_config
from avssl.models import ResNetImage
from avssl.objectives import AVID, BYOL, CMA, BarlowTwins, Joint, SimSiam, SwAV
from avssl.optim import learning_rate_factor, set_learning_rate
from avssl.train import pretrain
from avssl.transforms import CropSpec, presets

CONFIGS = Path(avssl.__file__).parents[1] / "configs"
METHODS = ("swav", "seer", "byol", "simsiam", "barlow_twins")
KINDS = ("imagenet", "uncurated", "video", "small")
CROPS = {
    ("swav", 224): presets.swav(),
    ("swav", 112): presets.swav(112, 48),
    ("seer", 160): presets.seer(),
    ("seer", 112): presets.seer(112, 48),
    **{("byol", size): presets.byol(size) for size in (224, 112)},
    **{("barlow_twins", size): presets.barlow_twins(size) for size in (224, 112)},
    **{("simsiam", size): presets.simsiam(size) for size in (224, 112)},
}
# Method, optimiser, batch, epochs, rate at first, rate at its peak, epoch of the peak, rate at last, decay.
RELEASED = {
    "swav_imagenet": (SwAV, "larc", 4096, 800, 0.3, 4.8, 10, 0.0048, 1e-6),
    "swav_imagenet_256": (SwAV, "larc", 256, 200, 0.6, 0.6, 0, 0.0006, 1e-6),
    "seer_uncurated": (SwAV, "larc", 7936, 1, 0.3, 9.3, 0.043648, 0.0093, 1e-5),
    "byol_imagenet": (BYOL, "lars", 4096, 1000, 0.0, 3.2, 10, 0.0, 1.5e-6),
    "simsiam_imagenet": (SimSiam, "sgd", 512, 100, 0.1, 0.1, 0, 0.0, 1e-4),
    "barlow_twins_imagenet": (BarlowTwins, "lars", 2048, 1000, 0.0, 1.6, 10, 0.0016, 1e-6),
}
SWAV = {"temperature": 0.1, "epsilon": 0.05, "crops_for_assign": (0, 1), "hard_assignment_steps": 0}
ATTRIBUTES = {
    "swav_imagenet": SWAV | {"sinkhorn_iterations": 3, "queue": None, "freeze_prototypes_steps": 313},
    "swav_imagenet_256": SWAV | {"sinkhorn_iterations": 3, "freeze_prototypes_steps": 5005},
    "seer_uncurated": SWAV | {"sinkhorn_iterations": 10, "queue": None, "freeze_prototypes_steps": 313},
    "byol_imagenet": {"base_tau": 0.996, "teacher_update": "step"},
    "simsiam_imagenet": {},
    "barlow_twins_imagenet": {"lambd": 0.0051, "bias_lr_scale": 0.024},
}
# Widths of the linear layers, in order, and how many batch norms lie among them.
HEADS = {
    "swav_imagenet": {"projector": ((2048, 2048, 128), 1), "prototypes": ((128, 3000), 0)},
    "swav_imagenet_256": {"projector": ((2048, 2048, 128), 1), "prototypes": ((128, 3000), 0)},
    "seer_uncurated": {"projector": ((3712, 4096, 4096, 256), 2), "prototypes": ((256, 16000), 0)},
    "byol_imagenet": {"projector": ((2048, 4096, 256), 1), "predictor": ((256, 4096, 256), 1)},
    "simsiam_imagenet": {"projector": ((2048,) * 4, 3), "predictor": ((2048, 512, 2048), 1)},
    "barlow_twins_imagenet": {"projector": ((2048, 8192, 8192, 8192), 2)},
}
JOINT = {
    "avid_simsiam": (AVID, SimSiam, presets.simsiam(112)),
    "avid_byol": (AVID, BYOL, presets.byol(112)),
    "avid_barlow_twins": (AVID, BarlowTwins, presets.barlow_twins(112)),
    "avid_swav": (AVID, SwAV, presets.swav(112, 48)),
    "cma_simsiam": (CMA, SimSiam, presets.simsiam(112)),
}
JOINT_SMALL = {
    "avid_simsiam_small": SimSiam,
    "avid_byol_small": BYOL,
    "avid_barlow_twins_small": BarlowTwins,
    "avid_swav_small": SwAV,
}


def read(name: str, *overrides: str) -> Config:
    folder = "joint" if name in JOINT | JOINT_SMALL else "visual"
    config = load_config(CONFIGS / folder / f"{name}.yaml", ["data.root=/here", *overrides], schema=Config)
    if config.views.statistics is None:
        return config
    spectrogram = {**config.views.spectrogram, "mean": -28.5, "std": 19.7}
    return replace(config, views=replace(config.views, spectrogram=spectrogram, statistics=None))


def on_meta(config: Config):
    with torch.device("meta"):
        objective = build_objective(config, num_instances=1000)
        return objective, build_optimizer(config.optim, objective, config.train.batch_size)


def crops_of(config: Config) -> list[CropSpec]:
    return [CropSpec(**entry) for entry in config.views.crops]


def as_lists(crops: list[CropSpec]) -> list[dict]:
    return [asdict(crop) | {"jitter": [*crop.jitter]} for crop in crops]


def rates(config: Config, optimizer, epoch: float) -> list[float]:
    o = config.optim
    factor = learning_rate_factor(
        epoch, config.train.epochs, o.schedule, o.warmup_epochs, o.milestones, o.gamma, o.warmup_start,
        o.end_factor,
    )  # fmt: skip
    set_learning_rate(optimizer, factor)
    return [group["lr"] for group in optimizer.param_groups]


def test_every_method_has_its_recipes_and_every_recipe_its_test():
    expected = {f"{method}_{kind}" for method in METHODS for kind in KINDS} | {"swav_imagenet_256"}
    assert {path.stem for path in (CONFIGS / "visual").glob("*")} == expected
    assert {path.stem for path in (CONFIGS / "joint").glob("*")} == set(JOINT | JOINT_SMALL)


@pytest.mark.parametrize("name", RELEASED)
def test_recipe_trains_as_the_release(name):
    kind, optimizer_name, batch, epochs, first, peak, peak_epoch, last, decay = RELEASED[name]
    config = read(name)
    objective, optimizer = on_meta(config)
    assert type(objective) is kind
    assert (config.optim.name, config.optim.momentum) == (optimizer_name, 0.9)
    assert (config.train.batch_size, config.train.accumulate, config.train.epochs) == (batch, 1, epochs)
    assert (config.optim.schedule, config.optim.clip_grad_norm) == ("cosine", None)
    assert rates(config, optimizer, 0.0)[0] == pytest.approx(first, rel=1e-4)
    assert rates(config, optimizer, peak_epoch)[0] == pytest.approx(peak)
    assert rates(config, optimizer, epochs)[0] == pytest.approx(last)
    assert optimizer.param_groups[0]["weight_decay"] == decay
    assert (config.data.num_frames, config.data.clips_per_sample, config.model.audio) == (1, 1, None)
    for attribute, value in ATTRIBUTES[name].items():
        assert getattr(objective, attribute) == value, attribute


@pytest.mark.parametrize("name", RELEASED)
def test_recipe_has_the_heads_of_the_release(name):
    objective, _ = on_meta(read(name))
    for part, (widths, norms) in HEADS[name].items():
        modules = list(getattr(objective, part).modules())
        linear = [module for module in modules if isinstance(module, nn.Linear)]
        assert (linear[0].in_features, *(layer.out_features for layer in linear)) == widths
        assert sum(isinstance(module, nn.BatchNorm1d) for module in modules) == norms


def test_queue_of_small_batches_is_that_of_the_release():
    config = read("swav_imagenet_256")
    objective, _ = on_meta(config)
    assert objective.queue.rows.shape == (2, 3840, 128)
    assert objective.queue_start * config.train.epochs == pytest.approx(15)
    objective, _ = on_meta(read("swav_video"))
    assert objective.queue.rows.shape == (2, 3840, 128)


def test_rates_with_exceptions_are_those_of_the_releases():
    config = read("simsiam_imagenet")
    _, optimizer = on_meta(config)
    assert rates(config, optimizer, 100) == pytest.approx([0.0, 0.1])  # the predictor's stays
    config = read("barlow_twins_imagenet")
    _, optimizer = on_meta(config)
    assert rates(config, optimizer, 10) == pytest.approx([1.6, 0.0048 * 2048 / 256])
    assert [group["adapt"] for group in optimizer.param_groups] == [True, False]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-6, 0.0]
    _, optimizer = on_meta(read("swav_imagenet"))
    assert [(group["adapt"], group["weight_decay"]) for group in optimizer.param_groups] == [(True, 1e-6)]


def test_seer_trains_its_smallest_network():
    assert on_meta(read("seer_uncurated"))[0].encoders.video.dim == 3712
    assert read("seer_imagenet").model == read("seer_uncurated").model


@pytest.mark.parametrize("method", ["swav", "byol", "simsiam", "barlow_twins"])
def test_residual_branches_start_at_zero_only_where_they_do_in_the_release(method):
    config = read(f"{method}_imagenet", "model.video.architecture=resnet18")
    block = build_encoders(config.model).video.layer1[0]
    assert bool((block.bn2.weight == 0).all()) == (method in ("simsiam", "barlow_twins"))


@pytest.mark.parametrize(("method", "kind"), [(m, k) for m in METHODS for k in KINDS if k != "small"])
def test_crops_are_those_of_the_presets(method, kind):
    config = read(f"{method}_{kind}")
    size = config.views.video["size"]
    if (method, kind) == ("swav", "imagenet"):
        assert tuple(config.views.video["std"]) == presets.SWAV_STD
    preset = CROPS[method, size]
    assert as_lists(crops_of(config)) == as_lists(preset)
    assert size == {"imagenet": 224, "uncurated": 224, "video": 112}[kind] or (method, size) == ("seer", 160)
    views = build_views(config, train=True).video.views
    assert [view.size for view in views] == [crop.size for crop in preset for _ in range(crop.count)]
    red = presets.SWAV_STD[0] if method == "swav" and kind in ("imagenet", "uncurated") else 0.229
    assert all(view.std.flatten()[0].item() == pytest.approx(red) for view in views)


def test_small_recipes_share_views_rate_and_length_so_that_they_compare():
    byol = read("byol_small")
    assert byol.views.crops[0]["jitter"][3] == 0, "hue costs more than all the rest"
    for method in METHODS:
        config = read(f"{method}_small")
        assert config.views.crops[0] == byol.views.crops[0]
        assert (config.optim, config.train) == (byol.optim, byol.train)
        assert len(config.views.crops) == (2 if method in ("swav", "seer") else 1)
        assert len(build_views(config, train=True).video.views) == 2 * len(config.views.crops)


@pytest.mark.parametrize("method", METHODS)
def test_uncurated_images_are_seen_once(method):
    config = read(f"{method}_uncurated")
    assert (config.train.epochs, config.data.num_frames, config.data.val_share) == (1, 1, 0)
    assert config.optim.warmup_epochs < 0.05
    if method != "seer":
        base = read(f"{method}_imagenet")
        assert (config.objective, config.model) == (base.objective, base.model)
        assert replace(config.optim, warmup_epochs=0) == replace(base.optim, warmup_epochs=0)


@pytest.mark.parametrize("method", METHODS)
def test_videos_are_seen_as_avid_sees_them(method):
    config, avid = read(f"{method}_video"), load_config(CONFIGS / "avid" / "folder.yaml", schema=Config)
    assert config.model.video == avid.model.video
    for key in ("num_frames", "fps", "short_side"):
        assert getattr(config.data, key) == getattr(avid.data, key)
    assert config.views.video["size"] == avid.views.video["size"]
    objective, _ = on_meta(config)
    assert objective.projector[0].in_features == 512


@pytest.mark.parametrize("name", ["swav_small", "byol_small", "simsiam_small", "barlow_twins_small"])
def test_small_recipes_take_images_as_their_head_says(name):
    head = [
        line for line in (CONFIGS / "visual" / "byol_small.yaml").read_text().splitlines() if line[:1] == "#"
    ]
    changes = re.findall(r"[\w.]+=[\w/]+", " ".join(head[2:]))
    config = read(name, *changes)
    assert (config.data.num_frames, config.data.root) == (1, "/images")
    objective, _ = on_meta(config)
    assert type(objective.encoders.video) is ResNetImage
    assert objective.encoders.video.conv1.kernel_size == (3, 3)


@pytest.mark.parametrize("name", [*JOINT, *JOINT_SMALL])
def test_joint_recipe_trains_both_parts_on_one_trunk(name):
    config = read(name)
    if name in JOINT:
        audio_visual, visual, crops = JOINT[name]
    else:
        audio_visual, visual = AVID, JOINT_SMALL[name]
        crops = [crops_of(read("avid_simsiam_small"))[0], replace(crops_of(read("byol_small"))[0], count=1)]
    objective, optimizer = on_meta(config)
    assert type(objective) is Joint
    assert {key: type(part) for key, part in objective.objectives.items()} == {
        "audio_visual": audio_visual, "visual": visual,
    }  # fmt: skip
    assert all(part.encoders is objective.encoders for part in objective.objectives.values())
    assert as_lists(crops_of(config)) == as_lists(crops)
    assert build_views(config, train=True).audio is not None
    given = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(given) == len({id(p) for p in given})
    assert {id(p) for p in given} == {id(p) for p in objective.parameters() if p.requires_grad}
    scaled = [group.get("lr_scale", 1.0) for group in optimizer.param_groups]
    assert scaled == [1.0] * len(scaled)


# ---- training on files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) / "train" for kind in ("videos", "images")}
    rng = np.random.default_rng(0)
    for kind, folder in folders.items():
        for i in range(6):
            place = folder / "ab"[i % 2] / f"{i}{'.mp4' if kind == 'videos' else '.png'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            if kind == "videos":
                write_media(place, seconds=1.6, size=(96, 80), first_number=300 * i, tone_hz=300 + 60 * i)
            else:
                Image.fromarray(rng.integers(256, size=(80, 96, 3), dtype=np.uint8)).save(place)
    return {kind: folder.parent for kind, folder in folders.items()}


@contextmanager
def quiet(description: str, total: int, completed: int):
    class Quiet:
        def update(self, completed, **fields):
            pass

    yield Quiet()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("swav_small", "videos"),
        ("byol_small", "videos"),
        ("simsiam_small", "videos"),
        ("barlow_twins_small", "videos"),
        ("seer_small", "images"),
        *((name, "videos") for name in JOINT_SMALL),
    ],
)
def test_small_recipe_trains_on_files(files, tmp_path, name, kind):
    run = [
        f"data.root={files[kind]}", "data.num_workers=0", f"run.folder={tmp_path}", "train.batch_size=3",
        "train.epochs=1", "train.log_every=1", "train.device=cpu", "train.threads=1",
    ]  # fmt: skip
    folder = CONFIGS / ("joint" if name in JOINT_SMALL else "visual")
    config = load_config(folder / f"{name}.yaml", run, schema=Config)
    written = pretrain(config, quiet)
    lines = [json.loads(line) for line in (written / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert (written / "checkpoint.pt").exists()
    assert not (written / "skipped.jsonl").exists() or not (written / "skipped.jsonl").read_text()


def test_cma_begins_from_the_joint_run_before_it(files, tmp_path):
    """What joint/cma_simsiam.yaml does after joint/avid_simsiam.yaml, with the small networks."""
    run = [
        f"data.root={files['videos']}", "data.num_workers=0", f"run.folder={tmp_path}", "train.batch_size=6",
        "train.epochs=1", "train.device=cpu", "train.threads=1",
    ]  # fmt: skip
    recipe = CONFIGS / "joint" / "avid_simsiam_small.yaml"
    first = pretrain(load_config(recipe, run, schema=Config), quiet)
    part = "objective.parts.audio_visual"
    changes = [f"{part}.name=CMA", f"{part}.num_positives=1", f"{part}.num_negatives=4"]
    stage = [*run, *changes, f"run.start_from={first}", "run.name=second", "optim.lr=1e-12"]
    second = pretrain(load_config(recipe, stage, schema=Config), quiet)
    before, after = (load_checkpoint(folder)["objective"] for folder in (first, second))
    weight = "encoders.video.conv2x.spt_conv1.weight"
    torch.testing.assert_close(before[weight], after[weight], atol=1e-6, rtol=0)
    memory = "parts.audio_visual.bank.video"
    assert (before[memory] * after[memory]).sum(1).min() > 0.2  # carried over, then moved by one pass
    mined = after["parts.audio_visual.positive_set"]
    assert mined.shape == (6, 1)
    assert bool((mined >= 0).all())
    assert not bool((mined[:, 0] == torch.arange(6)).any())
