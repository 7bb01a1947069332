"""Sound of a WAVE file with 16-bit samples: only the bytes of the window are read, nothing is decoded."""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

import numpy as np
from torch import Tensor

from avssl.decode.sound import NativeWindow, finish
from avssl.decode.source import span
from avssl.types import AudioWindow, Source

PCM, BITS = 1, 16
MAX_CHANNELS = 2  # more have loudspeaker positions that weigh differently: the decoder knows them
UNKNOWN_LENGTH = 0xFFFFFFFF  # of a file written as a stream


class WaveLayout(NamedTuple):
    """Where the samples of a WAVE file are."""

    channels: int
    sample_rate: int
    data_offset: int
    num_samples: int


def read_wave(source: Source, window: AudioWindow) -> Tensor | None:
    """Waveform of `window`, float32 (1, samples); None if the source is no WAVE of 16-bit mono or stereo.

    Placement, mixing and resampling are those of `avssl.decode.sound.read_sound`.

    Raises
    ------
    DecodeError
        Stage "open": there is no such source.
    CannotReadError
        The window lies outside the file.
    """
    path, offset, length = span(source)
    with open(path, "rb") as file:
        layout = _read_layout(file, offset, offset + length)
        if layout is None:
            return None
        native = NativeWindow.of(window, window.start_seconds, layout.sample_rate)
        low = max(native.first, 0)
        high = min(native.first + native.length, layout.num_samples)
        samples = np.zeros(native.length, np.float32)
        if low < high:
            frame_bytes = BITS // 8 * layout.channels
            file.seek(layout.data_offset + low * frame_bytes)
            raw = np.frombuffer(file.read((high - low) * frame_bytes), "<i2").reshape(-1, layout.channels)
            weight = np.float32(2.0 ** (1 - BITS) / layout.channels)
            folded = raw[:, 0].astype(np.float32)
            for channel in range(1, layout.channels):
                folded += raw[:, channel]
            np.multiply(folded, weight, out=samples[low - native.first : high - native.first])
    return finish(samples, native.is_heard(low, high), native, layout.sample_rate, window)


def _read_layout(file: BinaryIO, begin: int, end: int) -> WaveLayout | None:
    """Walk over the chunks of a RIFF file between two bytes; None if they are not what is read here."""
    file.seek(begin)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    place, form = begin + 12, b""
    while place + 8 <= end:
        file.seek(place)
        name, size = struct.unpack("<4sI", file.read(8))
        place += 8
        if name == b"fmt ":
            form = file.read(min(size, 16))
        elif name == b"data":
            return _layout(form, place, size, end)
        place += size + size % 2
    return None


def _layout(form: bytes, data_offset: int, size: int, end: int) -> WaveLayout | None:
    if len(form) < 16 or size in (0, UNKNOWN_LENGTH):
        return None
    code, channels, sample_rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", form)
    plain = code == PCM and bits == BITS and 1 <= channels <= MAX_CHANNELS and frame_bytes == 2 * channels
    if not plain or sample_rate == 0:
        return None
    available = max(min(size, end - data_offset), 0)  # a file that is cut off gives what it has
    return WaveLayout(channels, sample_rate, data_offset, available // frame_bytes)
