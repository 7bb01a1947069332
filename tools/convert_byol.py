"""Convert BYOL's released checkpoint (google-deepmind/deepmind-research, byol) to weights avssl reads.

The release is a pickle, and a pickle is a program: opening it runs what its author, or whoever changed it on
the way, put in. avssl never does. This converter does so once, offline, when told that the file is trusted:

    pip install dill      # and the release's own package `byol`, with the jax of its time, on PYTHONPATH
    python tools/convert_byol.py pretrain_res50x1.pkl byol_resnet50.pth --i-trust-this-file

The names in the file were NOT verified against a released file, which could not be had here. They follow from
the sources of BYOL's networks and of haiku, and are read leniently; whatever has another name is listed, and
the converter stops where the network would be incomplete. The weights belong to convolutions with "SAME"
padding: `ResNetImage(..., same_padding=True)`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avssl.errors import AvsslError, CheckpointError
from avssl.files import atomic_write
from avssl.models.visual_weights import read_visual_weights

_STEP = r"(?:/~)?/"  # between a module and one made in its constructor, or in a call
_BLOCK = rf"block_group_(\d+){_STEP}block_(\d+){_STEP}"
_MODULES = {
    r"initial_conv(?:_1)?": lambda m: "trunk.conv1",
    r"initial_batchnorm(?:_1)?": lambda m: "trunk.bn1",
    rf"{_BLOCK}conv_(\d+)": lambda m: f"trunk.layer{int(m[1]) + 1}.{m[2]}.conv{int(m[3]) + 1}",
    rf"{_BLOCK}batchnorm_(\d+)": lambda m: f"trunk.layer{int(m[1]) + 1}.{m[2]}.bn{int(m[3]) + 1}",
    rf"{_BLOCK}shortcut_conv": lambda m: f"trunk.layer{int(m[1]) + 1}.{m[2]}.downsample.0",
    rf"{_BLOCK}shortcut_batchnorm": lambda m: f"trunk.layer{int(m[1]) + 1}.{m[2]}.downsample.1",
    rf"(projector|predictor){_STEP}linear": lambda m: f"{m[1]}.0",
    rf"(projector|predictor){_STEP}batch_norm": lambda m: f"{m[1]}.1",
    rf"(projector|predictor){_STEP}linear_1": lambda m: f"{m[1]}.3",
    r"classifier": lambda m: "classifier",
}
_PARAMETERS = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
_STATISTICS = {"mean_ema": "running_mean", "var_ema": "running_var"}
_ALSO_KEPT = ("hidden", "counter")  # of haiku's moving averages, from which `average` is computed


def convert(
    params: Mapping[str, Mapping[str, Any]], state: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and transpose haiku's parameters and moving averages.

    Parameters
    ----------
    params : mapping of module path to mapping of parameter name to array
        ``online_params``: ``w`` of convolutions is (height, width, in, out), of linear layers (in, out).
    state : mapping of module path to mapping of name to array
        ``online_state``: moving averages under ``.../mean_ema`` and ``.../var_ema``.

    Returns
    -------
    weights : dict of str to Tensor
        ``trunk.*`` in torchvision's names, ``projector.*`` and ``predictor.*`` (0 linear, 1 batch norm, 3
        linear), ``classifier.*``.
    unknown : list of str
        What could not be renamed.
    """
    weights, unknown = {}, []
    for path, values in params.items():
        module = _module(path)
        for name, value in values.items():
            if module is None or name not in _PARAMETERS:
                unknown.append(f"{path}/{name}")
            else:
                weights[f"{module}.{_PARAMETERS[name]}"] = _turned(name, _tensor(value))
    for path, values in state.items():
        owner, _, statistic = path.rpartition("/")
        module = _module(owner.removesuffix("/~"))
        for name, value in values.items():
            if module is None or statistic not in _STATISTICS or name not in ("average", *_ALSO_KEPT):
                unknown.append(f"{path}/{name}")
            elif name == "average":
                weights[f"{module}.{_STATISTICS[statistic]}"] = _tensor(value).flatten()
    return weights, unknown


def _module(path: str) -> str | None:
    """Name in torchvision of the module at a path of haiku, whatever the path begins with."""
    for pattern, name in _MODULES.items():
        if match := re.search(rf"(?:^|/){pattern}$", path):
            return name(match)
    return None


def _turned(name: str, value: Tensor) -> Tensor:
    if name == "w" and value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()  # HWIO to OIHW
    if name == "w" and value.ndim == 2:
        return value.T.contiguous()  # IO to OI
    return value.flatten() if name in ("scale", "offset") else value


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32))


def converted(experiment_state: Any) -> tuple[dict[str, Any], list[str]]:
    """Content of the file to write and what is not in it, from the release's ``experiment_state``.

    Raises
    ------
    CheckpointError
        When the trunk would be incomplete; names both what is missing and what was not understood.
    """
    weights, unknown = convert(experiment_state.online_params, experiment_state.online_state)
    content = {"release": "BYOL", "state_dict": weights}
    try:
        read_visual_weights(content)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nnot understood: {', '.join(unknown) or 'nothing'}") from error
    return content, unknown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the release's .pkl")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument(
        "--i-trust-this-file", action="store_true", help="open the pickle, which executes what it holds"
    )
    options = parser.parse_args()
    if not options.i_trust_this_file:
        parser.error(
            f"{options.source} is a pickle, and opening it executes what it holds; add --i-trust-this-file "
            "if you know where it is from"
        )
    try:
        import dill
    except ImportError:
        parser.error("dill is missing; pip install dill")
    try:
        with options.source.open("rb") as file:
            checkpoint = dill.load(file)
        content, unknown = converted(checkpoint["experiment_state"])
    except (AvsslError, ImportError, OSError) as error:
        parser.error(f"{options.source}: {error}")
    with atomic_write(options.target) as target:
        torch.save(content, target)
    print(f"{options.target}: {len(content['state_dict'])} tensors of the online network")
    for name in unknown:
        print(f"not understood, left out: {name}")


if __name__ == "__main__":
    main()
