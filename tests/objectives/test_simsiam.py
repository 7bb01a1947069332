import math
from pathlib import Path

import pytest
import torch
from torch import nn

from avssl.objectives.simsiam import SimSiam, simsiam_loss
from avssl.types import Views

CASE = torch.load(Path(__file__).parents[1] / "golden" / "image.pt", weights_only=True)["simsiam_loss"]


def naive_simsiam(p1, z2, p2, z1):
    total = 0.0
    for p, z in ((p1, z2), (p2, z1)):
        for a, b in zip(p.tolist(), z.tolist(), strict=True):
            norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
            total -= sum(v * w for v, w in zip(a, b, strict=True)) / norms
    return total / (2 * len(p1))


def released():
    encoders = nn.Module()
    encoders.video = nn.Identity()
    encoders.video.dim = 2048
    with torch.device("meta"):
        return SimSiam(encoders)


def test_loss_and_gradient_equal_the_release():
    p1, z2, p2, z1 = (CASE[k].clone().requires_grad_() for k in ("p1", "z2", "p2", "z1"))
    loss = simsiam_loss(p1, z2, p2, z1)
    loss.backward()
    torch.testing.assert_close(loss.detach(), CASE["loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(p1.grad, CASE["grad_p1"], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(p2.grad, CASE["grad_p2"], rtol=1e-10, atol=1e-14)
    assert z1.grad is None
    assert z2.grad is None


def test_loss_equals_its_equation_and_spans_minus_one_to_one():
    g = torch.Generator().manual_seed(1)
    tensors = [torch.randn(5, 7, generator=g, dtype=torch.float64) for _ in range(4)]
    assert float(simsiam_loss(*tensors)) == pytest.approx(naive_simsiam(*tensors), rel=1e-12)
    p = tensors[0]
    assert float(simsiam_loss(p, 2 * p, p, 3 * p)) == pytest.approx(-1, rel=1e-12)
    assert float(simsiam_loss(p, -p, p, -2 * p)) == pytest.approx(1, rel=1e-12)


def test_each_view_predicts_the_other():
    torch.manual_seed(0)
    encoders = nn.Module()
    encoders.video = nn.Flatten()
    encoders.video.dim = 12
    objective = SimSiam(encoders, hidden_dim=8, dim=6, predictor_dim=4).double()
    batch = tuple(torch.randn(10, 3, 1, 2, 2, dtype=torch.float64) for _ in range(2))
    z1, z2 = (objective.projector(x.flatten(1)) for x in batch)
    expected = naive_simsiam(objective.predictor(z1), z2, objective.predictor(z2), z1)
    loss = objective(Views(batch, (), torch.arange(10)))["loss"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-10)


def test_heads_are_those_of_the_release():
    shapes = {k: tuple(v.shape) for k, v in released().state_dict().items() if "running" not in k}
    assert {k: s for k, s in shapes.items() if "num_batches" not in k} == {
        "projector.0.weight": (2048, 2048),
        "projector.1.weight": (2048,),
        "projector.1.bias": (2048,),
        "projector.3.weight": (2048, 2048),
        "projector.4.weight": (2048,),
        "projector.4.bias": (2048,),
        "projector.6.weight": (2048, 2048),
        "projector.6.bias": (2048,),
        "predictor.0.weight": (512, 2048),
        "predictor.1.weight": (512,),
        "predictor.1.bias": (512,),
        "predictor.3.weight": (2048, 512),
        "predictor.3.bias": (2048,),
    }


def test_only_the_last_bias_of_the_projector_is_frozen():
    objective = released()
    assert [k for k, p in objective.named_parameters() if not p.requires_grad] == ["projector.6.bias"]
    assert "projector.7.running_mean" in objective.state_dict()
