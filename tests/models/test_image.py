from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from avssl.config.named import check_arguments
from avssl.errors import ConfigError
from avssl.models.image import RESNETS, ResNetImage
from avssl.models.recompute import RecomputedStage


def tiny_batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet18() -> ResNetImage:
    torch.manual_seed(0)
    trunk = ResNetImage("resnet18")
    trunk(tiny_batch(4, 3, 1, 32, 32))  # running statistics that are not those of a fresh network
    return trunk.eval()


@pytest.mark.parametrize("name, dim", [("resnet18", 512), ("resnet50", 2048)])
def test_image_trunk_computes_what_torchvision_computes(name, dim):
    torch.manual_seed(0)
    original = models.get_model(name, weights=None).eval()
    trunk = ResNetImage(name).eval()
    trunk.load_state_dict({k: v for k, v in original.state_dict().items() if not k.startswith("fc.")})
    original.fc = torch.nn.Identity()
    x = tiny_batch(2, 3, 1, 40, 64)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), original(x[:, :, 0]))
        maps = trunk.feature_maps(x)
    assert list(maps) == ["conv2x", "conv3x", "conv4x", "conv5x", "pool"]
    assert maps["pool"].shape == (2, trunk.dim) == (2, dim)
    assert maps["conv4x"].shape == (2, dim // 2, 1, 3, 4)


def test_a_clip_is_the_mean_over_its_frames(resnet18):
    x = tiny_batch(2, 3, 3, 32, 32)
    with torch.inference_mode():
        maps = resnet18.feature_maps(x)
        frames = [resnet18(x[:, :, t : t + 1]) for t in range(3)]
        torch.testing.assert_close(resnet18(x), torch.stack(frames).mean(0))
        torch.testing.assert_close(maps["pool"], resnet18(x))
        alone = resnet18.feature_maps(x[1:, :, 2:])["conv3x"]
    assert maps["conv3x"].shape == (2, 128, 3, 4, 4)
    torch.testing.assert_close(maps["conv3x"][1:, :, 2:], alone)


@pytest.mark.parametrize("width, millions", [(2, 94), (4, 375), (5, 586)])
def test_wide_trunks_have_the_sizes_and_shapes_of_swav(width, millions):
    with torch.device("meta"):
        trunk = ResNetImage(f"resnet50w{width}")
    assert round(sum(p.numel() for p in trunk.parameters()) / 1e6) == millions
    shapes = {key: tuple(tensor.shape) for key, tensor in trunk.state_dict().items()}
    assert shapes["conv1.weight"] == (64 * width, 3, 7, 7)
    assert shapes["layer1.0.conv1.weight"] == (64 * width, 64 * width, 1, 1)
    assert shapes["layer4.2.conv3.weight"] == (2048 * width, 512 * width, 1, 1)
    assert trunk.dim == 2048 * width


def test_every_architecture_has_the_keys_of_torchvision_where_it_exists_there():
    with torch.device("meta"):
        for name in RESNETS:
            keys = list(ResNetImage(name).state_dict())
            if name in models.list_models():
                network = models.get_model(name, weights=None)
                assert keys == [key for key in network.state_dict() if not key.startswith("fc.")]


def test_small_stem_keeps_the_resolution_of_small_images():
    trunk = ResNetImage("resnet18", small_stem=True).eval()
    with torch.inference_mode():
        maps = trunk.feature_maps(tiny_batch(1, 3, 1, 32, 32))
    assert maps["conv2x"].shape == (1, 64, 1, 32, 32)
    assert maps["conv5x"].shape == (1, 512, 1, 4, 4)


@pytest.mark.parametrize("name, last", [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual_makes_blocks_start_as_the_identity(name, last):
    trunk = ResNetImage(name, zero_init_residual=True)
    block = trunk.layer3[1]
    assert not getattr(block, last).weight.any()
    assert block.bn1.weight.all()
    x = tiny_batch(2, trunk.dim // 2, 4, 4).relu()
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    assert getattr(ResNetImage(name).layer3[1], last).weight.all()


def test_weights_start_by_fan_out():
    torch.manual_seed(0)
    weight = ResNetImage("resnet18").layer2[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_same_padding_equals_padding_by_hand(resnet18):
    trunk = ResNetImage("resnet18", same_padding=True).eval()
    trunk.load_state_dict(resnet18.state_dict())
    x = tiny_batch(2, 3, 1, 64, 96)
    with torch.inference_mode():
        maps = trunk.feature_maps(x)
        stem = F.conv2d(F.pad(x[:, :, 0], (2, 3, 2, 3)), resnet18.conv1.weight, stride=2)
        pooled = F.max_pool2d(F.pad(resnet18.bn1(stem).relu(), (0, 1, 0, 1)), 3, 2)
        first = resnet18.layer1(pooled)
        block = resnet18.layer2[0]
        branch = block.bn1(F.conv2d(F.pad(first, (0, 1, 0, 1)), block.conv1.weight, stride=2)).relu()
        branch = block.bn2(block.conv2(branch))
        second = resnet18.layer2[1]((branch + block.downsample(first)).relu())
    assert maps["conv2x"].shape == (2, 64, 1, 16, 24)
    torch.testing.assert_close(maps["conv2x"][:, :, 0], first)
    torch.testing.assert_close(maps["conv3x"][:, :, 0], second)
    assert maps["conv5x"].shape == (2, 512, 1, 2, 3)
    plain = resnet18.feature_maps(x)["conv3x"]
    assert (plain - maps["conv3x"]).abs().max() > 0.1


def test_same_padding_is_torchvisions_where_sizes_are_odd(resnet18):
    trunk = ResNetImage("resnet18", same_padding=True).eval()
    trunk.load_state_dict(resnet18.state_dict())
    x = tiny_batch(1, 3, 1, 97, 97)  # 97, 49, 25, 13, 7: nothing is left over on any side
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), resnet18(x))


def trained_once(trunk: torch.nn.Module, views: int = 1) -> tuple[torch.Tensor, dict, dict]:
    """Features, gradients and buffers of one step on a loss of several forward passes."""
    outputs = [trunk(tiny_batch(2, 3, 2, 32, 32, seed=view)) for view in range(views)]
    sum(output.square().sum() for output in outputs).backward()
    gradients = {name: p.grad.clone() for name, p in trunk.named_parameters()}
    return torch.stack(outputs).detach(), gradients, {name: b.clone() for name, b in trunk.named_buffers()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_checkpointing_changes_neither_gradients_nor_statistics(name):
    plain, spared = ResNetImage(name), ResNetImage(name, checkpoint_stages=True)
    assert list(spared.state_dict()) == list(plain.state_dict())
    spared.load_state_dict(plain.state_dict())
    expected, found = trained_once(plain, views=2), trained_once(spared, views=2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    counts = {int(b) for key, b in spared.named_buffers() if key.endswith("num_batches_tracked")}
    assert counts == {2}


def test_checkpointed_statistics_survive_a_second_backward():
    trunk = ResNetImage("resnet18", checkpoint_stages=True)
    loss = trunk(tiny_batch(2, 3, 1, 32, 32)).square().sum()
    before = {key: buffer.clone() for key, buffer in trunk.named_buffers()}
    loss.backward(retain_graph=True)
    first = trunk.conv1.weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(trunk.conv1.weight.grad, 2 * first)
    torch.testing.assert_close(dict(trunk.named_buffers()), before, rtol=0, atol=0)


def kept_bytes(trunk: torch.nn.Module) -> int:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
    ):
        trunk(tiny_batch(2, 3, 1, 32, 32))
    return sum(kept)


def test_checkpointing_keeps_less_for_the_backward_pass():
    plain = kept_bytes(ResNetImage("resnet18"))
    some = kept_bytes(ResNetImage("resnet18", checkpoint_stages=[1, 2]))
    all_ = kept_bytes(ResNetImage("resnet18", checkpoint_stages=True))
    assert all_ < some < plain


def test_stages_to_checkpoint_are_chosen_by_number():
    trunk = ResNetImage("resnet18", checkpoint_stages=(2, 4))
    layers = [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
    assert [isinstance(layer, RecomputedStage) for layer in layers] == [False, True, False, True]
    with pytest.raises(ConfigError, match="stages are numbered 1 to 4; got 0, 7"):
        ResNetImage("resnet18", checkpoint_stages=(0, 2, 7))


def test_a_recipe_can_set_all_arguments():
    section = {"architecture": "resnet18", "same_padding": True, "checkpoint_stages": [1, 3]}
    arguments = check_arguments("model.video", ResNetImage, section)
    assert isinstance(ResNetImage(**arguments).layer3, RecomputedStage)
    assert check_arguments("model.video", ResNetImage, {"checkpoint_stages": True}) == {
        "checkpoint_stages": True
    }


def test_wrong_names_and_shapes_are_named():
    with pytest.raises(ConfigError, match=r"resnet200w2; got 'resnet50x2'.*mean 'resnet50w2'"):
        ResNetImage("resnet50x2")
    with pytest.raises(ValueError, match=r"ResNetImage takes \(B, 3, T, H, W\); got shape \(2, 3, 8, 8\)"):
        ResNetImage("resnet18")(torch.zeros(2, 3, 8, 8))


def test_importing_does_not_import_torchvision():
    code = (
        "import sys, avssl.models.image, avssl.models.regnet, avssl.models.visual_weights\n"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
