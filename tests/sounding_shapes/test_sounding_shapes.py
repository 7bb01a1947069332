"""The synthetic data set: same seed same clips, sight and sound on one clock, files complete or refused."""

import json

import av
import numpy as np
import pytest

from avssl.errors import ManifestError
from avssl.sounding_shapes import (
    CLASSES,
    cache_folder,
    figures,
    make_clip,
    voices,
    write_sounding_shapes,
)
from avssl.sounding_shapes.cause import DURATION_SECONDS, NUM_SAMPLES, SAMPLE_RATE
from avssl.sounding_shapes.draw import pen_at
from avssl.sounding_shapes.scenes import make_scene

RED, GREEN, BLUE = np.eye(3)


def write_small(folder, **changes):
    return write_sounding_shapes(
        folder, **({"num_train": 1, "num_test": 1, "size": 32, "workers": 0} | changes)
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decode(path):
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [(frame.time, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    return frames, sound


def onsets(sound, window_seconds=0.005):
    """Times where the power within a few milliseconds jumps above twenty times what it was before."""
    width = round(window_seconds * SAMPLE_RATE)
    power = np.array([np.mean(part**2) for part in np.split(sound, len(sound) // width)])
    floor = 0.02 * np.percentile(power, 98)
    return (np.flatnonzero((power[1:] > floor) & (power[1:] > 20 * power[:-1])) + 1) * window_seconds


def single_cause(class_name):
    scenes = (make_scene(0, "train", class_name, index) for index in range(20))
    return next(scene.causes[0] for scene in scenes if len(scene.causes) == 1)


def height_of_red(class_name, cause, frame_rate, palette):
    """Mean row of the red pixels over time: one figure drawn alone on black, at a high frame rate."""
    seconds = np.arange(round(DURATION_SECONDS * frame_rate)) / frame_rate
    planes = np.zeros((3, len(seconds), 64, 64), np.float32)
    center = np.full(len(seconds), 0.5)
    getattr(figures, class_name)(pen_at(planes, center, center, 0.4), cause, seconds, palette)
    red = planes[0]
    return (red.sum(axis=2) @ np.arange(64)) / red.sum(axis=(1, 2))


def local_peaks(values, frame_rate):
    inner = values[1:-1]
    return (np.flatnonzero((inner >= values[:-2]) & (inner > values[2:])) + 1) / frame_rate


def assert_same_times(found, expected, tolerance_seconds):
    inside = [time for time in expected if 0.1 < time < DURATION_SECONDS - 0.1]
    assert len(inside) >= 3
    for time in inside:
        assert np.abs(found - time).min() < tolerance_seconds, f"nothing at {time:.3f} s in {found}"


def test_classes_are_twelve_and_each_is_seen_and_heard():
    assert len(CLASSES) == len(set(CLASSES)) == 12
    for class_name in CLASSES:
        frames, waveform = make_clip(0, "train", class_name, 0)
        assert frames.shape == (48, 96, 96, 3)
        assert frames.dtype == np.uint8
        assert waveform.shape == (72_000,)
        assert waveform.dtype == np.float32
        assert 0.1 < np.abs(waveform).max() <= 1.0
        assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 0.1


def test_clip_depends_on_its_four_arguments_only():
    first = make_clip(3, "test", "rain", 5, size=32)
    make_clip(3, "test", "rain", 4, size=32)
    again = make_clip(3, "test", "rain", 5, size=32)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    for other in ((4, "test", "rain", 5), (3, "train", "rain", 5), (3, "test", "rain", 6)):
        assert not np.array_equal(first[0], make_clip(*other, size=32)[0])
        assert not np.array_equal(first[1], make_clip(*other, size=32)[1])


def test_unknown_class_is_refused():
    with pytest.raises(ValueError, match=r"must be one of blinking_lamp.*got 'cat'"):
        make_clip(0, "train", "cat", 0)


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_clip_has_three_events_and_large_objects_sound_low(class_name):
    causes = [cause for index in range(30) for cause in make_scene(0, "train", class_name, index).causes]
    assert min(len(cause.events_in_clip) for cause in causes) >= 3
    size = np.log([cause.size for cause in causes])
    pitch = np.log([cause.pitch_hz for cause in causes])
    assert np.corrcoef(size, pitch)[0, 1] < -0.95
    assert np.ptp(pitch) > np.log(3)


def test_ball_touches_the_ground_when_it_thuds():
    cause = single_cause("bouncing_ball")
    lowest = local_peaks(height_of_red("bouncing_ball", cause, 96, figures.Palette(RED, BLUE, GREEN)), 96)
    heard = onsets(
        voices.bouncing_ball(cause, np.arange(NUM_SAMPLES) / SAMPLE_RATE, np.random.default_rng(0))
    )
    assert_same_times(lowest, cause.events_in_clip, 0.03)
    assert_same_times(heard, lowest, 0.03)
    assert_same_times(lowest, heard, 0.03)


def test_stick_meets_the_drum_when_it_is_heard():
    cause = single_cause("struck_drum")
    lowest = local_peaks(height_of_red("struck_drum", cause, 96, figures.Palette(BLUE, GREEN, RED)), 96)
    heard = onsets(voices.struck_drum(cause, np.arange(NUM_SAMPLES) / SAMPLE_RATE, np.random.default_rng(0)))
    assert_same_times(lowest, cause.events_in_clip, 0.03)
    assert_same_times(heard, lowest, 0.03)
    assert_same_times(lowest, heard, 0.03)


def test_file_gives_back_its_clip_on_one_clock(tmp_path):
    folder = write_small(tmp_path, size=96, num_test=0)
    frames, waveform = make_clip(0, "train", "bouncing_ball", 0)
    pictures, sound = decode(folder / "train" / "bouncing_ball" / "0000.mp4")
    assert [round(time * 16, 6) for time, _ in pictures] == list(range(48))
    shown = np.stack([picture for _, picture in pictures]).astype(float)
    error = np.abs(shown - frames).mean()
    assert error < 0.7 * min(np.abs(shown[1:] - frames[:-1]).mean(), np.abs(shown[:-1] - frames[1:]).mean())
    heard = np.concatenate([part for time, part in sound if time >= 0])[:NUM_SAMPLES]
    lags = np.arange(-2400, 2401)
    match = [heard[5000 + lag : 60_000 + lag] @ waveform[5000:60_000] for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= 24


def test_every_file_decodes_and_plays_in_browsers(tmp_path):
    folder = write_small(tmp_path)
    paths = sorted(folder.rglob("*.mp4"))
    assert len(paths) == 24
    for path in paths:
        frames, sound = decode(path)
        assert len(frames) == 48
        assert abs(sum(len(part) for _, part in sound) - NUM_SAMPLES) <= 2048
    with av.open(str(paths[0])) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
    data = paths[0].read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_processes_write_the_same_files_as_one_process(tmp_path):
    assert contents(write_small(tmp_path / "a")) == contents(write_small(tmp_path / "b", workers=2))


def test_complete_folder_is_left_alone(tmp_path):
    folder = write_small(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_small(tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("with_record", [False, True])
def test_incomplete_folder_is_completed(tmp_path, with_record):
    whole = contents(write_small(tmp_path))
    gone = [tmp_path / "train" / "rain" / "0000.mp4", tmp_path / "test" / "struck_drum" / "0000.mp4"]
    kept = tmp_path / "train" / "struck_drum" / "0000.mp4"
    for path in gone:
        path.unlink()
    if not with_record:
        (tmp_path / "dataset.json").unlink()
    time_before = kept.stat().st_mtime_ns
    write_small(tmp_path)
    assert contents(tmp_path) == whole
    assert kept.stat().st_mtime_ns == time_before


def test_failed_encoding_leaves_no_record_and_no_broken_file(tmp_path, monkeypatch):
    def fail_halfway(path, frames, waveform):
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr("avssl.sounding_shapes.write.encode_mp4", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        write_small(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["parameters.json"]


def test_record_says_what_was_made(tmp_path):
    record = json.loads((write_small(tmp_path, seed=7, num_test=0) / "dataset.json").read_text())
    assert record["seed"] == 7
    assert (record["num_train"], record["num_test"], record["size"]) == (1, 0, 32)
    assert record["classes"] == list(CLASSES)
    assert record["generator_version"] >= 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 34}, {"num_test": 2}])
def test_other_parameters_are_refused_and_get_another_cache_folder(tmp_path, change):
    write_small(tmp_path)
    ((name, value),) = change.items()
    with pytest.raises(ManifestError, match=rf"{name} .* instead of {value}.*choose another folder"):
        write_small(tmp_path, **change)
    assert cache_folder(tmp_path, **change) != cache_folder(tmp_path)
    assert cache_folder(tmp_path).parent == tmp_path


def test_folder_of_unknown_origin_or_damaged_record_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ManifestError, match=r"no parameters\.json.*choose another folder"):
        write_small(tmp_path)
    (tmp_path / "parameters.json").write_text("{")
    with pytest.raises(ManifestError, match=r"not readable.*remove the folder"):
        write_small(tmp_path)


@pytest.mark.parametrize(
    "change", [{"num_train": 0}, {"num_test": -1}, {"seed": -1}, {"size": 33}, {"size": 16}]
)
def test_parameters_out_of_range_are_refused(tmp_path, change):
    ((name, value),) = change.items()
    with pytest.raises(ManifestError, match=f"{name}={value}.*must be"):
        write_small(tmp_path, **change)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_one_colour_or_one_frequency_does_not_give_the_class_away():
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def describe(split, count):
        colour, pitch = [], []
        for class_name in CLASSES:
            for index in range(count):
                frames, waveform = make_clip(0, split, class_name, index)
                pixels = frames.reshape(-1, 3)
                colour.append(np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]))
                pitch.append([np.log(1 + np.argmax(np.abs(np.fft.rfft(waveform))[1:]))])
        return np.array(colour), np.array(pitch), np.repeat(np.arange(len(CLASSES)), count)

    *train, train_label = describe("train", 30)
    *test, test_label = describe("test", 17)
    for train_x, test_x in zip(train, test, strict=True):
        for classifier in (NearestCentroid(), LogisticRegression(max_iter=1000)):
            model = make_pipeline(StandardScaler(), classifier).fit(train_x, train_label)
            assert model.score(test_x, test_label) < 2.5 / len(CLASSES)
