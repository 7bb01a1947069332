"""Sound: mono, at the wanted rate, each sample at its time."""

import av
import numpy as np
import pytest
import torch
from media import frame_numbers, lag_seconds, sound_at, write_media

from avssl.decode import PyAVReader
from avssl.errors import DecodeError
from avssl.types import AudioWindow, VideoWindow


def read(path, start, duration, sample_rate=24000) -> np.ndarray:
    clip = PyAVReader().read(path, audio=AudioWindow(start, duration, sample_rate))
    assert clip.waveform.dtype == torch.float32
    assert clip.waveform.shape == (1, round(duration * sample_rate))
    return clip.waveform[0].double().numpy()


def expected(start, duration, sample_rate=24000) -> np.ndarray:
    return sound_at(start + np.arange(round(duration * sample_rate)) / sample_rate)


@pytest.mark.parametrize("name, codec", [("a.mkv", "flac"), ("a.wav", "pcm_s16le"), ("a.mov", "pcm_s24le")])
@pytest.mark.parametrize("start", [0.0, 0.3, 1.7321, 2.4])
def test_sound_of_a_lossless_file_is_exact_at_its_own_rate(tmp_path, name, codec, start):
    path = write_media(tmp_path / name, audio_codec=codec, video=name != "a.wav")
    reached = round(start * 24000) / 24000  # the nearest sample of the file
    assert np.abs(read(path, start, 0.5) - expected(reached, 0.5)).max() < 1e-4


@pytest.mark.parametrize("native", [16000, 44100, 48000, 96000])
@pytest.mark.parametrize("wanted", [8000, 22050, 24000, 48000])
def test_sound_is_resampled_in_place(tmp_path, native, wanted):
    path = write_media(tmp_path / "a.mov", audio_codec="pcm_s24le", sample_rate=native, seconds=2.0)
    start = round(0.7 * native) / native
    heard = read(path, start, 0.7, wanted)
    error = np.abs(heard - expected(start, 0.7, wanted))
    assert error.max() < 3e-3  # of the full scale, edges included
    assert lag_seconds(heard, wanted, start) == 0


def test_sound_of_awkward_rates_is_resampled_in_place(tmp_path):
    path = write_media(tmp_path / "a.mov", audio_codec="pcm_s24le", sample_rate=44100, seconds=2.0)
    assert np.abs(read(path, 0.5, 0.5, 16001) - expected(0.5, 0.5, 16001)).max() < 3e-3


@pytest.mark.parametrize(
    "name, codec, rate, tolerance",
    [
        ("a.mp4", "aac", 48000, 0.0),
        ("a.mp4", "aac", 44100, 0.0),
        ("a.mkv", "aac", 44100, 0.0005),  # Matroska rounds times to a millisecond
        ("a.mp4", "libmp3lame", 44100, 0.0),
        ("a.mp3", "libmp3lame", 44100, 0.0),
        ("a.webm", "libopus", 48000, 0.0006),
        ("a.ogg", "libopus", 48000, 0.0),
    ],
)
def test_sound_of_lossy_codecs_is_on_time(tmp_path, name, codec, rate, tolerance):
    video = name[-3:] not in ("mp3", "ogg")
    picture = dict(codec="libvpx-vp9") if name.endswith("webm") else {}
    path = write_media(
        tmp_path / name, audio_codec=codec, sample_rate=rate, video=video, seconds=4.0, **picture
    )
    for start in (0.0, 0.37, 1.9, 2.8):
        assert abs(lag_seconds(read(path, start, 1.0), 24000, start)) <= tolerance + 1 / 24000


@pytest.mark.parametrize("name, codec", [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.mp4", "libmp3lame")])
def test_sound_of_a_window_equals_that_part_of_the_whole(tmp_path, name, codec):
    path = write_media(tmp_path / name, audio_codec=codec, sample_rate=48000, channels=2, seconds=4.0)
    whole = read(path, 0.0, 4.0, 48000)
    for start in (0.5, 1.25, 2.875):
        part = whole[round(start * 48000) :][:24000]
        window = read(path, start, 0.5, 48000)
        if name == "a.mkv":  # times are rounded: at most one sample after averaging them
            errors = [np.abs(np.roll(part, shift) - window)[2:-2].max() for shift in range(-4, 5)]
            assert min(errors) < 1e-3
        else:
            assert np.abs(part - window).max() < 1e-3


def test_sound_of_several_channels_is_mixed_with_weights_that_sum_to_one(tmp_path):
    stereo = write_media(tmp_path / "b.mkv", audio_codec="flac", channels=2, gains=[1.0, 0.0])
    assert np.abs(read(stereo, 0.5, 0.5) - 0.5 * expected(0.5, 0.5)).max() < 1e-4
    # front left, front right, centre, low-frequency effects, back left, back right
    weights = np.array([np.sqrt(0.5), np.sqrt(0.5), 1.0, 0.0, 0.5, 0.5]) / (2 * np.sqrt(0.5) + 2)
    gains = [1.0, 0.2, -0.7, 1.0, 0.5, 0.1]
    surround = write_media(tmp_path / "c.mkv", audio_codec="flac", channels=6, gains=gains)
    assert np.abs(read(surround, 0.5, 0.5) - weights @ gains * expected(0.5, 0.5)).max() < 2e-4


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
@pytest.mark.parametrize("name, codec", [("a.mkv", "flac"), ("a.wav", "pcm_s16le"), ("a.wav", "pcm_u8")])
def test_sound_mix_equals_the_integer_mix_of_ffmpeg(tmp_path, name, codec, channels):
    gains = [1.0, 0.2, -0.7, 1.0, 0.5, 0.1, -0.3, 0.6][:channels]
    path = write_media(
        tmp_path / name, audio_codec=codec, channels=channels, gains=gains, seconds=1.0, video=False
    )
    resampler = av.AudioResampler(format="s16", layout="mono", rate=24000)
    with av.open(str(path)) as container:
        pieces = [p.to_ndarray()[0] for f in container.decode(audio=0) for p in resampler.resample(f)]
    assert np.abs(read(path, 0.0, 1.0) - np.concatenate(pieces)[:24000] / 32768).max() < 2e-4  # 16 bits


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_sound_of_aac_with_any_channels_is_on_time(tmp_path, channels):
    path = write_media(tmp_path / "a.mp4", channels=channels, sample_rate=48000)
    heard = read(path, 0.75, 1.0)
    assert abs(lag_seconds(heard, 24000, 0.75)) <= 1 / 24000
    assert 0.1 < np.abs(heard).max() <= 1


def test_sound_outside_the_file_is_zero(tmp_path):
    path = write_media(tmp_path / "a.mkv", audio_codec="flac", seconds=1.0)
    heard = read(path, -0.5, 2.0)
    assert np.all(heard[: 12000 - 1] == 0)
    assert np.all(heard[36000 + 1 :] == 0)
    assert np.abs(heard[12000:36000] - expected(0.0, 1.0)).max() < 1e-4


def test_sound_of_a_hole_in_the_stream_is_zero(tmp_path):
    whole = write_media(tmp_path / "a.mkv", audio_codec="flac", seconds=3.0)
    path = tmp_path / "hole.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None and not 1.0 < packet.pts * packet.time_base < 2.0:
                packet.stream = stream
                target.mux(packet)
    heard = read(path, 0.5, 2.0)
    assert np.abs(heard - expected(0.5, 2.0))[:11000].max() < 1e-3
    assert np.all(heard[14000:34000] == 0)
    assert abs(lag_seconds(heard[38000:], 24000, 0.5 + 38000 / 24000)) <= 0.0005


def test_both_streams_are_on_one_time_base_when_they_start_apart(tmp_path):
    late_sound = write_media(tmp_path / "a.mkv", audio_start=0.7, audio_codec="flac")
    assert np.all(read(late_sound, 0.0, 1.0)[:16700] == 0)
    assert abs(lag_seconds(read(late_sound, 0.25, 1.0), 24000, 0.25)) <= 0.0005
    late_picture = write_media(tmp_path / "b.mp4", video_start=0.5, audio_codec="aac")
    clip = PyAVReader().read(late_picture, VideoWindow(0.375, 6, 16), AudioWindow(0.375, 1.0, 24000))
    assert frame_numbers(clip.frames) == [0, 0, 0, 1, 2, 3]
    assert abs(lag_seconds(clip.waveform, 24000, 0.375)) <= 1 / 24000


def test_both_streams_of_a_transport_stream_start_together(tmp_path):
    # The encoder's priming comes first here: the clock of the file is that of the priming.
    path = write_media(tmp_path / "a.ts", sample_rate=48000, bframes=2)
    clip = PyAVReader().read(path, VideoWindow(1.0, 4, 16), AudioWindow(1.0, 1.0, 48000))
    shift = 1024 / 48000
    assert frame_numbers(clip.frames) == [15, 16, 17, 18]
    assert abs(lag_seconds(clip.waveform, 48000, 1.0 - shift)) <= 2 / 48000


@pytest.mark.parametrize("start", [-2.0, 3.5, 1e7, float("nan")])
def test_sound_of_a_window_outside_the_file_is_a_decode_error(tmp_path, start):
    path = write_media(tmp_path / "a.mp4", size=(32, 32))
    with pytest.raises(DecodeError) as caught:
        PyAVReader().read(path, audio=AudioWindow(start, 1.0, 24000))
    assert caught.value.stage == "audio"
