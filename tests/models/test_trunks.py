from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torchvision import models

from avssl.errors import ConfigError
from avssl.models import ResNetAudio, TorchvisionVideo


@pytest.mark.parametrize("name", TorchvisionVideo.names)
def test_video_trunk_computes_what_torchvision_computes(name):
    torch.manual_seed(0)
    original = models.get_model(name, weights=None).eval()
    trunk = TorchvisionVideo(name).eval()
    weights = {key: tensor for key, tensor in original.state_dict().items() if not key.startswith("fc.")}
    trunk.load_state_dict(weights)
    original.fc = torch.nn.Identity()
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), original(x))
        maps = trunk.feature_maps(x)
    assert list(maps) == ["conv1", "conv2x", "conv3x", "conv4x", "conv5x", "pool"]
    assert maps["pool"].shape == (1, trunk.dim) == (1, 512)
    assert maps["conv5x"].shape[1] == 512


@pytest.mark.parametrize("name, dim", [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_audio_trunk_computes_what_torchvision_computes_on_one_channel(name, dim):
    torch.manual_seed(0)
    original = models.get_model(name, weights=None).eval()
    trunk = ResNetAudio(name).eval()
    weights = {key: tensor for key, tensor in original.state_dict().items() if not key.startswith("fc.")}
    weights["conv1.weight"] = weights["conv1.weight"].sum(1, keepdim=True)
    trunk.load_state_dict(weights)
    original.fc = torch.nn.Identity()
    x = torch.randn(1, 1, 50, 64)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), original(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
        maps = trunk.feature_maps(x)
    assert list(maps) == ["conv2x", "conv3x", "conv4x", "conv5x", "pool"]
    assert maps["pool"].shape == (1, trunk.dim) == (1, dim)


def test_audio_stem_starts_like_torchvision():
    torch.manual_seed(0)
    weight = ResNetAudio("resnet18").conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)


def test_wrong_names_list_the_choices_and_the_nearest():
    with pytest.raises(ConfigError, match=r"r2plus1d_18, r3d_18, mc3_18; got 'r2plus1d'.*mean 'r2plus1d_18'"):
        TorchvisionVideo("r2plus1d")
    with pytest.raises(ConfigError, match=r"resnet18, resnet34, resnet50; got 'ResNet-50'.*mean 'resnet50'"):
        ResNetAudio("ResNet-50")


def test_wrong_input_shapes_are_named():
    with pytest.raises(
        ValueError, match=r"TorchvisionVideo takes \(B, 3, T, H, W\); got shape \(2, 3, 8, 8\)"
    ):
        TorchvisionVideo("r3d_18")(torch.zeros(2, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"ResNetAudio takes \(B, 1, frames, bins\); got shape \(2, 3, 8, 8\)"
    ):
        ResNetAudio()(torch.zeros(2, 3, 8, 8))


def test_importing_the_room_does_not_import_torchvision():
    code = "import sys, avssl.models; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
