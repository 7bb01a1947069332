"""Where a stage begins: heads of a release, and of an earlier run, go on where they fit."""

from __future__ import annotations

import pytest
import torch

from avssl.build import Config, DataConfig, ModelConfig, RunConfig, build_objective
from avssl.checkpoint import save_checkpoint
from avssl.config import config_to_dict
from avssl.data import Manifest
from avssl.data.tables import Sample
from avssl.train.start import start_objective

MANIFEST = Manifest.from_samples([Sample(name, name, 0.0, 1.0) for name in ("a.png", "b.png", "c.png")], "/")
HEADS = {
    "SimSiam": {"hidden_dim": 6, "dim": 6, "predictor_dim": 4},
    "BarlowTwins": {"hidden_dim": 6, "dim": 5},
    "SwAV": {"num_prototypes": 7, "head_dims": [6, 5]},
    "SEER": {"num_prototypes": 7, "head_dims": [6, 6, 5], "head_batch_norm": False},
    "BYOL": {"hidden_dim": 6, "dim": 5},
}
# Where each release keeps its trunk and its heads, under what the file has above them.
LAYOUTS = {
    "SimSiam": ("module.encoder.", {"projector": "module.encoder.fc.", "predictor": "module.predictor."}),
    "BarlowTwins": ("module.backbone.", {"projector": "module.projector."}),
    "SwAV": ("module.", {"projector": "module.projection_head.", "prototypes": "module.prototypes."}),
    "BYOL": ("trunk.", {"projector": "projector.", "predictor": "predictor."}),
    "SEER": ("_feature_blocks.", {"projector": "0.projection_head.", "prototypes": "0.prototypes0."}),
}


def recipe(method: str, start_from: object = None, **changes: object) -> Config:
    trunk = {"name": "ResNetImage", "architecture": "resnet18"}
    return Config(
        data=DataConfig(num_frames=1),
        model=ModelConfig(video=trunk | ({"same_padding": True} if method == "BYOL" else {}), audio=None),
        objective={"name": "SwAV" if method == "SEER" else method, **HEADS[method], **changes},
        run=RunConfig(start_from=None if start_from is None else str(start_from)),
    )


def fresh(method: str, seed: int, **changes: object):
    torch.manual_seed(seed)
    return build_objective(recipe(method, **changes), num_instances=3)


def start(config: Config):
    said: list[str] = []
    torch.manual_seed(7)
    return start_objective(config, MANIFEST, None, said.append), said


def release(method: str, objective, extra: dict[str, torch.Tensor]) -> dict[str, object]:
    """A file in the layout of the method's authors."""
    trunk_prefix, head_prefixes = LAYOUTS[method]
    weights = {trunk_prefix + key: value for key, value in objective.encoders.video.state_dict().items()}
    heads = {
        prefix + key: value
        for name, prefix in head_prefixes.items()
        for key, value in objective.get_submodule(name).state_dict().items()
    } | extra
    if method == "SEER":
        return {"classy_state_dict": {"base_model": {"model": {"trunk": weights, "heads": heads}}}}
    return {"model" if method == "BarlowTwins" else "state_dict": weights | heads}


def same(module, other) -> bool:
    one, two = module.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("method", "extra", "said"),
    [
        ("SimSiam", {}, "heads taken over: projector, predictor"),
        (
            "BarlowTwins",
            {"module.bn.running_mean": torch.zeros(5)},
            "heads taken over: projector; not used: bn",
        ),
        ("SwAV", {}, "heads taken over: projector, prototypes"),
        ("SEER", {}, "heads taken over: projector, prototypes"),
        (
            "BYOL",
            {"classifier.weight": torch.zeros(2, 512)},
            "heads taken over: projector, predictor; begun afresh: teacher (not there); not used: classifier",
        ),
    ],
)
def test_heads_of_a_release_go_on(tmp_path, method, extra, said):
    before = fresh(method, seed=1)
    path = tmp_path / "release.pth.tar"
    torch.save(release(method, before, extra), path)
    after, lines = start(recipe(method, path))
    assert lines == [f"{path}: {said}"]
    assert same(after.encoders.video, before.encoders.video)
    assert all(same(after.get_submodule(name), before.get_submodule(name)) for name in LAYOUTS[method][1])
    if method == "BYOL":
        assert same(after.teacher.projector, before.projector)
        assert same(after.teacher.trunk, before.encoders.video)


def test_heads_that_do_not_fit_begin_afresh_and_say_why(tmp_path):
    before = fresh("SwAV", seed=1, num_prototypes=9)
    path = tmp_path / "swav.pth"
    torch.save(release("SwAV", before, {}), path)
    after, lines = start(recipe("SwAV", path))
    why = "weight is (9, 5), in the recipe (7, 5)"
    assert lines == [f"{path}: heads taken over: projector; begun afresh: prototypes ({why})"]
    assert same(after.projector, before.projector)
    other, lines = start(recipe("SimSiam", path))
    assert lines == [
        f"{path}: begun afresh: projector (3.weight is (5, 6), in the recipe (6, 6)), predictor (not there); "
        "not used: prototypes"
    ]
    assert same(other.encoders.video, before.encoders.video)
    torch.manual_seed(7)
    assert same(other.projector, build_objective(recipe("SimSiam"), 3).projector)


def test_a_byol_run_goes_on_with_heads_and_teacher(tmp_path):
    before = fresh("BYOL", seed=1)
    with torch.no_grad():
        for parameter in before.teacher.parameters():
            parameter.mul_(0.5)  # a teacher unlike its student, as after some training
    config = config_to_dict(recipe("BYOL"))
    place = {"step": 1, "epoch": 1, "batch": 0}
    state = {"objective": before.state_dict(), "config": config, "manifest_hash": "x", "position": place}
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    after, lines = start(recipe("BYOL", tmp_path))
    assert lines == [f"{tmp_path}: heads taken over: projector, predictor, teacher"]
    assert same(after, before)
    resized, lines = start(recipe("BYOL", tmp_path, dim=4))
    assert "begun afresh: projector (3.weight is (5, 6), in the recipe (4, 6)), predictor" in lines[0]
    assert same(resized.teacher.trunk, before.encoders.video)
    assert same(resized.teacher.projector, resized.projector)


def test_a_part_of_a_joint_run_takes_the_heads_of_its_name_or_of_a_single_method(tmp_path):
    before = fresh("SimSiam", seed=1)
    path = tmp_path / "simsiam.pth.tar"
    torch.save(release("SimSiam", before, {}), path)
    config = recipe("SimSiam", path)
    parts = {"one": dict(config.objective), "two": {"name": "BarlowTwins", **HEADS["BarlowTwins"]}}
    config.objective = {"name": "Joint", "parts": parts}
    joint, lines = start(config)
    assert "heads taken over: one.projector, one.predictor; begun afresh: two.projector (" in lines[0]
    assert same(joint.parts["one"].predictor, before.predictor)
    state = {"objective": joint.state_dict(), "config": config_to_dict(config), "manifest_hash": "x"}
    save_checkpoint(tmp_path / "checkpoint.pt", state | {"position": {"step": 1, "epoch": 1, "batch": 0}})
    config.run.start_from = str(tmp_path)
    again, lines = start(config)
    assert lines == [f"{tmp_path}: heads taken over: one.projector, one.predictor, two.projector"]
    assert same(again, joint)
