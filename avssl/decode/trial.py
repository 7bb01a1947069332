"""Is a clip reader able to do its work here? It reads a tiny file whose content is known."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avssl.errors import DecodeError
from avssl.types import AudioWindow, Clip, ClipReader, VideoWindow

FPS, SAMPLE_RATE = 8, 16000


def try_reader(reader: ClipReader) -> Clip:
    """Write 2 s of video and sound into a temporary folder and read a second of it: 8 frames, 16,000 samples.

    Raises
    ------
    DecodeError
        The file cannot be read, or not as it was written.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = write_sample(Path(folder) / "sample.mp4")
        clip = reader.read(path, VideoWindow(0.5, 8, FPS), AudioWindow(0.5, 1.0, SAMPLE_RATE))
    assert clip.frames is not None
    assert clip.waveform is not None
    brightness = clip.frames.float().mean((1, 2, 3))
    loudness = float(clip.waveform.square().mean().sqrt())
    if not bool((brightness.diff() > 0).all()) or not 0.1 < loudness < 1:
        reason = f"wrong content: brightness {brightness.tolist()}, loudness {loudness:.3f}"
        raise DecodeError(path, "video", reason)
    return clip


def write_sample(path: Path) -> Path:
    """A video that grows brighter, under a tone: 2 s, 64 x 48, 8 frames a second; H.264 where it can be."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264" if _can_encode("h264") else "mpeg4", rate=FPS)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for i in range(2 * FPS):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 + 12 * i, np.uint8), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(picture))
        time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
        tone = 0.5 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
        for start in range(0, len(tone), 1024):
            sound = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            sound.sample_rate, sound.pts = SAMPLE_RATE, start
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def _can_encode(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except av.FFmpegError:
        return False
    return True
