"""Write small real media files whose frames and sound say what time it is.

Every frame carries its number as a code of 4 x 4 blocks that survives compression and resizing; the sound is
a known function of time (`sound_at`), so both the exact frame and the synchronisation are checkable numbers.

    path = write_media(tmp_path / "a.mp4", seconds=2.0, fps=16, gop=12)
    read_frame_number(clip.frames[0])                     # -> 0
    lag_seconds(clip.waveform, 24000, start_seconds=0.5)  # -> about 0
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avssl.types import Part

VIDEO_TIME_BASE = Fraction(1, 90000)
MAX_FRAME_NUMBER = 2**12 - 1
ONE, ZERO = np.array([235, 205, 175]), np.array([20, 50, 80])  # RGB: bright reddish, dark bluish
CLICK_SPACING = 0.5


def write_media(
    path: str | Path,
    *,
    seconds: float = 3.0,
    fps: float | Fraction = 16,
    size: tuple[int, int] = (96, 96),
    gop: int = 12,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    bframes: int = 0,
    video: bool = True,
    frame_times: Sequence[float] | None = None,
    first_number: int = 0,
    video_start: float = 0.0,
    rotation: int = 0,
    codec_options: dict[str, str] | None = None,
    audio: bool = True,
    audio_codec: str = "aac",
    sample_rate: int = 24000,
    channels: int = 1,
    layout: str | None = None,
    tone_hz: float = 440.0,
    gains: Sequence[float] | None = None,
    audio_start: float = 0.0,
    audio_seconds: float | None = None,
    format: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a file of `seconds` of numbered frames and of `sound_at(t, tone_hz)`; returns its path.

    `size` is (width, height). `frame_times` (seconds, rising) makes the frame rate variable. `video_start`
    and `audio_start` delay one stream: frame n is on screen at ``video_start + n / fps`` while the sound
    stays that of its time in the file. `gains` scales the channels; `layout` defaults to mono, stereo, 5.1 or
    7.1 by `channels`. `rotation` is the counter-clockwise turn (90, 180, 270) a player must apply: frames are
    stored turned the other way, so that a right reader shows them upright.
    """
    path = Path(path)
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        pictures, sound = None, None
        if video:
            rate = Fraction(fps).limit_denominator(10000)
            pictures = container.add_stream(codec, rate=rate)
            stored_size = size if rotation % 180 == 0 else size[::-1]
            _set_up_video(pictures, stored_size, pix_fmt, gop, bframes, codec_options)
            if frame_times is None and (Fraction(video_start) * rate).denominator == 1:
                pictures.codec_context.time_base = 1 / rate  # as the usual encoders write it
            if rotation:
                pictures.set_display_rotation(rotation)
        if audio:
            layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[channels]
            sound = container.add_stream(audio_codec, rate=sample_rate, layout=layout)
            sound.codec_context.time_base = Fraction(1, sample_rate)

        times = [n / fps for n in range(round(seconds * fps))] if frame_times is None else frame_times
        frames = [(video_start + float(t), first_number + n) for n, t in enumerate(times)] if pictures else []
        audio_end = audio_start + (seconds if audio_seconds is None else audio_seconds)
        blocks = _sound_blocks(audio_start, audio_end, sample_rate) if sound else []
        for start, item in sorted([*frames, *blocks], key=lambda pair: pair[0]):
            if isinstance(item, np.ndarray):
                samples = sound_at(item / sample_rate, tone_hz)
                container.mux(sound.encode(_audio_frame(samples, int(item[0]), sample_rate, layout, gains)))
            else:
                picture = np.rot90(draw_frame(item, size), -rotation // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = round(start / VIDEO_TIME_BASE), VIDEO_TIME_BASE
                container.mux(pictures.encode(frame.reformat(format=pix_fmt)))
        for stream in (pictures, sound):
            if stream is not None:
                container.mux(stream.encode(None))
    if codec == "libsvtav1" and os.geteuid() == 0:  # it has made root's process a real-time one
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def put_inside(path: Path, outer: Path, offset: int = 1536) -> Part:
    """Write a file into the middle of another, as a member of a tar lies; returns where."""
    data = path.read_bytes()
    outer.write_bytes(b"\x55" * offset + data + b"\xaa" * 3000)
    return Part(str(outer), offset, len(data))


def draw_frame(number: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """Frame `number` as uint8 (height, width, 3): a block code under waves that move with the number."""
    if not 0 <= number <= MAX_FRAME_NUMBER:
        raise ValueError(f"frame number {number} does not fit the code; use 0 to {MAX_FRAME_NUMBER}")
    width, height = size
    cells = np.array([(_code(number) >> bit) & 1 for bit in range(16)]).reshape(4, 4)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    picture = np.where(cells[rows][:, columns, None] == 1, ONE, ZERO)
    y, x = np.mgrid[:height, :width]
    texture = 12 * np.sin(x / 5 + number / 3) * np.cos(y / 7 - number / 5)
    return np.clip(picture + texture[..., None], 0, 255).astype(np.uint8)


def read_frame_number(frame: Any) -> int:
    """Number written on a frame, (H, W, 3) array or tensor; ValueError if it is not intact and upright."""
    luma = np.asarray(frame).astype(np.float64).mean(-1)
    code = 0
    for bit in range(16):
        rows, columns = (_middle(bit // 4, luma.shape[0]), _middle(bit % 4, luma.shape[1]))
        code |= int(luma[rows, columns].mean() > 128) << bit
    number = code & MAX_FRAME_NUMBER
    if _code(number) != code:
        raise ValueError(f"no intact frame code: read {code:016b}; the frame is damaged, mirrored or turned")
    return number


def frame_numbers(frames: Any) -> list[int]:
    """Numbers written on the frames of a clip, (T, H, W, 3)."""
    return [read_frame_number(frame) for frame in frames]


def sound_at(times: np.ndarray, tone_hz: float = 440.0) -> np.ndarray:
    """The sound of every file at `times` (seconds): a tone and, each half second, a 1.5 kHz click of 2 ms."""
    away = times - np.round(times / CLICK_SPACING) * CLICK_SPACING
    click = np.exp(-0.5 * (away / 0.0007) ** 2) * np.cos(2 * np.pi * 1500 * away)
    return 0.2 * np.sin(2 * np.pi * tone_hz * times) + 0.6 * click


def lag_seconds(waveform: Any, sample_rate: int, start_seconds: float, tone_hz: float = 440.0) -> float:
    """How late the clicks of `waveform` (.., samples) are for its time, up to 100 ms, by correlation."""
    heard = np.asarray(waveform, dtype=np.float64).reshape(-1)
    times = start_seconds + np.arange(len(heard)) / sample_rate
    expected = sound_at(times, tone_hz)
    tone = np.exp(2j * np.pi * tone_hz * times).view(np.float64).reshape(-1, 2)
    heard, expected = (x - tone @ np.linalg.lstsq(tone, x, rcond=None)[0] for x in (heard, expected))
    length = 2 ** int(np.ceil(np.log2(2 * len(heard))))
    product = np.fft.rfft(heard, length) * np.conj(np.fft.rfft(expected, length))
    correlation = np.fft.irfft(product, length)
    reach = int(0.1 * sample_rate)
    lags = np.arange(-reach, reach + 1)
    return float(lags[np.argmax(correlation[lags])]) / sample_rate


def _code(number: int) -> int:
    check = (number ^ (number >> 4) ^ (number >> 8) ^ 0b0110) & 0b1111
    return number | check << 12


def _middle(cell: int, length: int) -> slice:
    """The inner half of one of four cells along an axis, away from blurred borders."""
    start, end = cell * length / 4, (cell + 1) * length / 4
    return slice(round(start + (end - start) / 4), max(round(end - (end - start) / 4), round(start) + 1))


def _set_up_video(
    stream: Any,
    size: tuple[int, int],
    pix_fmt: str,
    gop: int,
    bframes: int,
    codec_options: dict[str, str] | None,
) -> None:
    stream.width, stream.height = size
    stream.pix_fmt = pix_fmt
    context = stream.codec_context
    context.time_base = VIDEO_TIME_BASE
    context.thread_count = 1
    context.gop_size = gop
    options: dict[str, str] = {}
    if context.name == "libx264":  # exactly the key frames and B-frames asked for, whatever the content
        options = {"preset": "veryfast", "sc_threshold": "0", "b_strategy": "0", "bf": str(bframes)}
    elif context.name == "libx265":
        if min(size) < 64:
            raise ValueError(f"x265 corrupts memory for frames as small as {size}; use at least 64 x 64")
        parameters = f"frame-threads=1:pools=none:log-level=none:keyint={gop}:bframes={bframes}"
        options = {"preset": "ultrafast", "x265-params": parameters}
    elif context.name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # print errors alone
    elif bframes:
        options = {"bf": str(bframes)}
    context.options = options | (codec_options or {})


def _sound_blocks(start: float, end: float, sample_rate: int) -> list[tuple[float, np.ndarray]]:
    """Sample numbers of the sound in blocks of 1024, each with its time."""
    numbers = np.arange(round(start * sample_rate), round(end * sample_rate))
    parts = np.split(numbers, range(1024, len(numbers), 1024))
    return [(part[0] / sample_rate, part) for part in parts if len(part)]


def _audio_frame(
    samples: np.ndarray, first: int, sample_rate: int, layout: str, gains: Sequence[float] | None
) -> av.AudioFrame:
    scale = np.ones(av.AudioLayout(layout).nb_channels) if gains is None else np.asarray(gains)
    interleaved = (samples[:, None] * scale).astype(np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, first, Fraction(1, sample_rate)
    return frame
