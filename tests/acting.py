"""Readers that misbehave, and loaders of what they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from avssl.data import AudioSpec, ClipBatch, ClipDataset, Manifest, RunSampler, VideoSpec, make_loader
from avssl.types import Clip

VIDEO, AUDIO = VideoSpec(4, 8.0), AudioSpec(0.5, 1000)
BROKEN = 3  # row of the manifest


class Acting:
    """Does something in the place of the broken file, or before every one, and then reads it as if whole."""

    def __init__(self, reader: Any, act: Callable[[str], object], everywhere: bool = False) -> None:
        self.reader = reader
        self.act = act
        self.everywhere = everywhere

    def read(self, path: str, *args: Any, **kwargs: Any) -> Clip:
        if self.everywhere or "broken" in path:
            self.act(path)
        return self.reader.read(path.replace("broken", "whole"), *args, **kwargs)


def nothing(path: str) -> None:
    """Read on."""


def loader_of(manifest: Manifest, reader: Any, sampler: Any = None, workers: int = 1, **options: Any) -> Any:
    dataset = ClipDataset(manifest, reader, VIDEO, AUDIO, seed=1, silent="keep")
    sampler = RunSampler(len(manifest), 5, seed=1, epochs=2) if sampler is None else sampler
    return make_loader(dataset, sampler, num_workers=workers, prefetch_factor=2, **options)


def assert_only_the_broken_file_lacks(batches: list[ClipBatch], whole: list[ClipBatch]) -> None:
    assert [(b.epoch, b.batch) for b in batches] == [(b.epoch, b.batch) for b in whole]
    for got, expected in zip(batches, whole, strict=True):
        kept = expected.index != BROKEN
        assert torch.equal(got.index, expected.index[kept])
        assert torch.equal(got.waveform, expected.waveform[kept])
        frames = [frames for frames, is_kept in zip(expected.frames, kept, strict=True) if is_kept]
        assert all(torch.equal(a, b) for a, b in zip(got.frames, frames, strict=True))
