import pytest
import torch

from avssl.memory import draw_negatives


def pool_of(seen):
    return seen.nonzero().flatten(), seen.long().cumsum(0) - seen.long()


def test_draws_never_hold_what_is_excluded_or_unseen_and_reach_all_else():
    torch.manual_seed(0)
    seen = torch.rand(30) < 0.6
    seen[:4] = torch.tensor([True, True, False, True])
    exclude = torch.tensor([[0, 1, 3], [2, 1, -1], [0, 9, 17], [-1, -1, -1]])
    draws = draw_negatives(pool_of(seen), 30, exclude, 3000, seen)
    for excluded, row in zip(exclude.tolist(), draws, strict=True):
        allowed = set(seen.nonzero().flatten().tolist()) - set(excluded)
        assert set(row.tolist()) == allowed


def test_draws_are_uniform_over_what_is_left():
    torch.manual_seed(0)
    seen = torch.ones(12, dtype=torch.bool)
    draws = draw_negatives(pool_of(seen), 12, torch.tensor([[5, 0, 11]]), 90_000, seen)
    counts = torch.bincount(draws[0], minlength=12)
    assert counts[[0, 5, 11]].sum() == 0
    rest = counts[counts > 0].double()
    assert len(rest) == 9
    chi_square = ((rest - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 26.1  # 0.1 % quantile at 8 degrees of freedom


def test_all_rows_serve_while_too_few_have_been_seen():
    seen = torch.zeros(10, dtype=torch.bool)
    seen[3] = True
    draws = draw_negatives(pool_of(seen), 10, torch.tensor([[3]]), 500, seen)
    assert set(draws[0].tolist()) == set(range(10)) - {3}


def test_nothing_left_is_an_error_with_the_numbers():
    seen = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="3 instances leave no negative once 3 are excluded"):
        draw_negatives(pool_of(seen), 3, torch.tensor([[0, 1, 2]]), 5, seen)
