"""Weights that image methods released, renamed for the trunks of this package.

Each reader is a pure function on what `torch.load(path, map_location="cpu", weights_only=True)` gives:

| release | layout |
|---|---|
| SwAV | ``module.*`` at the top, or under ``state_dict`` |
| SimSiam | ``state_dict`` with ``module.encoder.*`` (its projector under ``fc``) and ``module.predictor.*`` |
| Barlow Twins | a bare torchvision resnet50, or ``model`` with ``module.{backbone,projector,bn}.*`` |
| SEER, VISSL | ``classy_state_dict``, ``base_model``, ``model``, ``trunk`` and ``heads`` |
| BYOL | what ``tools/convert_byol.py`` writes; the release itself is a program and is never opened |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avssl.errors import CheckpointError
from avssl.models.image import RESNETS, ImageEncoder, ResNetImage
from avssl.models.official import complaint, without_wrapper
from avssl.models.regnet import REGNETS, RegNetY, regnet_stages

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class VisualWeights:
    """Weights of one release, in names of this package.

    Parameters
    ----------
    release : str
        ``"SwAV"``, ``"SimSiam"``, ``"Barlow Twins"``, ``"SEER"``, ``"BYOL"`` or ``"torchvision"``.
    trunk_class : type
        `ResNetImage` or `RegNetY`.
    arguments : dict
        What its constructor needs to take `trunk`.
    trunk : dict of str to Tensor
        State dict of the trunk.
    heads : dict of str to dict of str to Tensor
        State dicts of ``"projector"``, ``"predictor"``, ``"prototypes"``, ``"bn"`` and ``"classifier"``, as
        far as the release has them. Keys are those within the release's own head, such as ``"0.weight"``.
    notes : list of str
        What was not used, and what was filled in.
    """

    release: str
    trunk_class: type[ImageEncoder]
    arguments: dict[str, Any]
    trunk: dict[str, Tensor]
    heads: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def build_trunk(self) -> ImageEncoder:
        """Build the trunk with these weights, in training mode; tensors are shared, not copied."""
        with torch.device("meta"):
            trunk = self.trunk_class(**self.arguments)
        trunk.load_state_dict(self.trunk, assign=True)
        return trunk


class _Layout(NamedTuple):
    """How keys of a release begin: one that tells it from the others, those of the trunk, of its heads."""

    sign: str
    trunk: str
    heads: dict[str, str]


_BYOL_HEADS = {name: f"{name}." for name in ("projector", "predictor", "classifier")}
_LAYOUTS = {
    "SwAV": _Layout("prototypes.", "", {"projector": "projection_head.", "prototypes": "prototypes."}),
    "SimSiam": _Layout("encoder.conv1.", "encoder.", {"projector": "encoder.fc.", "predictor": "predictor."}),
    "Barlow Twins": _Layout("backbone.conv1.", "backbone.", {"projector": "projector.", "bn": "bn."}),
    "BYOL": _Layout("trunk.conv1.", "trunk.", _BYOL_HEADS),
    "torchvision": _Layout("conv1.", "", {"classifier": "fc."}),
}
_SEER_HEADS = {"projector": "0.projection_head.", "prototypes": "0.prototypes0.", "classifier": "0.clf."}


def recognise(content: Any) -> str | None:
    """Name of the release whose layout the content of a file has; None for any other content."""
    if not isinstance(content, Mapping):
        return None
    if "classy_state_dict" in content:
        return "SEER"
    keys = list(_weights(content))
    return next(
        (name for name, layout in _LAYOUTS.items() if any(key.startswith(layout.sign) for key in keys)), None
    )


def read_visual_weights(content: Any) -> VisualWeights:
    """Read any of the released layouts; see the head of this module.

    Parameters
    ----------
    content : mapping
        What the file holds.

    Raises
    ------
    CheckpointError
        When the layout is none of those, or keys are missing, unexpected or misshapen, which are named.
    """
    release = recognise(content)
    if release is None:
        shown = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else content
        raise CheckpointError(
            "these are no released weights of SwAV, SimSiam, Barlow Twins, SEER or torchvision, nor BYOL's "
            f"converted ones; its content is {shown!s:.200}. Give an untouched file of a release"
        )
    return from_seer(content) if release == "SEER" else from_resnet_release(content, release)


def from_resnet_release(content: Mapping[str, Any], release: str) -> VisualWeights:
    """Read SwAV, SimSiam, Barlow Twins, BYOL (converted) or a bare torchvision network.

    Barlow Twins' bare ``resnet50.pth`` is a torchvision network without classifier.

    Parameters
    ----------
    content : mapping
        The release's file, or only its weights, with or without ``module.``.
    release : str
        As `recognise` gives it.

    Raises
    ------
    CheckpointError
        When keys are missing, unexpected or misshapen.
    """
    layout, weights = _LAYOUTS[release], _weights(content)
    heads, rest = _split(weights, layout.heads)
    given = {key.removeprefix(layout.trunk): t for key, t in rest.items() if key.startswith(layout.trunk)}
    notes = _unused(content, [key for key in rest if not key.startswith(layout.trunk)])
    arguments = _resnet_arguments(given)
    if release == "BYOL":
        arguments["same_padding"] = True
    trunk = _fitted(given, ResNetImage, arguments, notes)
    return VisualWeights(release, ResNetImage, arguments, trunk, heads, notes)


def from_seer(content: Mapping[str, Any]) -> VisualWeights:
    """Read a file of SEER, or another of VISSL, with a RegNet or a ResNet as its trunk.

    Raises
    ------
    CheckpointError
        When the file lacks its trunk, or keys are missing, unexpected or misshapen.
    """
    model: Any = content
    for key in ("classy_state_dict", "base_model", "model"):
        model = model.get(key) if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(model.get("trunk"), Mapping):
        raise CheckpointError(
            "no weights at classy_state_dict, base_model, model, trunk; give a whole (not sliced) checkpoint "
            "of VISSL"
        )
    given = {seer_to_torchvision(key): tensor for key, tensor in model["trunk"].items()}
    heads, rest = _split(model.get("heads") or {}, _SEER_HEADS)
    notes = _unused({**content, **content["classy_state_dict"]}, list(rest))
    regnet = any(key.startswith("stem.") for key in given)
    trunk_class: type[ImageEncoder] = RegNetY if regnet else ResNetImage
    arguments = _regnet_arguments(given) if regnet else _resnet_arguments(given)
    trunk = _fitted(given, trunk_class, arguments, notes)
    return VisualWeights("SEER", trunk_class, arguments, trunk, heads, notes)


_SEER_RULES = (
    (r"^_feature_blocks\.", ""),
    (r"^conv1\.stem\.", "stem."),
    (r"\.block\d+-part\d+\.", "."),  # sharding's own level, in the file of 10 billion parameters
    (r"^res\d+\.block(\d+)-", r"trunk_output.block\1.block\1-"),
    (r"^(trunk_output\.block\d+\.block\d+-\d+)\.proj\.", r"\1.proj.0."),
    (r"^(trunk_output\.block\d+\.block\d+-\d+)\.bn\.", r"\1.proj.1."),
    (r"\.f\.c\.", ".f.c.0."),
    (r"\.f\.final_bn\.", ".f.c.1."),
    (r"\.f\.se\.excitation\.0\.", ".f.se.fc1."),
    (r"\.f\.se\.excitation\.2\.", ".f.se.fc2."),
)


def seer_to_torchvision(key: str) -> str:
    """Name in torchvision's RegNet (or ResNet) of a key of VISSL's trunk; unknown parts stay as they are."""
    for pattern, replacement in _SEER_RULES:
        key = re.sub(pattern, replacement, key)
    return key


def _weights(content: Mapping[str, Any]) -> dict[str, Any]:
    """Weights in a checkpoint, at the top or one level down, without ``module.``."""
    inner = next((content[key] for key in ("state_dict", "model") if key in content), content)
    named = isinstance(inner, Mapping) and all(isinstance(key, str) for key in inner)
    return without_wrapper(inner) if named else {}


def _split(
    weights: Mapping[str, Tensor], prefixes: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Heads by name, without their prefixes, and what is left."""
    heads: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in weights.items():
        name = next((name for name, prefix in prefixes.items() if key.startswith(prefix)), None)
        if name is None:
            rest[key] = tensor
        else:
            heads.setdefault(name, {})[key.removeprefix(prefixes[name])] = tensor
    return heads, rest


def _unused(content: Mapping[str, Any], keys: list[str]) -> list[str]:
    """Lines on entries of a file that hold no weights, and on weights that no part has."""
    used = ("state_dict", "model", "classy_state_dict", "base_model", "release")
    entries = [
        str(key) for key, value in content.items() if key not in used and not isinstance(value, Tensor)
    ]
    notes = [f"not used: {', '.join(sorted(entries))}"] if entries else []
    return [*notes, f"not used: {complaint('of no known part', keys)}"] if keys else notes


def _resnet_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Name of the residual network, by blocks a layer, kind of block and width of the stem."""
    stem = _needed(weights, "conv1.weight", num_axes=4)
    bottleneck = "layer1.0.conv3.weight" in weights
    depths = tuple(_blocks(weights, f"layer{number}.") for number in (1, 2, 3, 4))
    for name, design in RESNETS.items():
        if (design.bottleneck, design.depths, 64 * design.width) == (bottleneck, depths, stem.shape[0]):
            small = {"small_stem": True} if stem.shape[-1] == 3 else {}
            return {"architecture": name} | small
    raise CheckpointError(
        f"a residual network of {depths} {'bottleneck' if bottleneck else 'basic'} blocks after a stem of "
        f"{stem.shape[0]} channels; known are {', '.join(RESNETS)}"
    )


def _regnet_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Name of the RegNet, or its stages where they have none, by shapes of each stage's first block."""
    stages: list[tuple[int, int, int]] = []
    while depth := _blocks(weights, f"trunk_output.block{len(stages) + 1}.block{len(stages) + 1}-"):
        first = f"trunk_output.block{len(stages) + 1}.block{len(stages) + 1}-0.f.b.0.weight"
        width, group_width = _needed(weights, first, num_axes=4).shape[:2]
        stages.append((depth, int(width), int(group_width)))
    for name, design in REGNETS.items():
        if regnet_stages(design) == tuple(stages):
            return {"architecture": name}
    return {"stages_as": stages}


def _blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Number of blocks whose keys are `prefix`, a number, a dot and more."""
    return len({key[len(prefix) :].partition(".")[0] for key in weights if key.startswith(prefix)})


def _needed(weights: Mapping[str, Tensor], key: str, num_axes: int) -> Tensor:
    if not isinstance(weights.get(key), Tensor) or weights[key].ndim != num_axes:
        raise CheckpointError(
            f"{key} must be there and have {num_axes} axes; give the weights of the whole network"
        )
    return weights[key]


def _fitted(
    given: dict[str, Tensor], trunk_class: type[ImageEncoder], arguments: dict[str, Any], notes: list[str]
) -> dict[str, Tensor]:
    """Weights in the trunk's order, or `CheckpointError`; counters of batches that lack are filled in."""
    with torch.device("meta"):
        expected = trunk_class(**arguments).state_dict()
    counters = [key for key in expected if key.endswith(_COUNTER) and key not in given]
    if counters:
        notes.append(f"filled in with 0: {complaint('of counters', counters)}")
    given = given | {key: torch.zeros((), dtype=torch.long) for key in counters}
    shapes = {key: tuple(x.shape) if isinstance(x, Tensor) else "no tensor" for key, x in given.items()}
    complaints = [
        complaint("missing", [key for key in expected if key not in given]),
        complaint("unexpected", [key for key in given if key not in expected]),
        complaint(
            "of another shape",
            [
                f"{key} {shapes[key]} where the network has {tuple(tensor.shape)}"
                for key, tensor in expected.items()
                if key in shapes and shapes[key] != tuple(tensor.shape)
            ],
        ),
    ]
    if any(complaints):
        raise CheckpointError(
            f"these weights do not fit {trunk_class.__name__} {arguments}: "
            f"{'; '.join(filter(None, complaints))}. Give an untouched file of the release"
        )
    return {key: given[key] for key in expected}
