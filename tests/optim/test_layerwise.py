"""LARS and LARC against recorded steps of the Barlow Twins release and against one-tensor references."""

from pathlib import Path

import pytest
import torch
from processes import run_two
from torch import nn

from avssl.optim import LARC, LARS, make_optimizer, set_learning_rate

GOLDEN = torch.load(Path(__file__).parents[1] / "golden" / "image.pt", weights_only=True)["lars_barlow"]
KINDS = pytest.mark.parametrize("kind", [LARS, LARC])

SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, sys.argv[3])
from test_layerwise import LARC, LARS, small_network, train

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for kind in (LARS, LARC):
    network = small_network()
    fully_shard(network, mesh=init_device_mesh("cpu", (2,)), ignored_params={network[0].weight})
    train(network, kind)
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in network.parameters()]
    torch.save([p.detach() for p in whole], f"{folder}/{kind.__name__}-{rank}.pt")
dist.destroy_process_group()
"""


def small_network():
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1)).double()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return network


def train(network, kind, steps=3):
    optimizer = kind(network.parameters(), lr=20.0, weight_decay=0.1)
    for step in range(steps):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        (network(x) - 1).square().mean().backward()
        optimizer.step()
    return optimizer


def tensors(seed, shapes=((4, 3), (3,), (2, 2, 2))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def step_with(optimizer, params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone()
    optimizer.step()


def lars_reference(p, grads, lr, wd, momentum, eta):
    """As BYOL and Barlow Twins state it, for one tensor."""
    buffer = torch.zeros_like(p)
    for g in grads:
        d = g + wd * p
        if p.norm().item() != 0 and d.norm().item() != 0:
            d = d * (eta * p.norm().item() / d.norm().item())
        buffer = momentum * buffer + d
        p = p - lr * buffer
    return p


def larc_reference(p, grads, lr, wd, momentum, trust):
    """Apex, clip=False: the gradient is rewritten, then torch's SGD without decay takes its step."""
    p = nn.Parameter(p.clone())
    sgd = torch.optim.SGD([p], lr=lr, momentum=momentum)
    for g in grads:
        weight_norm, grad_norm = p.detach().norm().item(), g.norm().item()
        p.grad = g.clone()
        if weight_norm != 0 and grad_norm != 0:
            rate = trust * weight_norm / (grad_norm + weight_norm * wd + 1e-8)
            p.grad = (g + wd * p.detach()) * rate
        sgd.step()
    return p.detach()


def test_lars_repeats_the_steps_of_the_barlow_twins_release():
    weight, bias = nn.Parameter(GOLDEN["W0"].clone()), nn.Parameter(GOLDEN["b0"].clone())
    weight_lr, bias_lr = GOLDEN["lr"]
    assert GOLDEN["eta"] == 0.001
    optimizer = make_optimizer(
        "lars",
        [
            {"params": [weight]},
            {"params": [bias], "lr_scale": bias_lr / weight_lr, "adapt": False, "weight_decay": 0.0},
        ],
        lr=weight_lr,
        weight_decay=GOLDEN["weight_decay"],
        momentum=GOLDEN["momentum"],
    )
    for grads, expected in zip(GOLDEN["grads"], GOLDEN["trace"], strict=True):
        step_with(optimizer, [weight, bias], grads)
        torch.testing.assert_close(weight.data, expected[0], rtol=1e-10, atol=0)
        torch.testing.assert_close(bias.data, expected[1], rtol=1e-10, atol=0)


@pytest.mark.parametrize(("kind", "reference"), [(LARS, lars_reference), (LARC, larc_reference)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_equal_those_of_each_tensor_alone(kind, reference, weight_decay):
    start = tensors(0)
    params = [nn.Parameter(p.clone()) for p in start]
    optimizer = kind(params, lr=2.0, momentum=0.8, weight_decay=weight_decay, trust_coefficient=0.02)
    grads = [tensors(seed) for seed in range(1, 5)]
    for step in grads:
        step_with(optimizer, params, step)
    for i, p in enumerate(params):
        expected = reference(start[i], [step[i] for step in grads], 2.0, weight_decay, 0.8, 0.02)
        torch.testing.assert_close(p.data, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("kind", "reference"), [(LARS, lars_reference), (LARC, larc_reference)])
def test_zero_norms_leave_the_gradient_unscaled(kind, reference):
    one, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    start = [zero, one, zero]
    grads = [[one, zero, zero], [one, one, zero], [one, zero, one]]
    params = [nn.Parameter(p.clone()) for p in start]
    optimizer = kind(params, lr=0.5, weight_decay=0.1)
    step_with(optimizer, params, grads[0])
    torch.testing.assert_close(params[0].data, -0.5 * one)  # the whole gradient
    if kind is LARC:
        assert torch.equal(params[1].data, one)  # no gradient, no decay
    for step in grads[1:]:
        step_with(optimizer, params, step)
    for i, p in enumerate(params):
        expected = reference(start[i], [step[i] for step in grads], 0.5, 0.1, 0.9, 1e-3)
        torch.testing.assert_close(p.data, expected, rtol=1e-12, atol=1e-14)


@KINDS
def test_groups_that_do_not_adapt_take_the_step_of_sgd(kind):
    start = tensors(0)
    params, plain = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizer = kind([{"params": params, "adapt": False}], lr=0.1, weight_decay=0.05)
    sgd = torch.optim.SGD(plain, lr=0.1, momentum=0.9, weight_decay=0.05)
    for seed in (1, 2, 3):
        step_with(optimizer, params, tensors(seed))
        step_with(sgd, plain, tensors(seed))
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p.data, q.data, rtol=1e-12, atol=1e-14)


@KINDS
def test_tensors_without_gradient_stay_and_keep_their_momentum(kind):
    params = [nn.Parameter(p) for p in tensors(0)]
    optimizer = kind(params, lr=1.0, weight_decay=0.5)
    step_with(optimizer, params, tensors(1))
    before = params[0].detach().clone()
    buffer = optimizer.state[params[0]]["momentum_buffer"].clone()
    step_with(optimizer, params, [None, *tensors(2)[1:]])
    assert torch.equal(params[0].data, before)
    assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], buffer)
    step_with(optimizer, params, [None, None, None])


@KINDS
def test_a_changed_rate_acts_on_the_whole_step(kind):
    params = [nn.Parameter(p) for p in tensors(0)]
    optimizer = make_optimizer("lars" if kind is LARS else "larc", [{"params": params}], lr=1.0)
    assert type(optimizer) is kind
    step_with(optimizer, params, tensors(1))
    before = [p.detach().clone() for p in params]
    set_learning_rate(optimizer, 0.25)
    step_with(optimizer, params, tensors(2))
    for p, old in zip(params, before, strict=True):
        moved = optimizer.state[p]["momentum_buffer"]
        torch.testing.assert_close(p.data, old - 0.25 * moved, rtol=1e-12, atol=1e-14)


@KINDS
def test_state_dict_continues_the_same_steps(kind, tmp_path):
    params = [nn.Parameter(p) for p in tensors(0)]
    optimizer = kind([{"params": params[:2]}, {"params": params[2:], "adapt": False}], lr=1.0)
    step_with(optimizer, params, tensors(1))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = kind([{"params": copies[:2]}, {"params": copies[2:]}], lr=7.0)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    step_with(optimizer, params, tensors(2))
    step_with(resumed, copies, tensors(2))
    assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))


@KINDS
def test_mixed_precisions_step_together(kind):
    mixed = [nn.Parameter(p) for p in tensors(0)]
    mixed[1] = nn.Parameter(mixed[1].data.float())
    whole = [nn.Parameter(p) for p in tensors(0)]
    for params in (mixed, whole):
        step_with(kind(params, lr=1.0), params, [g.to(p) for g, p in zip(tensors(1), params, strict=True)])
    assert torch.equal(mixed[0], whole[0])
    torch.testing.assert_close(mixed[1].double(), whole[1], rtol=1e-6, atol=1e-6)


@KINDS
def test_closure_runs_with_gradients_and_gives_the_loss(kind):
    p = nn.Parameter(torch.ones(3))
    optimizer = kind([p], lr=1.0)

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3
    assert (p < 1).all()


@KINDS
@pytest.mark.parametrize(
    ("argument", "value"), [("lr", -1), ("momentum", 1), ("weight_decay", -1e-6), ("trust_coefficient", 0)]
)
def test_arguments_out_of_range_are_refused(kind, argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}; must be"):
        kind([nn.Parameter(torch.ones(1))], **{"lr": 1.0, argument: value})


def test_sharded_and_whole_parameters_step_as_one_process_does(tmp_path):
    run_two(SHARDED, tmp_path, __file__)
    for kind in (LARS, LARC):
        network = small_network()
        train(network, kind)
        for rank in (0, 1):
            sharded = torch.load(tmp_path / f"{kind.__name__}-{rank}.pt", weights_only=True)
            for p, q in zip(network.parameters(), sharded, strict=True):
                torch.testing.assert_close(q, p.detach(), rtol=1e-10, atol=1e-12)
