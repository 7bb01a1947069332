"""The checkpoint layout of the release of AVID and AVID + CMA (facebookresearch/AVID-CMA), both ways.

A released file is ``{"epoch", "model", "optimizer", "train_criterion"}``: the networks under ``module.*``,
and the criterion with both memories, the constant Z (-1 while not estimated) and, for CMA, the positive sets.
It holds no recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from avssl import __version__
from avssl.build import Config, DataConfig, ModelConfig, RunConfig, ViewsConfig, build_encoders
from avssl.config import config_from_dict, config_to_dict
from avssl.errors import CheckpointError, ConfigError
from avssl.files import atomic_write
from avssl.models import DualEncoder, from_official, to_official
from avssl.models.official import (
    OfficialArchitecture,
    check_official,
    complaint,
    infer_architecture,
    with_wrapper,
    without_wrapper,
)
from avssl.objectives import memory_state

Variant = Literal["released", "small"]
DECIBELS_MEAN, DECIBELS_STD = -28.5, 19.7
"""Averages over the 257 bins of the statistics that the release keeps in a file of their own."""

_VIDEO, _AUDIO, _Z = "nce_average.view1_mem", "nce_average.view2_mem", "criterion.avg_exp_score"
_POSITIVES = "nce_average.positive_set"
_Z_SHAPE = "official_z_shape"  # () or (1,), by how the release was run; kept to give back what was read


def from_release(content: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """State of this package from the content of an official file; see `read_checkpoint`.

    Raises
    ------
    CheckpointError
        When keys are missing, unexpected or misshapen.
    ConfigError
        For another variant.
    """
    if variant not in get_args(Variant):
        raise ConfigError(f"variant is {variant!r}; must be one of {', '.join(get_args(Variant))}")
    model, criterion, epoch = content["model"], content.get("train_criterion", {}), content.get("epoch", 0)
    if not isinstance(criterion, Mapping) or not isinstance(epoch, int):
        raise CheckpointError(
            f"train_criterion is a {type(criterion).__name__} and epoch is {epoch!r}; must be a dictionary "
            "and a whole number; give an untouched official file"
        )
    criterion = without_wrapper(criterion)
    wrong = [str(key) for key, value in {**model, **criterion}.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{complaint('without a tensor', wrong)}; give an untouched official file")
    architecture = infer_architecture(model)
    memories = _from_criterion(criterion, architecture.projection[-1])
    config = _paper_config(architecture, variant, memories.get("positive_set"))
    check_official(model, _without_weights(config.model))
    encoders = {f"encoders.{key}": value for key, value in from_official(model).items()}
    return {
        "avssl_version": __version__,
        "objective": encoders | memories,
        "optimizer": content.get("optimizer", {}),
        "config": config_to_dict(config),
        "manifest_hash": "",
        "position": {"epoch": epoch},
        "source": f"official {config.objective['name']}",
        _Z_SHAPE: list(criterion[_Z].shape) if _Z in criterion else [],
    }


def export_official(state: Mapping[str, Any], path: str | Path) -> list[str]:
    """Write a checkpoint in the layout of the release, whole or not at all.

    It is stored as PyTorch did before 1.6, which the release's own environment can read.

    Parameters
    ----------
    state : mapping
        As `read_checkpoint` returns it.
    path : str or Path
        Target, usually named ``*.pth.tar``.

    Returns
    -------
    list of str
        What the file does not carry.

    Raises
    ------
    CheckpointError
        For networks the release cannot build; nothing is written.
    """
    config = config_from_dict(state["config"], Config, "checkpoint")
    _refuse_other_networks(config.model)
    objective, prefix = state["objective"], "encoders."
    weights = to_official({k.removeprefix(prefix): v for k, v in objective.items() if k.startswith(prefix)})
    networks = _without_weights(config.model)
    check_official(weights, networks)
    optimizer, criterion = _adam_state(state, config, networks), _to_criterion(state)
    content = {
        "epoch": int(state["position"]["epoch"]),
        "model": with_wrapper(weights),
        "optimizer": optimizer,
        "train_criterion": criterion,
    }
    with atomic_write(Path(path)) as file:
        torch.save(content, file, _use_new_zipfile_serialization=False)
    unseen = int((~objective["bank.seen"]).sum()) if criterion else 0
    notes = {
        "the optimiser's state, which is not that of Adam over all weights": not optimizer,
        "memories, which this checkpoint does not have": not criterion,
        f"a mark on the {unseen} memories of files that were never read, which are random": unseen > 0,
        "positive sets, since some instances have fewer than the others": "positive_set" in objective
        and _POSITIVES not in criterion,
        # Read back, the file is taken for one of the paper's clips.
        "the recipe: length and size of clips and the spectrogram's statistics": "source" not in state,
    }
    return [note for note, holds in notes.items() if holds]


def _paper_config(architecture: OfficialArchitecture, variant: Variant, positives: Tensor | None) -> Config:
    """Clip format and terms of the paper around the networks of a file; the rest is defaults."""
    small = variant == "small"
    size, n_fft, hop_seconds = (112, 512, 0.02) if small else (224, 1024, 0.01)
    video = {"name": "R2Plus1D", "depth": architecture.depth, "width": architecture.video_width}
    audio = {"name": "AudioConvNet", "width": architecture.audio_width}
    objective: dict[str, Any] = {"name": "AVID", "num_negatives": 1024}
    if positives is not None:
        # Released CMA goes on with AVID's Z.
        objective |= {"name": "CMA", "num_positives": positives.shape[1], "partition": "first_batch"}
    return Config(
        data=DataConfig(
            num_frames=8, fps=16.0, short_side=int(size / 0.875), audio_seconds=2.0, sample_rate=24000
        ),
        views=ViewsConfig(
            video={"size": size},
            spectrogram={
                "n_fft": n_fft,
                "hop_seconds": hop_seconds,
                "bins": "paired",
                "pad_mode": "reflect",
                "mean": DECIBELS_MEAN,
                "std": DECIBELS_STD,
            },
        ),
        model=ModelConfig(
            video=video | ({"stem_pool": False} if small else {}),
            audio=audio | ({"first_stride": 1} if small else {}),
            projection=architecture.projection,
        ),
        objective=objective,
        run=RunConfig(name=f"official_{objective['name'].lower()}"),
    )


def _without_weights(config: ModelConfig) -> DualEncoder:
    """Networks that have shapes only: quick, and no random number is drawn."""
    with torch.device("meta"):
        networks = build_encoders(config)
    assert isinstance(networks, DualEncoder)  # `_refuse_other_networks` or the file itself has seen to that
    return networks


def _from_criterion(criterion: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """Memories, Z and positive sets under the names of this package; empty of an empty criterion."""
    if not criterion:
        return {}
    needed = (_VIDEO, _AUDIO, _Z)
    complaints = [
        complaint("missing", [key for key in needed if key not in criterion]),
        complaint("unexpected", [key for key in criterion if key not in (*needed, _POSITIVES)]),
    ]
    rows = len(criterion[_VIDEO]) if _VIDEO in criterion and criterion[_VIDEO].ndim == 2 else 0
    fits = {
        _VIDEO: lambda x: x.shape == (rows, dim) and rows >= 2,
        _AUDIO: lambda x: x.shape == (rows, dim),
        _Z: lambda x: x.numel() == 1,
        _POSITIVES: lambda x: x.ndim == 2 and len(x) == rows and 1 <= x.shape[1] < rows,
    }
    misshapen = [key for key, fit in fits.items() if key in criterion and not fit(criterion[key])]
    shapes = [f"{key} {tuple(criterion[key].shape)}" for key in misshapen]
    complaints.append(complaint("of another shape", shapes))
    if any(complaints):
        raise CheckpointError(
            f"train_criterion: {'; '.join(filter(None, complaints))}; must be {_VIDEO} and {_AUDIO} "
            f"(N, {dim}), {_Z} with one number and, of CMA, {_POSITIVES} (N, k); give an untouched file"
        )
    z = criterion[_Z].reshape(()).double()
    memories = {
        "bank.video": criterion[_VIDEO],
        "bank.audio": criterion[_AUDIO],
        "bank.seen": torch.ones(rows, dtype=torch.bool),
        # In float64, exp(log Z) is the float32 Z that was read.
        "partition.log_z": z.log() if z > 0 else torch.tensor(math.nan, dtype=torch.float64),
    }
    if _POSITIVES in criterion:
        memories["positive_set"] = _checked_positives(criterion[_POSITIVES], rows)
    return memories


def _checked_positives(positives: Tensor, rows: int) -> Tensor:
    if positives.is_floating_point() or positives.min() < 0 or positives.max() >= rows:
        raise CheckpointError(
            f"train_criterion: {_POSITIVES} is {positives.dtype} from {positives.min()} to "
            f"{positives.max()}; must be rows of the memories, whole numbers from 0 to {rows - 1}; give an "
            "untouched official file"
        )
    return positives.int()


def _to_criterion(state: Mapping[str, Any]) -> dict[str, Tensor]:
    objective = memory_state(state["objective"])
    if "bank.video" not in objective:
        return {}
    log_z = objective["partition.log_z"].flatten()[0]  # of several, that of the term the release begins with
    z = log_z.double().exp().nan_to_num(nan=-1.0)
    criterion = {
        _VIDEO: objective["bank.video"].float(),
        _AUDIO: objective["bank.audio"].float(),
        _Z: z.float().reshape(state.get(_Z_SHAPE, [])),
    }
    if "positive_set" in objective and bool((objective["positive_set"] >= 0).all()):
        criterion[_POSITIVES] = objective["positive_set"]
    return criterion


def _adam_state(state: Mapping[str, Any], config: Config, networks: DualEncoder) -> dict[str, Any]:
    """State of Adam over all weights, whose order is the release's too; empty when it is another."""
    optimizer = state.get("optimizer") or {}
    groups = optimizer.get("param_groups", [])
    numbers = groups[0]["params"] if len(groups) == 1 else []
    moments = [optimizer["state"].get(number, {}).get("exp_avg") for number in numbers]
    shapes = [parameter.shape for parameter in networks.parameters()]
    fits = config.optim.name == "adam" and [None if m is None else m.shape for m in moments] == shapes
    return dict(optimizer) if fits else {}


def _refuse_other_networks(model: ModelConfig) -> None:
    """Raise `CheckpointError` for what the official names cannot say."""
    reasons = [
        f"model.{key}.name is {(section or {}).get('name')!r}; must be {expected}"
        for key, section, expected in (
            ("video", model.video, "R2Plus1D"),
            ("audio", model.audio, "AudioConvNet"),
        )
        if (section or {}).get("name") != expected
    ]
    if model.batch_norm:
        reasons.append("model.batch_norm is true; the release's heads have none")
    if reasons:
        raise CheckpointError(
            f"the official layout has no place for this model: {'; '.join(reasons)}; export a run with "
            "R2Plus1D, AudioConvNet and model.batch_norm=false"
        )
