"""Damaged files by the hundred: each gives a clip as asked for or a DecodeError, and costs little.

Files are read in a child process, so that a crash in native code, a loop without end and a leak show as such;
a file that does such a thing is named and stays in the folder of the test.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from pathlib import Path

import pytest
from damage import KINDS, damaged, write_kinds
from surviving import Job, Outcome, survive

from avssl.decode import READERS, open_reader
from avssl.errors import ConfigError

MEBIBYTE = 2**20


def damaged_files(folder: Path, rounds: int) -> list[Path]:
    """Whole files of all kinds and damaged copies of them."""
    whole = write_kinds(folder)
    names, paths = list(whole), list(whole.values())
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        for damage, data in damaged(whole[name].read_bytes(), whole[other].read_bytes(), rounds):
            paths.append(folder / f"{damage}_{name}")
            paths[-1].write_bytes(data)
    return paths


def reading(path: Path, reader: str) -> Job:
    is_picture = path.suffix in (".jpg", ".png")
    kinds = "v" if is_picture else "a" if path.suffix in (".wav", ".flac") else "av"
    return Job(str(path), reader, kinds, 0.0 if is_picture else 0.25)


def check(outcomes: list[Outcome]) -> Counter[str]:
    """Every job has an outcome that is a clip, facts or a `DecodeError`; counts them, by stage."""
    bad = [outcome for outcome in outcomes if outcome.result.startswith(("raised", "died"))]
    assert not bad, "\n".join(f"{o.job.path} {o.job.action}: {o.result}" for o in bad)
    return Counter(outcome.result.partition(":")[0] for outcome in outcomes)


def test_damaged_files_of_all_kinds_give_a_clip_or_a_decode_error(tmp_path: Path) -> None:
    paths = damaged_files(tmp_path, rounds=1)
    jobs = [*(reading(path, "pyav") for path in paths), *(Job(str(path), "probe") for path in paths)]
    outcomes = survive(jobs)
    counts = check(outcomes)
    assert sum(counts.values()) == len(jobs) >= 600
    assert [outcome.result for outcome in outcomes[: len(KINDS)]] == ["clip"] * len(KINDS)  # the whole ones
    assert counts.keys() == {"clip", "info", "open", "video", "audio"}
    empty = {o.result for o in outcomes if Path(o.job.path).name.startswith("cut-0")}
    assert empty == {"open: the file is empty (0 bytes)"}


@pytest.mark.slow
def test_ten_thousand_reads_of_damaged_files_leave_memory_flat(tmp_path: Path) -> None:
    paths = damaged_files(tmp_path, rounds=6)
    assert len(paths) >= 1000
    jobs = [reading(path, "pyav") for path in paths] * -(-10_000 // len(paths))
    outcomes = survive(jobs)
    check(outcomes)
    assert len(outcomes) == len(jobs) >= 10_000
    passes = [outcomes[len(paths) * i - 1].resident for i in range(1, len(jobs) // len(paths) + 1)]
    assert passes[-1] - passes[1] < 4 * MEBIBYTE, [round(resident / MEBIBYTE, 1) for resident in passes]
    first = [outcome.result for outcome in outcomes[: len(paths)]]
    assert first == [outcome.result for outcome in outcomes[-len(paths) :]]  # a read leaves nothing behind


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"pyav"}))
def test_damaged_files_do_not_crash_other_libraries(tmp_path: Path, name: str) -> None:
    try:
        open_reader(name)
    except ConfigError as error:
        pytest.skip(str(error))
    paths = [path for path in damaged_files(tmp_path, rounds=1) if path.suffix not in (".wav", ".flac")]
    counts = check(survive([reading(path, name) for path in paths]))
    assert counts["clip"] >= 50


# ---- files that declare what they do not have


def number(kind: str, mark: bytes, offset: int, form: str, *values: float, nth: int = 0):
    """A file of a kind in which numbers stand so many bytes behind the start of a mark (its nth but one)."""

    def write(whole: dict[str, Path]) -> bytes:
        data, place = bytearray(whole[kind].read_bytes()), -1
        for _ in range(nth + 1):
            place = data.index(mark, place + 1)
        struct.pack_into(form, data, place + offset, *values)
        return bytes(data)

    return write


def png(width: int, height: int, is_whole: bool):
    """A grey picture of that size; of a few bytes, or with all its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def write(whole: dict[str, Path]) -> bytes:
        packer = zlib.compressobj(1)
        rows = [packer.compress(bytes(1 + width)) for _ in range(height if is_whole else 1)]
        head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        body = b"".join([*rows, packer.flush()])
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")

    return write


MOST, HALF = 0xFFFFFFFF, 0x7FFFFFFF
ABSURD = {
    "duration of file.mp4": number("h264.mp4", b"mvhd", 20, ">I", MOST),
    "duration of track.mp4": number("h264.mp4", b"mdhd", 20, ">I", MOST - 1),
    "ticks.mp4": number("h264.mp4", b"mdhd", 16, ">I", MOST),
    "no ticks.mp4": number("h264.mp4", b"mdhd", 16, ">I", 0),
    "time table.mp4": number("h264.mp4", b"stts", 8, ">I", MOST),
    "number of times.mp4": number("h264.mp4", b"stts", 12, ">I", HALF),
    "step of times.mp4": number("h264.mp4", b"stts", 16, ">I", HALF),
    "size of samples.mp4": number("h264.mp4", b"stsz", 8, ">I", HALF),
    "number of samples.mp4": number("h264.mp4", b"stsz", 8, ">II", 1, HALF, nth=1),
    "samples a chunk.mp4": number("h264.mp4", b"stsc", 16, ">I", MOST),
    "chunks.mp4": number("h264.mp4", b"stco", 8, ">I", HALF),
    "picture.mp4": number("h264.mp4", b"avc1", 28, ">HH", 0xFFFF, 0xFFFF),
    "channels.mp4": number("h264.mp4", b"mp4a", 20, ">H", 0xFFFF),
    "picture.mov": number("mpeg4.mov", b"mp4v", 28, ">HH", 0x7FFF, 0x7FFF),
    "channels.mov": number("mpeg4.mov", b"sowt", 20, ">H", 0xFFFF),
    "rate.mov": number("mpeg4.mov", b"sowt", 28, ">I", MOST),
    "header.avi": number("mp3.avi", b"avih", 8, "<I", 1),
    "picture.avi": number("mp3.avi", b"strf", 12, "<ii", HALF, HALF),
    "large picture.avi": number("mp3.avi", b"strf", 12, "<ii", 16000, 16000),
    "frame rate.avi": number("mp3.avi", b"strh", 28, "<II", 1, MOST),
    "no frame rate.avi": number("mp3.avi", b"strh", 28, "<II", 0, 0),
    "length.avi": number("mp3.avi", b"strh", 40, "<I", MOST),
    "sample rate.avi": number("mp3.avi", b"strf", 12, "<I", MOST, nth=1),
    "channels.avi": number("mp3.avi", b"strf", 10, "<H", 0xFFFF, nth=1),
    "sample rate.mkv": number("vp9.mkv", b"\xb5\x88", 2, ">d", 1e300),
    "duration.mkv": number("vp9.mkv", b"\x44\x89\x88", 3, ">d", 1e300),
    "no duration.mkv": number("vp9.mkv", b"\x44\x89\x88", 3, ">d", float("nan")),
    "channels.wav": number("pcm.wav", b"fmt ", 10, "<H", 0xFFFF),
    "sample rate.flac": number("flac.flac", b"fLaC", 18, ">I", MOST),
    "some pixels.png": png(10_000, 10_000, is_whole=False),
    "no pixels.png": png(HALF, HALF, is_whole=False),
}
REFUSED = {
    "fast.wav": (number("pcm.wav", b"fmt ", 12, "<I", HALF), "2,147,483,647 samples a second; must be 1,000"),
    "slow.wav": (number("pcm.wav", b"fmt ", 12, "<I", 1), "declared to have 1 samples a second"),
    "no numbers.wav": (number("pcm.wav", b"fmt ", 8, "<HHIIHH", 3, 1, 24000, 96000, 4, 32), "are no sound"),
    "all pixels.png": (png(12_000, 12_000, is_whole=True), ""),
}


def test_absurd_numbers_cost_neither_memory_nor_time(tmp_path: Path) -> None:
    whole = write_kinds(tmp_path)
    files = {**ABSURD, **{name: write for name, (write, _) in REFUSED.items()}}
    jobs = [reading(whole["h264.mp4"], "pyav")]
    for name, write in files.items():
        (tmp_path / name).write_bytes(write(whole))
        jobs += [reading(tmp_path / name, "pyav"), Job(str(tmp_path / name), "probe")]
    outcomes = survive(jobs)
    check(outcomes)
    assert max(outcome.peak for outcome in outcomes) - outcomes[0].peak < 640 * MEBIBYTE
    assert max(outcome.seconds for outcome in outcomes) < 10
    results = {Path(o.job.path).name: o.result for o in outcomes if o.job.action == "pyav"}
    for name, (_, reason) in REFUSED.items():
        assert results[name] != "clip", name
        assert reason in results[name], name
