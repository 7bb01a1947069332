import inspect
from dataclasses import asdict, fields

import pytest
import torch

from avssl.config import check_arguments
from avssl.errors import ConfigError
from avssl.transforms import VideoAugment
from avssl.transforms.multi_view import CropSpec, MultiView, make_views
from avssl.transforms.presets import SWAV_STD, barlow_twins, byol, seer, simsiam, swav

PRESETS = {"swav": swav, "seer": seer, "byol": byol, "barlow_twins": barlow_twins, "simsiam": simsiam}
COLUMNS = [
    "size",
    "count",
    "min_area",
    "max_area",
    "interpolation",
    "flip",
    "jitter",
    "jitter_prob",
    "gray",
    "blur",
    "blur_sigma",
    "solarize",
]
SIGMA = (0.1, 2.0)
SWAV_COLORS = (0.5, (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, SIGMA, 0.0)
BYOL_COLORS = (0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
RELEASED = {
    "swav": [
        (224, 2, 0.14, 1.0, "bilinear", *SWAV_COLORS),
        (96, 6, 0.05, 0.14, "bilinear", *SWAV_COLORS),
    ],
    "seer": [
        (160, 2, 0.14, 1.0, "bilinear", *SWAV_COLORS),
        (96, 4, 0.05, 0.14, "bilinear", *SWAV_COLORS),
    ],
    "byol": [
        (224, 1, 0.08, 1.0, "bicubic", *BYOL_COLORS, 1.0, SIGMA, 0.0),
        (224, 1, 0.08, 1.0, "bicubic", *BYOL_COLORS, 0.1, SIGMA, 0.2),
    ],
    "simsiam": [(224, 2, 0.2, 1.0, "bilinear", 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, SIGMA, 0.0)],
}
RELEASED["barlow_twins"] = RELEASED["byol"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_released_values(name: str) -> None:
    crops = [dict(zip(COLUMNS, row, strict=True), eight_bit=False) for row in RELEASED[name]]
    assert [asdict(crop) for crop in PRESETS[name]()] == crops


def test_swav_without_small_crops_has_two_views() -> None:
    assert swav(num_small=0) == swav()[:1]
    assert len(make_views(swav(num_small=0))) == 2


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("swav", [224] * 2 + [96] * 6),
        ("seer", [160] * 2 + [96] * 4),
        ("byol", [224] * 2),
        ("barlow_twins", [224] * 2),
        ("simsiam", [224] * 2),
    ],
)
def test_multi_crop_has_its_counts_and_sizes(name: str, sizes: list[int]) -> None:
    frames = [torch.zeros(1, 100 + i, 120, 3, dtype=torch.uint8) for i in range(2)]
    views = MultiView(make_views(PRESETS[name]()))(frames)
    assert [tuple(view.shape) for view in views] == [(2, 3, 1, size, size) for size in sizes]


def test_a_crop_takes_what_a_view_takes_with_the_same_defaults() -> None:
    signature = inspect.signature(VideoAugment).parameters
    assert {field.name for field in fields(CropSpec)} - {"count"} == set(signature) - {"mean", "std"}
    for field in fields(CropSpec):
        if field.name not in ("size", "count"):
            assert field.default == signature[field.name].default, field.name


def test_make_views_passes_every_key_on() -> None:
    crop = CropSpec(8, 2, 0.3, 0.4, "bicubic", 0.1, (0.5, 0.6, 0.7, 0.05), 0.2, 0.3, 0.4, (0.5, 0.6), 0.7)
    views = make_views([crop], mean=(0.1, 0.2, 0.3), std=SWAV_STD)
    assert len(views) == 2
    for view in views:
        assert (view.size, view.min_area, view.max_area, view.interpolation) == (8, 0.3, 0.4, "bicubic")
        assert (view.flip, view.jitter_prob, view.gray, view.blur_prob, view.solarize) == (
            0.1,
            0.2,
            0.3,
            0.4,
            0.7,
        )
        assert tuple(view.jitter.strengths.values()) == crop.jitter
        assert (view.blur.min_sigma, view.blur.max_sigma) == crop.blur_sigma
        torch.testing.assert_close(view.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
        torch.testing.assert_close(view.std.flatten(), torch.tensor(SWAV_STD))


def test_a_recipe_can_spell_a_crop_out() -> None:
    written = {"size": 96, "count": 6, "min_area": "5e-2", "max_area": 0.14, "jitter": [0.8, 0.8, 0.8, 0.2]}
    crop = CropSpec(**check_arguments("views.crops[1]", CropSpec, written))
    assert crop == CropSpec(96, 6, 0.05, 0.14, jitter=(0.8, 0.8, 0.8, 0.2))
    with pytest.raises(ConfigError, match=r"views.crops\[1\].solarise: no such key; did you mean .*solarize"):
        check_arguments("views.crops[1]", CropSpec, {"size": 96, "solarise": 0.2})


@pytest.mark.parametrize(
    "crop, message",
    [
        (CropSpec(8, count=0), r"crops\[1\]: count is 0; must be at least 1"),
        (CropSpec(8, gray=1.5), r"crops\[1\]: gray is 1.5"),
    ],
)
def test_an_impossible_crop_is_named(crop: CropSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_views([CropSpec(8), crop])
