import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avssl.models import VisualEncoder
from avssl.objectives import BYOL, BarlowTwins, SimSiam, SwAV, collapse_signs, embedding_health
from avssl.types import Views


def test_health_of_embeddings_in_all_directions_and_in_one():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 32, generator=g)
    assert float(embedding_health(z)["spread"]) == pytest.approx(1, abs=0.01)
    assert float(embedding_health(z)["effective_rank"]) == pytest.approx(32, rel=0.05)
    line = torch.randn(50, 1, generator=g) * torch.randn(1, 32, generator=g)
    assert float(embedding_health(line, "_video")["effective_rank_video"]) == pytest.approx(1, abs=1e-4)


def test_effective_rank_equals_that_of_the_eigenvalues():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(40, 6, generator=g) * torch.tensor([5.0, 3.0, 1.0, 1.0, 0.1, 0.0])
    unit = F.normalize(z.double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(unit.T))
    expected = eigenvalues.sum() ** 2 / eigenvalues.square().sum()
    assert float(embedding_health(z)["effective_rank"]) == pytest.approx(float(expected), rel=1e-5)


def test_constant_embeddings_have_no_spread_and_rank_one():
    health = embedding_health(torch.ones(8, 16))
    assert float(health["spread"]) == pytest.approx(0, abs=1e-5)
    assert float(health["effective_rank"]) == 1


class Constant(nn.Module):
    """A trunk that says the same of everything."""

    dim = 8

    def __init__(self):
        super().__init__()
        self.feature = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.feature.expand(len(x), 8)


@pytest.mark.parametrize(
    "objective",
    [
        lambda e: SimSiam(e, hidden_dim=8, dim=8, predictor_dim=4),
        lambda e: BYOL(e, hidden_dim=8, dim=8),
        lambda e: BarlowTwins(e, hidden_dim=8, dim=8),
        lambda e: SwAV(e, num_prototypes=50, head_dims=(8, 8)),
    ],
)
def test_every_visual_objective_shows_that_its_embeddings_are_all_the_same(objective):
    torch.manual_seed(0)
    views = Views((torch.randn(64, 3, 1, 4, 4), torch.randn(64, 3, 1, 4, 4)), (), torch.arange(64))
    out = objective(VisualEncoder(Constant()))(views)
    signs = collapse_signs({name: float(value.detach()) for name, value in out.items()}, done=0.5)
    assert any(sign.startswith("spread is") and "lower optim.lr" in sign for sign in signs)


@pytest.mark.parametrize(
    ("numbers", "begins"),
    [
        (
            {"swav/prototypes_used": 0.01},
            "swav/prototypes_used is 0.01: nearly all samples share a few prototypes",
        ),
        ({"loss_over_ln_k": 1.0}, "loss_over_ln_k is 1: the loss stays at that of random guesses, ln K"),
        ({"mean_norm_audio": 0.99}, "mean_norm_audio is 0.99: all embeddings lie in one cone"),
        ({"effective_rank_video": 1.1}, "effective_rank_video is 1.1: embeddings vary in a single direction"),
    ],
)
def test_signs_are_put_into_words_but_not_at_the_very_beginning(numbers, begins):
    (sign,) = collapse_signs(numbers, done=0.5)
    assert sign.startswith(begins)
    assert collapse_signs(numbers, done=0.05) == []


def test_healthy_numbers_are_not_remarked_on():
    healthy = {
        "spread": 0.9,
        "effective_rank": 20.0,
        "prototypes_used": 0.8,
        "loss_over_ln_k": 0.9,
        "loss": 0.001,
    }
    assert collapse_signs(healthy, done=0.9) == []
