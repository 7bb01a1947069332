"""tools/convert_byol.py: the mapping, on a network in the names that haiku's sources give."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avssl.errors import CheckpointError
from avssl.models.image import ResNetImage
from avssl.models.visual_weights import read_visual_weights

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from convert_byol import convert, converted, main  # noqa: E402


def haiku_path(key: str) -> str:
    """Path of haiku for a module of torchvision, by the sources of BYOL's and haiku's networks."""
    if match := re.match(r"layer(\d)\.(\d+)\.(.*)", key):
        names = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_batchnorm"}
        name = names.get(match[3]) or re.sub(
            r"(conv|bn)(\d)",
            lambda m: f"{'conv' if m[1] == 'conv' else 'batchnorm'}_{int(m[2]) - 1}",
            match[3],
        )
        return f"res_net18/~/block_group_{int(match[1]) - 1}/~/block_{match[2]}/~/{name}"
    return {"conv1": "res_net18/~/initial_conv", "bn1": "res_net18/~/initial_batchnorm"}[key]


def released(trunk: torch.nn.Module) -> SimpleNamespace:
    """Experiment state of a network: (height, width, in, out) kernels, statistics as moving averages."""
    params: dict = {}
    state: dict = {}
    for name, module in trunk.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            params[haiku_path(name)] = {"w": module.weight.detach().permute(2, 3, 1, 0).numpy()}
        elif isinstance(module, torch.nn.BatchNorm2d):
            path, shape = haiku_path(name), (1, 1, 1, -1)
            params[path] = {
                "scale": module.weight.detach().reshape(shape).numpy(),
                "offset": module.bias.detach().reshape(shape).numpy(),
            }
            for statistic, value in (("mean_ema", module.running_mean), ("var_ema", module.running_var)):
                average = value.reshape(shape).numpy()
                state[f"{path}/~/{statistic}"] = {
                    "average": average,
                    "hidden": average,
                    "counter": np.int32(7),
                }
    for head in ("projector", "predictor"):
        params[f"{head}/linear"] = {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(3)}
        params[f"{head}/batch_norm"] = {"scale": np.ones((1, 3)), "offset": np.zeros((1, 3))}
        params[f"{head}/linear_1"] = {"w": np.ones((3, 2))}
        state[f"{head}/batch_norm/~/mean_ema"] = {"average": np.zeros((1, 3))}
        state[f"{head}/batch_norm/~/var_ema"] = {"average": np.ones((1, 3))}
    params["classifier"] = {"w": np.ones((2, 5)), "b": np.zeros(5)}
    return SimpleNamespace(online_params=params, online_state=state)


@pytest.fixture(scope="module")
def trunk() -> ResNetImage:
    torch.manual_seed(0)
    trunk = ResNetImage("resnet18", same_padding=True)
    trunk(torch.randn(4, 3, 1, 32, 32))
    return trunk.eval()


def test_converted_weights_give_the_same_features(trunk):
    content, unknown = converted(released(trunk))
    weights = read_visual_weights(content)
    assert unknown == []
    assert weights.release == "BYOL"
    assert weights.arguments == {"architecture": "resnet18", "same_padding": True}
    x = torch.randn(2, 3, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(weights.build_trunk().eval()(x), trunk(x), rtol=0, atol=0)


def test_heads_are_renamed_and_transposed(trunk):
    weights = read_visual_weights(converted(released(trunk))[0])
    projector = weights.heads["projector"]
    assert set(projector) == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight",
    }  # fmt: skip
    torch.testing.assert_close(projector["0.weight"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))
    assert projector["3.weight"].shape == (2, 3)
    assert projector["1.running_var"].shape == (3,)
    assert set(weights.heads) == {"projector", "predictor", "classifier"}
    assert weights.heads["classifier"]["weight"].shape == (5, 2)


def test_convert_names_what_it_cannot_map():
    weights, unknown = convert(
        {"net/~/strange": {"w": np.zeros(1)}, "net/~/initial_conv": {"w": np.zeros((7, 7, 3, 64)), "q": 1}},
        {"net/~/initial_batchnorm/~/mean_ema": {"odd": np.zeros(1)}, "net/~/other": {"average": np.zeros(1)}},
    )
    assert {key: tuple(tensor.shape) for key, tensor in weights.items()} == {
        "trunk.conv1.weight": (64, 3, 7, 7)
    }
    assert unknown == [
        "net/~/strange/w",
        "net/~/initial_conv/q",
        "net/~/initial_batchnorm/~/mean_ema/odd",
        "net/~/other/average",
    ]


def test_an_incomplete_network_stops_the_conversion(trunk):
    state = released(trunk)
    state.online_params["res_net18/~/renamed"] = state.online_params.pop("res_net18/~/initial_batchnorm")
    with pytest.raises(CheckpointError) as raised:
        converted(state)
    assert "2 key(s) missing: bn1.weight, bn1.bias" in str(raised.value)
    assert "not understood: res_net18/~/renamed/scale, res_net18/~/renamed/offset" in str(raised.value)


def test_the_file_is_not_opened_without_the_users_word(tmp_path):
    command = [
        sys.executable,
        str(TOOLS / "convert_byol.py"),
        str(tmp_path / "a.pkl"),
        str(tmp_path / "b.pth"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "executes what it holds; add --i-trust-this-file" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_whole_way_from_pickle_to_trunk(trunk, tmp_path, monkeypatch, capsys):
    source, target = tmp_path / "release.pkl", tmp_path / "converted.pth"
    state = released(trunk)
    state.online_params["extra"] = {"w": np.zeros(1)}
    source.write_bytes(pickle.dumps({"experiment_state": state, "step": 3}, protocol=2))
    monkeypatch.setitem(sys.modules, "dill", pickle)  # which dill extends
    monkeypatch.setattr(sys, "argv", ["convert_byol.py", str(source), str(target), "--i-trust-this-file"])
    main()
    assert "not understood, left out: extra/w" in capsys.readouterr().out
    weights = read_visual_weights(torch.load(target, weights_only=True))
    torch.testing.assert_close(weights.trunk["bn1.running_mean"], trunk.bn1.running_mean)
