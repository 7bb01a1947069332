from __future__ import annotations

import pytest
import torch

from avssl.errors import ConfigError
from avssl.models import AudioConvNet


def test_parameter_count_is_the_official_one():
    assert sum(p.numel() for p in AudioConvNet().parameters()) == 4_725_696


def test_feature_maps_have_the_official_shapes():
    with torch.device("meta"):
        maps = AudioConvNet().feature_maps(torch.empty(2, 1, 200, 257))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "conv2x": (2, 64, 50, 65),
        "conv3x": (2, 128, 25, 33),
        "conv4x": (2, 256, 13, 17),
        "conv5x": (2, 512, 13, 17),
        "pool": (2, 512),
    }


def test_first_stride_one_keeps_the_stem_resolution_in_the_first_block():
    maps = AudioConvNet(width=2, first_stride=1).feature_maps(torch.randn(1, 1, 100, 129))
    assert [tuple(x.shape[1:]) for x in maps.values()] == [
        (2, 50, 65),
        (4, 25, 33),
        (8, 13, 17),
        (16, 13, 17),
        (16,),
    ]


def test_width_sets_dim():
    model = AudioConvNet(width=3).eval()
    assert model.dim == 24
    assert model(torch.randn(2, 1, 20, 10)).shape == (2, 24)


def test_forward_is_the_maximum_over_the_last_map():
    model = AudioConvNet(width=2).eval()
    x = torch.randn(2, 1, 100, 64)
    torch.testing.assert_close(model(x), model.feature_maps(x)["conv5x"].amax(dim=(2, 3)))


def test_channels_last_gives_the_same_features():
    model = AudioConvNet(width=4).eval()
    x = torch.randn(2, 1, 50, 64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    last = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


def test_autocast_trains_in_bfloat16():
    model = AudioConvNet(width=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(torch.randn(2, 1, 50, 64))
    features.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_one_frame_and_one_bin_give_finite_features():
    assert AudioConvNet(width=2).eval()(torch.randn(1, 1, 1, 1)).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 100, 64), (2, 2, 100, 64), (1, 2, 1, 100, 64)])
def test_wrong_input_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 1, frames, bins\); got shape") as error:
        AudioConvNet(width=1)(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError, match=r"width must be at least 1 .* got 0"):
        AudioConvNet(width=0)
    with pytest.raises(ConfigError, match=r"first_stride must be 2 .* got 3"):
        AudioConvNet(first_stride=3)
