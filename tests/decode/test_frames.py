"""Frames: the ones a plain decode of the whole file shows, bit for bit."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import ONE, draw_frame, frame_numbers, read_frame_number, write_media
from structures import FILES, PICTURES, decode_plainly, frames_due, windows_between_frames

from avssl.decode import PyAVReader, probe
from avssl.errors import DecodeError
from avssl.types import VideoWindow


@pytest.mark.parametrize("name", FILES)
def test_frames_equal_a_sequential_decode_of_the_whole_file(tmp_path, name):
    path = write_media(tmp_path / name, **PICTURES | FILES[name])
    times, pictures = decode_plainly(path)
    for start, fps in windows_between_frames(times):
        clip = PyAVReader().read(path, VideoWindow(start, 8, fps))
        assert np.array_equal(clip.frames.numpy(), frames_due(times, pictures, start, fps)), (start, fps)


def test_frames_of_h264_in_avi_come_in_display_order(tmp_path):
    # AVI keeps no display times: FFmpeg numbers packets, so a plain decode shows frames 0, 2, 3, 1.
    path = write_media(tmp_path / "a.avi", bframes=2, audio_codec="pcm_s16le")
    numbers = frame_numbers(PyAVReader().read(path, VideoWindow(0.5, 16, 16)).frames)
    assert np.all(np.diff(numbers) == 1)
    assert abs(numbers[0] - 8) <= 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_frames_at_the_rate_of_the_file_are_every_frame_once(tmp_path, suffix):
    # Matroska rounds 1/30 s to milliseconds: frame 2 is stamped 67 ms but is due at 66.7 ms.
    codecs = dict(codec="libvpx-vp9", audio_codec="libopus", sample_rate=48000) if suffix == "webm" else {}
    path = write_media(tmp_path / f"a.{suffix}", fps=30, seconds=2.0, **codecs)
    clip = PyAVReader().read(path, VideoWindow(0.0, 60, 30.0))
    assert frame_numbers(clip.frames) == list(range(60))


def test_frames_of_a_long_gap_hold_the_frame_on_screen(tmp_path):
    path = write_media(tmp_path / "a.mp4", frame_times=[0.0, 0.1, 2.0], audio=False)
    assert frame_numbers(PyAVReader().read(path, VideoWindow(0.5, 4, 2.0)).frames) == [1, 1, 1, 2]


def test_frames_before_the_first_and_after_the_last_are_held(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=1.0, bframes=2)
    assert frame_numbers(PyAVReader().read(path, VideoWindow(-0.25, 8, 16)).frames) == [
        0,
        0,
        0,
        0,
        0,
        1,
        2,
        3,
    ]
    assert frame_numbers(PyAVReader().read(path, VideoWindow(0.8125, 8, 16)).frames) == [13, 14] + [15] * 6
    assert frame_numbers(PyAVReader().read(path, VideoWindow(1.05, 2, 16)).frames) == [15, 15]


def test_frames_of_a_shorter_video_stream_are_held_while_the_window_overlaps_it(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=1.0, audio_seconds=3.0)
    assert frame_numbers(PyAVReader().read(path, VideoWindow(0.5, 4, 2.0)).frames) == [8, 15, 15, 15]
    with pytest.raises(
        DecodeError, match=r"video: the window starts at 2 s, the last frame ends at 1\.000 s"
    ):
        PyAVReader().read(path, VideoWindow(2.0, 4, 16.0))


@pytest.mark.parametrize("start", [-1.0, 3.2, 1e6, -1e6, 1e300, float("nan"), float("inf")])
def test_frames_of_a_window_outside_the_file_are_a_decode_error(tmp_path, start):
    path = write_media(tmp_path / "a.mp4", seconds=3.0, size=(32, 32))
    with pytest.raises(DecodeError) as caught:
        PyAVReader().read(path, VideoWindow(start, 8, 16))
    assert caught.value.stage == "video"


def test_time_is_counted_from_a_negative_start(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=3.0, bframes=2, fps=16)
    _shift_display_times(path, frames=-20)
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time < 0  # the file is what this test is about
    assert frame_numbers(PyAVReader().read(path, VideoWindow(0.0, 4, 16)).frames) == [0, 1, 2, 3]
    assert frame_numbers(PyAVReader().read(path, VideoWindow(1.5, 4, 16)).frames) == [24, 25, 26, 27]


def _shift_display_times(path: Path, frames: int, ticks_per_frame: int = 1024) -> None:
    """Move the video of an MP4 in time: change its composition offsets and hide its edit list."""
    data = bytearray(path.read_bytes())
    edits, offsets = data.index(b"edts"), data.index(b"ctts")
    data[edits : edits + 4] = b"free"
    data[offsets + 4] = 1  # version with signed offsets
    (count,) = struct.unpack_from(">I", data, offsets + 8)
    for place in range(offsets + 16, offsets + 16 + 8 * count, 8):
        (offset,) = struct.unpack_from(">i", data, place)
        struct.pack_into(">i", data, place, offset + frames * ticks_per_frame)
    path.write_bytes(data)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_upright(tmp_path, rotation):
    path = write_media(tmp_path / "a.mp4", seconds=1.0, size=(96, 64), rotation=rotation)
    clip = PyAVReader().read(path, VideoWindow(0.25, 3, 16))
    assert clip.frames.shape == (3, 64, 96, 3)
    assert frame_numbers(clip.frames) == [4, 5, 6]
    assert (probe(path).width, probe(path).height) == (96, 64)


@pytest.mark.parametrize(
    "pix_fmt, size, name",
    [
        ("yuv422p", (96, 64), "a.mp4"),
        ("yuv420p10le", (96, 64), "a.mp4"),
        ("yuv422p10le", (70, 50), "a.mkv"),
        ("yuv444p", (97, 65), "a.mp4"),
        ("yuv444p", (33, 31), "a.mkv"),
    ],
)
def test_frames_of_any_pixel_format_and_odd_size_keep_their_colours(tmp_path, pix_fmt, size, name):
    path = write_media(tmp_path / name, seconds=1.0, size=size, pix_fmt=pix_fmt, bframes=2)
    clip = PyAVReader().read(path, VideoWindow(0.25, 8, 16))
    assert clip.frames.shape == (8, size[1], size[0], 3)
    assert frame_numbers(clip.frames) == list(range(4, 12))
    original = np.stack([draw_frame(n, size) for n in range(4, 12)]).astype(float)
    assert np.abs(clip.frames.numpy() - original).mean() < 8


def test_frames_are_rgb(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=0.5, audio=False)
    bright = PyAVReader().read(path, VideoWindow(0.0, 1, 16)).frames[0]
    mask = torch.from_numpy(draw_frame(0).mean(-1)) > 128
    assert torch.allclose(bright[mask].double().mean(0), torch.tensor(ONE, dtype=torch.double), atol=10)


@pytest.mark.parametrize(
    "size, short_side, expected",
    [
        ((160, 96), 48, (80, 48)),
        ((96, 160), 48, (48, 80)),
        ((98, 62), 31, (49, 31)),
        ((96, 64), 200, (96, 64)),
        ((96, 64), 64, (96, 64)),
    ],
)
def test_short_side_shrinks_and_never_enlarges(tmp_path, size, short_side, expected):
    path = write_media(tmp_path / "a.mp4", seconds=1.0, size=size)
    clip = PyAVReader().read(path, VideoWindow(0.25, 4, 16, short_side))
    assert clip.frames.shape == (4, expected[1], expected[0], 3)
    assert frame_numbers(clip.frames) == [4, 5, 6, 7]
    assert np.array_equal(clip.frames.numpy(), np.stack(decode_plainly(path, expected)[1][4:8]))


def test_shrinking_weighs_what_it_drops(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=0.5, size=(192, 192), audio=False, gop=1)
    small = PyAVReader().read(path, VideoWindow(0.25, 1, 16, short_side=24)).frames[0].double()
    full = PyAVReader().read(path, VideoWindow(0.25, 1, 16)).frames[0].double()
    weighed = _triangle(192, 24) @ full.permute(2, 0, 1) @ _triangle(192, 24).T
    error = small - weighed.permute(1, 2, 0)
    brightness = error @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.double)
    assert brightness.abs().max() < 3
    assert error.abs().mean() < 2  # colour is stored at half the resolution


def _triangle(size: int, new_size: int) -> torch.Tensor:
    """Weights of a triangle filter as wide as two new pixels, (new_size, size) float64."""
    scale = size / new_size
    centres = (torch.arange(new_size, dtype=torch.double)[:, None] + 0.5) * scale
    weights = (1 - (torch.arange(size) + 0.5 - centres).abs() / scale).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def test_a_damaged_frame_costs_no_other_group_of_pictures(tmp_path):
    path = write_media(tmp_path / "a.mkv", seconds=3.0, audio=False, gop=8)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = {round(p.pts * p.time_base * 16): p.pos for p in container.demux(video=0) if p.size}
    for place in range(places[17] + 12, places[19] - 12):
        data[place] = 0xFF
    path.write_bytes(data)
    frames = PyAVReader().read(path, VideoWindow(0.5, 24, 16)).frames
    assert [read_frame_number(frame) for frame in frames[:8]] == list(range(8, 16))
    assert [read_frame_number(frame) for frame in frames[16:]] == list(range(24, 32))
