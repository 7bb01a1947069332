"""Facts about files, from headers or from packets."""

import av
import pytest
from media import write_media

from avssl.decode import MediaInfo, PyAVReader, probe
from avssl.types import VideoWindow


def test_probe_tells_the_facts_of_a_file(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=2.5, size=(96, 64), sample_rate=44100, channels=2)
    info = probe(path)
    assert (info.width, info.height, info.fps, info.sample_rate) == (96, 64, 16.0, 44100)
    assert (info.has_video, info.has_audio) == (True, True)
    assert info.duration_seconds == pytest.approx(2.5, abs=0.03)


def test_probe_of_missing_streams_is_zero(tmp_path):
    silent = probe(write_media(tmp_path / "a.mp4", audio=False, seconds=1.0))
    assert (silent.has_audio, silent.sample_rate, silent.duration_seconds) == (False, 0, 1.0)
    blind = probe(write_media(tmp_path / "a.wav", video=False, audio_codec="pcm_s16le", seconds=1.0))
    assert blind == MediaInfo(1.0, 0.0, 0, 0, has_video=False, has_audio=True, sample_rate=24000)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mkv", {}),
        ("a.ts", {}),
        ("a.mkv", {"live": "1"}),
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_probe_finds_durations_the_header_lacks(tmp_path, name, options):
    path = write_media(
        tmp_path / name, container_options=options, audio_codec="flac" if "mkv" in name else "aac"
    )
    assert probe(path).duration_seconds == pytest.approx(3.0, abs=0.13)
    if options.get("live"):
        with av.open(str(path)) as container:
            assert container.duration is None  # the file is what this test is about
        assert len(PyAVReader().read(path, VideoWindow(1.0, 8, 16)).frames) == 8


def test_probe_duration_ends_with_the_last_stream(tmp_path):
    late = write_media(tmp_path / "a.mp4", seconds=2.0, video_start=0.5, audio_seconds=1.0)
    assert probe(late).duration_seconds == pytest.approx(2.5, abs=1e-3)
    assert probe(write_media(tmp_path / "b.mp4", audio_seconds=4.0)).duration_seconds == pytest.approx(
        4.0, abs=0.01
    )


def test_probe_of_a_variable_rate_gives_the_mean(tmp_path):
    path = write_media(tmp_path / "a.mp4", frame_times=[0.0, 0.1, 0.2, 1.0, 2.0], audio=False)
    assert probe(path).fps == pytest.approx(5 / probe(path).duration_seconds, rel=0.05)
