"""From a configuration to objects: the only file that knows both sides.

Sections of a recipe that name a class or hold arguments of a constructor are checked against its signature.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avssl import dist
from avssl.config import blaming, build_section, check_arguments, resolve_section
from avssl.data import AudioSpec, EpochSampler, VideoSpec
from avssl.errors import ConfigError
from avssl.models import (
    AudioConvNet,
    DualEncoder,
    R2Plus1D,
    RegNetY,
    ResNetAudio,
    ResNetImage,
    TorchvisionVideo,
    VisualEncoder,
)
from avssl.objectives import AVID, BYOL, CMA, BarlowTwins, Joint, Objective, SimSiam, SwAV
from avssl.optim import make_optimizer, scaled_lr
from avssl.schema import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, ViewsConfig
from avssl.transforms import (
    AudioAugment,
    CropSpec,
    LogSpectrogram,
    MultiView,
    VideoAugment,
    VideoEval,
    ViewMaker,
    make_views,
)

__all__ = [
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "ViewsConfig",
    "build_device",
    "build_encoders",
    "build_objective",
    "build_optimizer",
    "build_specs",
    "build_spectrogram",
    "build_views",
    "epoch_notice",
    "learning_rate",
    "share_cores",
]

VIDEO_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "R2Plus1D": R2Plus1D,
    "TorchvisionVideo": TorchvisionVideo,
    "ResNetImage": ResNetImage,
    "RegNetY": RegNetY,
}
AUDIO_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "AudioConvNet": AudioConvNet,
    "ResNetAudio": ResNetAudio,
}
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "AVID": AVID,
    "CMA": CMA,
    "SwAV": SwAV,
    "BYOL": BYOL,
    "SimSiam": SimSiam,
    "BarlowTwins": BarlowTwins,
}
DEFAULT_LR = 2e-4
"""Learning rate of a recipe that gives none: that of AVID's release for Kinetics-400."""


def build_specs(config: Config) -> tuple[VideoSpec, AudioSpec | None]:
    """What a clip holds; no sound for a model without an audio encoder."""
    data = config.data
    audio = None if config.model.audio is None else AudioSpec(data.audio_seconds, data.sample_rate)
    return VideoSpec(data.num_frames, data.fps, data.short_side), audio


def build_spectrogram(config: Config) -> LogSpectrogram:
    """The audio front end; `views.statistics` plays no part in it."""
    arguments = check_arguments(
        "views.spectrogram", LogSpectrogram, config.views.spectrogram, {"sample_rate"}
    )
    with blaming("views.spectrogram", config.views.spectrogram):
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
    plain = {key: value for key, value in video.items() if key in ("size", "mean", "std")}
    audio = check_arguments("views.audio", AudioAugment, config.views.audio)
    front_end = None if config.model.audio is None else build_spectrogram(config)
    if not train:
        with blaming("views.video", config.views.video):
            return ViewMaker(VideoEval(**plain), front_end)
    if config.views.crops:
        look: MultiView | VideoAugment = _build_crops(config, plain)
    else:
        with blaming("views.video", config.views.video):
            look = VideoAugment(**video)
    with blaming("views.audio", config.views.audio):
        return ViewMaker(look, front_end, None if front_end is None else AudioAugment(**audio))


def _build_crops(config: Config, plain: dict[str, Any]) -> MultiView:
    """The views of `views.crops`, normalised as `views.video` says."""
    surplus = sorted(set(config.views.video) - set(plain))
    if surplus:
        raise ConfigError(
            f"views.video.{surplus[0]} does nothing beside views.crops, which say how each view is made; "
            "move it there"
        )
    crops = [
        CropSpec(**check_arguments(f"views.crops[{i}]", CropSpec, entry))
        for i, entry in enumerate(config.views.crops)
    ]
    size = plain.pop("size")
    if size != crops[0].size:
        raise ConfigError(
            f"views.video.size is {size} and views.crops[0].size {crops[0].size}; evaluation looks at what "
            "training saw: make them equal"
        )
    return MultiView(make_views(crops, **plain))


def build_encoders(config: ModelConfig) -> DualEncoder | VisualEncoder:
    """The encoders with, for both modalities, their heads; freshly initialised."""
    video = build_section("model.video", config.video, VIDEO_ENCODERS)
    if config.audio is None:
        return VisualEncoder(video)
    audio = build_section("model.audio", config.audio, AUDIO_ENCODERS)
    return DualEncoder(video, audio, config.projection, config.batch_norm)


def build_objective(config: Config, num_instances: int) -> Objective:
    """Build the objective on fresh encoders, for as many instances as the manifest has rows."""
    encoders = build_encoders(config.model)
    if config.objective.get("name") != "Joint":
        return _build_part("objective", config.objective, encoders, num_instances)
    _, arguments = resolve_section("objective", config.objective, {"Joint": JointSection})
    parts = {}
    for key, section in arguments["parts"].items():
        parts[key] = _build_part(f"objective.parts.{key}", section, encoders, num_instances)
    try:
        return Joint(encoders, parts, arguments.get("weights", {}), arguments.get("end_weights", {}))
    except ValueError as error:
        raise ConfigError(f"objective: {error}") from error


@dataclass
class JointSection:
    """Arguments of ``objective: {name: Joint, ...}``.

    Parameters
    ----------
    parts : dict
        Objectives by a name of the recipe's choice, each a section with a ``name`` of its own.
    weights, end_weights : dict
        Weight of each part (1 where it is not named), and its weight at the end of training, approached
        linearly (the same where it is not named).
    """

    parts: dict[str, dict[str, Any]]
    weights: dict[str, float] = field(default_factory=dict)
    end_weights: dict[str, float] = field(default_factory=dict)


def _build_part(
    where: str, section: Mapping[str, Any], encoders: DualEncoder | VisualEncoder, num_instances: int
) -> Objective:
    """One objective; only those that remember instances are told how many there are."""
    target, _ = resolve_section(where, section, OBJECTIVES, {"encoders", "num_instances"})
    provided: dict[str, Any] = {"encoders": encoders}
    if "num_instances" in inspect.signature(target).parameters:
        provided["num_instances"] = num_instances
    if getattr(target, "needs_audio", False) and encoders.audio is None:
        raise ConfigError(
            f"{where}.name is {section.get('name')}, which learns from sound, but model.audio is null; give "
            "model.audio, or choose a visual objective"
        )
    objective: Objective = build_section(where, section, OBJECTIVES, **provided)
    return objective


def build_optimizer(config: OptimConfig, objective: Objective, batch_size: int) -> Optimizer:
    """Optimiser over the objective's parameter groups."""
    lr = learning_rate(config, batch_size)
    return make_optimizer(config.name, objective.param_groups(), lr, config.weight_decay, config.momentum)


def learning_rate(config: OptimConfig, batch_size: int) -> float:
    """Base learning rate: `lr`, or `lr_per_256` in proportion to the batch.

    Raises
    ------
    ConfigError
        When both are given: recipes inherit, so neither may overrule the other in silence.
    """
    if config.lr_per_256 is None:
        return DEFAULT_LR if config.lr is None else config.lr
    if config.lr is not None:
        raise ConfigError(
            f"optim.lr is {config.lr:g} and optim.lr_per_256 {config.lr_per_256:g}; only one of them can set "
            "the learning rate; to use lr add optim.lr_per_256=null, to use lr_per_256 add optim.lr=null"
        )
    return scaled_lr(config.lr_per_256, batch_size)


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
    """Share the cores, or this process's part of them, between torch and loader; returns the workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // dist.local_world_size())
    on_cpu = device.type == "cpu"
    workers = config.data.num_workers
    if workers is None:
        workers = max(1, cores // 2) if on_cpu else min(cores, 16)
    # Threads that wait for one another in spinning barriers slow down ten-fold when workers take their cores.
    torch.set_num_threads(config.train.threads or (max(1, cores - workers) if on_cpu else cores))
    return workers
