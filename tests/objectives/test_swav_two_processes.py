"""One process against two: the same codes, loss, gradient after averaging, numbers to log and queue."""

import pytest
import torch
from processes import run_two
from torch import nn

from avssl.objectives.sinkhorn import sinkhorn
from avssl.objectives.swav import SwAV
from avssl.types import Views

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, sys.argv[3])
from test_swav_two_processes import SETTINGS, make_objective, make_scores, make_views, run
from avssl.objectives.sinkhorn import sinkhorn

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for name in SETTINGS:
    objective = make_objective(name)
    parallel = DistributedDataParallel(objective, broadcast_buffers=False)
    half = slice(0, 6) if rank == 0 else slice(6, 12)
    result = run(objective, parallel, half)
    for numbers in result["numbers"]:  # those of the whole batch are the mean of those of its halves
        for key in ("loss", "loss_over_ln_k"):
            dist.all_reduce(numbers[key])
            numbers[key] /= 2
    torch.save(result, f"{folder}/{name}-{rank}.pt")
part = slice(0, 3) if rank == 0 else slice(3, 12)  # parts of two sizes
torch.save(sinkhorn(make_scores()[part], 0.003, 10), f"{folder}/codes-{rank}.pt")
dist.destroy_process_group()
"""

SETTINGS = {
    "plain": {"head_batch_norm": False, "num_prototypes": 20},  # more than samples of a process
    "norm": {},
    "queue": {"head_batch_norm": False, "queue_length": 24},
    "odd_queue": {"queue_length": 17},
}


class Encoders(nn.Module):
    """A trunk without batch norm: the head alone ties the samples of a batch together."""

    def __init__(self):
        super().__init__()
        self.video = nn.Sequential(
            nn.AdaptiveAvgPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(12, 10), nn.Tanh()
        )
        self.video.dim = 10


def make_objective(name):
    torch.manual_seed(1)
    settings = {"num_prototypes": 7, "head_dims": (8, 5)} | SETTINGS[name]
    return SwAV(Encoders(), **settings).double()


def make_views(seed, part=slice(None)):
    g = torch.Generator().manual_seed(seed)
    crops = [torch.randn(12, 3, 1, size, size, generator=g, dtype=torch.float64) for size in (6, 6, 4, 4)]
    return Views(tuple(crop[part] for crop in crops), (), torch.arange(12)[part])


def make_scores():
    return 2 * torch.rand(12, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 1


def run(objective, forward, part=slice(None)):
    """Four steps, of which the last two use a full queue; the gradients of the last one."""
    optimizer = torch.optim.SGD(objective.param_groups(), lr=0.1, momentum=0.9)
    numbers = []
    for step in range(4):
        optimizer.zero_grad()
        out = forward(make_views(step, part))
        out["loss"].backward()
        objective.before_step()
        optimizer.step()
        numbers.append(
            {key: value.detach() for key, value in out.items() if key not in ("spread", "effective_rank")}
        )
    gradients = {key: p.grad for key, p in objective.named_parameters()}
    return {"numbers": numbers, "gradients": gradients, "state": dict(objective.state_dict())}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_two(WORKER, tmp_path_factory.mktemp("ranks"), __file__)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one(two_processes, name):
    objective = make_objective(name)
    expected = run(objective, objective)
    for rank in (0, 1):
        got = torch.load(two_processes / f"{name}-{rank}.pt", weights_only=True)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_queue_of_two_processes_goes_on_in_one(two_processes):
    state = torch.load(two_processes / "queue-0.pt", weights_only=True)["state"]
    objective, reference = make_objective("queue"), make_objective("queue")
    objective.load_state_dict(state)
    run(reference, reference)
    loss = objective(make_views(9))["loss"]
    torch.testing.assert_close(loss, reference(make_views(9))["loss"], rtol=1e-9, atol=0)


def test_codes_of_unequal_parts_equal_those_of_the_whole(two_processes):
    joined = torch.cat([torch.load(two_processes / f"codes-{r}.pt", weights_only=True) for r in (0, 1)])
    torch.testing.assert_close(joined, sinkhorn(make_scores(), 0.003, 10), rtol=1e-9, atol=1e-300)
