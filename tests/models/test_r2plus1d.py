from __future__ import annotations

import pytest
import torch
from torch import nn

from avssl.errors import ConfigError
from avssl.models import R2Plus1D
from avssl.models.r2plus1d import R2Plus1DBlock


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth, expected", [(10, 7_015_616), (18, 15_379_136)])
def test_parameter_count_is_the_official_one(depth, expected):
    assert num_parameters(R2Plus1D(depth)) == expected


def test_depth_34_adds_1_2_4_and_1_identity_blocks_to_depth_18():
    extra = [(64, 1), (128, 2), (256, 4), (512, 1)]
    # four convolutions of 9 + 3 + 9 + 3 taps and four batch norms of weight and bias
    added = sum(count * (24 * planes**2 + 8 * planes) for planes, count in extra)
    assert num_parameters(R2Plus1D(34)) == 15_379_136 + added


@pytest.mark.parametrize(
    "shape, expected",
    [
        (
            (8, 224, 224),
            {
                "conv1": (64, 8, 56, 56),
                "conv2x": (64, 8, 56, 56),
                "conv3x": (128, 4, 28, 28),
                "conv4x": (256, 2, 14, 14),
                "conv5x": (512, 1, 7, 7),
            },
        ),
        (
            (32, 224, 224),
            {
                "conv1": (64, 32, 56, 56),
                "conv2x": (64, 32, 56, 56),
                "conv3x": (128, 16, 28, 28),
                "conv4x": (256, 8, 14, 14),
                "conv5x": (512, 4, 7, 7),
            },
        ),
    ],
)
def test_feature_maps_have_the_official_shapes(shape, expected):
    with torch.device("meta"):  # shapes only, nothing is computed
        maps = R2Plus1D(18).feature_maps(torch.empty(2, 3, *shape))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        **{name: (2, *rest) for name, rest in expected.items()},
        "pool": (2, 512),
    }


def test_width_scales_every_stage():
    model = R2Plus1D(10, width=4).eval()
    maps = model.feature_maps(torch.randn(1, 3, 2, 32, 32))
    assert [x.shape[1] for x in maps.values()] == [4, 4, 8, 16, 32, 32]
    assert model.dim == 32


def test_without_stem_pool_the_maps_are_twice_as_large_and_the_weights_the_same():
    x = torch.randn(1, 3, 2, 64, 64)
    pooled, small = R2Plus1D(10, width=4), R2Plus1D(10, width=4, stem_pool=False)
    assert pooled.feature_maps(x)["conv1"].shape[-2:] == (16, 16)
    assert small.feature_maps(x)["conv1"].shape[-2:] == (32, 32)
    small.load_state_dict(pooled.state_dict())


def test_single_blocks_are_bare_and_several_are_numbered():
    assert "conv2x.spt_conv1.weight" in R2Plus1D(10, width=1).state_dict()
    keys = set(R2Plus1D(34, width=1).state_dict())
    assert {"conv2x.2.out_bn.weight", "conv4x.5.tmp_conv2.weight", "conv3x.0.res_conv.weight"} <= keys
    assert not {"conv2x.0.res_conv.weight", "conv3x.1.res_conv.weight", "conv2x.3.out_bn.weight"} & keys


def test_block_normalises_the_sum_of_branch_and_shortcut():
    torch.manual_seed(0)
    block = R2Plus1DBlock(2, 4, stride=2).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias)
    x = torch.randn(1, 2, 5, 6, 7, dtype=torch.float64)

    def norm(y, bn):
        centred = y - bn.running_mean.view(-1, 1, 1, 1)
        scale = bn.weight / (bn.running_var + 1e-5).sqrt()
        return centred * scale.view(-1, 1, 1, 1) + bn.bias.view(-1, 1, 1, 1)

    def conv(y, layer, stride, padding):
        return nn.functional.conv3d(y, layer.weight, None, stride, padding)

    y = norm(conv(x, block.spt_conv1, (1, 2, 2), (0, 1, 1)), block.spt_bn1).relu()
    y = norm(conv(y, block.tmp_conv1, (2, 1, 1), (1, 0, 0)), block.tmp_bn1).relu()
    y = norm(conv(y, block.spt_conv2, 1, (0, 1, 1)), block.spt_bn2).relu()
    y = conv(y, block.tmp_conv2, 1, (1, 0, 0)) + conv(x, block.res_conv, 2, 0)
    torch.testing.assert_close(block(x), norm(y, block.out_bn).relu())


def test_forward_is_the_maximum_over_the_last_map():
    model = R2Plus1D(10, width=2).eval()
    x = torch.randn(2, 3, 9, 40, 50)
    maps = model.feature_maps(x)
    torch.testing.assert_close(model(x), maps["conv5x"].amax(dim=(2, 3, 4)))
    torch.testing.assert_close(model(x), maps["pool"])


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 33, 47), (3, 1, 1), (1, 1, 1), (17, 8, 8)])
def test_any_length_and_size_gives_finite_features(shape):
    features = R2Plus1D(10, width=2).eval()(torch.randn(2, 3, *shape))
    assert features.shape == (2, 16)
    assert features.isfinite().all()


def test_channels_last_gives_the_same_features_and_gradients():
    torch.manual_seed(0)
    model = R2Plus1D(18, width=4).eval()
    x = torch.randn(2, 3, 4, 32, 32)
    plain = model(x)
    plain.square().sum().backward()
    gradient = model.conv1[0].weight.grad.clone()
    model.zero_grad()
    model.to(memory_format=torch.channels_last_3d)
    last = model(x.contiguous(memory_format=torch.channels_last_3d))
    last.square().sum().backward()
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.conv1[0].weight.grad, gradient, rtol=1e-3, atol=1e-4)


def test_autocast_trains_in_bfloat16():
    model = R2Plus1D(10, width=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(torch.randn(2, 3, 4, 32, 32))
    features.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(3, 8, 32, 32), (2, 3, 32, 32), (2, 8, 3, 32, 32)])
def test_wrong_input_shape_is_named(shape):
    model = R2Plus1D(10, width=1)
    for call in (model, model.feature_maps):
        with pytest.raises(ValueError, match=r"takes \(B, 3, T, H, W\); got shape") as error:
            call(torch.zeros(shape))
        assert str(shape) in str(error.value)


def test_impossible_depth_and_width_are_refused():
    with pytest.raises(ConfigError, match="depth must be one of 10, 18, 34; got 50"):
        R2Plus1D(50)
    with pytest.raises(ConfigError, match=r"width must be at least 1 .* got 0"):
        R2Plus1D(10, width=0)
