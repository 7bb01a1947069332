"""The cache of features: same numbers, read once, kept apart by what decides them, resumed, checked."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from media import write_media

from avssl.build import Config, build_encoders, build_specs, build_views
from avssl.config import config_from_dict, config_to_dict
from avssl.data import ClipKey, EvalDataset, Manifest, scan
from avssl.decode import open_reader
from avssl.errors import EvaluationError
from avssl.evaluate import clip_features as clip_module
from avssl.evaluate import feature_cache as cache_module
from avssl.evaluate.blocks import block_features
from avssl.evaluate.clip_features import feature_names
from avssl.evaluate.feature_cache import cached_features
from avssl.features import extract_features
from avssl.models import VisualEncoder

SETTINGS = {
    "data": {"num_frames": 2, "fps": 8, "short_side": 40, "audio_seconds": 0.5, "sample_rate": 8000},
    "views": {"video": {"size": 32}, "spectrogram": {"n_fft": 256, "hop_seconds": 0.02}},
    "model": {
        "video": {"name": "R2Plus1D", "depth": 10, "width": 4},
        "audio": {"name": "AudioConvNet", "width": 4},
        "projection": [16, 8],
        "batch_norm": True,
    },
}
CONFIG = config_from_dict(SETTINGS, Config)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six files of three classes."""
    root = tmp_path_factory.mktemp("files")
    for i in range(6):
        path = root / "train" / "abc"[i // 2] / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_media(path, seconds=1.2, size=(48, 40), tone_hz=300 + 200 * i, first_number=300 * i)
    return scan(root).manifest


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    return build_encoders(CONFIG.model).train()


class Reader:
    """Counts what is read; may break off, as a kill would."""

    def __init__(self, limit=None):
        self.reader, self.reads, self.limit = open_reader(), 0, limit

    def read(self, *arguments, **options):
        if self.reads == self.limit:
            raise KeyboardInterrupt
        self.reads += 1
        return self.reader.read(*arguments, **options)


@pytest.fixture
def reader(monkeypatch):
    """Put a reader in place of the real one."""

    def put(limit=None):
        made = Reader(limit)
        monkeypatch.setattr(clip_module, "open_reader", lambda name: made)
        return made

    return put


@pytest.fixture
def cache(tmp_path, encoders, manifest):
    said = []

    def get(encoders=encoders, config=CONFIG, manifest=manifest, **options):
        options = {"num_workers": 0, "say": said.append, **options}
        return cached_features(tmp_path / "features", encoders, config, manifest, **options)

    get.folder, get.said = tmp_path / "features", said
    return get


def _same(one, other):
    np.testing.assert_array_equal(one.rows, other.rows)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name], err_msg=name)


def test_features_are_those_of_each_clip_and_their_means_those_of_extract_features(cache, encoders, manifest):
    modes = [module.training for module in encoders.modules()]
    found = cache(num_clips=2)
    assert [module.training for module in encoders.modules()] == modes
    assert tuple(found.arrays) == feature_names(encoders)
    assert {"audio.conv4x", "video.embedding"} <= found.arrays.keys()
    assert found.rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all(isinstance(array, np.memmap) for array in found.arrays.values())
    dataset = EvalDataset(manifest, open_reader(), *build_specs(CONFIG), num_clips=2)
    clip = dataset[ClipKey(0, 3, 1)]
    view = build_views(CONFIG, train=False)([clip.frames], clip.waveform[None], torch.zeros(1).long())
    for modality in ("video", "audio"):
        trunk = getattr(encoders, modality)
        for name, value in block_features(trunk, getattr(view, modality)[0]).items():
            got = found.arrays[f"{modality}.{name}"][7]
            np.testing.assert_allclose(got, value[0], rtol=1e-4, atol=1e-5, err_msg=name)
    other = build_encoders(CONFIG.model)
    other.load_state_dict(encoders.state_dict())
    expected, means = extract_features(other, CONFIG, manifest, num_workers=0), found.as_features()
    for name in ("rows", "video", "audio", "video_embedding", "audio_embedding"):
        np.testing.assert_allclose(getattr(means, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


def test_second_call_reads_no_media_and_any_part_of_the_features_is_served(cache, reader):
    first = cache()
    reader(limit=0)
    _same(first, cache(batch_size=3))
    few = cache(names=["audio.conv3x", "video.pool"])
    assert list(few.arrays) == ["audio.conv3x", "video.pool"]
    np.testing.assert_array_equal(few.arrays["audio.conv3x"], first.arrays["audio.conv3x"])
    assert len(list(cache.folder.rglob("*.npz"))) == 1
    assert cache.said == []


def _changed(section, **values):
    changed = {key: dict(value) for key, value in SETTINGS.items()}
    changed[section] |= values
    return config_from_dict(changed, Config)


def test_each_thing_that_decides_the_numbers_makes_another_entry(cache, encoders, manifest, monkeypatch):
    names = ["audio.pool"]
    cache(names=names)
    other = build_encoders(CONFIG.model)
    other.load_state_dict(encoders.state_dict())
    with torch.no_grad():
        next(other.audio.buffers()).add_(1e-3)
    fewer = Manifest(manifest.table.slice(1), manifest.root)
    changes = [
        {"encoders": other},
        {"manifest": fewer},
        {"config": _changed("data", audio_seconds=0.4)},
        {"config": _changed("data", num_frames=4)},
        {"config": _changed("views", spectrogram={"n_fft": 256, "hop_seconds": 0.01})},
        {"num_clips": 3},
        {"stored": "float16"},
        {"precision": torch.bfloat16},
    ]
    for number, change in enumerate(changes):
        cache(names=names, **change)
        assert len(list(cache.folder.iterdir())) == number + 2, change
    augmented = _changed("views", video={"size": 32, "flip_probability": 0.1})
    augmented.optim.lr, augmented.run.name = 1.0, "other"
    before = len(list(cache.folder.iterdir()))
    cache(names=names, config=augmented)  # augmentation and training play no part in evaluation
    assert len(list(cache.folder.iterdir())) == before
    monkeypatch.setattr(cache_module, "FEATURES_VERSION", 2)
    cache(names=names)
    assert len(list(cache.folder.iterdir())) == before + 1


def test_extraction_that_was_killed_goes_on_where_it_was(cache, reader, monkeypatch):
    whole = cache(num_clips=2)
    for path in cache.folder.rglob("*.npz"):
        path.unlink()
    monkeypatch.setattr(cache_module, "CHUNK_CLIPS", 4)  # two samples
    reader(limit=9)
    with pytest.raises(KeyboardInterrupt):
        cache(num_clips=2, batch_size=3)
    assert len(list(cache.folder.rglob("chunk-*.npz"))) == 2
    again, seen = reader(), []
    found = cache(num_clips=2, batch_size=3, progress=lambda done, total: seen.append((done, total)))
    assert again.reads == 4
    assert seen == [(11, 12), (12, 12)]
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(found.arrays[name], array, rtol=1e-4, atol=1e-5)
    assert list(cache.folder.rglob("*.parts")) == []
    assert cache.said == []


def test_of_two_that_ask_at_once_one_reads_and_the_other_waits(cache, reader):
    counted = reader()
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: cache(names=["audio.pool"]), range(2))
    assert counted.reads == 12
    _same(one, other)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_file_is_said_and_made_again(cache, reader, damage):
    first = cache(names=["audio.conv2x"])
    values = np.array(first.arrays["audio.conv2x"])
    (path,) = cache.folder.rglob("*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flipped": content, "cut": content[:-200], "empty": b""}[damage])
    again = reader()
    np.testing.assert_array_equal(cache(names=["audio.conv2x"]).arrays["audio.conv2x"], values)
    assert again.reads == 12
    assert len(cache.said) == 1
    assert cache.said[0].startswith(f"{path}: damaged (")
    assert cache.said[0].endswith("extracted again")
    reader(limit=0)
    cache(names=["audio.conv2x"])


def test_damaged_chunk_alone_is_made_again(cache, reader, monkeypatch):
    monkeypatch.setattr(cache_module, "CHUNK_CLIPS", 4)
    reader(limit=8)
    with pytest.raises(KeyboardInterrupt):
        cache()
    path = sorted(cache.folder.rglob("chunk-*.npz"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    again = reader()
    assert cache().rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert again.reads == 8
    assert len(cache.said) == 1
    assert "chunk-000000.npz: damaged" in cache.said[0]


def test_float16_takes_half_the_space_and_refuses_what_it_cannot_hold(cache, encoders):
    full, half = cache(), cache(stored="float16")
    sizes = sorted(path.stat().st_size for path in cache.folder.rglob("*.npz"))
    assert sizes[0] < 0.55 * sizes[1]
    for name, array in half.arrays.items():
        assert array.dtype == np.float16
        np.testing.assert_allclose(array, full.arrays[name], rtol=1e-3, atol=1e-4)
    loud = build_encoders(CONFIG.model)
    loud.load_state_dict(encoders.state_dict())
    with torch.no_grad():
        loud.audio.block4.bn2.weight.fill_(1e7)
    with pytest.raises(EvaluationError, match=r"audio.pool reaches .* float16 ends at 65504; store float32"):
        cache(loud, stored="float16", names=["audio.pool"])


def test_files_that_cannot_be_read_are_left_out_and_said_each_time(cache, tmp_path):
    (tmp_path / "media" / "a").mkdir(parents=True)
    for i in range(3):
        write_media(tmp_path / "media" / "a" / f"{i}.mp4", seconds=1.2, size=(48, 40))
    few = scan(tmp_path / "media").manifest
    (tmp_path / "media" / "a" / "1.mp4").write_bytes(b"torn" * 100)
    for calls in (1, 2):
        found = cache(manifest=few, names=["video.pool"])
        assert found.rows.tolist() == [0, 0, 2, 2]
        assert {failure.id for failure in found.failures} == {"a/1.mp4"}
        assert len(cache.said) == calls
        assert "2 clips could not be read, the first: " in cache.said[-1]
        assert f"delete {cache.folder}" in cache.said[-1]
    for i in (0, 2):
        (tmp_path / "media" / "a" / f"{i}.mp4").write_bytes(b"torn" * 100)
    with pytest.raises(
        EvaluationError, match=r"none of the samples could be read, 6 clips in all; the first: .*0\.mp4"
    ):
        cache(manifest=few, names=["audio.pool"])
    assert list(cache.folder.rglob("*.parts")) == []


def test_sound_alone_and_video_alone_are_enough(cache, tmp_path):
    for kind in ("video", "audio"):
        (tmp_path / kind).mkdir()
        mute = {"audio": False} if kind == "video" else {"video": False, "audio_codec": "flac"}
        write_media(tmp_path / kind / "0.mkv", seconds=1.2, size=(48, 40), **mute)
        names = [f"{kind}.pool", f"{kind}.embedding"]
        found = cache(manifest=scan(tmp_path / kind).manifest, names=names)
        assert found.rows.tolist() == [0, 0]
        assert found.failures == []


def test_visual_encoder_has_no_embedding_of_its_own(cache, manifest):
    torch.manual_seed(0)
    settings = config_to_dict(CONFIG)
    settings["model"]["audio"] = None
    config = config_from_dict(settings, Config)
    encoder = build_encoders(config.model)
    assert isinstance(encoder, VisualEncoder)
    found = cache(encoder, config).as_features()
    assert found.audio is None
    np.testing.assert_allclose(np.linalg.norm(found.video_embedding, axis=1), 1, rtol=1e-5)
    with pytest.raises(EvaluationError, match="the model has no 'audio' encoder; it has video"):
        cache(encoder, config, names=["audio.pool"])
    with pytest.raises(EvaluationError, match=r"'video.embedding' do not exist .* video.pool, video.conv2x"):
        cache(encoder, config, names=["video.embedding"])


@pytest.mark.parametrize("wrong", [{"num_clips": 0}, {"stored": "int8"}])
def test_wrong_option_is_named(cache, wrong):
    with pytest.raises(EvaluationError, match="must be num_clips >= 1 and 'float32' or 'float16'"):
        cache(**wrong)


def test_folder_without_room_is_said(cache, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_2_0", full)
    with pytest.raises(EvaluationError, match="cannot be written: No space left on device; free some space"):
        cache(names=["audio.pool"])


def test_labels_follow_the_clips_and_unlabelled_samples_stay_out(cache, manifest):
    found = cache(names=["audio.pool"])
    clips = found.labelled("audio.pool", manifest)
    assert clips.labels.tolist() == [c for c in "aabbcc" for _ in range(2)]
    labels = ["a", None, "b", None, "c", "c"]
    table = manifest.table.set_column(manifest.table.column_names.index("label"), "label", [labels])
    some = found.labelled("audio.pool", Manifest(table, manifest.root))
    assert some.rows.tolist() == [0, 0, 2, 2, 4, 4, 5, 5]
    places = [0, 1, 4, 5, 8, 9, 10, 11]
    np.testing.assert_array_equal(some.features[np.arange(8)], found.arrays["audio.pool"][places])
    none = manifest.table.set_column(manifest.table.column_names.index("label"), "label", [[None] * 6])
    with pytest.raises(EvaluationError, match="none of the 6 samples has a label"):
        found.labelled("audio.pool", Manifest(none, manifest.root))
    with pytest.raises(EvaluationError, match=r"no features 'video.pool' here; there are audio\.pool"):
        found.means("video.pool")
