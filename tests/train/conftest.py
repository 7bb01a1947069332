"""A miniature data set of real files and a recipe that trains on it in seconds."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import pytest
from media import write_media

from avssl.build import Config
from avssl.config import config_from_dict


class Quiet:
    """Progress nobody watches."""

    def update(self, completed, **fields):
        self.completed = completed


@contextmanager
def quiet(description, total, completed):
    yield Quiet()


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 6), ("test", 3)):
        for label in ("low", "high"):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                tone = (300 if label == "low" else 900) + 20 * i + 10 * (split == "test")
                write_media(folder / split / label / f"{i}.mp4", seconds=1.2, size=(48, 40), tone_hz=tone)
    return folder


@pytest.fixture
def recipe(make_recipe, tmp_path):
    """Recipe with sections updated, such as ``recipe(train={"epochs": 1})``, in the test's own folder."""
    return partial(make_recipe, tmp_path)


@pytest.fixture(scope="session")
def make_recipe(videos):
    def make(folder, **changes) -> Config:
        """Recipe with sections updated, such as ``train={"epochs": 1}``, whose runs lie in a folder."""
        data = {
            "data": {
                "root": str(videos), "num_frames": 4, "fps": 8, "short_side": 40, "audio_seconds": 0.5,
                "sample_rate": 8000, "num_workers": 0,
            },
            "views": {
                "video": {"size": 32, "jitter": [0.4, 0.4, 0.4, 0.0]},
                "spectrogram": {"n_fft": 256, "hop_seconds": 0.02},
            },
            "model": {
                "video": {"name": "R2Plus1D", "depth": 10, "width": 4},
                "audio": {"name": "AudioConvNet", "width": 4},
                "projection": [16, 8],
                "batch_norm": True,
            },
            "objective": {"name": "AVID", "num_negatives": 6},
            "optim": {"lr": 1e-3},
            "train": {"epochs": 3, "batch_size": 4, "log_every": 1, "threads": 1, "device": "cpu"},
            "run": {"folder": str(folder), "name": "run"},
        }  # fmt: skip
        for section, values in changes.items():
            data[section] = values if section == "objective" else data[section] | values
        return config_from_dict(data, Config)

    return make


@pytest.fixture
def progress():
    return quiet
