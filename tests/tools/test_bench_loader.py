"""tools/bench_loader.py: its official procedure, and the table of a miniature run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from media import frame_numbers, lag_seconds, write_media

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import av  # noqa: E402
from official_loader import BIN_MEAN, BIN_STD, decode_frames, decode_sound, official_sample  # noqa: E402
from official_loader import spectrogram as official_spectrogram  # noqa: E402

from avssl.transforms import LogSpectrogram  # noqa: E402
from avssl.types import AudioWindow, VideoWindow  # noqa: E402


def test_official_procedure_reads_the_frames_and_the_sound_of_its_windows(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=4.0, fps=16, gop=12)
    with av.open(str(path)) as container:
        images = decode_frames(container, VideoWindow(1.51, 8, 16))
        waveform = decode_sound(container, AudioWindow(1.2, 2.0, 24000))
    assert frame_numbers(np.stack(images)) == list(range(24, 32))
    assert waveform.shape == (48000,)
    assert abs(lag_seconds(waveform, 24000, start_seconds=1.2)) < 0.002
    frames, decibels = official_sample(str(path), VideoWindow(1.5, 8, 16), AudioWindow(1.2, 2.0, 24000), 112)
    assert frames.shape == (3, 8, 112, 112)
    assert decibels.shape == (1, 200, 257)


def test_official_spectrogram_is_that_of_the_package():
    waveform = 0.1 * torch.randn(48000, generator=torch.Generator().manual_seed(0))
    expected = LogSpectrogram(24000, mean=BIN_MEAN, std=BIN_STD)(waveform.view(1, 1, -1))[0]
    actual = official_spectrogram(waveform.numpy(), AudioWindow(0.0, 2.0, 24000))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("media", ["h264-256-gop12"])
def test_a_miniature_run_prints_every_way_with_its_ratio(media):
    small = (
        "--media",
        media,
        "--size",
        "112",
        "--rounds",
        "1",
        "--clips",
        "2",
        "--files",
        "1",
        "--seconds",
        "3",
    )
    run = subprocess.run(
        [sys.executable, str(TOOLS / "bench_loader.py"), *small],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    title, *rows = run.stdout.split(f"\n{media}, ")[1].splitlines()
    assert title.startswith("8 x 112 x 112")
    pattern = re.compile(r"(\S.*?)\s+([\d.]+)\s+([\d.]+) ms\s+([\d.]+)x")
    found = {re.sub(r" +", " ", match[1]): match for row in rows if (match := pattern.fullmatch(row))}
    assert len(found) == len(rows)
    works = ("whole sample, 8-bit resize", "whole sample, exact resize", "worker alone", "decoding alone")
    assert {"official procedure"} | {
        f"{copy} pyav {work}" for copy in ("files", "prepared") for work in works
    } <= set(found)
    official = float(found["official procedure"][3])
    for match in found.values():
        clips_a_second, milliseconds, ratio = map(float, match.groups()[1:])
        assert clips_a_second == pytest.approx(1e3 / milliseconds, rel=0.02, abs=0.06)
        assert ratio == pytest.approx(official / milliseconds, rel=0.02, abs=0.06)
