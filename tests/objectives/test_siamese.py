"""What BYOL, SimSiam and Barlow Twins have in common: learning, resuming, processes, groups, errors."""

from functools import partial

import pytest
import torch
from processes import run_two
from torch import nn

from avssl.errors import ConfigError
from avssl.objectives.barlow_twins import BarlowTwins
from avssl.objectives.byol import BYOL
from avssl.objectives.simsiam import SimSiam
from avssl.optim import make_optimizer, set_learning_rate
from avssl.types import Views

METHODS = {
    "byol": partial(BYOL, hidden_dim=16, dim=8, base_tau=0.9),
    "simsiam": partial(SimSiam, hidden_dim=16, dim=16, predictor_dim=8),
    "barlow_twins": partial(BarlowTwins, hidden_dim=16, dim=8),
}

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, sys.argv[3])
from test_siamese import METHODS, gradients, make_objective, make_views

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for name, share in [*((name, 6) for name in METHODS), ("barlow_twins", 4)]:
    objective = make_objective(name)
    part = slice(0, share) if rank == 0 else slice(share, 12)
    parallel = DistributedDataParallel(objective, broadcast_buffers=False)
    out = parallel(make_views(part))
    out["loss"].backward()
    loss = out["loss"].detach().clone()
    dist.all_reduce(loss)
    result = {"loss": loss / 2, "gradients": gradients(objective), "buffers": dict(objective.named_buffers())}
    torch.save(result, f"{folder}/{name}-{share}-{rank}.pt")
dist.destroy_process_group()
"""


class Encoders(nn.Module):
    """A trunk without batch norm: heads alone tie the samples of a batch together."""

    def __init__(self):
        super().__init__()
        self.video = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 4, 24), nn.Tanh(), nn.Linear(24, 12))
        self.video.dim = 12


def make_objective(name):
    torch.manual_seed(1)
    objective = METHODS[name](Encoders())
    if name == "byol":  # a teacher that differs from its student
        for parameter in objective.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return objective.double()


def make_views(part=slice(None), seed=0):
    g = torch.Generator().manual_seed(seed)
    clips = torch.randn(12, 3, 2, 4, 4, generator=g, dtype=torch.float64)
    views = [clips + 0.3 * torch.randn(clips.shape, generator=g, dtype=torch.float64) for _ in range(2)]
    return Views(tuple(v[part] for v in views), (), torch.arange(12)[part])


def gradients(objective):
    return {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def test_plain_loop_learns(name):
    objective = make_objective(name)
    optimizer = torch.optim.SGD(objective.param_groups(), lr=0.02, momentum=0.9)
    losses = []
    for step in range(40):
        objective.set_progress(step, 40)
        loss = objective(make_views())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step()
        losses.append(float(loss.detach()))
    low, high = {"byol": (0, 8), "simsiam": (-1, 1), "barlow_twins": (0, 100)}[name]
    assert all(low <= loss <= high for loss in losses)
    assert losses[-1] - low < 0.5 * (losses[0] - low)


def one_step(objective, optimizer, seed):
    objective.set_progress(seed, 10)
    out = objective(make_views(seed=seed))
    optimizer.zero_grad()
    out["loss"].backward()
    optimizer.step()
    objective.after_step()
    return {key: value.detach() for key, value in out.items()}


def test_state_restores_the_next_steps(name):
    first = make_objective(name)
    optimizer = torch.optim.SGD(first.param_groups(), lr=0.1)
    one_step(first, optimizer, seed=1)
    torch.manual_seed(99)
    second = METHODS[name](Encoders()).double()
    second.load_state_dict(first.state_dict())
    again = torch.optim.SGD(second.param_groups(), lr=0.1)
    for seed in (2, 3):
        expected, got = one_step(first, optimizer, seed), one_step(second, again, seed)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_each_view_goes_through_the_trunk_by_itself(name):
    objective = make_objective(name)
    sizes = []
    objective.encoders.video.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    objective(make_views())
    assert sizes == [12, 12]


def test_swapping_the_views_changes_nothing(name):
    views = make_views()
    swapped = Views(views.video[::-1], (), views.index)
    loss = make_objective(name)(views)["loss"]
    torch.testing.assert_close(make_objective(name)(swapped)["loss"], loss, rtol=1e-12, atol=0)


def test_every_trained_parameter_is_in_one_group_and_gets_a_gradient(name):
    objective = make_objective(name)
    grouped = [p for group in objective.param_groups() for p in group["params"]]
    trained = {id(p): key for key, p in objective.named_parameters() if p.requires_grad}
    assert len(grouped) == len(trained)
    assert {id(p) for p in grouped} == trained.keys()
    objective(make_views())["loss"].backward()
    assert all(p.grad is not None for p in grouped)
    assert all(p.grad is None for p in objective.parameters() if id(p) not in trained)


@pytest.mark.parametrize("method, scale", [("byol", 1.0), ("barlow_twins", 0.0048 / 0.2)])
def test_biases_and_norms_are_neither_decayed_nor_adapted(method, scale):
    objective = make_objective(method)
    weights, rest = make_optimizer("lars", objective.param_groups(), lr=0.2, weight_decay=1e-6).param_groups
    assert {p.ndim for p in weights["params"]} == {2}
    assert {p.ndim for p in rest["params"]} == {1}
    assert (rest["adapt"], rest["weight_decay"]) == (False, 0.0)
    assert rest["lr"] == pytest.approx(0.2 * scale, rel=1e-12)
    assert weights["weight_decay"] == 1e-6
    assert weights.get("adapt", True)


def test_predictor_of_simsiam_keeps_its_rate():
    objective = make_objective("simsiam")
    optimizer = make_optimizer("sgd", objective.param_groups(), lr=0.05, weight_decay=1e-4)
    set_learning_rate(optimizer, 0.5)
    others, predictor = optimizer.param_groups
    assert [id(p) for p in predictor["params"]] == [id(p) for p in objective.predictor.parameters()]
    assert (others["lr"], predictor["lr"]) == (0.025, 0.05)
    assert others["weight_decay"] == predictor["weight_decay"] == 1e-4  # on everything, as released


def test_half_precision_changes_little_and_the_loss_stays_float32(name):
    objective = make_objective(name).float()
    views = make_views()
    views = Views(tuple(v.float() for v in views.video), (), views.index)
    exact = objective(views)["loss"].detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = objective(views)
    assert {value.dtype for value in out.values()} == {torch.float32}
    torch.testing.assert_close(out["loss"].detach(), exact, rtol=0.05, atol=0.05)
    out["loss"].backward()
    assert all(g.isfinite().all() for g in gradients(objective).values())


def test_a_stage_starts_from_the_encoders_of_another(name):
    other = make_objective("simsiam" if name != "simsiam" else "byol")
    one_step(other, torch.optim.SGD(other.parameters(), lr=0.1), seed=1)
    objective = make_objective(name)
    assert objective.start_from(other.state_dict()) == 0
    for key, value in other.encoders.state_dict().items():
        assert torch.equal(objective.encoders.state_dict()[key], value)


def test_one_view_is_refused(name):
    views = make_views()
    with pytest.raises(ValueError, match="needs video view 1"):
        make_objective(name)(Views(views.video[:1], (), views.index))


def test_trunk_without_dim_is_refused(name):
    encoders = Encoders()
    del encoders.video.dim
    with pytest.raises(ConfigError, match=r"trunk `video`.*attribute `dim`.*got None.*Set `self.dim`"):
        METHODS[name](encoders)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_two(WORKER, tmp_path_factory.mktemp("ranks"), __file__)


@pytest.mark.parametrize("method, share", [*((name, 6) for name in METHODS), ("barlow_twins", 4)])
def test_two_processes_equal_one(two_processes, method, share):
    objective = make_objective(method)
    loss = objective(make_views())["loss"]
    loss.backward()
    expected = {
        "loss": loss.detach(),
        "gradients": gradients(objective),
        "buffers": dict(objective.named_buffers()),
    }
    for rank in (0, 1):
        got = torch.load(two_processes / f"{method}-{share}-{rank}.pt", weights_only=True)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
