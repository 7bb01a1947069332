import math

import pytest
import torch

from avssl.optim import learning_rate_factor, make_optimizer, set_learning_rate


def test_cosine_rises_linearly_then_falls_to_zero():
    factor = [learning_rate_factor(e, 10, "cosine", warmup_epochs=2) for e in (0, 1, 2, 6, 10)]
    assert factor == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert learning_rate_factor(3.5, 10, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.35)))


def test_multistep_multiplies_at_each_milestone():
    factor = [learning_rate_factor(e, 16, "multistep", milestones=(6, 10), gamma=0.3) for e in (5.9, 6, 12)]
    assert factor == pytest.approx([1, 0.3, 0.09])


def test_constant_stays():
    assert {learning_rate_factor(e, 5) for e in (0, 2.5, 5)} == {1.0}


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_optimisers_keep_the_base_rate_of_each_group(name, kind):
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(name, [{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1, weight_decay=0.01)
    assert type(optimizer).__name__ == kind
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.25])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}
