"""Clips a second and core, all back ends side by side: python tools/bench_decode.py [--folder DIR]

Writes its own media (a pan over a detailed picture with grain, 10 s at 30 frames a second, mono or stereo
sound) and reads random clips at 16 frames a second. In every round each column reads the same clip, one after
the other; columns are

- floor: open, seek and decode what the clip needs, without colour conversion, scaling or sound;
- pyav, decord, torchcodec: the readers of this package;
- decord alone, torchcodec alone: the libraries by themselves, one thread, scaling inside, torchcodec with its
  approximate seek. They may return other frames than those on screen.

Times are those of the processor, so another program on the machine disturbs them little. Ratios are medians
over the rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F

from avssl.decode import READERS, open_reader
from avssl.decode.container import open_container, pick_stream, start_seconds
from avssl.decode.decord import load_decord
from avssl.decode.frames import _decode_chosen, shrunk_size
from avssl.decode.packets import find_stretches
from avssl.errors import ConfigError
from avssl.types import AudioWindow, VideoWindow

FILE_FPS, CLIP_FPS = 30, 16


class Media(NamedTuple):
    """A file to write."""

    name: str
    width: int
    height: int
    gop: int
    codec: str = "libx264"
    options: dict[str, str] = {}  # noqa: RUF012
    audio: tuple[str, int, str] | None = ("aac", 44100, "stereo")


X264, X265 = {"preset": "veryfast", "crf": "23"}, {"preset": "ultrafast", "x265-params": "log-level=none"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"}
SMALL_12 = Media("340x256_gop12.mp4", 340, 256, 12, options=X264)
SMALL_250 = Media("340x256_gop250.mp4", 340, 256, 250, options=X264)
LARGE_12 = Media("1280x720_gop12.mp4", 1280, 720, 12, options=X264)
LARGE_250 = Media("1280x720_gop250.mp4", 1280, 720, 250, options=X264)
HEVC = Media("340x256_hevc.mp4", 340, 256, 48, "libx265", X265)
VP9_FILE = Media("340x256_vp9.webm", 340, 256, 48, "libvpx-vp9", VP9, ("libopus", 48000, "stereo"))
PREPARED = Media("170x128_gop12.mp4", 170, 128, 12, options=X264, audio=None)
ROWS = [
    (PREPARED, 8, 112),
    (SMALL_12, 8, 112),
    (SMALL_250, 8, 112),
    (SMALL_12, 32, 224),
    (HEVC, 8, 112),
    (VP9_FILE, 8, 112),
    (LARGE_12, 8, 112),
    (LARGE_250, 8, 112),
]


def scenery(width: int, height: int) -> np.ndarray:
    """A picture with detail at every scale, int16 (2 height, 2 width, 3)."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, 3, 2 * height, 2 * width)
    for octave in range(1, 9):
        noise = torch.rand(1, 3, 2**octave, 2**octave, generator=generator)
        total += F.interpolate(noise, total.shape[2:], mode="bicubic") * 0.72**octave
    total = (total - total.min()) / (total.max() - total.min())
    return (255 * total[0].permute(1, 2, 0)).to(torch.int16).numpy()


def write(media: Media, folder: Path, seconds: float) -> Path:
    """Write a file unless it is there."""
    path = folder / f"{seconds:g}s_{media.name}"
    if path.exists():
        return path
    unfinished = path.with_name(f"part_{path.name}")
    rng = np.random.default_rng(0)
    width, height, picture = media.width, media.height, scenery(media.width, media.height)
    grain = rng.integers(-4, 5, (2 * height, 2 * width, 1), np.int16)
    with av.open(str(unfinished), "w") as container:
        video: Any = container.add_stream(media.codec, rate=FILE_FPS, options=media.options)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.gop_size = media.gop
        sound: Any = media.audio and container.add_stream(
            media.audio[0], rate=media.audio[1], layout=media.audio[2]
        )
        for n in range(round(seconds * FILE_FPS)):
            x, y = round((np.sin(n / 40) + 1) / 2 * width), round((np.cos(n / 29) + 1) / 2 * height)
            gx, gy = rng.integers(0, width), rng.integers(0, height)
            view = picture[y : y + height, x : x + width] + grain[gy : gy + height, gx : gx + width]
            frame = av.VideoFrame.from_ndarray(view.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FILE_FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if media.audio:
            write_sound(container, sound, media.audio[1], seconds)
    unfinished.rename(path)
    return path


def write_sound(container: Any, stream: Any, sample_rate: int, seconds: float, channels: int = 2) -> None:
    """A tone in some noise."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    noise = 0.05 * np.random.default_rng(0).standard_normal(len(t))
    samples = (0.3 * np.sin(2 * np.pi * 440 * t) + noise).astype(np.float32)
    for start in range(0, len(samples), 1024):
        block = np.repeat(samples[None, start : start + 1024], channels, 0)
        layout = "stereo" if channels == 2 else "mono"
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


class Nowhere:
    """Takes frames and does nothing with them."""

    def take(self, frame: Any, chosen: list[int], time: int) -> None:
        """Drop a frame."""


def floor(path: Path, window: VideoWindow) -> None:
    """What no reader can do without."""
    with open_container(path, quick=True) as container:
        stream = pick_stream(container, "video")
        stretch = next(find_stretches(container, stream, window, start_seconds(container)))
        if not _decode_chosen(stream.codec_context, stretch, Nowhere()):  # type: ignore[arg-type,union-attr]
            raise RuntimeError(f"{path}: the floor could not decode its frames")


def times_of(window: VideoWindow) -> np.ndarray:
    return window.start_seconds + np.arange(window.num_frames) / window.fps + 1e-6


def size_of(media: Media, window: VideoWindow) -> tuple[int, int]:
    return shrunk_size(media.width, media.height, window.short_side)


def decord_alone(path: Path, media: Media, window: VideoWindow) -> Any:
    width, height = size_of(media, window)
    reader = load_decord().VideoReader(str(path), width=width, height=height, num_threads=1)
    last = len(reader) - 1
    return reader.get_batch(np.minimum(times_of(window) * FILE_FPS, last).astype(int).tolist()).asnumpy()


def torchcodec_alone(path: Path, media: Media, window: VideoWindow) -> Any:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    resize = [Resize(size_of(media, window)[::-1])]
    decoder = VideoDecoder(path, dimension_order="NHWC", seek_mode="approximate", transforms=resize)
    return decoder.get_frames_played_at(times_of(window).tolist()).data


def columns(media: Media) -> dict[str, Callable[[Path, VideoWindow], Any]]:
    """What reads a clip, by name; libraries that are missing are left out."""
    found: dict[str, Callable[[Path, VideoWindow], Any]] = {"floor": floor}
    for name in READERS:
        try:
            found[name] = open_reader(name).read
        except ConfigError as error:
            print(error)
    if "decord" in found:
        found["decord alone"] = lambda path, window: decord_alone(path, media, window)
    if "torchcodec" in found:
        found["torchcodec alone"] = lambda path, window: torchcodec_alone(path, media, window)
    return found


def processor_ms(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def measure(works: dict[str, Callable[[Any], Any]], windows: list[Any]) -> dict[str, list[float]]:
    """Milliseconds of each work for each window, interleaved; the first window only warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_, window in enumerate(windows):
        for name, work in works.items():
            elapsed = processor_ms(lambda work=work, window=window: work(window))  # type: ignore[misc]
            if round_:
                times[name].append(elapsed)
    return times


def print_row(title: str, times: dict[str, list[float]]) -> None:
    """Milliseconds, clips a second, and the ratio of each time to the first column's."""
    first = next(iter(times.values()))
    print(title)
    for name, values in times.items():
        ms = statistics.median(values)
        ratio = statistics.median([value / base for value, base in zip(values, first, strict=True)])
        print(f"    {name:18}{ms:9.2f} ms {1e3 / ms:8.1f} clips/s {ratio:7.2f}x")


def bench_frames(folder: Path, seconds: float, rounds: int) -> None:
    for media, num_frames, short_side in ROWS:
        path = write(media, folder, seconds)
        starts = np.random.default_rng(1).uniform(0, seconds - num_frames / CLIP_FPS, rounds + 1)
        windows = [VideoWindow(start, num_frames, CLIP_FPS, short_side) for start in starts]
        works = {
            name: lambda window, read=read: read(path, window)  # noqa: B023
            for name, read in columns(media).items()
        }
        title = f"{media.name}: {num_frames} frames to short side {short_side}"
        print_row(title, measure(works, windows))


def bench_sound(folder: Path, seconds: float, rounds: int) -> None:
    """2 s at 24 kHz, from the AAC of a video and from a WAVE file as prepared shards hold it."""
    wave = folder / f"{seconds:g}s_24k.wav"
    if not wave.exists():
        with av.open(str(wave), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=24000, layout="mono")
            write_sound(container, stream, 24000, seconds, channels=1)
    read = open_reader("pyav").read
    sources = {"AAC, 44.1 kHz stereo": write(SMALL_12, folder, seconds), "WAVE, 24 kHz mono": wave}
    starts = np.random.default_rng(2).uniform(0, seconds - 2.0, 4 * rounds + 1)
    works = {
        name: lambda window, path=path: read(path, audio=window)  # type: ignore[misc]
        for name, path in sources.items()
    }
    print_row("2 s of sound at 24 kHz", measure(works, [AudioWindow(start, 2.0, 24000) for start in starts]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", help="where the media lie, and stay; by default they are removed")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the files")
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        load = os.getloadavg()[0]
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}; medians of {args.rounds} rounds"
        )
        bench_frames(folder, args.seconds, args.rounds)
        bench_sound(folder, args.seconds, args.rounds)


if __name__ == "__main__":
    main()
