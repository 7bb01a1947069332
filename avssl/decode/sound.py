"""The sound of a window: mono, at the wanted rate, sample-accurate on the clock of the file."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from torch import Tensor

from avssl.decode.container import CannotReadError, seek_attempts
from avssl.types import AudioWindow

# A decoder needs packets from before the window: overlapping transforms, the bit reservoir of MP3.
PREROLL_SECONDS = 0.25
# Sound kept on both sides of the window, so that the resampling filter meets no edge.
CONTEXT_SECONDS = 0.02
# Timestamps that differ by less from the end of the sound before them are rounding, not a gap.
MAX_JITTER_SECONDS = 0.005

# PyAV looks for the end of the planes in a list that has none for this many, and reads beyond it.
UNSAFE_PLANES = 8
# Weights of ITU-R BS.775 for folding down to mono, without low-frequency effects; others weigh a half.
CHANNEL_WEIGHTS = {"FC": 1.0, "FL": math.sqrt(0.5), "FR": math.sqrt(0.5), "LFE": 0.0, "LFE2": 0.0}


def read_sound(container: InputContainer, stream: Any, window: AudioWindow, zero: Fraction) -> Tensor:
    """Waveform of `window`, float32 (1, samples); zeros where the file has no sound.

    Time `zero` of the stream's clock is the start of the file. The window starts at the nearest sample of the
    file (at most 12 microseconds off at 44.1 kHz); more is lost only where the file itself rounds its times
    (half a millisecond in Matroska).

    Raises
    ------
    CannotReadError
        Not a single sample inside the window can be decoded.
    """
    begin = float(zero) + window.start_seconds
    runs = _decode_around(container, stream, begin, begin + window.duration_seconds)
    native, is_heard, margin = runs.cut(begin, window)
    if not is_heard:
        end = window.start_seconds + window.duration_seconds
        raise CannotReadError(f"no sound can be decoded between {window.start_seconds:g} s and {end:g} s")
    waveform = resample(native, runs.sample_rate, window.sample_rate)[margin : margin + window.num_samples]
    missing = window.num_samples - len(waveform)
    return torch.from_numpy(np.pad(waveform, (0, missing)))[None]


def _decode_around(container: InputContainer, stream: Any, begin: float, end: float) -> SoundRuns:
    """Sound from some time before `begin` to some time after `end` (seconds on the stream's clock)."""
    tick, sample_rate = float(stream.time_base), stream.codec_context.sample_rate
    low, high = math.floor((begin - CONTEXT_SECONDS) / tick), math.ceil((end + CONTEXT_SECONDS) / tick)
    preroll = math.floor((begin - PREROLL_SECONDS) / tick)
    for is_first in seek_attempts(container, stream, preroll):
        runs = SoundRuns(tick, sample_rate)
        arrived = is_first
        try:
            for packet in container.demux(stream):
                arrived = arrived or packet.pts is None or packet.pts <= low
                if not arrived or (packet.pts is not None and packet.pts > high):
                    break
                if packet.size and (packet.pts is None or packet.pts >= preroll):
                    runs.extend(_decode(stream.codec_context, packet))
            else:
                runs.extend(_decode(stream.codec_context, None))
        except av.FFmpegError:
            if is_first and not runs:
                raise
        if arrived and runs:
            break
    return runs


def _decode(context: Any, packet: Any | None) -> list[Any]:
    """Frames of a packet (None: the last ones); a damaged packet has none and leaves a gap."""
    try:
        return context.decode(packet)
    except (av.InvalidDataError, av.EOFError):
        return []


class SoundRuns:
    """Decoded sound as stretches without gaps, mono, at the rate of the file.

    Coarse timestamps (1 ms in Matroska) jitter around the true ones: inside a stretch samples follow each
    other, and its place is the mean of what its timestamps say.
    """

    def __init__(self, tick: float, sample_rate: int) -> None:
        self._tick = tick
        self.sample_rate = sample_rate
        self._runs: list[_Run] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def extend(self, frames: list[Any]) -> None:
        """Append decoded audio frames."""
        for frame in frames:
            if frame.sample_rate != self.sample_rate:
                continue  # a damaged packet taken for another kind of sound
            end = self._runs[-1].end if self._runs else 0
            start = end if frame.pts is None else frame.pts * self._tick * self.sample_rate
            if not self._runs or abs(start - end) > MAX_JITTER_SECONDS * self.sample_rate:
                self._runs.append(_Run())
            self._runs[-1].append(start, mono(frame))

    def cut(self, begin: float, window: AudioWindow) -> tuple[np.ndarray, bool, int]:
        """Samples around the window, whether any inside it is known, and the samples to drop once resampled.

        The context is a whole number of periods of both rates: the window starts on a sample of either.
        """
        if not self._runs:
            return np.zeros(0, np.float32), False, 0
        shared = math.gcd(self.sample_rate, window.sample_rate)
        periods = math.ceil(CONTEXT_SECONDS * shared)
        context = periods * self.sample_rate // shared
        length = math.ceil(window.duration_seconds * self.sample_rate) + 1
        first = round(begin * self.sample_rate)
        samples = np.zeros(length + 2 * context, np.float32)
        is_heard = False
        for run in self._runs:
            start, piece = run.start - (first - context), np.concatenate(run.pieces)
            low, high = max(start, 0), min(start + len(piece), len(samples))
            if low < high:
                samples[low:high] = piece[low - start : high - start]
                is_heard |= low < context + length - 1 and high > context
        return samples, is_heard, periods * window.sample_rate // shared


class _Run:
    """Samples that follow each other, and what their timestamps say about where they start."""

    def __init__(self) -> None:
        self.pieces: list[np.ndarray] = []
        self._length = 0
        self._sum_of_starts = 0.0

    def append(self, start: float, samples: np.ndarray) -> None:
        self._sum_of_starts += start - self._length
        self.pieces.append(samples)
        self._length += len(samples)

    @property
    def start(self) -> int:
        return round(self._sum_of_starts / len(self.pieces))

    @property
    def end(self) -> int:
        return self.start + self._length


def mono(frame: Any) -> np.ndarray:
    """Samples of an audio frame folded to one channel, float32 (samples,) in [-1, 1].

    The weights sum to 1, so the mix cannot clip (left and right weigh a half each).
    """
    names = [channel.name for channel in frame.layout.channels]
    if frame.format.is_planar and len(names) >= UNSAFE_PLANES:
        (frame,) = av.AudioResampler(format="flt").resample(frame)
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(names)).T
    weights = np.array([CHANNEL_WEIGHTS.get(name, 0.5) for name in names])
    weights = weights / weights.sum() if weights.sum() else np.full(len(names), 1 / len(names))
    if samples.dtype == np.uint8:
        samples, weights = samples - 128.0, weights / 128
    elif samples.dtype.kind == "i":
        weights = weights / -float(np.iinfo(samples.dtype).min)
    if samples.dtype != np.float32:
        samples = samples.astype(np.float64)  # 32-bit integers do not fit float32
    return (weights.astype(samples.dtype) @ samples).astype(np.float32)


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Band-limited resampling (libswresample) of float32 (samples,); the first sample keeps its time."""
    if rate == new_rate:
        return samples
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=new_rate)
    pieces = [piece.to_ndarray()[0] for piece in [*resampler.resample(frame), *resampler.resample(None)]]
    return np.concatenate(pieces)
