"""Views of the image methods with their released values.

Each function gives the crops that `make_views` takes and that a recipe can spell out. All methods draw
flips with probability 0.5, blur with a standard deviation uniform in [0.1, 2] pixels and normalise with
ImageNet's mean and standard deviation.
"""

from __future__ import annotations

from dataclasses import replace

from avssl.transforms.multi_view import CropSpec

# The SwAV release divides red by 0.228; VISSL, which trained SEER, by the usual 0.229.
SWAV_STD = (0.228, 0.224, 0.225)


def swav(size: int = 224, small_size: int = 96, num_small: int = 6) -> list[CropSpec]:
    """Two large crops and `num_small` small ones (Caron et al., 2020, multi-crop).

    The small crops see 5 to 14 percent of the frame, the large ones the rest of the range. `num_small` 0
    gives two crops only.
    """
    large = CropSpec(
        size, count=2, min_area=0.14, jitter=(0.8, 0.8, 0.8, 0.2), jitter_prob=0.8, gray=0.2, blur=0.5
    )
    small = replace(large, size=small_size, count=num_small, min_area=0.05, max_area=0.14)
    return [large, small] if num_small > 0 else [large]


def seer(size: int = 160, small_size: int = 96, num_small: int = 4) -> list[CropSpec]:
    """SwAV's crops in the sizes of SEER's 10-billion network (Goyal et al., 2022)."""
    return swav(size, small_size, num_small)


def byol(size: int = 224) -> list[CropSpec]:
    """Two unlike views (Grill et al., 2020): one always blurred, one sometimes solarised.

    The release brightens by addition, takes contrast about each channel's mean and saturation in HSV;
    here all three multiply, about gray, as in torchvision and in Barlow Twins, which took these values.
    """
    first = CropSpec(
        size, interpolation="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, gray=0.2, blur=1.0
    )
    return [first, replace(first, blur=0.1, solarize=0.2)]


def barlow_twins(size: int = 224) -> list[CropSpec]:
    """The views of BYOL (Zbontar et al., 2021)."""
    return byol(size)


def simsiam(size: int = 224) -> list[CropSpec]:
    """Two views of one kind (Chen and He, 2021), those of MoCo v2."""
    return [
        CropSpec(
            size, count=2, min_area=0.2, jitter=(0.4, 0.4, 0.4, 0.1), jitter_prob=0.8, gray=0.2, blur=0.5
        )
    ]
