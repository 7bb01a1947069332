import pytest
import torch

from avssl.memory import Pool, draw_negatives, draw_pool


def test_draws_never_hold_what_is_excluded_or_unseen_and_reach_all_else():
    torch.manual_seed(0)
    seen = torch.rand(30) < 0.6
    seen[:4] = torch.tensor([True, True, False, True])
    exclude = torch.tensor([[0, 1, 3], [2, 1, -1], [0, 9, 17], [-1, -1, -1]])
    draws = draw_negatives(Pool.of(seen), exclude, 3000)
    for excluded, row in zip(exclude.tolist(), draws, strict=True):
        allowed = set(seen.nonzero().flatten().tolist()) - set(excluded)
        assert set(row.tolist()) == allowed


def test_draws_are_uniform_over_what_is_left():
    torch.manual_seed(0)
    seen = torch.ones(12, dtype=torch.bool)
    draws = draw_negatives(Pool.of(seen), torch.tensor([[5, 0, 11]]), 90_000)
    counts = torch.bincount(draws[0], minlength=12)
    assert counts[[0, 5, 11]].sum() == 0
    rest = counts[counts > 0].double()
    assert len(rest) == 9
    chi_square = ((rest - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 26.1  # 0.1 % quantile at 8 degrees of freedom


def test_all_rows_serve_while_too_few_have_been_seen():
    seen = torch.zeros(10, dtype=torch.bool)
    seen[3] = True
    draws = draw_negatives(Pool.of(seen), torch.tensor([[3]]), 500)
    assert set(draws[0].tolist()) == set(range(10)) - {3}


def test_nothing_left_is_an_error_with_the_numbers():
    seen = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="3 instances leave no negative once 3 are excluded"):
        draw_negatives(Pool.of(seen), torch.tensor([[0, 1, 2]]), 5)


def test_a_shared_pool_is_sorted_seen_and_uniform():
    torch.manual_seed(0)
    seen = torch.tensor([True, False, True, True, False, True])
    drawn = draw_pool(Pool.of(seen), 40_000)
    assert torch.equal(drawn, drawn.sort().values)
    counts = torch.bincount(drawn, minlength=6).double()
    assert counts[[1, 4]].sum() == 0
    chi_square = ((counts[seen] - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 16.3  # 0.1 % quantile at 3 degrees of freedom


def test_a_shared_pool_of_one_row_is_replaced_by_all_rows():
    torch.manual_seed(0)
    seen = torch.tensor([False, True, False])
    assert set(draw_pool(Pool.of(seen), 200).tolist()) == {0, 1, 2}
