"""Names of weights: `DualEncoder` and the released checkpoints of AVID and CMA (facebookresearch/AVID-CMA).

A released checkpoint is a dictionary ``{"epoch", "model", "optimizer", "train_criterion"}``; the functions
here deal with its ``"model"``, whose keys usually carry the ``module.`` prefix of a data-parallel wrapper.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from avssl.errors import CheckpointError
from avssl.models.dual import DualEncoder

OFFICIAL_PREFIXES = {
    "video.": "video_model.",
    "audio.": "audio_model.",
    "video_head.": "video_proj.",
    "audio_head.": "audio_proj.",
}
"""Prefix of a key of `DualEncoder` -> prefix of the official key; what follows is the same in both."""

_WRAPPER = "module."
_SHOWN = 4


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
    return _rename(_unwrap(state_dict), {official: own for own, official in OFFICIAL_PREFIXES.items()})


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
    given = _unwrap(state_dict)
    expected = to_official(dual_encoder.state_dict())
    complaints = [
        _complaint("missing", [key for key in expected if key not in given]),
        _complaint("unexpected", [key for key in given if key not in expected]),
        _complaint(
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
    dual_encoder.load_state_dict(from_official(given))


def _unwrap(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop ``module.`` when all keys have it; a mixture is no wrapper's work and is left to the errors."""
    if all(key.startswith(_WRAPPER) for key in state_dict):
        return {key.removeprefix(_WRAPPER): tensor for key, tensor in state_dict.items()}
    return dict(state_dict)


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
            f"{_complaint('that cannot be renamed', unknown)}; a key must start with one of "
            f"{', '.join(prefixes)}. Pass the state dict of the whole model and nothing else"
        )
    return renamed


def _complaint(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = ", ..." if len(items) > _SHOWN else ""
    return f"{len(items)} key(s) {what}: {', '.join(items[:_SHOWN])}{more}"
