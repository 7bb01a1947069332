"""Frames, sound and pictures as the bytes of small files that are quick to read."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
import torch
from torchvision.io import encode_jpeg

GOP = 8
"""A clip that starts anywhere decodes at most seven frames in vain; fewer make the files larger."""

# MPEG-4 Part 2: H.264 without filters and arithmetic coding takes a third longer to decode at about the same
# error, though less disk (docs/prepare.md has the numbers).
CODEC = "mpeg4"
QUANTISER = "3"  # of 1 to 31, the same for all blocks of all frames
MAX_TICKS = 65_535
"""Ticks a second that its headers can declare."""

JPEG_QUALITY = 95


def encode_video(clips: Iterable[np.ndarray], fps: float) -> tuple[bytes, int, int, int]:
    """MPEG-4 video in MP4.

    Parameters
    ----------
    clips : iterable of uint8 (T, H, W, 3)
        Frames one after another, all of one size; an odd last row or column is left out, as 4:2:0 needs.
    fps : float > 0
        Frames a second.

    Returns
    -------
    bytes, int, int, int
        The file; number of frames, width and height.
    """
    file = io.BytesIO()
    count = width = height = 0
    rate = Fraction(fps).limit_denominator(max(1, int(MAX_TICKS / fps)))
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=rate)
        for clip in clips:
            if count == 0:
                height, width = (side // 2 * 2 for side in clip.shape[1:3])
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.gop_size = GOP
                stream.codec_context.thread_count = 1  # threads would make the bytes depend on their number
                stream.options = {"qmin": QUANTISER, "qmax": QUANTISER}
            for picture in clip[:, :height, :width]:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = count, 1 / rate
                container.mux(stream.encode(frame))
                count += 1
        container.mux(stream.encode(None))
    return file.getvalue(), count, width, height


def encode_sound(waveforms: Iterable[np.ndarray], sample_rate: int) -> bytes:
    """WAVE file of 16-bit mono samples, from pieces of float32 (samples,) in [-1, 1]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        for samples in waveforms:
            whole = np.round(samples * 2.0**15)  # 2^15 is what readers divide by
            writer.writeframes(np.clip(whole, -(2**15), 2**15 - 1).astype("<i2").tobytes())
    return file.getvalue()


def encode_image(picture: np.ndarray) -> bytes:
    """JPEG of a picture, uint8 (H, W, 3)."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).contiguous()
    return encode_jpeg(pixels, quality=JPEG_QUALITY).numpy().tobytes()


def chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """First element and length of consecutive pieces of at most `size`."""
    for start in range(0, total, size):
        yield start, min(size, total - start)
