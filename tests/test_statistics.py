"""Spectrogram statistics: what is read, what is kept, and how a run takes them in."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from media import write_media

from avssl.build import Config, build_specs, build_views
from avssl.config import config_diff, config_from_dict, config_to_dict, dump_config, load_config
from avssl.data import ClipDataset, ClipKey, EpochSampler, Manifest, scan
from avssl.decode import PyAVReader
from avssl.errors import ConfigError, ManifestError
from avssl.statistics import Statistics, compute_statistics, resolve_statistics
from avssl.transforms import LogSpectrogram

FRONT_END = {"n_fft": 256, "hop_seconds": 0.02}


class Watched:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def update(self, completed, total=None, **fields):
        self.seen.append((completed, total))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """Five files of different pitch; the sound of "silent" is digital zero, "torn" breaks after the scan."""
    folder = tmp_path_factory.mktemp("media")
    for i, name in enumerate(("a", "b", "c", "silent", "torn")):
        gains = [0.0] if name == "silent" else None
        options = {"seconds": 1.5, "fps": 8, "size": (32, 32), "sample_rate": 8000}
        write_media(folder / f"{name}.mkv", tone_hz=200 + 300 * i, gains=gains, audio_codec="flac", **options)
    manifest = scan(folder).manifest
    (folder / "torn.mkv").write_bytes(b"torn" * 100)
    return manifest


@pytest.fixture
def recipe():
    def make(**changes) -> Config:
        data = {
            "data": {
                "num_frames": 2, "fps": 8, "audio_seconds": 0.5, "sample_rate": 8000, "num_workers": 0,
            },
            "views": {"video": {"size": 32}, "spectrogram": dict(FRONT_END)},
            "train": {"threads": 1, "batch_size": 2, "seed": 3},
        }  # fmt: skip
        for section, values in changes.items():
            data[section] = data.get(section, {}) | values
        return config_from_dict(data, Config)

    return make


@pytest.fixture
def auto(recipe) -> Config:
    return recipe(views={"statistics": "auto"})


@contextmanager
def quiet(description, total, completed):
    yield Watched()


@contextmanager
def forbidden(description, total, completed):
    pytest.fail("nothing should be computed here")
    yield


def test_statistics_equal_numpy_over_the_clips_of_the_first_epoch(manifest, recipe):
    config = recipe()
    result = compute_statistics(config, manifest)
    # The training's own dataset, video included: the sound it reads must be the same.
    video, audio = build_specs(config)
    dataset = ClipDataset(manifest, PyAVReader(), video, audio, seed=3)
    decibels = LogSpectrogram(8000, **FRONT_END)
    waveforms = [dataset[ClipKey(0, row)].waveform for row in range(3)]
    frames = np.concatenate([decibels(w[None]).double().numpy().reshape(-1, 65) for w in waveforms])
    np.testing.assert_allclose(result.mean, frames.mean(0), rtol=6e-5)
    np.testing.assert_allclose(result.std, frames.std(0), rtol=6e-5)
    assert (result.num_clips, result.num_frames) == (3, 75)
    assert all(value == float(f"{value:.5g}") for value in result.mean + result.std)
    assert result.manifest_hash == manifest.hash


def test_files_that_fail_and_silent_ones_are_counted_with_reasons(manifest, recipe):
    result = compute_statistics(recipe(), manifest)
    skipped = {item["id"]: item for item in result.skipped}
    assert set(skipped) == {"silent.mkv", "torn.mkv"}
    assert skipped["silent.mkv"]["stage"] == "silent"
    assert skipped["torn.mkv"]["stage"] == "open"
    assert skipped["torn.mkv"]["path"] == manifest.path(4)
    assert all(item["reason"] for item in result.skipped)


def test_no_video_is_decoded(manifest, recipe, monkeypatch):
    asked = []
    read = PyAVReader.read

    def watched(self, path, video=None, audio=None, **rest):
        asked.append(video)
        return read(self, path, video, audio, **rest)

    monkeypatch.setattr(PyAVReader, "read", watched)
    compute_statistics(recipe(), manifest)
    assert asked == [None] * 5


def test_result_does_not_depend_on_workers_nor_on_numbers_in_the_recipe(manifest, recipe):
    first = compute_statistics(recipe(), manifest)
    assert compute_statistics(recipe(data={"num_workers": 2}), manifest) == first
    given = FRONT_END | {"mean": -3.0, "std": 2.0}
    assert compute_statistics(recipe(views={"spectrogram": given}), manifest) == first
    assert compute_statistics(recipe(train={"seed": 4}), manifest) != first


def test_max_clips_takes_the_first_samples_of_epoch_0(manifest, recipe):
    watched = Watched()
    result = compute_statistics(recipe(), manifest, max_clips=4, progress=watched)
    order = [key.row for batch in EpochSampler(5, 2, seed=3, epoch=0, drop_last=False) for key in batch.keys]
    left_out = manifest.ids[order[4]]
    assert result.num_clips + len(result.skipped) == 4
    assert left_out not in {item["id"] for item in result.skipped}
    assert watched.seen == [(4, 4)]


def test_std_of_a_bin_that_never_changes_is_not_zero(manifest, recipe):
    silent = manifest.select()
    silent = Manifest(silent.table.slice(3, 1), silent.root)
    result = compute_statistics(recipe(data={"silent": "keep"}), silent)
    assert result.mean == [-100.0] * 65
    assert result.std == [0.01] * 65


def test_nothing_readable_is_an_error_that_names_the_first_file(manifest, recipe):
    torn = Manifest(manifest.table.slice(4, 1), manifest.root)
    with pytest.raises(ManifestError, match=r"none of 1 could be read, the first: .*torn\.mkv: open: "):
        compute_statistics(recipe(), torn)


def test_recipe_without_statistics_is_left_alone(manifest, recipe, tmp_path):
    config = recipe()
    assert resolve_statistics(config, manifest, tmp_path, forbidden) is config
    assert list(tmp_path.iterdir()) == []


def test_auto_puts_numbers_into_the_recipe_and_a_file_into_the_folder(manifest, auto, tmp_path):
    config = resolve_statistics(auto, manifest, tmp_path, quiet)
    saved = Statistics.load(tmp_path / "statistics.json")
    assert saved == compute_statistics(auto, manifest)
    assert config.views.statistics is None
    assert config.views.spectrogram == FRONT_END | {"mean": saved.mean, "std": saved.std}
    assert auto.views.spectrogram == FRONT_END
    changed = {"views.spectrogram.mean", "views.spectrogram.std", "views.statistics"}
    assert set(config_diff(auto, config)) == changed
    views = build_views(config, train=False)
    assert views.spectrogram.mean.tolist() == pytest.approx(saved.mean)


def test_resolved_recipe_survives_the_checkpoint_and_the_file(manifest, auto, tmp_path):
    config = resolve_statistics(auto, manifest, tmp_path, quiet)
    assert config_diff(config_from_dict(config_to_dict(config), Config), config) == []
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert config_diff(load_config(tmp_path / "config.yaml", schema=Config), config) == []


def test_resumed_run_takes_the_numbers_it_began_with(manifest, auto, tmp_path):
    resolve_statistics(auto, manifest, tmp_path, quiet)
    began = replace(Statistics.load(tmp_path / "statistics.json"), mean=[-7.0] * 65)
    began.save(tmp_path / "statistics.json")
    (tmp_path / "checkpoint.pt").touch()
    config = resolve_statistics(auto, manifest, tmp_path, forbidden)
    assert config.views.spectrogram["mean"] == [-7.0] * 65
    other = replace(auto, data=replace(auto.data, audio_seconds=0.6))
    with pytest.raises(ConfigError, match=r"duration_seconds 0.5, but the recipe has 0.6; .*--restart"):
        resolve_statistics(other, manifest, tmp_path, forbidden)


def test_run_that_died_before_its_first_checkpoint_computes_again(manifest, auto, tmp_path):
    resolve_statistics(auto, manifest, tmp_path, quiet)
    stale = replace(Statistics.load(tmp_path / "statistics.json"), mean=[-7.0] * 65)
    stale.save(tmp_path / "statistics.json")
    config = resolve_statistics(auto, manifest, tmp_path, quiet)
    assert config.views.spectrogram["mean"] == compute_statistics(auto, manifest).mean


def test_file_is_read_and_copied_into_the_folder(manifest, recipe, tmp_path):
    compute_statistics(recipe(), manifest).save(tmp_path / "mine.json")
    config = recipe(views={"statistics": str(tmp_path / "mine.json")})
    resolved = resolve_statistics(config, manifest, tmp_path / "run", forbidden)
    assert resolved.views.spectrogram["std"] == Statistics.load(tmp_path / "mine.json").std
    assert (tmp_path / "run/statistics.json").read_text() == (tmp_path / "mine.json").read_text()


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("data", {"sample_rate": 16000}, "sample_rate 8000, but the recipe has 16000"),
        ("data", {"audio_seconds": 1.0}, "duration_seconds 0.5, but the recipe has 1.0"),
        ("spectrogram", {"n_fft": 128}, "n_fft 256, but the recipe has 128"),
        ("spectrogram", {"hop_seconds": 0.01}, "hop_seconds 0.02, but the recipe has 0.01"),
        ("spectrogram", {"bins": "linear"}, "bins 'paired', but the recipe has 'linear'"),
        ("spectrogram", {"top_db": 80.0}, "top_db 100.0, but the recipe has 80.0"),
        ("spectrogram", {"pad_mode": "reflect"}, "pad_mode 'constant', but the recipe has 'reflect'"),
    ],
)
def test_file_of_another_front_end_is_refused(manifest, recipe, tmp_path, section, change, message):
    path = tmp_path / "mine.json"
    compute_statistics(recipe(), manifest).save(path)
    views = {"statistics": str(path), "spectrogram": FRONT_END | (change if section == "spectrogram" else {})}
    config = recipe(views=views, **({"data": change} if section == "data" else {}))
    with pytest.raises(ConfigError, match=f"mine.json: computed with {message}; .* `avssl statistics`"):
        resolve_statistics(config, manifest, tmp_path / "run", forbidden)
    assert not (tmp_path / "run").exists()


def test_number_of_mel_bands_counts_only_with_mel_bands(manifest, recipe, tmp_path):
    path = tmp_path / "mine.json"
    mel = FRONT_END | {"bins": "mel", "num_mels": 8}
    compute_statistics(recipe(views={"spectrogram": mel}), manifest).save(path)
    config = recipe(views={"statistics": str(path), "spectrogram": mel | {"num_mels": 9}})
    with pytest.raises(ConfigError, match="num_mels 8, but the recipe has 9"):
        resolve_statistics(config, manifest, tmp_path, forbidden)
    paired = compute_statistics(recipe(views={"spectrogram": FRONT_END | {"num_mels": 9}}), manifest)
    assert paired == compute_statistics(recipe(), manifest)


@pytest.mark.parametrize("statistics", ["auto", "mine.json"])
def test_numbers_given_twice_are_refused(manifest, recipe, tmp_path, statistics):
    spectrogram = FRONT_END | {"mean": -28.5, "std": 19.7}
    config = recipe(views={"statistics": statistics, "spectrogram": spectrogram})
    with pytest.raises(ConfigError, match=r"views.spectrogram.mean is given too; give one of them"):
        resolve_statistics(config, manifest, tmp_path, forbidden)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; make it with `avssl statistics RECIPE -o"),
        ("{", "not spectrogram statistics"),
        ("[1, 2]", "not spectrogram statistics"),
        ('{"mean": ["loud"]}', r"not spectrogram statistics \(mean.0: .*\); make it again"),
    ],
)
def test_missing_or_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"s.json: {message}"):
        Statistics.load(path)


def test_file_says_where_its_numbers_come_from(manifest, recipe, tmp_path):
    compute_statistics(recipe(), manifest).save(tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["front_end"] == {
        "sample_rate": 8000, "n_fft": 256, "hop_seconds": 0.02, "bins": "paired", "num_mels": None,
        "top_db": 100.0, "pad_mode": "constant", "duration_seconds": 0.5,
    }  # fmt: skip
    assert content["manifest_hash"] == manifest.hash
    assert content["avssl_version"]


def test_views_are_not_built_before_the_numbers_are_there(auto):
    with pytest.raises(ConfigError, match=r"views.statistics is 'auto'; .*\.resolve_statistics"):
        build_views(auto, train=True)


def test_normalised_training_data_are_standard(manifest, auto, tmp_path):
    config = resolve_statistics(auto, manifest, tmp_path, quiet)
    video, audio = build_specs(config)
    dataset = ClipDataset(manifest, PyAVReader(), video, audio, seed=3)
    waveform = torch.stack([dataset[ClipKey(0, row)].waveform for row in range(3)])
    normalised = build_views(config, train=False).spectrogram(waveform).flatten(0, 2)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(65), rtol=0, atol=2e-3)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(65), rtol=1e-3, atol=0)
    assert Path(tmp_path / "statistics.json").exists()
