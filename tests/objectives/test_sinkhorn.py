import math
from pathlib import Path

import pytest
import torch

from avssl.objectives.sinkhorn import hard_codes, prototype_usage, sinkhorn

CASE = torch.load(Path(__file__).parents[1] / "golden" / "image.pt", weights_only=True)["sinkhorn"]


def cosines(batch=24, prototypes=7, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    z, w = (torch.nn.functional.normalize(torch.randn(n, 5, generator=g)) for n in (batch, prototypes))
    return (z @ w.T).to(dtype)


def naive_sinkhorn(scores, epsilon, iterations):
    """The equations as they stand, with the constants that cancel, number by number."""
    batch, prototypes = len(scores), len(scores[0])
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    total = sum(map(sum, q))
    q = [[v / total for v in row] for row in q]
    for _ in range(iterations):
        over_samples = [sum(row[k] for row in q) for k in range(prototypes)]
        q = [[v / over_samples[k] / prototypes for k, v in enumerate(row)] for row in q]
        q = [[v / sum(row) / batch for v in row] for row in q]
    return torch.tensor([[v * batch for v in row] for row in q], dtype=torch.float64)


@pytest.mark.parametrize("epsilon, iterations", [(0.05, 3), (0.03, 10), (0.05, 10)])
def test_codes_equal_the_release(epsilon, iterations):
    expected = CASE["q"][f"({epsilon}, {iterations})"]
    codes = sinkhorn(CASE["scores"], epsilon, iterations)
    assert codes.dtype == torch.float64
    torch.testing.assert_close(codes, expected, rtol=1e-10, atol=1e-15)
    single = sinkhorn(CASE["scores"].float(), epsilon, iterations)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-6)


def test_codes_equal_their_equations():
    for epsilon, iterations in ((0.05, 3), (0.03, 10), (0.5, 1), (0.0113, 2)):
        expected = naive_sinkhorn(cosines().tolist(), epsilon, iterations)
        torch.testing.assert_close(sinkhorn(cosines(), epsilon, iterations), expected, rtol=1e-10, atol=1e-15)


def test_hard_codes_equal_vissl():
    assert torch.equal(hard_codes(sinkhorn(CASE["scores"]).float()), CASE["vissl_hard"])


def test_both_sums_become_even():
    codes = sinkhorn(cosines(), iterations=500)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(24, dtype=torch.float64), rtol=1e-12, atol=0)
    expected = torch.full((7,), 24 / 7, dtype=torch.float64)
    torch.testing.assert_close(codes.sum(dim=0), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_epsilon_is_finite_in_any_precision(autocast, dtype):
    scores = cosines(64, 30, dtype=dtype)
    scores[0], scores[1] = 1, -1
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        codes = sinkhorn(scores, epsilon=0.003, iterations=10)
    assert codes.dtype == torch.float32
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(64), rtol=1e-5, atol=0)
    exact = sinkhorn(scores.double(), epsilon=0.003, iterations=10)
    torch.testing.assert_close(codes.double(), exact, rtol=0, atol=1e-3)


def test_autocast_changes_nothing():
    scores = cosines(dtype=torch.float32)
    expected = sinkhorn(scores)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(scores), expected)


def test_scores_are_left_alone_and_get_no_gradient():
    scores = cosines().requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn(scores).requires_grad
    assert torch.equal(scores.detach(), before)


@pytest.mark.parametrize("epsilon, iterations", [(0.0, 3), (-1.0, 3), (0.05, 0)])
def test_impossible_settings_are_refused(epsilon, iterations):
    with pytest.raises(ValueError, match=rf"epsilon is {epsilon} and iterations {iterations}; they must be"):
        sinkhorn(cosines(), epsilon, iterations)


def test_usage_counts_weight_and_likeliest_prototypes():
    codes = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.6, 0.4, 0, 0]])
    usage = prototype_usage(codes, torch.tensor([[0.2, 0, 0, 0], [0.1, 0.3, 0, 0], [0.5, 0.4, 0, 0]]))
    p = 1.6 / 3
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert float(usage["prototype_perplexity"]) == pytest.approx(math.exp(entropy) / 4, rel=1e-5)
    assert float(usage["prototypes_used"]) == pytest.approx(2 / 3)  # 3 samples cannot use 4
    even = prototype_usage(torch.eye(4), torch.eye(4))
    assert {key: float(value) for key, value in even.items()} == pytest.approx(dict.fromkeys(usage, 1.0))
