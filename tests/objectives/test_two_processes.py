"""One process against two: the same loss, gradient, memories and constant Z."""

import pytest
import torch
from processes import run_two

from avssl.objectives import AVID, CMA

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, sys.argv[3])
from test_two_processes import make_batch, make_objective, run

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for kind in ("avid", "cma"):
    objective = make_objective(kind, seed=rank + 7)  # different seeds: rank 0's memories must win
    torch.save(objective.state_dict(), f"{folder}/{kind}-start-{rank}.pt")
    half = [part[rank * 4 : rank * 4 + 4] for part in make_batch()]
    result = run(objective, half)
    for name in ("loss", "gradient"):
        dist.all_reduce(result[name])
        result[name] /= 2
    torch.save(result, f"{folder}/{kind}-{rank}.pt")
dist.destroy_process_group()
"""


class Heads(torch.nn.Module):
    embedding_dim = 8

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(8, 8, generator=generator))

    def forward(self, video, audio):
        return video @ self.weight, audio @ self.weight


def make_objective(kind, seed):
    torch.manual_seed(seed)
    if kind == "avid":
        return AVID(Heads(), 30, num_negatives=6, cross=1, within=1)
    return CMA(Heads(), 30, num_negatives=6, num_negatives_positive=3, num_positives=4)


def make_batch():
    g = torch.Generator().manual_seed(5)
    index = torch.randperm(30, generator=g)[:8]
    index[6] = index[1]  # one instance on both ranks
    negatives = torch.randint(30, (8, 6), generator=g)
    return [torch.randn(8, 8, generator=g), torch.randn(8, 8, generator=g), index, negatives]


def batch_without_positives():
    """Instances of the first rank only, so that ranks differ in how many samples have positives."""
    return make_batch()[2][:2]


def run(objective, batch):
    objective.bank.seen.fill_(True)
    objective.before_epoch(0)
    if hasattr(objective, "positive_set"):
        objective.positive_set[batch_without_positives()] = -1
    video, audio, index, negatives = batch
    out = objective.contrast_embeddings(*objective.encoders(video, audio), index, negatives)
    out["loss"].backward()
    return {
        "loss": out["loss"].detach(),
        "gradient": objective.encoders.weight.grad,
        "video": objective.bank.video,
        "audio": objective.bank.audio,
        "log_z": objective.partition.log_z,
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_two(WORKER, tmp_path_factory.mktemp("ranks"), __file__)


@pytest.mark.parametrize("kind", ["avid", "cma"])
def test_two_processes_equal_one(results, kind):
    start = torch.load(results / f"{kind}-start-0.pt", weights_only=True)
    other = torch.load(results / f"{kind}-start-1.pt", weights_only=True)
    assert torch.equal(start["bank.video"], other["bank.video"])
    objective = make_objective(kind, seed=0)
    objective.load_state_dict(start)
    expected = run(objective, make_batch())
    for rank in (0, 1):
        got = torch.load(results / f"{kind}-{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(
                got[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
