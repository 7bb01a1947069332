"""A small folder with everything that occurs, and its shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from media import write_media
from preparing import prepare


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """Seven good files in two classes (one silent, one without sound, one without pictures), one cut off."""
    folder = tmp_path_factory.mktemp("sources") / "videos"
    for i in range(4):
        name = folder / ("dog" if i % 2 else "cat") / f"{i}.mp4"
        name.parent.mkdir(parents=True, exist_ok=True)
        write_media(name, seconds=2.0, fps=16, size=(96, 72), tone_hz=300 + 100 * i, channels=1 + i % 2)
    write_media(folder / "cat/silent.mp4", seconds=1.5, size=(96, 72), gains=[0.0])
    write_media(folder / "cat/mute.mkv", seconds=1.5, size=(72, 96), audio=False)
    write_media(folder / "dog/blind.mp4", seconds=1.5, video=False)
    whole = (folder / "dog/1.mp4").read_bytes()
    (folder / "dog/cut.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


@pytest.fixture(scope="session")
def prepared(videos, tmp_path_factory) -> Path:
    """The folder as three shards of at most three samples."""
    output = tmp_path_factory.mktemp("prepared") / "out"
    code, account, errors = prepare(videos, output, "--shard-samples", 3, "--workers", 1)
    assert code == 0, errors
    (output.parent / "account.txt").write_text(account)
    return output
