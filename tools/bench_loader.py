"""Whole samples a second and core: OMP_NUM_THREADS=1 python tools/bench_loader.py [--size 112 224]

Writes media of its own and prepares a copy of them with ``avssl prepare``. A sample is 8 frames at 16 a
second and 2 s of sound at 24 kHz, augmented, with a spectrogram of 200 x 257. Compared, interleaved in one
call:

- the official procedure (`official_loader`): PyAV, Pillow frame by frame, librosa;
- for each decoder, on the files and on their prepared copy: the whole sample on the CPU, with frames rounded
  to 8 bits as they are resized (as Pillow does) and exactly; the work of a loader's worker alone, when a
  device augments; decoding alone, the floor.

Times are processor time of all threads of this process, so other work on the machine changes them little.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from official_loader import BIN_MEAN, BIN_STD, official_sample

from avssl.data import AudioSpec, ClipDataset, ClipKey, Manifest, PackedFrames, VideoSpec, collate, scan
from avssl.decode import READERS, open_reader
from avssl.errors import ConfigError
from avssl.transforms import AudioAugment, LogSpectrogram, VideoAugment, ViewMaker
from avssl.types import ClipReader

NUM_FRAMES, FPS, SOUND_SECONDS, SAMPLE_RATE = 8, 16, 2.0, 24000
SHORT_SIDES = {112: 128, 224: 256}
"""Short side of decoded frames and of the prepared copy, by the size of the view, as in the recipes."""

WARM_UP = 1
NATIVE_RATE = 44100


class Kind(NamedTuple):
    """One kind of file."""

    width: int
    height: int
    fps: int
    codec: str
    gop: int
    audio_codec: str
    extension: str
    options: dict[str, str]


X264 = {"preset": "fast", "crf": "23"}
MEDIA = {
    "h264-256-gop12": Kind(340, 256, 30, "libx264", 12, "aac", "mp4", X264),
    "h264-256-gop250": Kind(340, 256, 30, "libx264", 250, "aac", "mp4", X264),
    "h264-720-gop250": Kind(1280, 720, 30, "libx264", 250, "aac", "mp4", X264),
    "mpeg4-240-gop12": Kind(320, 240, 25, "mpeg4", 12, "libmp3lame", "avi", {"qscale": "4"}),
    "vp9-360-gop128": Kind(
        640, 360, 30, "libvpx-vp9", 128, "libopus", "webm", {"deadline": "realtime", "cpu-used": "8"}
    ),
}


def write_media(folder: Path, kind: Kind, files: int, seconds: float) -> None:
    """Files of a camera that pans over clouds of all sizes, with grain, under coloured noise in stereo."""
    rate = 48000 if kind.audio_codec == "libopus" else NATIVE_RATE
    for seed in range(files):
        rng = np.random.default_rng(seed)
        canvas = draw_clouds(kind.height + 96, kind.width + 96, seed)
        with av.open(str(folder / f"{seed}.{kind.extension}"), "w") as container:
            video: Any = container.add_stream(kind.codec, rate=kind.fps, options=kind.options)
            video.width, video.height, video.pix_fmt = kind.width, kind.height, "yuv420p"
            video.codec_context.gop_size = kind.gop
            audio: Any = container.add_stream(kind.audio_codec, rate=rate, layout="stereo")
            for i in range(round(seconds * kind.fps)):
                picture = av.VideoFrame.from_ndarray(look_at(canvas, kind, i, rng), format="rgb24")
                picture.pts, picture.time_base = i, Fraction(1, kind.fps)
                container.mux(video.encode(picture))
            for start in range(0, round(seconds * rate), 960):
                noise = np.cumsum(rng.standard_normal((2, 960)), 1)
                noise -= noise.mean(1, keepdims=True)
                sound = av.AudioFrame.from_ndarray((0.01 * noise).astype(np.float32), format="fltp")
                sound.sample_rate, sound.pts, sound.time_base = rate, start, Fraction(1, rate)
                for block in av.AudioResampler(format=audio.format, layout="stereo", rate=rate).resample(
                    sound
                ):
                    container.mux(audio.encode(block))
            container.mux(video.encode(None))
            container.mux(audio.encode(None))


def draw_clouds(height: int, width: int, seed: int) -> np.ndarray:
    """Noise of all scales, the finer the weaker, as in pictures: float32 (height, width, 3) in [0, 255]."""
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(1, 3, height, width)
    for scale in (96, 32, 12, 4, 2):
        coarse = torch.randn(1, 3, height // scale + 2, width // scale + 2, generator=generator)
        layer = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        canvas += math.sqrt(scale) * layer
    canvas = 128 + 45 * canvas / canvas.std()
    return canvas.clamp(0, 255)[0].permute(1, 2, 0).numpy()


def look_at(canvas: np.ndarray, kind: Kind, number: int, rng: np.random.Generator) -> np.ndarray:
    """Frame `number`, uint8 (height, width, 3); the scene changes every 4 seconds."""
    seconds, scene = number / kind.fps, number // (4 * kind.fps)
    top, left = round(48 + 47 * math.sin(0.7 * seconds)), round(48 + 47 * math.cos(1.1 * seconds))
    view = canvas[top : top + kind.height, left : left + kind.width]
    grain = rng.integers(-3, 4, (kind.height, kind.width, 1))
    return np.clip(np.roll(view, scene, 2) + grain, 0, 255).astype(np.uint8)


def prepare(source: Path, short_side: int, folder: Path) -> Manifest:
    """A prepared copy, made as a user makes it."""
    command = [sys.executable, "-m", "avssl", "prepare", str(source), str(folder), "--workers", "1"]
    subprocess.run([*command, "--short-side", str(short_side)], check=True, capture_output=True)
    return Manifest.load(folder / "manifest.parquet")


def open_readers(names: Sequence[str]) -> dict[str, ClipReader]:
    """Those of the decoders that can be loaded here."""
    readers = {}
    for name in names:
        try:
            readers[name] = open_reader(name)
        except ConfigError as error:
            print(f"without {name}: {error}")
    return readers


Work = Callable[[list[ClipKey]], object]


def own_works(manifest: Manifest, reader: ClipReader, size: int) -> dict[str, Work]:
    """Whole sample, worker alone, and decoding alone, of the package."""
    video = VideoSpec(NUM_FRAMES, FPS, SHORT_SIDES[size])
    audio = AudioSpec(SOUND_SECONDS, SAMPLE_RATE)
    dataset = ClipDataset(manifest, reader, video, audio, silent="keep")
    spectrogram = LogSpectrogram(SAMPLE_RATE, mean=BIN_MEAN, std=BIN_STD)
    eight_bit, exact = (
        ViewMaker(VideoAugment(size, eight_bit=choice), spectrogram, AudioAugment(0.1))
        for choice in (True, False)
    )

    def read(keys: list[ClipKey]) -> Any:
        batch = collate([dataset[key] for key in keys])
        assert len(batch) == len(keys), batch.failures
        return batch

    def whole(views: ViewMaker, keys: list[ClipKey]) -> None:
        batch = read(keys)
        views(batch.frames, batch.waveform, batch.index)

    def work(keys: list[ClipKey]) -> None:
        PackedFrames.pack(read(keys).frames)  # one buffer, in which they travel to the trainer

    def decode(keys: list[ClipKey]) -> None:
        for key in keys:
            source, sound = manifest.sources(key.row)
            reader.read(source, *dataset.windows(manifest.row(key.row), key), audio_source=sound)

    return {
        "whole sample, 8-bit resize": partial(whole, eight_bit),
        "whole sample, exact resize": partial(whole, exact),
        "worker alone": work,
        "decoding alone": decode,
    }


def official_work(manifest: Manifest, size: int) -> Work:
    """The official procedure on the windows of the package."""
    specs = VideoSpec(NUM_FRAMES, FPS), AudioSpec(SOUND_SECONDS, SAMPLE_RATE)
    dataset = ClipDataset(manifest, open_reader(), *specs)

    def work(keys: list[ClipKey]) -> None:
        samples = []
        for key in keys:
            windows = dataset.windows(manifest.row(key.row), key)
            samples.append(official_sample(str(manifest.path(key.row)), *windows, size))
        for parts in zip(*samples, strict=True):
            torch.stack(parts)

    return work


def measure(works: dict[str, Work], num_rows: int, clips: int, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time a clip, medians of rounds in which all are measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + WARM_UP):
        keys = [ClipKey(round_, i % num_rows, i) for i in range(clips)]
        # In another order each round: none is always the first to read what is new.
        for name, work in random.Random(round_).sample(list(works.items()), len(works)):
            start = time.process_time()
            work(keys)
            if round_ >= WARM_UP:
                times[name].append(1e3 * (time.process_time() - start) / clips)
    return {name: statistics.median(values) for name, values in times.items()}


def bench(args: argparse.Namespace, name: str, size: int, folder: Path) -> None:
    """Measure one kind of file at one size and print the table."""
    files = folder / name
    if not files.exists():
        files.mkdir()
        write_media(files, MEDIA[name], args.files, args.seconds)
    raw = scan(files).manifest
    prepared = prepare(files, SHORT_SIDES[size], folder / f"{name}-{size}")
    works = {"official procedure": official_work(raw, size)}
    for reader_name, reader in open_readers(args.decoder).items():
        for copy, manifest in (("files", raw), ("prepared", prepared)):
            for what, work in own_works(manifest, reader, size).items():
                works[f"{copy:10}{reader_name:12}{what}"] = work
    medians = measure(works, len(raw), args.clips, args.rounds)
    print(
        f"\n{name}, {NUM_FRAMES} x {size} x {size}: clips/s a core, ms a clip, times the official procedure"
    )
    for what, milliseconds in medians.items():
        ratio = medians["official procedure"] / milliseconds
        print(f"{what:50}{1e3 / milliseconds:8.1f} {milliseconds:8.2f} ms {ratio:6.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs="+", default=[112, 224], choices=list(SHORT_SIDES))
    parser.add_argument("--media", nargs="+", default=list(MEDIA), choices=list(MEDIA))
    parser.add_argument("--decoder", nargs="+", default=list(READERS), choices=list(READERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=16, help="clips a round, and a batch")
    parser.add_argument("--files", type=int, default=2, help="files of each kind")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"medians of {args.rounds} rounds of {args.clips} clips, one thread")
    with tempfile.TemporaryDirectory() as folder:
        for size in args.size:
            for name in args.media:
                bench(args, name, size, Path(folder))


if __name__ == "__main__":
    main()
