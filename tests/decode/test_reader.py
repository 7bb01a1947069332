"""The reader as a whole: what it hands back, and what it says about files that are no good."""

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import frame_numbers, lag_seconds, write_media

from avssl.decode import PyAVReader, open_reader, probe
from avssl.errors import ConfigError, DecodeError
from avssl.types import AudioWindow, VideoWindow

VIDEO, AUDIO = VideoWindow(0.5, 8, 16), AudioWindow(0.5, 1.0, 24000)


def test_reader_returns_a_clip_with_one_time_base(tmp_path):
    path = write_media(tmp_path / "a.mp4", bframes=2)
    clip = open_reader("pyav").read(str(path), VIDEO, AUDIO, row=7)
    assert frame_numbers(clip.frames) == list(range(8, 16))
    assert abs(lag_seconds(clip.waveform, 24000, 0.5)) <= 1 / 24000
    assert (clip.fps, clip.sample_rate, clip.row) == (16, 24000, 7)
    assert (clip.video_start_seconds, clip.audio_start_seconds) == (0.5, 0.5)
    assert clip.frames.is_contiguous()
    assert clip.waveform.is_contiguous()


def test_reader_leaves_out_what_is_not_asked_for(tmp_path):
    path = write_media(tmp_path / "a.mp4")
    assert PyAVReader().read(path, VIDEO).waveform is None
    assert PyAVReader().read(path, audio=AUDIO).frames is None
    with pytest.raises(ValueError, match="give a video window, an audio window or both"):
        PyAVReader().read(path)


def test_open_reader_names_the_readers_it_knows():
    with pytest.raises(ConfigError, match="got 'opencv'; must be one of pyav"):
        open_reader("opencv")


def test_missing_streams_are_named(tmp_path):
    silent = write_media(tmp_path / "a.mp4", audio=False)
    blind = write_media(tmp_path / "b.m4a", video=False, format="mp4")
    assert frame_numbers(PyAVReader().read(silent, VIDEO).frames) == list(range(8, 16))
    assert PyAVReader().read(blind, audio=AUDIO).waveform.abs().max() > 0.1
    with pytest.raises(DecodeError) as caught:
        PyAVReader().read(silent, VIDEO, AUDIO)
    assert (caught.value.stage, caught.value.reason) == ("audio", "the file has no audio stream")
    with pytest.raises(DecodeError) as caught:
        PyAVReader().read(blind, VIDEO, AUDIO)
    assert (caught.value.stage, caught.value.reason) == ("video", "the file has no video stream")


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("libmp3lame", rate=24000), container.add_stream("mjpeg", rate=1)
        sound.layout = "mono"
        cover.width = cover.height = 32
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture.reformat(format="yuvj420p", dst_color_range="JPEG")))
        container.mux(cover.encode(None))
        samples = np.full((1, 24000), 0.1, np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 24000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert not probe(path).has_video
    with pytest.raises(DecodeError, match="the file has no video stream"):
        PyAVReader().read(path, VideoWindow(0.0, 1, 1))


def make_unusable(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("This is no video.\n" * 100)
    elif kind == "playlist":
        path.write_text(
            "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
        )
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(20000))
    elif kind == "headless":  # the index of an MP4 stands at its end
        write_media(path, size=(32, 32))
        os.truncate(path, path.stat().st_size // 2)
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "pipe", "empty", "text", "playlist", "noise", "headless"]
)
def test_unusable_files_are_decode_errors_at_open(tmp_path, kind, capfd):
    path = make_unusable(tmp_path, kind)
    for attempt in (lambda: PyAVReader().read(path, VIDEO, AUDIO), lambda: probe(path)):
        with pytest.raises(DecodeError) as caught:
            attempt()
        assert (caught.value.stage, caught.value.path) == ("open", str(path))
        assert caught.value.reason
        assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
    assert capfd.readouterr().err == ""


def test_a_file_without_timestamps_is_a_decode_error_with_a_remedy(tmp_path):
    path = write_media(tmp_path / "a.h264", audio=False, bframes=2, size=(32, 32))
    with pytest.raises(DecodeError, match="no position in this h264 file can be sought; it is damaged"):
        PyAVReader().read(path, VIDEO)


@pytest.mark.parametrize("name, options", [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.ts", {})])
def test_a_truncated_file_gives_what_decodes(tmp_path, name, options, capfd):
    path = write_media(tmp_path / name, container_options=options, seconds=6.0, bframes=2, gop=16)
    os.truncate(path, path.stat().st_size // 2)
    clip = PyAVReader().read(path, VIDEO, AUDIO)
    shift = 1 if name == "a.ts" else 0  # priming of the sound comes first
    assert frame_numbers(clip.frames) == list(range(8 - shift, 16 - shift))
    assert clip.waveform.abs().max() > 0.1
    with pytest.raises(DecodeError) as caught:
        PyAVReader().read(path, VideoWindow(5.0, 8, 16))
    assert caught.value.stage == "video"
    with pytest.raises(DecodeError) as caught:
        PyAVReader().read(path, audio=AudioWindow(5.0, 0.5, 24000))
    assert caught.value.stage == "audio"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_damaged_bytes_give_a_clip_or_a_decode_error(tmp_path, name, capfd):
    whole = write_media(tmp_path / name, seconds=2.0, size=(48, 48), bframes=2).read_bytes()
    path = tmp_path / f"damaged_{name}"
    outcomes = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(data), rng.choice([3, 30, 300]))
        data[places] = rng.integers(0, 256, len(places))
        path.write_bytes(data.tobytes())
        try:
            clip = PyAVReader().read(path, VIDEO, AUDIO)
            assert clip.frames.shape[0] == 8
            assert clip.waveform.shape == (1, 24000)
            assert torch.isfinite(clip.waveform).all()
            outcomes.add("clip")
        except DecodeError as error:
            outcomes.add(error.stage)
    assert "clip" in outcomes
    assert capfd.readouterr().err == ""


def test_odd_names_and_titles_are_read(tmp_path):
    path = write_media(tmp_path / "a.mkv")
    strange = tmp_path / "http:%03d été?.mkv"
    shutil.copy(path, strange)
    assert frame_numbers(PyAVReader().read(strange, VIDEO).frames)[0] == 8
    data = path.read_bytes()
    assert b"Lavf" in data
    latin = tmp_path / "latin.mkv"
    latin.write_bytes(data.replace(b"Lavf", b"L\xe9vf"))  # a tag that is not UTF-8
    assert frame_numbers(PyAVReader().read(latin, VIDEO).frames)[0] == 8


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs a list of open files")
def test_no_file_stays_open(tmp_path):
    good, text = write_media(tmp_path / "a.mp4", size=(32, 32)), make_unusable(tmp_path, "text")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        PyAVReader().read(good, VIDEO, AUDIO)
        probe(good)
        for path, window in ((text, VIDEO), (good, VideoWindow(99.0, 8, 16))):
            with pytest.raises(DecodeError):
                PyAVReader().read(path, window)
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_reader_serves_many_threads(tmp_path):
    path, reader = write_media(tmp_path / "a.mp4", bframes=2), PyAVReader()

    def numbers(index: int) -> list[int]:
        return frame_numbers(reader.read(path, VideoWindow(index / 16, 4, 16), AUDIO).frames)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(numbers, range(32))) == [list(range(n, n + 4)) for n in range(32)]
