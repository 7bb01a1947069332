import pytest
import torch

from avssl.optim import make_optimizer, set_learning_rate

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
