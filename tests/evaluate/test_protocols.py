"""From media in the layouts of ESC-50, DCASE and UCF101 through the cache to the numbers of each protocol."""

import wave

import numpy as np
import pytest
import torch
from media import write_media

from avssl.build import Config, build_encoders
from avssl.cards import load_card, survey
from avssl.config import config_from_dict
from avssl.evaluate import clip_features as clip_module
from avssl.evaluate.audio_svm import audio_svm, folds_of
from avssl.evaluate.block_probe import block_probe
from avssl.evaluate.blocks import block_names
from avssl.evaluate.feature_cache import cached_features
from avssl.evaluate.few_shot import few_shot
from avssl.evaluate.knn import knn_accuracy

CONFIG = config_from_dict(
    {
        "data": {"num_frames": 2, "fps": 8, "short_side": 40, "audio_seconds": 0.5, "sample_rate": 8000},
        "views": {"video": {"size": 32}, "spectrogram": {"n_fft": 256, "hop_seconds": 0.02}},
        "model": {
            "video": {"name": "R2Plus1D", "depth": 10, "width": 8},
            "audio": {"name": "AudioConvNet", "width": 8},
            "projection": [16],
        },
    },
    Config,
)
CLASSES = {"dog": 400, "rain": 1100, "siren": 2300}


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    return build_encoders(CONFIG.model)


def _write_tone(path, hertz, seed, seconds=1.0, channels=1):
    """A tone with some noise, 16 bits at 8 kHz."""
    generator = np.random.default_rng(seed)
    times = np.arange(int(8000 * seconds)) / 8000
    sound = 0.4 * np.sin(2 * np.pi * hertz * times) + 0.05 * generator.normal(size=len(times))
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.repeat((sound * 32767).astype("<i2"), channels).tobytes())


@pytest.fixture
def cached(tmp_path, encoders, monkeypatch):
    """Features of a manifest; read from media once, however often they are asked for."""

    def get(manifest, names):
        options = {"names": names, "num_clips": 3, "num_workers": 0, "stored": "float16"}
        cached_features(tmp_path / "features", encoders, CONFIG, manifest, **options)
        with monkeypatch.context() as patch:
            patch.setattr(clip_module, "open_reader", None)
            return cached_features(tmp_path / "features", encoders, CONFIG, manifest, **options)

    return get


def test_esc50_has_its_five_folds_on_every_block(tmp_path, encoders, cached):
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, (label, hertz) in enumerate(CLASSES.items()):
            for take in "AB":
                name = f"{fold}-{100 * fold + target}-{take}-{target}.wav"
                _write_tone(tmp_path / "esc" / "audio" / name, hertz + 10 * fold, len(lines))
                lines.append(f"{name},{fold},{target},{label},True,{100 * fold + target},{take}")
    (tmp_path / "esc" / "meta").mkdir()
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    manifest = survey(load_card("esc50"), tmp_path / "esc", fold=2).manifest
    folds = folds_of(manifest)
    assert [len(fold.test) for fold in folds] == [6] * 5
    names = [f"audio.{block}" for block in block_names(encoders.audio)]
    features = cached(manifest, names)
    assert features.failures == []
    for name in names:
        result = audio_svm(features.labelled(name, manifest), folds)
        assert result.accuracy == 1.0, f"tones far apart pass any filters: {name}"
        assert sum(len(one.predictions.rows) for one in result.folds) == len(manifest) == 30
        assert {one.num_train_clips for one in result.folds} == {72}
        assert result.folds[0].predictions.classes == list(CLASSES)


def test_dcase_is_one_split_of_stereo_files(tmp_path, cached):
    root, tones = tmp_path / "dcase", {"bus": 400, "office": 1100, "park": 2300}
    for label, hertz in tones.items():
        for number in range(1, 6):
            _write_tone(root / "scenes_stereo" / f"{label}{number:02d}.wav", hertz, number, channels=2)
            _write_tone(root / "scenes_stereo_testset" / f"{label}{number:02d}.wav", hertz, 50 + number)
    manifest = survey(load_card("dcase2014"), root, fold=1).manifest
    features = cached(manifest, ["audio.conv3x"])
    (one,) = audio_svm(features.labelled("audio.conv3x", manifest), folds_of(manifest)).folds
    assert one.predictions.accuracy == 1.0
    assert (one.num_train, len(one.predictions.rows)) == (15, 15)
    assert set(one.validation.values()) == {1.0}
    assert one.strength == min(one.validation)


def test_ucf101_is_probed_without_sound(tmp_path, encoders, cached):
    root, numbers = tmp_path / "ucf", {"ApplyEyeMakeup": 0, "YoYo": 0b111100001111}  # dark or bright corners
    for split, groups in (("train", range(8, 12)), ("test", range(1, 4))):
        clips = [f"{label}/v_{label}_g{group:02d}_c01" for label in numbers for group in groups]
        for clip in clips:
            path = root / "UCF-101" / f"{clip}.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            number = numbers[clip.partition("/")[0]]
            write_media(
                path, seconds=1, fps=8, size=(48, 48), codec="mpeg4", audio=False, first_number=number
            )
        target = root / "ucfTrainTestlist" / f"{split}list01.txt"
        target.parent.mkdir(exist_ok=True)
        target.write_text("".join(f"{clip}.avi\n" for clip in clips))
    whole = survey(load_card("ucf101"), root, fold=1).manifest
    train, test = whole.select("train"), whole.select("test")
    names = [f"video.{block}" for block in ("pool", *block_names(encoders.video))]
    fitted, judged = cached(train, names), cached(test, names)
    assert (len(fitted.rows), len(judged.rows)) == (24, 18)
    for name in names[1:3]:
        pair = fitted.labelled(name, train), judged.labelled(name, test)
        result = block_probe(*pair, epochs=40)
        assert result.accuracy == 1.0, name
        assert (result.num_train, result.num_train_clips) == (8, 24)
        shots = few_shot(*pair, shots=(1, 2, 20), num_draws=3)
        assert [(one.shots, one.mean) for one in shots.results] == [(1, 1.0), (2, 1.0)]
        assert shots.left_out == [20]
    # What other protocols take, from the same entry.
    (rows, train_means), (_, test_means) = fitted.means("video.pool"), judged.means("video.pool")
    assert rows.tolist() == list(range(8))
    assert knn_accuracy(train_means, train.labels, test_means, test.labels, k=3) == 1.0
