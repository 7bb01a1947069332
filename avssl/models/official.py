"""Names of weights: `DualEncoder` and the released checkpoints of AVID and CMA (facebookresearch/AVID-CMA).

A released checkpoint is a dictionary ``{"epoch", "model", "optimizer", "train_criterion"}``; the functions
here deal with its ``"model"``, whose keys usually carry the ``module.`` prefix of a data-parallel wrapper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from torch import Tensor

from avssl.errors import CheckpointError
from avssl.models.dual import DualEncoder
from avssl.models.r2plus1d import BLOCKS_PER_STAGE

OFFICIAL_PREFIXES = {
    "video.": "video_model.",
    "audio.": "audio_model.",
    "video_head.": "video_proj.",
    "audio_head.": "audio_proj.",
}
"""Prefix of a key of `DualEncoder` -> prefix of the official key; what follows is the same in both."""

_STAGES = ("conv2x", "conv3x", "conv4x", "conv5x")
_WRAPPER = "module."
_SHOWN = 4

T = TypeVar("T")


class OfficialArchitecture(NamedTuple):
    """What official weights tell of the networks they belong to.

    Parameters
    ----------
    depth : {10, 18, 34}
        Of `R2Plus1D`.
    video_width, audio_width : int
        Channels of the stems; 64 in all released models.
    projection : tuple of int
        Lengths after each layer of the heads.
    """

    depth: int
    video_width: int
    audio_width: int
    projection: tuple[int, ...]


def infer_architecture(state_dict: Mapping[str, Tensor]) -> OfficialArchitecture:
    """Read depth, widths and heads off official weights, with or without ``module.``.

    Strides and pooling have no weights: the released model and its "small" variant for 112 pixel frames look
    alike.

    Raises
    ------
    CheckpointError
        When a key that tells is missing or misshapen, or the answers fit no official model.
    """
    weights = without_wrapper(state_dict)
    heads = {name: _head(weights, f"{name}_proj.projection.") for name in ("video", "audio")}
    if heads["video"] != heads["audio"]:
        raise CheckpointError(
            f"the heads give {heads['video']} numbers for video and {heads['audio']} for audio; both must be "
            "alike; give a checkpoint of AVID or AVID + CMA"
        )
    return OfficialArchitecture(
        _depth(weights),
        _length(weights, "video_model.conv1.0.weight", num_axes=5),
        _length(weights, "audio_model.conv1.0.weight", num_axes=4),
        heads["video"],
    )


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a `DualEncoder` state dict to the official ones; tensors and order are kept.

    Raises
    ------
    CheckpointError
        When a key belongs to none of the four parts.
    """
    return _rename(state_dict, OFFICIAL_PREFIXES)


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official keys, with or without ``module.``, to those of `DualEncoder`; the rest is kept.

    Raises
    ------
    CheckpointError
        When a key belongs to none of the four parts.
    """
    return _rename(
        without_wrapper(state_dict), {official: own for own, official in OFFICIAL_PREFIXES.items()}
    )


def load_official_model(dual_encoder: DualEncoder, state_dict: Mapping[str, Tensor]) -> None:
    """Copy official weights into a model of the same architecture; on an error the model is left as it was.

    Parameters
    ----------
    dual_encoder : DualEncoder
        Usually ``DualEncoder.official()``.
    state_dict : mapping of str to Tensor
        The ``"model"`` of a released checkpoint, with or without the ``module.`` prefix.

    Raises
    ------
    CheckpointError
        When keys are missing, unexpected or of another shape; names the first few of each, in official
        spelling.
    """
    if isinstance(state_dict.get("model"), Mapping):
        raise CheckpointError(
            "got a whole checkpoint; the weights are one entry of it: pass checkpoint['model']"
        )
    check_official(state_dict, dual_encoder)
    dual_encoder.load_state_dict(from_official(state_dict))


def check_official(state_dict: Mapping[str, Tensor], dual_encoder: DualEncoder) -> None:
    """Raise `CheckpointError` unless official weights are those of this model, which may be on "meta"."""
    given, expected = without_wrapper(state_dict), to_official(dual_encoder.state_dict())
    complaints = [
        complaint("missing", [key for key in expected if key not in given]),
        complaint("unexpected", [key for key in given if key not in expected]),
        complaint(
            "of another shape",
            [
                f"{key} {tuple(given[key].shape)} where the model has {tuple(tensor.shape)}"
                for key, tensor in expected.items()
                if key in given and given[key].shape != tensor.shape
            ],
        ),
    ]
    if any(complaints):
        raise CheckpointError(
            f"these official weights do not fit the model: {'; '.join(filter(None, complaints))}. Build the "
            "model with the checkpoint's depth, width and projection (released: DualEncoder.official())"
        )


def without_wrapper(state_dict: Mapping[str, T]) -> dict[str, T]:
    """Drop ``module.`` when all keys have it; a mixture is no wrapper's work and is left to the errors."""
    if all(key.startswith(_WRAPPER) for key in state_dict):
        return {key.removeprefix(_WRAPPER): tensor for key, tensor in state_dict.items()}
    return dict(state_dict)


def with_wrapper(state_dict: Mapping[str, T]) -> dict[str, T]:
    """Put ``module.`` before every key, as the release stores its models."""
    return {_WRAPPER + key: tensor for key, tensor in state_dict.items()}


def complaint(what: str, items: list[str]) -> str:
    """``"5 key(s) missing: a, b, c, d, ..."``; empty when there is nothing to complain of."""
    if not items:
        return ""
    more = ", ..." if len(items) > _SHOWN else ""
    return f"{len(items)} key(s) {what}: {', '.join(items[:_SHOWN])}{more}"


def _rename(state_dict: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    renamed, unknown = {}, []
    for key, tensor in state_dict.items():
        old = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if old is None:
            unknown.append(key)
        else:
            renamed[prefixes[old] + key.removeprefix(old)] = tensor
    if unknown:
        raise CheckpointError(
            f"{complaint('that cannot be renamed', unknown)}; a key must start with one of "
            f"{', '.join(prefixes)}. Pass the state dict of the whole model and nothing else"
        )
    return renamed


def _depth(keys: Iterable[str]) -> int:
    """Depth whose number of blocks a stage the keys have."""
    prefixes = {stage: f"video_model.{stage}." for stage in _STAGES}
    blocks = tuple(
        len({_block(key.removeprefix(prefix)) for key in keys if key.startswith(prefix)})
        for prefix in prefixes.values()
    )
    for depth, expected in BLOCKS_PER_STAGE.items():
        if blocks == expected:
            return depth
    raise CheckpointError(
        f"video_model has {blocks} blocks in {', '.join(_STAGES)}; must be one of "
        f"{', '.join(map(str, BLOCKS_PER_STAGE.values()))}; give a checkpoint of AVID or AVID + CMA"
    )


def _block(key: str) -> str:
    """Number of the block a key within a stage belongs to; a single block has none."""
    first = key.partition(".")[0]
    return first if first.isdigit() else ""


def _head(weights: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
    """Lengths after each Linear of a head, in order."""
    names = (key.removeprefix(prefix).split(".") for key in weights if key.startswith(prefix))
    layers = sorted(int(number) for number, *rest in names if number.isdigit() and rest == ["weight"])
    keys = [f"{prefix}{number}.weight" for number in layers or [0]]
    return tuple(_length(weights, key, num_axes=2) for key in keys)


def _length(weights: Mapping[str, Tensor], key: str, num_axes: int) -> int:
    """First axis of a weight that must be there."""
    if key not in weights:
        raise CheckpointError(f"{complaint('missing', [key])}; give the weights of the whole official model")
    if weights[key].ndim != num_axes or weights[key].numel() == 0:
        wrong = f"{key} {tuple(weights[key].shape)} where {num_axes} axes are needed"
        raise CheckpointError(
            f"{complaint('of another shape', [wrong])}; give the weights of an official model"
        )
    return int(weights[key].shape[0])
