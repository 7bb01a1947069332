import math
from pathlib import Path

import pytest
import torch
from torch import nn

from avssl.errors import ConfigError
from avssl.objectives.barlow_twins import BarlowTwins, barlow_twins_loss, cross_correlation

CASE = torch.load(Path(__file__).parents[1] / "golden" / "image.pt", weights_only=True)["barlow_loss"]


def encoders(dim=2048):
    module = nn.Module()
    module.video = nn.Identity()
    module.video.dim = dim
    return module


def naive_columns(z):
    columns = []
    for column in z.T.tolist():
        mean = sum(column) / len(column)
        variance = sum((v - mean) ** 2 for v in column) / len(column)
        columns.append([(v - mean) / math.sqrt(variance + 1e-5) for v in column])
    return columns


def naive_barlow(z1, z2, lambd):
    total = 0.0
    for i, a in enumerate(naive_columns(z1)):
        for j, b in enumerate(naive_columns(z2)):
            c = sum(v * w for v, w in zip(a, b, strict=True)) / len(a)
            total += (c - 1) ** 2 if i == j else lambd * c**2
    return total


def test_loss_and_gradient_equal_the_release():
    z1, z2 = (CASE[k].clone().requires_grad_() for k in ("z1", "z2"))
    loss = barlow_twins_loss(z1, z2, CASE["lambd"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), CASE["loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(z1.grad, CASE["grad_z1"], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(z2.grad, CASE["grad_z2"], rtol=1e-10, atol=1e-14)
    other = barlow_twins_loss(CASE["z1"], CASE["z2"], 5e-3)
    torch.testing.assert_close(other, CASE["loss_lambda_5e3"], rtol=1e-10, atol=0)


def test_loss_equals_its_equation():
    g = torch.Generator().manual_seed(1)
    z1, z2 = (3 * torch.randn(9, 5, generator=g, dtype=torch.float64) + 2 for _ in range(2))
    expected = naive_barlow(z1, z2, 0.0051)
    assert float(barlow_twins_loss(z1, z2)) == pytest.approx(expected, rel=1e-12)
    assert float(barlow_twins_loss(z1.float(), z2.float())) == pytest.approx(expected, rel=1e-5)


def test_gradient_of_the_loss_is_its_slope():
    g = torch.Generator().manual_seed(2)
    z = tuple(torch.randn(6, 3, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(barlow_twins_loss, z)


def test_correlations_are_float32_under_autocast():
    g = torch.Generator().manual_seed(3)
    z1, z2 = (torch.randn(64, 16, generator=g) for _ in range(2))
    exact = cross_correlation(z1, z2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cross_correlation(z1, z2), exact)
        halves = cross_correlation(z1.bfloat16(), z2.bfloat16())
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, exact, rtol=0, atol=0.01)


def test_a_constant_feature_is_finite():
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(4))
    z[:, 0] = 3.0
    z.requires_grad_()
    barlow_twins_loss(z, z).backward()
    assert z.grad.isfinite().all()


def test_projector_is_that_of_the_release():
    with torch.device("meta"):
        objective = BarlowTwins(encoders())
    assert {k: tuple(p.shape) for k, p in objective.named_parameters()} == {
        "projector.0.weight": (8192, 2048),
        "projector.1.weight": (8192,),
        "projector.1.bias": (8192,),
        "projector.3.weight": (8192, 8192),
        "projector.4.weight": (8192,),
        "projector.4.bias": (8192,),
        "projector.6.weight": (8192, 8192),
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lambd": -1.0}, "lambd is -1.0; it must be at least 0"),
        ({"bias_lr_scale": 0.0}, "bias_lr_scale is 0.0; it must be above 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BarlowTwins(encoders(4), hidden_dim=4, dim=4, **options)
