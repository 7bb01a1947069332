"""Decord and torchcodec read what PyAV reads: the same frames within a tolerance, the same times and errors.

Tolerance: frames in their own size differ by at most 2 grey levels (0 was measured), with more than 8 bits by
1.5 on average; shrunk frames by 4 on average, since each library averages in its own way at hard edges.
"""

import numpy as np
import pytest
from media import frame_numbers, put_inside, write_media
from structures import FILES, PICTURES, decode_plainly, frames_due, windows_between_frames

from avssl.decode import READERS, PyAVReader, open_reader, try_reader
from avssl.errors import ConfigError, DecodeError
from avssl.types import AudioWindow, VideoWindow

MORE_THAN_8_BITS = ("hevc.mp4", "prores.mov")
OTHERS = ["decord", "torchcodec"]


@pytest.fixture(params=OTHERS)
def reader(request):
    try:
        return open_reader(request.param)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Path, times and pictures of a file of `FILES`, written and decoded once."""
    folder, known = tmp_path_factory.mktemp("media"), {}

    def get(name):
        if name not in known:
            path = write_media(folder / name, **PICTURES | FILES[name])
            known[name] = path, *decode_plainly(path)
        return known[name]

    return get


def is_decord(reader) -> bool:
    return type(reader).__name__ == "DecordReader"


@pytest.mark.parametrize("name", FILES)
def test_frames_equal_a_sequential_decode_within_the_tolerance(plain, reader, name):
    path, times, pictures = plain(name)
    if name.startswith("av1") and is_decord(reader):
        with pytest.raises(DecodeError, match="video: decord cannot decode this av1 stream: "):
            reader.read(path, VideoWindow(0.5, 8, 16))
        return
    for start, fps in windows_between_frames(times):
        frames = reader.read(path, VideoWindow(start, 8, fps)).frames.numpy().astype(int)
        error = np.abs(frames - frames_due(times, pictures, start, fps))
        assert error.mean() <= 1.5, (start, fps)
        assert error.max() <= (40 if name in MORE_THAN_8_BITS else 2), (start, fps)


@pytest.mark.parametrize("name", ["b_frames.mp4", "vp9.webm"])
def test_shrunk_frames_have_the_size_of_pyav_and_nearly_its_colours(plain, reader, name):
    window = VideoWindow(0.7, 8, 16, short_side=32)
    expected = PyAVReader().read(plain(name)[0], window).frames.int()
    frames = reader.read(plain(name)[0], window).frames.int()
    assert frames.shape == expected.shape == (8, 32, 40, 3)
    assert (frames - expected).abs().double().mean() <= 4


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_upright(tmp_path, reader, rotation):
    path = write_media(tmp_path / "a.mp4", seconds=1.0, size=(160, 128), rotation=rotation)
    clip = reader.read(path, VideoWindow(0.25, 3, 16, short_side=64))
    assert clip.frames.shape == (3, 64, 80, 3)
    assert frame_numbers(clip.frames) == [4, 5, 6]
    assert clip.frames.is_contiguous()


def test_times_and_sound_are_those_of_pyav(tmp_path, reader):
    path = write_media(tmp_path / "a.mp4", video_start=0.5, sample_rate=44100, bframes=2)
    for start in (-0.2, 0.375, 1.7, 2.9):
        windows = VideoWindow(start, 6, 16), AudioWindow(max(start, 0), 0.7, 16000)
        expected, clip = PyAVReader().read(path, *windows, row=3), reader.read(path, *windows, row=3)
        assert frame_numbers(clip.frames) == frame_numbers(expected.frames)
        assert np.array_equal(clip.waveform, expected.waveform)
        assert str(clip) == str(expected)


@pytest.mark.parametrize("start", [-1.0, 3.2, 1e6, float("nan")])
def test_windows_outside_the_file_are_the_errors_of_pyav(tmp_path, reader, start):
    path = write_media(tmp_path / "a.mp4", seconds=3.0, size=(32, 32))
    with pytest.raises(DecodeError) as expected:
        PyAVReader().read(path, VideoWindow(start, 8, 16))
    with pytest.raises(DecodeError) as caught:
        reader.read(path, VideoWindow(start, 8, 16))
    assert str(caught.value) == str(expected.value)


def test_widths_that_decord_mistakes_for_four_channels_are_decode_errors(tmp_path):
    # It takes padded rows of 4 bytes a pixel for RGBA: 24, 48 and 72 pixels. It never returns wrong pictures.
    path = write_media(tmp_path / "a.mp4", seconds=1.0)
    with pytest.raises(DecodeError, match="video: decord cannot decode this h264 stream: Check failed"):
        open_reader("decord").read(path, VideoWindow(0.25, 3, 16, short_side=48))


def test_files_that_store_no_display_times_are_left_to_pyav(tmp_path, reader):
    path = write_media(tmp_path / "a.avi", bframes=2, audio_codec="pcm_s16le")
    with pytest.raises(DecodeError, match="this avi file lacks display times; read it with the decoder pyav"):
        reader.read(path, VideoWindow(0.5, 8, 16))


def test_codecs_that_no_excerpt_holds_are_left_to_pyav(tmp_path, reader):
    path = write_media(tmp_path / "old.flv", codec="flv", audio=False, seconds=1.0, size=(48, 48))
    with pytest.raises(DecodeError, match="cannot hold flv1 video; read it with the decoder pyav"):
        reader.read(path, VideoWindow(0.0, 2, 8))


def test_a_part_is_read_like_a_file(tmp_path, reader):
    path = write_media(tmp_path / "a.mp4", bframes=2)
    part = put_inside(path, tmp_path / "shard.tar")
    windows = VideoWindow(1.1, 8, 16), AudioWindow(1.1, 0.5, 24000)
    expected, clip = reader.read(path, *windows), reader.read(part, *windows)
    assert np.array_equal(clip.frames, expected.frames)
    assert np.array_equal(clip.waveform, expected.waveform)


def test_auto_is_the_first_that_reads_rightly(monkeypatch):
    import avssl.decode as decode

    decode._first_that_works.cache_clear()
    assert type(open_reader("auto")) is PyAVReader

    class Frozen(PyAVReader):
        def read(self, *arguments, **named):
            clip = super().read(*arguments, **named)
            clip.frames[:] = clip.frames[:1].clone()
            return clip

    working = PyAVReader()
    monkeypatch.setattr(decode, "READERS", {"pyav": Frozen, "torchcodec": lambda: working})
    decode._first_that_works.cache_clear()
    assert open_reader("auto") is working
    monkeypatch.setattr(decode, "READERS", {"pyav": Frozen})
    decode._first_that_works.cache_clear()
    with pytest.raises(ConfigError, match=r"'auto' found none that works: .*wrong content"):
        open_reader("auto")
    decode._first_that_works.cache_clear()


@pytest.mark.parametrize("name", READERS)
def test_each_reader_reads_the_trial_clip(name):
    try:
        clip = try_reader(open_reader(name))
    except ConfigError as error:
        pytest.skip(str(error))
    assert (clip.frames.shape, clip.waveform.shape) == ((8, 48, 64, 3), (1, 16000))


@pytest.mark.parametrize("name", OTHERS)
def test_a_library_that_is_missing_is_a_config_error(monkeypatch, name):
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"reader: '{name}' cannot be loaded .* use 'auto' or 'pyav'"):
        open_reader(name)
