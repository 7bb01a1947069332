"""Mean and standard deviation of each spectrogram bin, from the user's own data.

The official release normalises by numbers stored with it, which fit its data, sample rate and two lengths of
the transform. Here they are computed from the clips a run reads first, and kept beside the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from avssl import __version__
from avssl.build import Config, build_specs, build_spectrogram, share_cores
from avssl.checkpoint import FILE_NAME as CHECKPOINT
from avssl.data import BatchKey, ClipDataset, ClipKey, EpochSampler, Failure, Manifest, make_loader
from avssl.decode import open_reader
from avssl.errors import ConfigError, ManifestError
from avssl.files import write_json
from avssl.transforms import spectrogram_statistics
from avssl.types import Progress

FILE_NAME = "statistics.json"
AUTO_CLIPS = 2000
"""Clips ``views.statistics: auto`` reads: enough to know a mean to std / sqrt(2000) or better, 0.5 dB."""
DIGITS = 5
MIN_STD = 0.01
"""Least std in decibels: below it, division would magnify the rounding of the mean to `DIGITS` digits."""
BATCH_SIZE = 32


@dataclass(frozen=True)
class Statistics:
    """What ``statistics.json`` holds.

    Parameters
    ----------
    mean, std : list of float
        One a bin, in decibels, rounded to five significant digits; std at least 0.01.
    num_clips, num_frames : int
        How many clips and spectrogram frames they come from.
    front_end : dict
        The parameters that decide what a bin is and how loud it can be, see `front_end`.
    manifest_hash : str
        Data they come from.
    skipped : list of dict
        ``id``, ``path``, ``stage`` and ``reason`` of each clip that could not be read.
    avssl_version : str
        Package that wrote the file.
    """

    mean: list[float]
    std: list[float]
    num_clips: int
    num_frames: int
    front_end: dict[str, Any]
    manifest_hash: str
    skipped: list[dict[str, str]]
    avssl_version: str = __version__

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file that `save` wrote.

        Raises
        ------
        ConfigError
            When it is missing, damaged or another kind of file.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(
                f"views.statistics: {path}: no such file; make it with `avssl statistics RECIPE -o {path}`, "
                "or use views.statistics=auto"
            )
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
            raise ConfigError(
                f"{path}: not spectrogram statistics ({what}); make it again with `avssl statistics`"
            ) from error

    def check_front_end(self, config: Config, source: Path, remedy: str) -> None:
        """Raise `ConfigError` when the numbers belong to another front end than that of the recipe."""
        for name, value in front_end(config).items():
            stored = self.front_end.get(name)
            if stored != value:
                raise ConfigError(
                    f"{source}: computed with {name} {stored!r}, but the recipe has {value!r}; both must be "
                    f"the same; {remedy}"
                )


def front_end(config: Config) -> dict[str, Any]:
    """Parameters of the audio front end that the statistics depend on."""
    spectrogram = build_spectrogram(_without_numbers(config))
    return {
        "sample_rate": spectrogram.sample_rate,
        "n_fft": spectrogram.n_fft,
        "hop_seconds": spectrogram.hop_length / spectrogram.sample_rate,
        "bins": spectrogram.bins,
        "num_mels": spectrogram.num_bins if spectrogram.bins == "mel" else None,
        "top_db": spectrogram.top_db,
        "pad_mode": spectrogram.pad_mode,
        "duration_seconds": config.data.audio_seconds,
    }


def compute_statistics(
    config: Config, manifest: Manifest, max_clips: int | None = None, progress: Progress | None = None
) -> Statistics:
    """Statistics of the first clips of epoch 0, one a sample; no video is decoded.

    The result is a function of recipe and data alone. Clips that cannot be read, and silent ones where
    `data.silent` is "skip", are left out and listed.

    Parameters
    ----------
    config : Config
        The recipe; a mean and std that it has already play no part.
    manifest : Manifest
        The samples the training reads.
    max_clips : int >= 1, optional
        At most so many samples, in the order of epoch 0; None reads all.
    progress : Progress, optional
        Told of each batch.

    Raises
    ------
    ManifestError
        When none of the clips could be read.
    """
    keys = _first_clips(config, len(manifest), max_clips)
    skipped: list[Failure] = []
    spectrogram = build_spectrogram(_without_numbers(config))
    mean, std = spectrogram_statistics(spectrogram, _waveforms(config, manifest, keys, skipped, progress))
    num_clips = len(keys) - len(skipped)
    _, audio = build_specs(config)
    assert audio is not None  # `_waveforms` has refused a recipe without sound
    return Statistics(
        mean=_rounded(mean),
        std=_rounded(std.clamp_min(MIN_STD)),
        num_clips=num_clips,
        num_frames=num_clips * spectrogram.num_frames(audio.window(0.0).num_samples),
        front_end=front_end(config),
        manifest_hash=manifest.hash,
        skipped=[{"id": f.id, "path": f.path, "stage": f.stage, "reason": f.reason} for f in skipped],
    )


def resolve_statistics(
    config: Config, manifest: Manifest, folder: Path, start_progress: Callable[[str, int, int], Any]
) -> Config:
    """Put the numbers `views.statistics` stands for into `views.spectrogram`.

    A run that goes on (its folder holds a checkpoint) takes the numbers of its own ``statistics.json``. A new
    run computes them from at most 2,000 clips ("auto"), takes those of the stage it starts from, whose
    encoders know no others, or reads the file that is named; either way they are kept in its folder.

    Parameters
    ----------
    config : Config
        The recipe; returned as it is when `views.statistics` is None.
    manifest : Manifest
        The samples the training reads.
    folder : Path
        Run folder.
    start_progress : callable
        ``start_progress(description, total, completed)`` gives a context manager of a `Progress`.

    Returns
    -------
    Config
        With lists `views.spectrogram.mean` and `std`, and `views.statistics` None.

    Raises
    ------
    ConfigError
        When the recipe gives mean or std besides, or the numbers belong to another front end.
    ManifestError
        When not one clip could be read.
    """
    wanted = config.views.statistics
    if wanted is None:
        return config
    given = [name for name in ("mean", "std") if config.views.spectrogram.get(name) is not None]
    if given:
        raise ConfigError(
            f"views.statistics is {wanted!r} and views.spectrogram.{given[0]} is given too; give one of "
            "them: remove the numbers from the recipe, or use views.statistics=null"
        )
    saved = folder / FILE_NAME
    resumes = (folder / CHECKPOINT).exists() and saved.exists()
    if resumes:
        statistics = Statistics.load(saved)
        statistics.check_front_end(config, saved, "choose another name with run.name=, or give --restart")
    elif wanted == "auto" and (earlier := _of_earlier_stage(config)) is not None:
        statistics = Statistics.load(earlier)
        remedy = "use the same front end in both stages, or statistics of its own: views.statistics=FILE"
        statistics.check_front_end(config, earlier, remedy)
    elif wanted == "auto":
        with start_progress("statistics", min(len(manifest), AUTO_CLIPS), 0) as progress:
            statistics = compute_statistics(config, manifest, AUTO_CLIPS, progress)
    else:
        statistics = Statistics.load(wanted)
        remedy = "compute it again with `avssl statistics`, or use views.statistics=auto"
        statistics.check_front_end(config, Path(wanted), remedy)
    if not resumes:
        statistics.save(saved)
    spectrogram = copy(config.views.spectrogram)
    spectrogram.update(mean=statistics.mean, std=statistics.std)
    return replace(config, views=replace(config.views, spectrogram=spectrogram, statistics=None))


def _of_earlier_stage(config: Config) -> Path | None:
    """Numbers the encoders of an earlier stage were trained with; they go on seeing sound through these."""
    if config.run.start_from is None:
        return None
    place = Path(config.run.start_from)
    saved = (place if place.is_dir() else place.parent) / FILE_NAME
    return saved if saved.is_file() else None


def _first_clips(config: Config, num_rows: int, max_clips: int | None) -> list[ClipKey]:
    """First pass of the training over the data, cut to `max_clips`."""
    sampler = EpochSampler(num_rows, BATCH_SIZE, config.train.seed, epoch=0, drop_last=False)
    return [key for batch in sampler for key in batch.keys][:max_clips]


def _waveforms(
    config: Config,
    manifest: Manifest,
    keys: list[ClipKey],
    skipped: list[Failure],
    progress: Progress | None,
) -> Iterator[Tensor]:
    """Batches of waveforms; enters in `skipped` what could not be had."""
    # Sound is drawn before video, so that leaving out the video changes no window of the sound.
    _, audio = build_specs(config)
    if audio is None:
        raise ConfigError(
            "model.audio is null, so there are no spectrograms to take statistics of; give model.audio or "
            "leave views.statistics null"
        )
    dataset = ClipDataset(
        manifest,
        open_reader(config.data.decoder),
        None,
        audio,
        seed=config.train.seed,
        max_offset_seconds=config.data.max_offset_seconds,
        silent=config.data.silent,
    )
    starts = range(0, len(keys), BATCH_SIZE)
    batches = [BatchKey(0, i, tuple(keys[start : start + BATCH_SIZE])) for i, start in enumerate(starts)]
    workers = share_cores(config, torch.device("cpu"))
    done = 0
    stall_seconds = config.data.stall_seconds
    for batch in make_loader(dataset, batches, num_workers=workers, stall_seconds=stall_seconds):
        skipped += batch.failures
        done += len(batch) + len(batch.failures)
        if progress is not None:
            progress.update(done, total=len(keys), skipped=len(skipped))
        if batch.waveform is not None:
            yield batch.waveform
    if len(skipped) == len(keys):
        first = skipped[0]
        raise ManifestError(
            f"spectrogram statistics need at least one clip; none of {len(keys)} could be read, the first: "
            f"{first.path}: {first.stage}: {first.reason}; repair the files or leave them out"
        )


def _without_numbers(config: Config) -> Config:
    """The recipe with a front end that gives decibels."""
    spectrogram = copy(config.views.spectrogram)
    for name in ("mean", "std"):
        spectrogram.pop(name, None)
    return replace(config, views=replace(config.views, spectrogram=spectrogram))


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
