"""Writing the data set: MP4 files by several processes, then a record that says the set is complete."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from avssl.errors import ManifestError
from avssl.sounding_shapes.cause import FPS, SAMPLE_RATE
from avssl.sounding_shapes.scenes import CLASSES, make_clip

# Raised whenever the same parameters would give other clips, so that old folders are not taken for new ones.
GENERATOR_VERSION = 1
RECORD_NAME = "dataset.json"
PARAMETERS_NAME = "parameters.json"
FILES_PER_TASK = 8


@dataclass(frozen=True)
class Parameters:
    """Everything the files depend on."""

    generator_version: int
    seed: int
    size: int
    num_train: int
    num_test: int
    classes: tuple[str, ...] = CLASSES

    def __post_init__(self) -> None:
        if self.num_train < 1 or self.num_test < 0 or self.seed < 0:
            raise ManifestError(
                f"got num_train={self.num_train}, num_test={self.num_test}, seed={self.seed}; must be "
                "num_train >= 1, num_test >= 0 and seed >= 0; choose other numbers"
            )
        if self.size < 32 or self.size % 2:
            raise ManifestError(f"got size={self.size}; must be even and at least 32 pixels; use 96")

    def files(self, folder: Path) -> Iterator[tuple[Path, str, str, int]]:
        """Path, split, class and number of every file."""
        for split, count in (("train", self.num_train), ("test", self.num_test)):
            for class_name in self.classes:
                for index in range(count):
                    yield folder / split / class_name / f"{index:04d}.mp4", split, class_name, index


def cache_folder(
    root: str | Path, num_train: int = 50, num_test: int = 17, seed: int = 0, size: int = 96
) -> Path:
    """Folder under `root` whose name tells these parameters and the generator version apart from others."""
    name = f"sounding-shapes-v{GENERATOR_VERSION}-seed{seed}-{num_train}+{num_test}-{size}px"
    return Path(root) / name


def write_sounding_shapes(
    folder: str | Path,
    num_train: int = 50,
    num_test: int = 17,
    seed: int = 0,
    workers: int = 2,
    size: int = 96,
    progress: bool | None = None,
) -> Path:
    """Write the data set, complete it, or find it complete and leave it as it is.

    Files lie at ``folder/{train,test}/<class>/<number>.mp4``; ``folder/dataset.json``, written last, says
    that all are there. A clip depends only on the seed, its split, its class and its number.

    Parameters
    ----------
    folder : str or Path
        Where to write; see `cache_folder` for a name that tells parameters apart.
    num_train, num_test : int
        Files of each class in each split.
    seed : int >= 0
        Seed of all clips.
    workers : int
        Processes that draw and encode; 0 does the work in this one. A script that asks for more than 0 must
        guard its top level with ``if __name__ == "__main__"``, as for all spawned processes.
    size : int
        Side of the square frames in pixels, even.
    progress : bool or None
        Show a progress bar; None shows it in a terminal only.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ManifestError
        If the parameters are out of range, or the folder holds a set of other parameters or version.
    """
    folder = Path(folder)
    parameters = Parameters(GENERATOR_VERSION, seed, size, num_train, num_test)
    _check_same_parameters(folder, parameters)
    missing = [file for file in parameters.files(folder) if not file[0].exists()]
    if not missing and (folder / RECORD_NAME).exists():
        return folder
    for parent in {path.parent for path, *_ in parameters.files(folder)}:
        parent.mkdir(parents=True, exist_ok=True)
    _write_record(folder / PARAMETERS_NAME, parameters)
    _write_files(missing, seed, size, workers, progress)
    _write_record(folder / RECORD_NAME, parameters)
    return folder


def _check_same_parameters(folder: Path, parameters: Parameters) -> None:
    """Refuse a folder begun or finished with other parameters, or whose files are of unknown origin."""
    if (folder / "train").exists() and not (folder / PARAMETERS_NAME).exists():
        raise ManifestError(
            f"{folder} has a folder train but no {PARAMETERS_NAME}; sounding shapes must go to a folder of "
            "their own; choose another folder"
        )
    wanted = json.loads(json.dumps(asdict(parameters)))
    for name in (PARAMETERS_NAME, RECORD_NAME):
        path = folder / name
        if not path.exists():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ManifestError(f"{path} is not readable ({error}); remove the folder {folder}") from error
        differing = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
        if differing:
            named = ", ".join(f"{key} {found.get(key)} instead of {wanted[key]}" for key in differing)
            raise ManifestError(
                f"{folder} holds sounding shapes with {named}; a folder must hold one set of parameters; "
                "choose another folder or remove this one"
            )


def _write_record(path: Path, parameters: Parameters) -> None:
    """Write the parameters so that the file is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(parameters), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _write_files(
    files: Sequence[tuple[Path, str, str, int]], seed: int, size: int, workers: int, progress: bool | None
) -> None:
    """Write the given files in this process or in several."""
    tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    shown = sys.stderr.isatty() if progress is None else progress
    bar = partial(track, description="sounding shapes", total=len(tasks), disable=not shown)
    if workers < 1 or len(tasks) < 2:
        for task in bar(tasks):
            write_batch(task, seed, size)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(write_batch, task, seed, size) for task in tasks]
        try:
            for future in bar(as_completed(futures)):
                future.result()
        except BaseException:
            # Leaving the block waits for what is queued, which after a failure or Ctrl-C nobody wants.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_batch(files: Sequence[tuple[Path, str, str, int]], seed: int, size: int) -> None:
    """Draw and encode some files; each appears under its name only when it is whole."""
    for path, split, class_name, index in files:
        frames, waveform = make_clip(seed, split, class_name, index, size)
        # The suffix keeps a file left by a killed process out of every scan for videos.
        temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            encode_mp4(temporary, frames, waveform)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def encode_mp4(path: Path, frames: NDArray[np.uint8], waveform: NDArray[np.float32]) -> None:
    """Encode frames as H.264 and sound as AAC, with a key frame every half second and no B-frames."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.options = {"preset": "ultrafast", "crf": "20", "g": "8", "bf": "0", "sc_threshold": "0"}
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64_000
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        sound = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
