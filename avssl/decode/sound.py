"""The sound of a window: mono, at the wanted rate, sample-accurate on the clock of the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from torch import Tensor

from avssl.decode.container import CannotReadError, demuxing, seek_attempts
from avssl.types import AudioWindow

# A decoder needs packets from before the window: overlapping transforms, the bit reservoir of MP3.
PREROLL_SECONDS = 0.25
# Sound kept on both sides of the window, so that the resampling filter meets no edge.
CONTEXT_SECONDS = 0.02
# Timestamps that differ by less from the end of the sound before them are rounding, not a gap.
MAX_JITTER_SECONDS = 0.005

# Rates that a damaged header may declare lie far outside, and would ask for gigabytes of samples.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 1_000_000
# 60 dB above full scale: floating-point samples that are no sound, and whose energy overflows.
MAX_AMPLITUDE = 1000.0

# PyAV looks for the end of the planes in a list that has none for this many, and reads beyond it.
UNSAFE_PLANES = 8
# Weights of ITU-R BS.775 for folding down to mono, without low-frequency effects; others weigh a half.
CHANNEL_WEIGHTS = {"FC": 1.0, "FL": math.sqrt(0.5), "FR": math.sqrt(0.5), "LFE": 0.0, "LFE2": 0.0}


@dataclass(frozen=True)
class NativeWindow:
    """The samples of a file that make a window, with some before and after it for the resampling filter.

    Parameters
    ----------
    first : int
        Number of the first sample; may be negative.
    length : int
        Samples in all.
    context : int
        Samples before and after the window itself.
    margin : int
        Samples to drop at the start once resampled.
    """

    first: int
    length: int
    context: int
    margin: int

    @classmethod
    def of(cls, window: AudioWindow, begin_seconds: float, sample_rate: int) -> NativeWindow:
        """Samples of a file of `sample_rate` for a window that begins at `begin_seconds` of its clock.

        The context is a whole number of periods of both rates: the window starts on a sample of either.

        Raises
        ------
        CannotReadError
            No sound has such a rate.
        """
        if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
            raise CannotReadError(
                f"the sound is declared to have {sample_rate:,} samples a second; "
                f"must be {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,}"
            )
        shared = math.gcd(sample_rate, window.sample_rate)
        periods = math.ceil(CONTEXT_SECONDS * shared)
        context = periods * sample_rate // shared
        inside = math.ceil(window.duration_seconds * sample_rate) + 1
        first = round(begin_seconds * sample_rate) - context
        return cls(first, inside + 2 * context, context, periods * window.sample_rate // shared)

    def is_heard(self, low: int, high: int) -> bool:
        """Whether a stretch of samples, from `low` up to `high` of the file, reaches into the window."""
        begin, end = self.first + self.context, self.first + self.length - self.context - 1
        return max(low, begin) < min(high, end)


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
    native = NativeWindow.of(window, begin, runs.sample_rate)
    samples, is_heard = runs.cut(native)
    return finish(samples, is_heard, native, runs.sample_rate, window)


def finish(
    samples: np.ndarray, is_heard: bool, native: NativeWindow, sample_rate: int, window: AudioWindow
) -> Tensor:
    """Samples of the file, float32 (native.length,), as the waveform of the window.

    Raises
    ------
    CannotReadError
        None of them is heard: all lie outside the sound of the file; or they are no sound.
    """
    if not is_heard:
        end = window.start_seconds + window.duration_seconds
        raise CannotReadError(f"no sound can be decoded between {window.start_seconds:g} s and {end:g} s")
    if not (samples.max() <= MAX_AMPLITUDE and samples.min() >= -MAX_AMPLITUDE):  # NaN as well
        raise CannotReadError("the samples are no sound: not numbers, or 60 dB above full scale")
    waveform = resample(samples, sample_rate, window.sample_rate)
    waveform = waveform[native.margin : native.margin + window.num_samples]
    missing = window.num_samples - len(waveform)
    return torch.from_numpy(np.pad(waveform, (0, missing)) if missing else waveform)[None]


def _decode_around(container: InputContainer, stream: Any, begin: float, end: float) -> SoundRuns:
    """Sound from some time before `begin` to some time after `end` (seconds on the stream's clock)."""
    tick, sample_rate = float(stream.time_base), stream.codec_context.sample_rate
    low, high = math.floor((begin - CONTEXT_SECONDS) / tick), math.ceil((end + CONTEXT_SECONDS) / tick)
    preroll = math.floor((begin - PREROLL_SECONDS) / tick)
    for is_first in seek_attempts(container, stream, preroll):
        runs = SoundRuns(tick, sample_rate)
        arrived = is_first
        try:
            with demuxing(container, stream) as packets:
                for packet in packets:
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
    except (av.InvalidDataError, av.EOFError, av.PermissionError):  # the last is how AAC refuses one
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
            self._runs[-1].append(start, frame)

    def cut(self, native: NativeWindow) -> tuple[np.ndarray, bool]:
        """Samples of a window with its context, zeros where none are known, and whether any inside it is."""
        samples = np.zeros(native.length, np.float32)
        is_heard = False
        for run in self._runs:
            start, piece = run.start - native.first, run.mono
            low, high = max(start, 0), min(start + len(piece), len(samples))
            if low < high:
                samples[low:high] = piece[low - start : high - start]
                is_heard |= native.is_heard(native.first + low, native.first + high)
        return samples, is_heard


class _Run:
    """Samples that follow each other, and what their timestamps say about where they start."""

    def __init__(self) -> None:
        self._parts: list[
            tuple[tuple[str, str], av.AudioFifo]
        ] = []  # frames of one kind are joined by FFmpeg
        self._length = 0
        self._sum_of_starts = 0.0
        self._num_frames = 0

    def append(self, start: float, frame: Any) -> None:
        self._sum_of_starts += start - self._length
        self._num_frames += 1
        self._length += frame.samples
        kind = frame.format.name, frame.layout.name
        if not self._parts or self._parts[-1][0] != kind:
            self._parts.append((kind, av.AudioFifo()))
        frame.pts = None  # it would have to be exact
        self._parts[-1][1].write(frame)

    @cached_property
    def mono(self) -> np.ndarray:
        """All samples folded to one channel."""
        pieces = [np.empty(0, np.float32)]
        for _, fifo in self._parts:
            if (frame := fifo.read()) is not None:
                pieces.append(mono(*channels_of(frame)))
        return np.concatenate(pieces)

    @property
    def start(self) -> int:
        return round(self._sum_of_starts / self._num_frames)

    @property
    def end(self) -> int:
        return self.start + self._length


def channels_of(frame: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Samples of an audio frame as they are stored, (channels, samples), and the names of the channels."""
    names = tuple(channel.name for channel in frame.layout.channels)
    if frame.format.is_planar and len(names) >= UNSAFE_PLANES:
        (frame,) = av.AudioResampler(format="flt").resample(frame)
    samples = frame.to_ndarray()
    return (samples if frame.format.is_planar else samples.reshape(-1, len(names)).T), names


def mono(samples: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Samples (channels, samples) folded to one channel, float32 (samples,) in [-1, 1].

    The weights sum to 1, so the mix cannot clip (left and right weigh a half each).
    """
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
