from copy import deepcopy

import pytest
import torch

from avssl.optim import make_optimizer, set_learning_rate
from avssl.optim.optimizers import kernels

NAMES = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "lars": "LARS", "larc": "LARC"}


def parameter():
    return torch.nn.Parameter(torch.ones(2))


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_optimisers_keep_the_base_rate_of_each_group(name, kind):
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": 0.5}]
    optimizer = make_optimizer(name, groups, lr=0.1, weight_decay=0.01)
    assert type(optimizer).__name__ == kind
    set_learning_rate(optimizer, 0.5)
    assert rates(optimizer) == pytest.approx([0.05, 0.25])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}


@pytest.mark.parametrize("name", NAMES)
def test_groups_scale_or_fix_their_rate_and_set_their_decay(name):
    groups = [
        {"params": [parameter()]},
        {"params": [parameter()], "lr_scale": 0.024, "adapt": False, "weight_decay": 0.0},
        {"params": [parameter()], "fixed_lr": True},
        {"params": [parameter()], "lr": 0.5, "lr_scale": 0.1, "fixed_lr": True},
    ]
    optimizer = make_optimizer(name, groups, lr=0.2, weight_decay=0.01)
    assert rates(optimizer) == pytest.approx([0.2, 0.0048, 0.2, 0.05])
    for factor in (0.5, 0.0, 0.5):
        set_learning_rate(optimizer, factor)
        assert rates(optimizer) == pytest.approx([0.2 * factor, 0.0048 * factor, 0.2, 0.05])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0, 0.01, 0.01]


@pytest.mark.parametrize("name", ["sgd", "lars", "larc"])
def test_momentum_reaches_the_optimiser(name):
    optimizer = make_optimizer(name, [{"params": [parameter()]}], lr=0.1, momentum=0.7)
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_building_leaves_the_given_groups_alone():
    groups = [{"params": [parameter()], "lr_scale": 0.5}]
    first, second = (make_optimizer("sgd", groups, lr=0.1) for _ in range(2))
    assert groups[0].keys() == {"params", "lr_scale"}
    assert rates(first) == rates(second) == pytest.approx([0.05])


def test_rates_of_groups_survive_a_checkpoint():
    groups = [{"params": [parameter()]}, {"params": [parameter()], "fixed_lr": True}]
    optimizer = make_optimizer("sgd", groups, lr=0.1)
    set_learning_rate(optimizer, 0.3)
    resumed = make_optimizer("sgd", groups, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    set_learning_rate(resumed, 0.5)
    assert rates(resumed) == pytest.approx([0.05, 0.1])


@pytest.mark.parametrize("name", NAMES)
def test_many_tensors_step_at_a_time_and_adam_on_gpus_in_one_kernel(name):
    class OnGpu(torch.Tensor):
        is_cuda = True

    foreach = {} if name in ("lars", "larc") else {"foreach": True}
    assert kernels(name, [torch.ones(2)]) == foreach
    assert kernels(name, [OnGpu(2)]) == ({"fused": True} if name.startswith("adam") else foreach)
    assert kernels(name, [OnGpu(2), torch.ones(2)]) == foreach
    optimizer = make_optimizer(name, [{"params": [parameter()]}], lr=0.1)
    assert optimizer.param_groups[0].get("foreach", False) == bool(foreach)


def weights(layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    return torch.nn.Parameter(values.contiguous(memory_format=layout))


def step(optimizer, p, seed):
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype).to(p)
    p.grad = torch.empty_like(p).copy_(p.grad)  # laid out as its parameter, as autograd has it
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_layout_goes_on_with_the_same_steps(name):
    first, last = weights(), weights(torch.channels_last)
    before, resumed = (make_optimizer(name, [{"params": [p]}], 0.1, 0.1) for p in (first, last))
    step(before, first, 1)
    resumed.load_state_dict(deepcopy(before.state_dict()))
    last.data.copy_(first)
    for seed in (2, 3):
        step(before, first, seed)
        step(resumed, last, seed)
    torch.testing.assert_close(last, first, rtol=1e-12, atol=1e-14)
    moments = [x for x in resumed.state[last].values() if x.shape == last.shape]
    assert moments
    assert all(x.stride() == last.stride() for x in moments)


def test_a_fused_optimiser_goes_on_from_the_state_of_another():
    first, last = weights(), weights(torch.channels_last)
    before = make_optimizer("adam", [{"params": [first]}], lr=0.1)
    step(before, first, 1)
    resumed = make_optimizer("adam", [{"params": [last]}], lr=0.1)
    for group in resumed.param_groups:  # as if it lay on a GPU
        group |= {"fused": True, "foreach": None}
    resumed.load_state_dict(deepcopy(before.state_dict()))
    assert resumed.param_groups[0]["fused"] is True
    assert resumed.param_groups[0]["foreach"] is None
    last.data.copy_(first)
    step(before, first, 2)
    step(resumed, last, 2)
    torch.testing.assert_close(last, first, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_steps_that_overflow_leave_no_trace(name):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(name, [{"params": [p]}], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(p[0] * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    assert torch.equal(p, torch.ones(3))
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.9))


def test_sgd_takes_a_first_gradient_later_than_the_others():
    p, late = parameter(), parameter()
    optimizer = make_optimizer("sgd", [{"params": [p, late]}], lr=0.1)
    for grads in ((torch.ones(2), None), (torch.ones(2), torch.ones(2))):
        p.grad, late.grad = grads
        optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((2,), 0.9))
