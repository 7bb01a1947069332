"""What several processes may ask of a recipe; how they train is in test_several_processes."""

from __future__ import annotations

import pytest
import torch

from avssl import dist
from avssl.build import build_objective
from avssl.errors import ConfigError
from avssl.train import parallel


@pytest.fixture
def two(monkeypatch):
    """As one of two processes on a machine, as far as these functions ask."""
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "local_world_size", lambda: 2)


def test_a_batch_must_divide_among_processes_and_parts(recipe):
    parallel.check_batch(recipe(train={"batch_size": 8, "accumulate": 2}), 2)
    for train in ({"batch_size": 6, "accumulate": 2}, {"batch_size": 2}, {"batch_size": 5}):
        with pytest.raises(ConfigError, match=r"with 2 processes; .* at least 2 clips for each process"):
            parallel.check_batch(recipe(train=train), 2)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0", r"train\.device is 'cuda:0', with 2 processes; each needs a GPU of its own"),
        ("cuda", "2 processes were started on this machine, but torch sees 1 GPUs"),
    ],
)
def test_each_process_needs_a_gpu_of_its_own(two, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=message):
        parallel.process_device(device)


def test_processes_on_the_cpu_share_it(two):
    assert parallel.process_device("cpu") == torch.device("cpu")


def test_float16_cannot_be_sharded(two, recipe):
    config = recipe(train={"sharding": "full"})
    with pytest.raises(ConfigError, match=r"cannot be sharded; use train\.precision=bfloat16"):
        parallel.place(build_objective(config, 12), config, torch.device("cpu"), torch.float16)


@pytest.mark.parametrize(("sync", "synchronised"), [(None, False), (True, True)])
def test_trunks_of_avid_are_synchronised_when_asked_and_heads_always(two, recipe, sync, synchronised):
    config = recipe(train={"sync_batchnorm": sync})
    objective = parallel.place(build_objective(config, 12), config, torch.device("cpu"), torch.float32)
    ours = {
        name
        for name, module in objective.named_modules()
        if type(module).__module__ == "avssl.objectives.sync_norm"
    }
    assert any(name.startswith("encoders.video_head.") for name in ours)
    assert any(name.startswith("encoders.video.") for name in ours) == synchronised
