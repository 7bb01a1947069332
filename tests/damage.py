"""Damage files in ways that are the same each time, for tests of what becomes of bad input.

for name, data in damaged(path.read_bytes(), other.read_bytes(), rounds=4):
    ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from media import draw_frame, write_media

SMALL: dict[str, Any] = {"seconds": 1.0, "size": (48, 48), "gop": 6}
KINDS: dict[str, dict[str, Any]] = {  # containers and codecs that are read differently, and how to write them
    "h264.mp4": {"bframes": 2},
    "fragments.mp4": {"bframes": 2, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "fast.mp4": {"container_options": {"movflags": "faststart"}},
    "mpeg4.mov": {"codec": "mpeg4", "audio_codec": "pcm_s16le"},
    "vp9.mkv": {"codec": "libvpx-vp9", "audio_codec": "libopus", "sample_rate": 48000},
    "vp8.webm": {"codec": "libvpx", "audio_codec": "libopus", "sample_rate": 48000},
    "mp3.avi": {"codec": "mpeg4", "audio_codec": "libmp3lame"},
    "h264.ts": {"bframes": 2},
    "mpeg2.mpg": {"codec": "mpeg2video", "audio_codec": "mp2", "sample_rate": 48000, "fps": 25},
    "sorenson.flv": {"codec": "flv", "audio_codec": "libmp3lame", "sample_rate": 22050},
    "hevc.mp4": {"codec": "libx265", "size": (64, 64)},
    "av1.mp4": {"codec": "libsvtav1", "size": (64, 64)},
    "pcm.wav": {"video": False, "audio_codec": "pcm_s16le"},
    "flac.flac": {"video": False, "audio_codec": "flac"},
    "picture.jpg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "picture.png": {"codec": "png", "pix_fmt": "rgb24"},
}


def write_kinds(folder: Path) -> dict[str, Path]:
    """One small whole file of each of `KINDS`."""
    return {name: _write(folder / name, how) for name, how in KINDS.items()}


def _write(path: Path, how: dict[str, Any]) -> Path:
    if path.suffix not in (".jpg", ".png"):
        return write_media(path, **(SMALL | how))
    context = av.CodecContext.create(how["codec"], "w")
    context.width, context.height = SMALL["size"]
    context.pix_fmt, context.time_base = how["pix_fmt"], Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(draw_frame(9, SMALL["size"]), format="rgb24")
    packets = [*context.encode(picture.reformat(format=how["pix_fmt"])), *context.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
    return path


def damaged(whole: bytes, other: bytes, rounds: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of damaged copies of `whole`: ten that are cut off, and `rounds` of each of `DAMAGES`.

    `other` is a file from which parts are taken.
    """
    for tenth in range(10):
        yield f"cut-{tenth}", whole[: len(whole) * tenth // 10]
    for number in range(rounds):
        for name, damage in DAMAGES.items():
            rng = np.random.default_rng([number, len(whole)])
            yield f"{name}-{number}", damage(np.frombuffer(whole, np.uint8).copy(), rng, other)


Damage = Callable[[np.ndarray, np.random.Generator, bytes], bytes]


def _flip_bytes(where: tuple[float, float]) -> Damage:
    """Random bytes of a stretch, given as shares of the file, take random values."""

    def damage(data: np.ndarray, rng: np.random.Generator, other: bytes) -> bytes:
        low, high = int(where[0] * len(data)), int(where[1] * len(data))
        places = rng.integers(low, high, rng.choice([1, 4, 32]))
        data[places] = rng.integers(0, 256, len(places))
        return data.tobytes()

    return damage


def _extreme_number(data: np.ndarray, rng: np.random.Generator, other: bytes) -> bytes:
    """Four bytes near the start or end become a number of which headers rarely think."""
    place = int(rng.integers(0, min(800, len(data) - 4))) * (1 if rng.random() < 0.5 else -1)
    place = place if place >= 0 else len(data) + place - 4
    value = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00FFFFFF])
    data[place : place + 4] = np.frombuffer(int(value).to_bytes(4, "big"), np.uint8)
    return data.tobytes()


def _zero(data: np.ndarray, rng: np.random.Generator, other: bytes) -> bytes:
    start, length = _stretch(len(data), rng)
    data[start : start + length] = 0
    return data.tobytes()


def _repeat(data: np.ndarray, rng: np.random.Generator, other: bytes) -> bytes:
    start, length = _stretch(len(data), rng)
    block = data[start : start + length].tobytes()
    return data[:start].tobytes() + block * int(rng.integers(2, 5)) + data[start + length :].tobytes()


def _remove(data: np.ndarray, rng: np.random.Generator, other: bytes) -> bytes:
    start, length = _stretch(len(data), rng)
    return data[:start].tobytes() + data[start + length :].tobytes()


def _splice(data: np.ndarray, rng: np.random.Generator, other: bytes) -> bytes:
    """A stretch of another file lies over this one."""
    start, length = _stretch(len(data), rng)
    begin = int(rng.integers(0, max(1, len(other) - length)))
    return data[:start].tobytes() + other[begin : begin + length] + data[start + length :].tobytes()


def _swap_tail(data: np.ndarray, rng: np.random.Generator, other: bytes) -> bytes:
    """The file goes on as another one."""
    share = rng.random()
    return data[: int(share * len(data))].tobytes() + other[int(share * len(other)) :]


def _stretch(total: int, rng: np.random.Generator) -> tuple[int, int]:
    length = int(rng.integers(1, max(2, total // 4)))
    return int(rng.integers(0, max(1, total - length))), length


DAMAGES: dict[str, Damage] = {
    "header": _flip_bytes((0.0, 0.04)),
    "payload": _flip_bytes((0.04, 0.9)),
    "index": _flip_bytes((0.9, 1.0)),
    "number": _extreme_number,
    "zeros": _zero,
    "repeat": _repeat,
    "removed": _remove,
    "splice": _splice,
    "tail": _swap_tail,
}
