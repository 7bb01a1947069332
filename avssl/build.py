"""From a configuration to objects: the only file that knows both sides.

The dataclasses are the schema of a recipe; their defaults are those of a run on the user's own folder.
Sections typed ``dict`` name a class or hold arguments of a constructor and are checked against its signature.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from avssl.config import build_section, check_arguments
from avssl.data import AudioSpec, EpochSampler, VideoSpec
from avssl.errors import ConfigError
from avssl.models import AudioConvNet, DualEncoder, R2Plus1D, ResNetAudio, TorchvisionVideo
from avssl.objectives import AVID, CMA, Objective
from avssl.optim import OptimizerName, ScheduleName, make_optimizer
from avssl.transforms import AudioAugment, LogSpectrogram, VideoAugment, VideoEval, ViewMaker

VIDEO_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "R2Plus1D": R2Plus1D,
    "TorchvisionVideo": TorchvisionVideo,
}
AUDIO_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "AudioConvNet": AudioConvNet,
    "ResNetAudio": ResNetAudio,
}
OBJECTIVES: dict[str, Callable[..., Objective]] = {"AVID": AVID, "CMA": CMA}

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass
class DataConfig:
    """Which files, and what a clip holds."""

    root: str | None = None  # folder or list of videos, scanned when the run starts
    manifest: str | None = None  # or a manifest that `avssl prepare` wrote
    split: str = "train"
    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.1  # held out by scanning when `root` has no splits
    num_frames: Positive = 8
    fps: PositiveFloat = 16.0
    short_side: Positive | None = 128
    audio_seconds: PositiveFloat = 2.0
    sample_rate: Positive = 24000
    max_offset_seconds: NonNegative = 0.5
    clips_per_sample: Positive = 1  # clips of each file in an epoch
    silent: Literal["skip", "keep"] = "skip"
    max_skipped: Share = 0.05  # share of unreadable files above which the run stops
    decoder: str = "pyav"
    num_workers: Annotated[int, Field(ge=0)] | None = None  # None: by the number of cores


@dataclass
class ViewsConfig:
    """Arguments of `VideoAugment`, `LogSpectrogram` and `AudioAugment`."""

    video: dict[str, Any] = field(default_factory=lambda: {"size": 112})
    spectrogram: dict[str, Any] = field(default_factory=dict)
    audio: dict[str, Any] = field(default_factory=dict)
    # Mean and std of each bin: "auto" computes them when the run starts, else a file of `avssl statistics`.
    statistics: str | None = None


@dataclass
class ModelConfig:
    """Encoders by name and the heads on top of them."""

    video: dict[str, Any] = field(default_factory=lambda: {"name": "R2Plus1D", "depth": 18})
    audio: dict[str, Any] = field(default_factory=lambda: {"name": "AudioConvNet"})
    projection: tuple[int, ...] = (512, 512, 128)
    batch_norm: bool = False


@dataclass
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: OptimizerName = "adam"
    lr: PositiveFloat = 2e-4
    weight_decay: NonNegative = 1e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: ScheduleName = "constant"
    warmup_epochs: NonNegative = 0.0
    milestones: tuple[float, ...] = ()
    gamma: PositiveFloat = 0.1
    clip_grad_norm: PositiveFloat | None = None


@dataclass
class TrainConfig:
    """Length, batch and bookkeeping of a run."""

    epochs: Positive = 100
    # Before the first epoch, passes over the data that fill the memories and train nothing: for a stage that
    # starts from weights whose memories belong to other files.
    memory_warmup_epochs: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=2)] = 64  # clips a step, over all accumulated parts
    accumulate: Positive = 1  # parts a batch is computed in, to save memory
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    threads: Positive | None = None  # of torch on the CPU; None: by the number of cores
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 10  # steps
    checkpoint_minutes: NonNegative = 10.0  # besides the checkpoint after each epoch


@dataclass
class RunConfig:
    """Where a run lives and what it starts from."""

    name: str = "run"
    folder: str = "runs"
    start_from: str | None = None  # run folder or checkpoint of an earlier stage


@dataclass
class Config:
    """One recipe."""

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "AVID"})
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


def build_specs(config: DataConfig) -> tuple[VideoSpec, AudioSpec]:
    """What a clip holds."""
    return (
        VideoSpec(config.num_frames, config.fps, config.short_side),
        AudioSpec(config.audio_seconds, config.sample_rate),
    )


def build_spectrogram(config: Config) -> LogSpectrogram:
    """The audio front end; `views.statistics` plays no part in it."""
    arguments = check_arguments(
        "views.spectrogram", LogSpectrogram, config.views.spectrogram, {"sample_rate"}
    )
    return LogSpectrogram(sample_rate=config.data.sample_rate, **arguments)


def build_views(config: Config, train: bool) -> ViewMaker:
    """Augmenting views for training, plain ones for evaluation.

    Raises
    ------
    ConfigError
        For arguments that do not fit, and while `views.statistics` stands for numbers not there yet.
    """
    if config.views.statistics is not None:
        raise ConfigError(
            f"views.statistics is {config.views.statistics!r}; views need the numbers themselves; put them "
            "in with avssl.statistics.resolve_statistics, or use views.statistics=null"
        )
    video = check_arguments("views.video", VideoAugment, config.views.video)
    audio = check_arguments("views.audio", AudioAugment, config.views.audio)
    front_end = build_spectrogram(config)
    if train:
        return ViewMaker(VideoAugment(**video), front_end, AudioAugment(**audio))
    plain = {key: value for key, value in video.items() if key in ("size", "mean", "std")}
    return ViewMaker(VideoEval(**plain), front_end)


def build_encoders(config: ModelConfig) -> DualEncoder:
    """Both encoders with their heads, freshly initialised."""
    return DualEncoder(
        build_section("model.video", config.video, VIDEO_ENCODERS),
        build_section("model.audio", config.audio, AUDIO_ENCODERS),
        config.projection,
        config.batch_norm,
    )


def build_objective(config: Config, num_instances: int) -> Objective:
    """Build the objective on fresh encoders, for as many instances as the manifest has rows."""
    objective: Objective = build_section(
        "objective",
        config.objective,
        OBJECTIVES,
        encoders=build_encoders(config.model),
        num_instances=num_instances,
    )
    return objective


def build_optimizer(config: OptimConfig, objective: Objective) -> Optimizer:
    """Optimiser over the objective's parameter groups."""
    return make_optimizer(
        config.name, objective.param_groups(), config.lr, config.weight_decay, config.momentum
    )


def epoch_notice(config: Config, num_rows: int) -> str | None:
    """What an epoch means where it is more than one pass over the data; None where it is one.

    Parameters
    ----------
    config : Config
        The recipe; `data.clips_per_sample` passes make an epoch.
    num_rows : int >= 1
        Samples of the training manifest.
    """
    passes, epochs, parts = config.data.clips_per_sample, config.train.epochs, config.train.accumulate
    if passes == 1:
        return None
    sampler = EpochSampler(num_rows, config.train.batch_size // parts, seed=0, epoch=0, repeats=passes)
    steps = epochs * -(-sampler.batches_per_epoch // parts)
    return (
        f"an epoch of this recipe is {passes} passes over {num_rows:,} clips; {epochs} epochs = "
        f"{epochs * passes:,} passes, {steps:,} steps of {sampler.batch_size * parts:,} clips (global)"
    )


def build_device(name: str) -> torch.device:
    """Device by name; ``"auto"`` is the first GPU if there is one.

    Raises
    ------
    ConfigError
        For a name torch does not know, and for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"train.device is {name!r}; must be auto, cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"train.device is {name!r} but torch sees {count} GPUs here; use train.device=auto, or run "
            "`avssl doctor` to see why"
        )
    return device


def share_cores(config: Config, device: torch.device) -> int:
    """Share the cores between torch and the loader; returns the number of workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = device.type == "cpu"
    workers = config.data.num_workers
    if workers is None:
        workers = max(1, cores // 2) if on_cpu else min(cores, 16)
    # Threads that wait for one another in spinning barriers slow down ten-fold when workers take their cores.
    torch.set_num_threads(config.train.threads or (max(1, cores - workers) if on_cpu else cores))
    return workers
