"""Batch norm over processes against torch's own on the whole batch."""

import pytest
import torch
from processes import run_two
from torch import nn

from avssl.objectives.sync_norm import BatchNorm1d, all_sum, batch_statistics, synchronise

WORKER = """
import sys
import torch
import torch.distributed as dist

sys.path.insert(0, sys.argv[3])
from test_sync_norm import make_network, make_norm, make_samples, run
from avssl.objectives.sync_norm import BatchNorm1d, synchronise

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
part = slice(0, 3) if rank == 0 else slice(3, 8)  # parts of two sizes
for affine in (True, False):
    torch.save(run(make_norm(BatchNorm1d, affine), part), f"{folder}/{affine}-{rank}.pt")
for dimensions in (2, 3):
    network = make_network(dimensions)
    synchronise(network, "cpu")
    torch.save(run(network[1], part, dimensions), f"{folder}/{dimensions}d-{rank}.pt")
norm = make_norm(BatchNorm1d, True).float()
with torch.autocast("cpu", torch.bfloat16):
    half = norm(make_samples()[part].bfloat16())
norm.eval()
kept = norm(make_samples()[part].float())
torch.save({"half": half.detach(), "eval": kept.detach()}, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def make_norm(kind, affine):
    torch.manual_seed(0)
    norm = kind(4, affine=affine).double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def make_network(dimensions):
    """A convolution and torch's own norm, for images or for clips."""
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    return nn.Sequential(
        convolution(4, 4, 1), make_norm({2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions], True)
    )


def make_samples(dimensions=0):
    shape = (8, 4, *[3, 2, 5][:dimensions])
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5


def run(norm, part=slice(None), dimensions=0):
    """Two batches through the norm; the loss makes every sample's gradient depend on all others."""
    x = make_samples(dimensions).requires_grad_()
    target = make_samples(dimensions).flip(0)
    for _ in range(2):
        y = norm(x[part])
    (y * target[part]).sin().sum().backward()
    gradients = {name: p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "x": x.grad[part], "gradients": gradients, "state": norm.state_dict()}


@pytest.mark.parametrize("affine", [True, False])
def test_one_process_equals_torch(affine):
    expected, got = (run(make_norm(kind, affine)) for kind in (nn.BatchNorm1d, BatchNorm1d))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_torch_turns_it_into_its_own_kind_for_gpus():
    module = nn.Sequential(BatchNorm1d(3, affine=False))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert isinstance(converted[0], nn.SyncBatchNorm)
    assert (converted[0].eps, converted[0].momentum, converted[0].affine) == (1e-5, 0.1, False)


def test_statistics_of_one_process_are_those_of_the_batch():
    x = make_samples()
    mean, variance, count = batch_statistics(x)
    torch.testing.assert_close(mean, x.mean(dim=0))
    torch.testing.assert_close(variance, x.var(dim=0, correction=0))
    assert float(count) == 8
    assert all_sum(x) is x


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_two(WORKER, tmp_path_factory.mktemp("ranks"), __file__)


@pytest.mark.parametrize("affine", [True, False])
def test_two_processes_equal_torch_on_the_whole_batch(two_processes, affine):
    expected = run(make_norm(nn.BatchNorm1d, affine))
    ranks = [torch.load(two_processes / f"{affine}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in ("y", "x"):
        joined = torch.cat([rank[name] for rank in ranks])
        torch.testing.assert_close(joined, expected[name], rtol=1e-10, atol=1e-10)
    for name, gradient in expected["gradients"].items():  # each process has those of its own samples
        total = sum(rank["gradients"][name] for rank in ranks)
        torch.testing.assert_close(total, gradient, rtol=1e-10, atol=1e-10)
    for rank in ranks:
        torch.testing.assert_close(rank["state"], dict(expected["state"]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_two_processes_equal_torch_on_images_and_clips(two_processes, dimensions):
    expected = run(make_network(dimensions)[1], dimensions=dimensions)
    ranks = [torch.load(two_processes / f"{dimensions}d-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in ("y", "x"):
        joined = torch.cat([rank[name] for rank in ranks])
        torch.testing.assert_close(joined, expected[name], rtol=1e-10, atol=1e-10)
    for rank in ranks:
        torch.testing.assert_close(rank["state"], dict(expected["state"]), rtol=1e-10, atol=1e-10)


def test_norms_become_synchronised_but_for_those_to_be_left():
    network = nn.Sequential(make_network(2), make_network(3), BatchNorm1d(4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    synchronise(network, "cpu", leave=[network[1]])
    assert [type(m).__module__ for m in (network[0][1], network[1][1])] == [
        "avssl.objectives.sync_norm", "torch.nn.modules.batchnorm"
    ]  # fmt: skip
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    synchronise(network, "cuda", leave=[network[0]])
    assert [type(m) is nn.SyncBatchNorm for m in (network[0][1], network[1][1], network[2])] == [
        False, True, True
    ]  # fmt: skip
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_two_processes_equal_torch_in_half_precision_and_in_eval(two_processes):
    norm = make_norm(nn.BatchNorm1d, True).float()
    half = norm(make_samples().bfloat16().float()).detach()
    norm.eval()
    got = [torch.load(two_processes / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert {rank["half"].dtype for rank in got} == {torch.bfloat16}
    joined = torch.cat([rank["half"] for rank in got]).float()
    torch.testing.assert_close(joined, half, rtol=0.01, atol=0.02)
    expected = norm(make_samples().float()).detach()
    torch.testing.assert_close(torch.cat([rank["eval"] for rank in got]), expected, rtol=1e-4, atol=1e-4)
