"""A reader that needs no media: what it returns depends on the path and the windows alone."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch

from avssl.data.manifest import Manifest
from avssl.data.tables import Sample
from avssl.errors import DecodeError
from avssl.types import AudioWindow, Clip, VideoWindow


class FakeReader:
    """Files named "broken" fail, those named "silent" are silent; frame sizes depend on the name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, VideoWindow | None, AudioWindow | None]] = []

    def read(
        self,
        path: str,
        video: VideoWindow | None = None,
        audio: AudioWindow | None = None,
        row: int = -1,
        audio_source: str | None = None,
    ) -> Clip:
        self.calls.append((path, video, audio))
        name = Path(path).name
        if "broken" in name:
            raise DecodeError(path, "video", "no frame can be decoded")
        rng = torch.Generator().manual_seed(zlib.crc32(f"{name}{video}{audio}".encode()))
        frames = waveform = None
        if video is not None:
            width = 8 + zlib.crc32(name.encode()) % 4
            frames = torch.randint(0, 256, (video.num_frames, 6, width, 3), dtype=torch.uint8, generator=rng)
        if audio is not None:
            waveform = torch.rand(1, audio.num_samples, generator=rng) * (0.0 if "silent" in name else 0.5)
        return Clip(
            frames,
            waveform,
            fps=video.fps if video else 0.0,
            sample_rate=audio.sample_rate if audio else 0,
            video_start_seconds=video.start_seconds if video else 0.0,
            audio_start_seconds=audio.start_seconds if audio else 0.0,
            row=row,
        )


@pytest.fixture
def reader() -> FakeReader:
    return FakeReader()


@pytest.fixture
def manifest() -> Manifest:
    """Ten samples of ten seconds in two classes; row 3 is broken, row 5 is silent. Their folder exists."""
    special = {3: "_broken", 5: "_silent"}
    names = [f"clip{i}{special.get(i, '')}.mp4" for i in range(10)]
    samples = [
        Sample(name, name, 0.0, 10.0, label="ab"[i % 2], duration_seconds=10.0, fps=25.0, width=8, height=6)
        for i, name in enumerate(names)
    ]
    return Manifest.from_samples(samples, Path(__file__).parent)
