from __future__ import annotations

import pytest
import torch
from torchvision import models

from avssl.config.named import check_arguments
from avssl.errors import ConfigError
from avssl.models.recompute import RecomputedStage
from avssl.models.regnet import REGNETS, RegNetDesign, RegNetY, regnet_stages

TINY = ((1, 16, 8), (2, 32, 8))

# depths and widths of the published trunks, millions of parameters
SEER = {
    "regnet_y_32gf": ((2, 5, 12, 1), (232, 696, 1392, 3712), 232, 141.3),
    "regnet_y_64gf": ((2, 5, 12, 1), (328, 984, 1968, 4920), 328, 276.5),
    "regnet_y_128gf": ((2, 7, 17, 1), (528, 1056, 2904, 7392), 264, 637.4),
    "regnet_y_256gf": ((2, 7, 17, 1), (746, 1492, 4103, 10444), 373, 1272.2),
    "regnet_y_10b": ((2, 7, 17, 1), (2020, 4040, 11110, 28280), 1010, 9323.9),
}


@pytest.mark.parametrize("name", SEER)
def test_trunks_of_seer_have_the_published_size(name):
    depths, widths, group_width, millions = SEER[name]
    assert regnet_stages(REGNETS[name]) == tuple(
        (depth, width, group_width) for depth, width in zip(depths, widths, strict=True)
    )
    with torch.device("meta"):
        trunk = RegNetY(name)
    parameters = list(trunk.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert round(sum(p.numel() for p in parameters) / 1e6, 1) == millions
    assert trunk.dim == widths[-1]


def test_sizes_of_torchvision_are_torchvisions():
    with torch.device("cpu"):
        shared = [name for name in REGNETS if name in models.list_models() and "128" not in name]
    assert len(shared) == 7
    for name in shared[:3]:
        network = models.get_model(name, weights=None)
        with torch.device("meta"):
            trunk = RegNetY(name)
        expected = {k: v.shape for k, v in network.state_dict().items() if not k.startswith("fc.")}
        assert {key: tensor.shape for key, tensor in trunk.state_dict().items()} == expected


def test_trunk_computes_what_torchvision_computes():
    torch.manual_seed(0)
    original = models.get_model("regnet_y_400mf", weights=None).eval()
    trunk = RegNetY().eval()
    trunk.load_state_dict({k: v for k, v in original.state_dict().items() if not k.startswith("fc.")})
    original.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), original(x[:, :, 0]))
        maps = trunk.feature_maps(x)
        torch.testing.assert_close(trunk(x.expand(-1, -1, 2, -1, -1)), trunk(x))
    assert list(maps) == ["conv1", "conv2x", "conv3x", "conv4x", "conv5x", "pool"]
    assert maps["conv1"].shape == (2, 32, 1, 32, 32)
    assert maps["conv5x"].shape == (2, 440, 1, 2, 2)
    assert maps["pool"].shape == (2, trunk.dim) == (2, 440)


def test_five_numbers_and_stages_give_the_network_of_the_name():
    with torch.device("meta"):
        named = RegNetY("regnet_y_800mf")
        numbers = RegNetY(depth=14, w_0=56, w_a=38.84, w_m=2.4, group_width=16)
        table = RegNetY(stages_as=regnet_stages(REGNETS["regnet_y_800mf"]))
    shapes = [{k: v.shape for k, v in trunk.state_dict().items()} for trunk in (named, numbers, table)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_fewer_stages_give_fewer_maps():
    maps = RegNetY(stages_as=TINY).feature_maps(torch.randn(2, 3, 2, 32, 32))
    assert list(maps) == ["conv1", "conv2x", "conv3x", "pool"]
    assert maps["conv3x"].shape == (2, 32, 2, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkpointing_changes_neither_gradients_nor_statistics(dtype):
    torch.manual_seed(0)
    plain = RegNetY(stages_as=TINY).to(dtype)
    spared = RegNetY(stages_as=TINY, checkpoint_stages=True).to(dtype)
    spared.load_state_dict(plain.state_dict())
    x, results = torch.randn(4, 3, 1, 32, 32, dtype=dtype), []
    for trunk in (plain, spared):
        features = trunk(x)
        features.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in trunk.named_parameters()}
        results.append((features.detach(), gradients, dict(trunk.named_buffers())))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    counts = [int(b) for key, b in spared.named_buffers() if key.endswith("num_batches_tracked")]
    assert counts == [1] * len(counts)
    assert all(isinstance(stage, RecomputedStage) for stage in spared.trunk_output)


def test_a_recipe_can_set_all_arguments():
    section = {"stages_as": [[1, 16, 8], [2, 32, 8]], "checkpoint_stages": [2]}
    trunk = RegNetY(**check_arguments("model.video", RegNetY, section))
    assert [isinstance(stage, RecomputedStage) for stage in trunk.trunk_output] == [False, True]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"architecture": "regnet_y_10gf"}, r"got 'regnet_y_10gf'. Did you mean 'regnet_y_1"),
        ({"depth": 14, "w_0": 56}, "all of depth, w_0, w_a, w_m, group_width.* w_a None"),
        ({"architecture": "regnet_y_400mf", "stages_as": TINY}, "takes one of"),
        ({"depth": 14, "w_0": 57, "w_a": 38.84, "w_m": 2.4, "group_width": 16}, "w_0 a multiple of 8.*57"),
        ({"depth": 14, "w_0": 56, "w_a": 38.84, "w_m": 2.4, "group_width": 0}, "at least 1.*group_width 0"),
        ({"depth": 0, "w_0": 56, "w_a": 38.84, "w_m": 2.4, "group_width": 16}, "at least 1.*depth 0"),
        ({"stages_as": [(1, 20, 8)]}, r"multiple of the group width; got \[\(1, 20, 8\)\]"),
        ({"stages_as": []}, "1 to 4 stages"),
        ({"stages_as": TINY, "checkpoint_stages": [3]}, "numbered 1 to 2; got 3"),
    ],
)
def test_what_is_no_network_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RegNetY(**arguments)


def test_stages_follow_the_paper():
    """Widths by the equations of the paper, section 3.3, written out with numbers."""
    import math

    design = RegNetDesign(16, 48, 27.89, 2.09, 8)
    linear = [design.w_0 + design.w_a * i for i in range(design.depth)]
    powers = [round(math.log(u / design.w_0) / math.log(design.w_m)) for u in linear]
    widths = [8 * round(design.w_0 * design.w_m**s / 8) for s in powers]
    found = [width for depth, width, _ in regnet_stages(design) for _ in range(depth)]
    assert found == widths
