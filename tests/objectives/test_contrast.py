import pytest
import torch
import torch.nn.functional as F

from avssl.objectives.contrast import allowed_of, contrast_pool, contrast_rows
from avssl.objectives.nce import LEFT_OUT

B, P, K, D, N = 5, 3, 7, 6, 20


def example(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(B, D, generator=g, requires_grad=True)
    memory = F.normalize(torch.randn(N, D, generator=g), dim=1).to(dtype)
    return z, memory, torch.randint(N, (B, P), generator=g), torch.randint(N, (B, K), generator=g)


def loss(pos, neg):
    return pos.square().mean(dim=1) + neg.exp().sum(dim=1)


def expected_loss(z, memory, positives, negatives, temperature):
    """The same in float64, one sample and one row at a time."""
    losses = []
    for i in range(B):
        pos = torch.stack([(z[i].double() * memory[j].double()).sum() / temperature for j in positives[i]])
        neg = torch.stack([(z[i].double() * memory[j].double()).sum() / temperature for j in negatives[i]])
        losses.append(pos.square().mean() + neg.exp().sum())
    return torch.stack(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_and_gradients_equal_a_float64_loop_over_rows(dtype):
    z, memory, positives, negatives = example(dtype)
    got = contrast_rows(z, memory, positives, negatives, 0.5, loss)
    expected = expected_loss(z, memory, positives, negatives, 0.5)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    weights = torch.arange(1.0, B + 1)
    (got_grad,) = torch.autograd.grad((got * weights).sum(), z)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), z)
    torch.testing.assert_close(got_grad, expected_grad.float(), rtol=1e-5, atol=1e-5)


def test_the_memory_may_change_before_the_backward_pass():
    z, memory, positives, negatives = example()
    (expected,) = torch.autograd.grad(contrast_rows(z, memory, positives, negatives, 0.5, loss).sum(), z)
    losses = contrast_rows(z, memory, positives, negatives, 0.5, loss)
    memory.zero_()
    (got,) = torch.autograd.grad(losses.sum(), z)
    assert torch.equal(got, expected)


def test_a_pool_equals_the_same_rows_for_every_sample():
    z, memory, positives, negatives = example()
    pool = negatives[0]
    got = contrast_pool(z, memory, positives, pool, 0.5, loss)
    expected = expected_loss(z, memory, positives, pool.expand(B, K), 0.5)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    (got_grad,) = torch.autograd.grad(got.sum(), z)
    (expected_grad,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(got_grad, expected_grad.float(), rtol=1e-5, atol=1e-5)


def test_scores_keep_float32_precision_under_autocast():
    z, memory, positives, negatives = example()
    plain = contrast_rows(z, memory, positives, negatives, 0.07, loss)
    with torch.autocast("cpu", torch.bfloat16):
        cast = contrast_rows(z, memory, positives, negatives, 0.07, loss)
        pooled = contrast_pool(z, memory, positives, negatives[0], 0.07, loss)
    assert torch.equal(plain, cast)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, contrast_pool(z, memory, positives, negatives[0], 0.07, loss))


def test_no_gathered_rows_are_held():
    z, memory, positives, negatives = example()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        contrast_rows(z, memory, positives, negatives, 0.5, loss)
    assert sum(kept) <= z.numel() + 4 * B * (P + K)  # the gradient, and matrices of scores; not B K D


def test_what_a_pool_allows_equals_a_comparison_of_all_with_all():
    g = torch.Generator().manual_seed(1)
    pool = torch.randint(12, (40,), generator=g).sort().values
    exclude = torch.stack([torch.randperm(14, generator=g)[:5] - 1 for _ in range(30)])  # -1 excludes nothing
    expected = (pool[None, :, None] != exclude[:, None, :]).all(dim=2)
    allowed = allowed_of(pool, exclude)
    assert torch.equal(allowed.offset == 0, expected)
    assert (allowed.offset[~expected] == LEFT_OUT).all()
    assert torch.equal(allowed.count[:, 0], expected.sum(dim=1).float())
