"""The schema of a recipe: dataclasses whose defaults are those of a run on the user's own folder.

Sections typed ``dict`` name a class or hold arguments of a constructor; `avssl.build` checks them against its
signature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from avssl.optim import OptimizerName, ScheduleName
from avssl.types import DecoderName

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
    # What `train.held_out_every` measures: a manifest; None: split "val" of the run's own, else "test".
    held_out: str | None = None
    num_frames: Positive = 8
    fps: PositiveFloat = 16.0
    short_side: Positive | None = 128
    audio_seconds: PositiveFloat = 2.0
    sample_rate: Positive = 24000
    max_offset_seconds: NonNegative = 0.5
    clips_per_sample: Positive = 1  # clips of each file in an epoch
    silent: Literal["skip", "keep"] = "skip"
    # Files without sound where the model hears: left out, with silence in its place (silent=keep as well), or
    # for the visual parts of a Joint objective alone.
    without_audio: Literal["drop", "silence", "video_only"] = "drop"
    max_skipped: Share = 0.05  # share of unreadable files above which the run stops
    decoder: DecoderName = "pyav"
    num_workers: Annotated[int, Field(ge=0)] | None = None  # None: by the number of cores
    stall_seconds: PositiveFloat = 300.0  # for one clip; a process that reads longer is ended


@dataclass
class ViewsConfig:
    """Arguments of `VideoAugment`, `LogSpectrogram` and `AudioAugment`."""

    video: dict[str, Any] = field(default_factory=lambda: {"size": 112})
    # Views of the image methods, each entry the arguments of a `CropSpec`; the first is the one AVID sees. Of
    # `video` only size (in evaluation), mean and std count then.
    crops: list[dict[str, Any]] = field(default_factory=list)
    spectrogram: dict[str, Any] = field(default_factory=dict)
    audio: dict[str, Any] = field(default_factory=dict)
    # Mean and std of each bin: "auto" computes them when the run starts, else a file of `avssl statistics`.
    statistics: str | None = None


@dataclass
class ModelConfig:
    """Encoders by name and the heads on top of them."""

    video: dict[str, Any] = field(default_factory=lambda: {"name": "R2Plus1D", "depth": 18})
    audio: dict[str, Any] | None = field(
        default_factory=lambda: {"name": "AudioConvNet"}
    )  # None: video alone
    projection: tuple[int, ...] = (512, 512, 128)
    batch_norm: bool = False


@dataclass
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: OptimizerName = "adam"
    lr: PositiveFloat | None = None  # None: 2e-4, unless lr_per_256 is given
    lr_per_256: PositiveFloat | None = None  # in its place: lr of a batch of 256, grows with the batch
    weight_decay: NonNegative = 1e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: ScheduleName = "constant"
    warmup_epochs: NonNegative = 0.0
    warmup_start: Share = 0.0  # of lr, where the warm-up begins
    end_factor: Share = 0.0  # of lr, where the cosine ends
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
    # With several processes, which share each batch: whether batch norms of the trunks count the clips of all
    # of them. None is as the method's release: true for the image methods, false for AVID and CMA.
    sync_batchnorm: bool | None = None
    # "full" spreads parameters, gradients and optimiser over them, for networks that do not fit (FSDP).
    sharding: Literal["none", "full"] = "none"
    threads: Positive | None = None  # of torch on the CPU; None: by the number of cores
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 10  # steps
    held_out_every: Annotated[int, Field(ge=0)] = 0  # steps between measurements on held-out data; 0: never
    checkpoint_minutes: NonNegative = 10.0  # besides the checkpoint after each epoch
    keep_last: Positive = 2  # newest checkpoints that are kept
    keep_every: Positive | None = None  # epochs: those after so many are kept for good
    # Name of a logged number: the checkpoint at its best value (the lowest, if it is a loss) is kept too.
    keep_best: str | None = None
    # A loss or gradient that is not finite ends the run, or its step is left out, or the rate halved as well.
    nonfinite: Literal["stop", "skip", "back_off"] = "stop"
    deterministic: bool = False  # on a GPU too: the same numbers in each run, more slowly
    # Layout of the trunks in memory, channels last or first; None: last, see docs/scale.md for what it gains.
    channels_last: bool | None = None
    compile: bool = False  # compile the trunks when training starts, which takes minutes


@dataclass
class RunConfig:
    """Where a run lives and what it starts from."""

    name: str = "run"
    folder: str = "runs"
    start_from: str | None = None  # run folder or checkpoint of an earlier stage
    wandb: Annotated[str, Field(min_length=1)] | None = None  # project on Weights & Biases that gets the log


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
