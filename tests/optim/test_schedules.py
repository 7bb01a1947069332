import math
from pathlib import Path

import pytest
import torch

from avssl.optim import ema_momentum, learning_rate_factor, scaled_lr

GOLDEN = torch.load(Path(__file__).parents[1] / "golden" / "image.pt", weights_only=True)["byol_schedules"]


def test_cosine_rises_linearly_then_falls_to_zero():
    factor = [learning_rate_factor(e, 10, "cosine", warmup_epochs=2) for e in (0, 1, 2, 6, 10)]
    assert factor == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert learning_rate_factor(3.5, 10, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.35)))


def test_multistep_multiplies_at_each_milestone():
    factor = [learning_rate_factor(e, 16, "multistep", milestones=(6, 10), gamma=0.3) for e in (5.9, 6, 12)]
    assert factor == pytest.approx([1, 0.3, 0.09])


def test_constant_stays():
    assert {learning_rate_factor(e, 5) for e in (0, 2.5, 5)} == {1.0}


def test_swav_rises_from_its_start_and_ends_above_zero():
    def rate(epoch):
        return 4.8 * learning_rate_factor(
            epoch, 400, "cosine", warmup_epochs=10, warmup_start=0.3 / 4.8, end_factor=0.0048 / 4.8
        )

    assert [rate(e) for e in (0, 5, 10)] == pytest.approx([0.3, 2.55, 4.8], rel=1e-12)
    middle = 0.0048 + 0.5 * (4.8 - 0.0048) * (1 + math.cos(math.pi * 0.25))
    assert [rate(107.5), rate(400), rate(401)] == pytest.approx([middle, 0.0048, 0.0048], rel=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "multistep"])
def test_warm_up_start_holds_for_every_schedule(schedule):
    factor = [learning_rate_factor(e, 10, schedule, warmup_epochs=4, warmup_start=0.5) for e in (0, 1, 4)]
    assert factor == pytest.approx([0.5, 0.625, 1])


@pytest.mark.parametrize("unit", [1, 1000])  # a pass over the data as many epochs or as one
def test_learning_rate_passes_the_points_of_the_byol_release(unit):
    golden = GOLDEN["lr"]
    peak = scaled_lr(golden["base"], golden["batch_size"])
    assert peak == pytest.approx(3.2, rel=1e-12)
    for step, expected in golden["points"]:  # recorded in float32
        factor = learning_rate_factor(
            step / unit, golden["total"] // unit, "cosine", warmup_epochs=golden["warmup"] / unit
        )
        assert peak * factor == pytest.approx(expected, rel=2e-7, abs=4e-7)


@pytest.mark.parametrize("base", [0.996, 0.99, 0.97])
def test_teacher_momentum_equals_the_points_of_the_byol_release(base):
    for step, expected in GOLDEN["target_ema"][base]:
        assert ema_momentum(base, step, GOLDEN["max_steps"]) == pytest.approx(expected, rel=1e-15, abs=0)


def test_teacher_momentum_of_one_step_starts_at_the_base():
    assert [ema_momentum(0.9, step, 1) for step in (0, 1)] == pytest.approx([0.9, 1.0], rel=1e-15)


def test_scaled_rate_is_linear_in_the_batch():
    assert scaled_lr(0.3, 64) == pytest.approx(0.075)
    assert scaled_lr(0.1, 512, reference=1024) == pytest.approx(0.05)
