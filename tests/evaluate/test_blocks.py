"""Block features against maps pooled by plain loops, and what they leave behind: nothing."""

import numpy as np
import pytest
import torch
from torch import nn

from avssl.errors import EvaluationError
from avssl.evaluate.blocks import block_features, block_names, pool_map
from avssl.models import AudioConvNet, R2Plus1D, RegNetY, ResNetImage, TorchvisionVideo


def _edges(length, parts):
    """Start and stop of each part, as adaptive pooling cuts an axis."""
    return [(i * length // parts, -(-(i + 1) * length // parts)) for i in range(parts)]


def _pooled_by_loops(x, reduce):
    """Pool (C, H, W) to the largest square that keeps C n n within 9216, no larger than the map."""
    channels, height, width = x.shape
    side = 1
    while channels * (side + 1) ** 2 <= 9216:
        side += 1
    rows, columns = _edges(height, min(side, height)), _edges(width, min(side, width))
    return np.array([[[reduce(m[a:b, c:d]) for c, d in columns] for a, b in rows] for m in x]).ravel()


@pytest.mark.parametrize(
    ("channels", "side"), [(64, 12), (128, 8), (256, 6), (512, 4), (1024, 3), (2048, 2), (28280, 1)]
)
def test_sizes_are_those_of_the_release(channels, side):
    maps = torch.arange(60.0).expand(1, channels, 2, 60, 60)
    assert pool_map(maps).shape == (1, channels * side * side)
    assert pool_map(maps[:, :, 0]).shape == (1, channels * side * side)


def test_blocks_of_the_official_networks_have_the_lengths_of_the_release():
    video = {"conv2x": (64, 8, 56, 56), "conv3x": (128, 4, 28, 28), "conv4x": (256, 2, 14, 14)}
    video["conv5x"] = (512, 1, 7, 7)
    lengths = {name: pool_map(torch.zeros(1, *shape)).shape[1] for name, shape in video.items()}
    assert lengths == {"conv2x": 9216, "conv3x": 8192, "conv4x": 9216, "conv5x": 8192}
    assert block_names(R2Plus1D(10, width=2)) == tuple(video)
    sound = [(64, 50, 65), (128, 25, 33), (256, 13, 17), (512, 13, 17)]
    assert [pool_map(torch.zeros(1, *shape)).shape[1] for shape in sound] == [9216, 8192, 9216, 8192]
    assert block_names(AudioConvNet(width=2)) == tuple(video)


def test_video_blocks_are_maxima_over_time_and_places():
    torch.manual_seed(0)
    trunk, x = R2Plus1D(10, width=48).eval(), torch.randn(2, 3, 3, 72, 60)
    features = block_features(trunk, x)
    with torch.no_grad():
        maps = trunk.feature_maps(x)
    assert list(features) == ["conv2x", "conv3x", "conv4x", "conv5x", "pool"]
    for name in ("conv2x", "conv4x"):
        for row in range(2):
            expected = _pooled_by_loops(maps[name][row].amax(dim=1).numpy(), np.max)
            np.testing.assert_array_equal(features[name][row], expected)
    torch.testing.assert_close(features["pool"], maps["pool"], rtol=0, atol=0)


def test_audio_blocks_are_means_over_places():
    torch.manual_seed(0)
    trunk, x = AudioConvNet(width=48).eval(), torch.randn(2, 1, 66, 75)
    features = block_features(trunk, x)
    with torch.no_grad():
        maps = trunk.feature_maps(x)
    for name in ("conv2x", "conv4x"):
        for row in range(2):
            expected = _pooled_by_loops(maps[name][row].numpy(), np.mean)
            np.testing.assert_allclose(features[name][row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trunk", [ResNetImage("resnet18"), RegNetY()], ids=["resnet", "regnet"])
def test_image_blocks_are_means_over_places_and_frames(trunk):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 64, 64)
    features = block_features(trunk, x)
    with torch.no_grad():
        maps = trunk.eval().feature_maps(x)
    assert list(features) == ["conv2x", "conv3x", "conv4x", "conv5x", "pool"]
    for name in ("conv2x", "conv5x"):
        expected = np.mean([_pooled_by_loops(maps[name][1, :, t].numpy(), np.mean) for t in (0, 1)], axis=0)
        np.testing.assert_allclose(features[name][1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "trunk", [R2Plus1D(10, width=4), TorchvisionVideo("mc3_18"), ResNetImage("resnet18"), AudioConvNet(4)]
)
def test_trunk_is_left_bit_by_bit_as_it_was(trunk):
    torch.manual_seed(0)
    trunk.train()
    first = next(module for module in trunk.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    first.eval()
    modes = [module.training for module in trunk.modules()]
    state = {name: value.clone() for name, value in trunk.state_dict().items()}
    x = torch.randn(2, 1, 40, 40) if isinstance(trunk, AudioConvNet) else torch.randn(2, 3, 2, 32, 32)
    one = block_features(trunk, x)
    assert [module.training for module in trunk.modules()] == modes
    assert {True, False} <= set(modes)
    assert all(torch.equal(trunk.state_dict()[name], value) for name, value in state.items())
    assert not any(module._forward_hooks for module in trunk.modules())
    assert not any(value.requires_grad for value in one.values())
    alone = block_features(trunk, x[:1])
    for name, value in one.items():
        torch.testing.assert_close(value[:1], alone[name], rtol=1e-3, atol=1e-4)  # no batch statistics


def test_hooks_and_modes_come_back_after_an_error():
    trunk = R2Plus1D(10, width=2).train()
    with pytest.raises(ValueError, match="takes"):
        block_features(trunk, torch.zeros(1, 1, 1, 8, 8))
    assert all(module.training for module in trunk.modules())
    assert not any(module._forward_hooks for module in trunk.modules())


def test_submodule_is_seen_before_the_next_one_overwrites_it():
    torch.manual_seed(0)
    trunk, x = AudioConvNet(width=4).eval(), torch.randn(1, 1, 32, 32)
    found = block_features(trunk, x, ["block1.bn2"])["block1.bn2"]
    assert found.min() < 0, "the ReLU after it works in place"
    other = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    rows = torch.randn(4, 6)
    torch.testing.assert_close(block_features(other, rows, ["1"])["1"], other(rows).detach())
    assert block_names(other) == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv6x", r"no block 'conv6x'; its stages are conv1, conv2x, .* did you mean 'conv5x'\?"),
        ("conv2x.relu", "'conv2x.relu' gave 4 maps, .* a block must give one map a pass"),
        ("spare", "'spare' was not used in a pass"),
    ],
)
def test_name_that_is_no_block_is_refused(name, message):
    trunk = R2Plus1D(10, width=2)
    trunk.spare = nn.Linear(1, 1)
    with pytest.raises(EvaluationError, match=message):
        block_features(trunk, torch.zeros(1, 3, 1, 8, 8), [name])
