from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avssl.errors import CheckpointError
from avssl.models.image import ResNetImage
from avssl.models.regnet import RegNetY
from avssl.models.visual_weights import read_visual_weights, recognise, seer_to_torchvision

GOLDEN = Path(__file__).parents[1] / "golden" / "image.pt"


@pytest.fixture(scope="module")
def seer() -> dict:
    return torch.load(GOLDEN, weights_only=True)["seer_trunk"]


@pytest.fixture(scope="module")
def resnet18() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return ResNetImage("resnet18").state_dict()


def meta_weights(trunk_class: type, **arguments) -> dict[str, Tensor]:
    with torch.device("meta"):
        return trunk_class(**arguments).state_dict()


def named(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in weights.items()}


def perceptron(*layers: int) -> dict[str, Tensor]:
    return {f"{layer}.weight": torch.full((1,), float(layer)) for layer in layers}


def vissl(trunk: dict[str, Tensor], heads: dict[str, Tensor] | None = None) -> dict:
    model = {"trunk": trunk, "heads": heads or {}}
    return {"classy_state_dict": {"base_model": {"model": model, "meters": {}}, "optimizer": {}}}


def in_vissl_spelling(key: str, with_parts: bool = False) -> str:
    """Spell a key of torchvision's RegNet as VISSL, in the direction opposite to the one under test."""
    key = key.replace("stem.", "conv1.stem.", 1) if key.startswith("stem.") else key
    key = key.replace(".f.c.0.", ".f.c.").replace(".f.c.1.", ".f.final_bn.")
    key = key.replace(".se.fc1.", ".se.excitation.0.").replace(".se.fc2.", ".se.excitation.2.")
    key = key.replace(".proj.0.", ".proj.").replace(".proj.1.", ".bn.")
    if stage := re.match(r"trunk_output\.block(\d)\.", key):
        part = f"block{stage[1]}-part0." if with_parts else ""
        key = f"res{int(stage[1]) + 1}.{part}" + key[stage.end() :]
    return "_feature_blocks." + key


def test_seer_weights_give_the_output_of_seers_own_code(seer):
    weights = read_visual_weights(vissl(seer["vissl_trunk_state_dict"]))
    assert weights.release == "SEER"
    assert weights.arguments == {"stages_as": [(1, 16, 8), (2, 32, 8)]}
    trunk = weights.build_trunk().eval()
    with torch.inference_mode():
        maps = trunk.feature_maps(seer["x"].unsqueeze(2))
    torch.testing.assert_close(maps["conv3x"].squeeze(2), seer["y"], rtol=0, atol=1e-12)
    torch.testing.assert_close(maps["pool"], seer["y"].mean((2, 3)), rtol=0, atol=1e-12)


def test_seer_keys_map_to_those_of_torchvision(seer):
    assert len(seer["mapping"]) == 84
    assert {key: seer_to_torchvision(key) for key in seer["mapping"]} == seer["mapping"]


@pytest.mark.parametrize("name, with_parts", [("regnet_y_32gf", False), ("regnet_y_10b", True)])
def test_seer_architectures_are_told_by_shapes(name, with_parts):
    expected = meta_weights(RegNetY, architecture=name)
    trunk = {in_vissl_spelling(key, with_parts): tensor for key, tensor in expected.items()}
    assert any("-part0." in key for key in trunk) == with_parts
    heads = named("0.projection_head.", perceptron(0, 2, 4)) | named("0.prototypes0.", perceptron(9))
    weights = read_visual_weights(vissl(trunk, heads | {"0.extra": torch.zeros(1)}))
    assert weights.arguments == {"architecture": name}
    assert list(weights.trunk) == list(expected)
    assert list(weights.heads["projector"]) == ["0.weight", "2.weight", "4.weight"]
    assert list(weights.heads["prototypes"]) == ["9.weight"]
    assert weights.notes == ["not used: optimizer", "not used: 1 key(s) of no known part: 0.extra"]


def test_vissls_residual_networks_are_read_too(resnet18):
    weights = read_visual_weights(vissl(named("_feature_blocks.", resnet18)))
    assert (weights.trunk_class, weights.arguments) == (ResNetImage, {"architecture": "resnet18"})


@pytest.mark.parametrize("wrapped", [False, True], ids=["released", "own training"])
def test_swav_files_give_trunk_and_heads(resnet18, wrapped):
    head = named("projection_head.", perceptron(0, 1, 3)) | named("prototypes.", {"weight": torch.zeros(3)})
    content = named("module.", resnet18 | head)
    if wrapped:
        content = {"epoch": 5, "state_dict": content, "optimizer": {}, "amp": None}
    weights = read_visual_weights(content)
    assert weights.release == "SwAV"
    assert list(weights.heads) == ["projector", "prototypes"]
    assert list(weights.heads["projector"]) == ["0.weight", "1.weight", "3.weight"]
    assert weights.notes == (["not used: amp, epoch, optimizer"] if wrapped else [])
    trunk = weights.build_trunk().eval()
    own = ResNetImage("resnet18").eval()
    own.load_state_dict(resnet18)
    x = torch.randn(1, 3, 1, 32, 32)
    torch.testing.assert_close(trunk(x), own(x), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in trunk.parameters())


@pytest.mark.parametrize("name", ["resnet50", "resnet50w2", "resnet50w4", "resnet50w5"])
def test_swav_widths_are_told_by_the_stem(name):
    content = named("module.", meta_weights(ResNetImage, architecture=name))
    weights = read_visual_weights(content | {"module.prototypes.weight": torch.zeros(3)})
    assert weights.arguments == {"architecture": name}


def test_simsiam_projector_is_not_taken_for_the_trunk(resnet18):
    parts = named("encoder.", resnet18) | named("encoder.fc.", perceptron(0, 1, 3, 4, 6, 7))
    parts |= named("predictor.", perceptron(0, 1, 3))
    content = {"epoch": 100, "arch": "resnet18", "state_dict": named("module.", parts), "optimizer": {}}
    weights = read_visual_weights(content)
    assert weights.release == "SimSiam"
    assert list(weights.trunk) == list(resnet18)
    assert [key.partition(".")[0] for key in weights.heads["projector"]] == ["0", "1", "3", "4", "6", "7"]
    assert len(weights.heads["predictor"]) == 3
    assert weights.notes == ["not used: arch, epoch, optimizer"]


def test_barlow_twins_checkpoints_and_bare_networks_are_read(resnet18):
    parts = named("backbone.", resnet18) | named("projector.", perceptron(0, 1, 3, 4, 6))
    parts |= {"bn.running_mean": torch.ones(2)}
    whole = read_visual_weights({"epoch": 3, "model": named("module.", parts), "optimizer": {}})
    bare = read_visual_weights(dict(resnet18))
    assert (whole.release, bare.release) == ("Barlow Twins", "torchvision")
    assert list(whole.heads) == ["projector", "bn"]
    assert bare.heads == {}
    assert whole.trunk.keys() == bare.trunk.keys()


def test_a_classifier_of_torchvision_is_a_head_of_its_own(resnet18):
    weights = read_visual_weights(resnet18 | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)})
    assert list(weights.heads["classifier"]) == ["weight", "bias"]


def test_a_small_stem_is_told_by_its_kernel():
    small = meta_weights(ResNetImage, architecture="resnet18", small_stem=True)
    assert read_visual_weights(small).arguments == {"architecture": "resnet18", "small_stem": True}


def test_missing_counters_are_filled_in_and_said(resnet18):
    old = {key: tensor for key, tensor in resnet18.items() if not key.endswith("num_batches_tracked")}
    weights = read_visual_weights(old)
    assert weights.notes == [
        "filled in with 0: 20 key(s) of counters: bn1.num_batches_tracked, "
        "layer1.0.bn1.num_batches_tracked, layer1.0.bn2.num_batches_tracked, "
        "layer1.1.bn1.num_batches_tracked, ..."
    ]
    weights.build_trunk()


def test_unfit_keys_are_named(resnet18):
    content = dict(resnet18)
    del content["layer1.0.bn1.weight"]
    content["layer9.weight"] = torch.zeros(1)
    content["bn1.weight"] = torch.zeros(65)
    content["bn1.bias"] = 3
    with pytest.raises(CheckpointError) as raised:
        read_visual_weights(content)
    for words in (
        "ResNetImage {'architecture': 'resnet18'}",
        "1 key(s) missing: layer1.0.bn1.weight",
        "1 key(s) unexpected: layer9.weight",
        "2 key(s) of another shape: bn1.weight (65,) where the network has (64,), bn1.bias no tensor",
    ):
        assert words in str(raised.value)


def test_unknown_networks_are_named(resnet18):
    shallow = {key: tensor for key, tensor in resnet18.items() if not key.startswith("layer2.1.")}
    with pytest.raises(CheckpointError, match=r"\(2, 1, 2, 2\) basic blocks after a stem of 64 channels"):
        read_visual_weights(shallow)
    with pytest.raises(CheckpointError, match=r"conv1.weight must be there and have 4 axes"):
        read_visual_weights({"conv1.bias": torch.zeros(1)})


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 1, "model": {"module.video_model.conv1.0.weight": torch.zeros(1)}},
        {"model": {3: torch.zeros(1)}},
        [1, 2],
        {},
    ],
)
def test_other_content_is_refused(content):
    assert recognise(content) is None
    with pytest.raises(CheckpointError, match="no released weights of SwAV, SimSiam, Barlow Twins, SEER"):
        read_visual_weights(content)


def test_a_vissl_file_without_a_trunk_is_refused():
    with pytest.raises(CheckpointError, match="no weights at classy_state_dict, base_model, model, trunk"):
        read_visual_weights({"classy_state_dict": {"base_model": {"model": {"heads": {}}}}})
    with pytest.raises(CheckpointError, match=r"conv1\.weight must be there"):
        read_visual_weights(vissl({}))
