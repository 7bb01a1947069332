"""Files inside other files, and sound stored beside the picture."""

import os
import struct

import numpy as np
import pytest
from media import frame_numbers, put_inside, write_media

from avssl.decode import PyAVReader, probe
from avssl.decode.container import open_container, start_seconds
from avssl.decode.sound import read_sound
from avssl.errors import DecodeError
from avssl.types import AudioWindow, Part, VideoWindow

VIDEO, AUDIO = VideoWindow(0.5, 8, 16), AudioWindow(0.5, 1.0, 24000)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.mpg"])
def test_a_part_is_read_like_the_file_it_is(tmp_path, name):
    codecs = dict(codec="mpeg2video", audio_codec="mp2", sample_rate=48000, fps=25) if "mpg" in name else {}
    path = write_media(tmp_path / name, **{"bframes": 0 if "avi" in name else 2, **codecs})
    part = put_inside(path, tmp_path / "shard-000001.tar")
    whole, inside = PyAVReader().read(path, VIDEO, AUDIO), PyAVReader().read(part, VIDEO, AUDIO)
    assert np.array_equal(inside.frames, whole.frames)
    assert np.array_equal(inside.waveform, whole.waveform)
    assert probe(part) == probe(path)


def test_parts_of_one_file_do_not_mix(tmp_path):
    paths = [write_media(tmp_path / f"{i}.mp4", seconds=1.0, first_number=100 * i) for i in range(3)]
    outer, parts = tmp_path / "odd,,name: é.tar", []
    with open(outer, "wb") as file:
        for path in paths:
            parts.append(Part(str(outer), file.tell(), path.stat().st_size))
            file.write(path.read_bytes())
    for i in (2, 0, 1):
        frames = PyAVReader().read(parts[i], VideoWindow(0.25, 4, 16)).frames
        assert frame_numbers(frames) == [100 * i + n for n in range(4, 8)]


def test_a_part_that_cannot_be_read_is_named(tmp_path):
    outer = tmp_path / "shard.tar"
    part = put_inside(write_media(tmp_path / "a.mp4", size=(32, 32)), outer)
    assert str(part) == f"{outer}[1536:+{part.num_bytes}]"
    wrong = Part(part.path, part.offset_bytes + 40, part.num_bytes - 40)
    with pytest.raises(DecodeError) as caught:
        PyAVReader().read(wrong, VIDEO)
    assert caught.value.path == str(wrong)
    os.truncate(outer, 5000)
    for read in (lambda: PyAVReader().read(part, VIDEO), lambda: PyAVReader().read(part, audio=AUDIO)):
        with pytest.raises(
            DecodeError, match=r"\[1536:\+\d+\]: open: .*shard.tar is cut off: it ends at byte 5000"
        ):
            read()
    with pytest.raises(DecodeError, match=r"open: the file is empty"):
        PyAVReader().read(Part(part.path, 0, 0), VIDEO)
    with pytest.raises(DecodeError, match=r"gone.tar\[0:\+9\]: open: no such file"):
        PyAVReader().read(Part(str(tmp_path / "gone.tar"), 0, 9), VIDEO)
    with pytest.raises(ValueError, match="offset_bytes >= 0"):
        Part("a.tar", -1, 9)


def test_sound_beside_the_picture_is_read_from_its_own_start(tmp_path):
    picture = put_inside(write_media(tmp_path / "a.mp4", video_start=0.5, audio=False), tmp_path / "a.tar")
    for name, codec in (("b.wav", "pcm_s16le"), ("b.flac", "flac")):
        sound = write_media(tmp_path / name, video=False, audio_codec=codec)
        clip = PyAVReader().read(
            picture, VIDEO, AUDIO, row=4, audio_source=put_inside(sound, tmp_path / "b.tar")
        )
        assert frame_numbers(clip.frames) == list(range(8, 16))  # the only stream starts the file
        assert np.array_equal(clip.waveform, PyAVReader().read(sound, audio=AUDIO).waveform)
        assert (clip.row, clip.sample_rate, clip.audio_start_seconds) == (4, 24000, 0.5)
    with pytest.raises(DecodeError, match=r"c\.wav: open: no such file"):
        PyAVReader().read(picture, VIDEO, AUDIO, audio_source=tmp_path / "c.wav")


def decoded(source, window):
    """The waveform as FFmpeg decodes it."""
    with open_container(source) as container:
        return read_sound(container, container.streams.audio[0], window, start_seconds(container)).numpy()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_u8", "pcm_f32le"])
def test_sound_of_a_wave_file_equals_its_decode(tmp_path, channels, codec):
    path = write_media(
        tmp_path / "a.wav", video=False, audio_codec=codec, channels=channels, gains=[1.0, -0.3][:channels]
    )
    part = put_inside(path, tmp_path / "a.tar", offset=1537)  # an odd place
    for start, sample_rate in ((0.0, 24000), (1.2345, 24000), (-0.25, 16000), (2.5, 44100), (0.7, 24000)):
        window = AudioWindow(start, 1.0, sample_rate)
        for source in (path, part):
            assert np.array_equal(PyAVReader().read(source, audio=window).waveform, decoded(path, window))


@pytest.mark.parametrize("change", ["plain", "extra chunk", "unknown length", "cut off", "six channels"])
def test_sound_of_unusual_wave_files_equals_its_decode(tmp_path, change):
    channels = 6 if change == "six channels" else 1
    path = write_media(tmp_path / "a.wav", video=False, audio_codec="pcm_s16le", channels=channels)
    data = path.read_bytes()
    place = data.index(b"data")
    if change == "extra chunk":
        data = data[:place] + b"junk" + struct.pack("<I", 5) + b"12345\0" + data[place:]
    elif change == "unknown length":
        data = data[: place + 4] + b"\xff" * 4 + data[place + 8 :]
    elif change == "cut off":
        data = data[: len(data) // 2]
    path.write_bytes(data)
    window = AudioWindow(1.0, 1.0, 24000)
    assert np.array_equal(PyAVReader().read(path, audio=window).waveform, decoded(path, window))


@pytest.mark.parametrize("start", [-2.0, 3.5, 1e7, float("nan")])
def test_sound_outside_a_wave_file_is_a_decode_error(tmp_path, start):
    path = write_media(tmp_path / "a.wav", video=False, audio_codec="pcm_s16le")
    with pytest.raises(DecodeError) as caught:
        PyAVReader().read(path, audio=AudioWindow(start, 1.0, 24000))
    assert caught.value.stage == "audio"


def test_only_the_window_of_a_wave_file_is_read(tmp_path):
    path = write_media(tmp_path / "a.wav", video=False, audio_codec="pcm_s16le", seconds=2.0)
    expected = PyAVReader().read(path, audio=AudioWindow(0.5, 1.0, 24000)).waveform
    with open(path, "r+b") as file:  # 3.5 GB, of which the disk holds the first two seconds
        place = path.read_bytes().index(b"data")
        file.seek(place + 4)
        file.write(struct.pack("<I", 3_500_000_000))
        file.truncate(place + 8 + 3_500_000_000)
    assert np.array_equal(PyAVReader().read(path, audio=AudioWindow(0.5, 1.0, 24000)).waveform, expected)
    assert not PyAVReader().read(path, audio=AudioWindow(60_000.0, 1.0, 24000)).waveform.any()
