"""Files of many structures (groups of pictures, codecs, containers), and the frames a plain decode shows."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FILES = {
    "intra.mp4": dict(gop=1),
    "gop12.mp4": dict(gop=12),
    "gop_whole.mp4": dict(gop=250),
    "b_frames.mp4": dict(gop=12, bframes=2),
    "b_frames.mkv": dict(gop=12, bframes=2),
    "b_frames.ts": dict(gop=12, bframes=2),
    "b_frames.mov": dict(gop=30, bframes=3, fps=Fraction(30000, 1001), codec_options={"b_strategy": "2"}),
    "b_pyramid.mp4": dict(gop=24, bframes=5, codec_options={"x264-params": "b-pyramid=normal"}),
    "open_gop.mp4": dict(gop=12, bframes=2, codec_options={"x264-params": "open-gop=1"}),
    "open_gop.ts": dict(gop=12, bframes=2, codec_options={"x264-params": "open-gop=1"}),
    "variable.mp4": dict(frame_times=[0, 0.05, 0.1, 0.4, 0.41, 1.0, 1.02, 1.9, 2.0, 2.5, 2.95], bframes=2),
    "variable.mkv": dict(frame_times=[0, 0.05, 0.1, 0.4, 0.41, 1.0, 1.02, 1.9, 2.0, 2.5, 2.95], gop=4),
    "fragments.mp4": dict(bframes=2, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mp4": dict(codec="libx265", bframes=2, pix_fmt="yuv420p10le"),
    "vp9.webm": dict(codec="libvpx-vp9", audio_codec="libopus", sample_rate=48000),
    "mpeg4.avi": dict(codec="mpeg4", audio_codec="libmp3lame", bframes=2),
    "program.mpg": dict(codec="mpeg2video", audio_codec="mp2", sample_rate=48000, fps=25, bframes=2),
    "half_red.mkv": dict(pix_fmt="yuv422p", audio_codec="flac"),
    "av1.mp4": dict(codec="libsvtav1"),
    "vp8.webm": dict(codec="libvpx", audio_codec="libopus", sample_rate=48000),
    "mjpeg.avi": dict(codec="mjpeg", pix_fmt="yuvj420p", audio_codec="pcm_s16le"),
    "prores.mov": dict(codec="prores_ks", pix_fmt="yuv422p10le"),
    "mpeg4.mp4": dict(codec="mpeg4", bframes=2, gop=24),
}
PICTURES = dict(seconds=3.0, size=(80, 64))


def decode_plainly(path: Path, size: tuple[int, int] | None = None) -> tuple[list[float], list[np.ndarray]]:
    """Times from the start of the file and pictures of every frame, decoded in order without any seek."""
    width, height = size or (None, None)
    with av.open(str(path)) as container:
        starts = [s.start_time * s.time_base for s in container.streams if s.start_time is not None]
        frames = list(container.decode(video=0))
        times = [float(f.pts * f.time_base - min(starts, default=0)) for f in frames]
        if size is not None:
            pixels = frames[0].format.name
            pixels = pixels if pixels.endswith("420p") else "gbrp"
            frames = [f.reformat(width, height, pixels, interpolation="BILINEAR") for f in frames]
        return times, [f.reformat(format="rgb24").to_ndarray() for f in frames]


def frames_due(times: list[float], pictures: list[np.ndarray], start: float, fps: int) -> np.ndarray:
    """The 8 frames on screen from `start` on."""
    due = start + np.arange(8) / fps
    return np.stack([pictures[max(np.searchsorted(times, t, side="right") - 1, 0)] for t in due])


def windows_between_frames(times: list[float]) -> Iterator[tuple[float, int]]:
    """Start and rate of windows of 8 frames none of which is due within a millisecond of one of the file."""
    rng = np.random.default_rng(3)
    for fps in (16, 16, 25, 7, 30, 60, 1):
        start = rng.uniform(0, 2.9)
        while np.abs(start + np.arange(8)[:, None] / fps - np.array(times)).min() <= 0.001:
            start = rng.uniform(0, 2.9)
        yield start, fps
