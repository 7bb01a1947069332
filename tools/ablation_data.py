"""The data of `ablation.py`: generated videos with sound, and handwritten digits as a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from avssl.data import Manifest, scan
from avssl.errors import ConfigError
from avssl.sounding_shapes import cache_folder, write_sounding_shapes

DESCRIPTIONS = {
    "videos": "Generated videos with sound (`avssl.sounding_shapes`)",
    "digits": "Handwritten digits (scikit-learn's `load_digits`, 8 x 8 pixels shown as 40 x 40)",
}
_DIGIT_SIDE = 40  # crops are cut to whole pixels, too coarse a measure at 8


def write_data(name: str, cache: Path, num_train: int, num_test: int, seed: int) -> Manifest:
    """Write a data set of `DESCRIPTIONS` to a folder in `cache` and list it.

    `num_train` and `num_test` are files of a class.
    """
    if name == "videos":
        folder = cache_folder(cache, num_train, num_test, seed)
        write_sounding_shapes(folder, num_train, num_test, seed, workers=0)
        return scan(folder).manifest
    folder = cache / f"digits-seed{seed}-{num_train}+{num_test}"
    write_digits(folder, num_train, num_test, seed)
    return scan(folder, images=True).manifest


def write_digits(folder: Path, num_train: int, num_test: int, seed: int) -> None:
    """Write ``train`` and ``test`` folders of PNG files; the seed draws which image is in which.

    Raises
    ------
    ConfigError
        When a class has fewer images than asked for.
    """
    digits = load_digits()
    rng = np.random.default_rng(seed)
    fewest = int(np.bincount(digits.target).min())
    if num_train + num_test > fewest:
        raise ConfigError(
            f"--files {num_train} {num_test}: must sum to at most {fewest}, the images of the rarest digit; "
            "ask for fewer"
        )
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(digits.target == digit))[: num_train + num_test]
        for number, row in enumerate(rows):
            place = folder / ("train" if number < num_train else "test") / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.rint(digits.images[row] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BICUBIC)
            image.save(place / f"{number:04}.png")
