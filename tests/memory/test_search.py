import pytest
import torch
import torch.nn.functional as F

from avssl.memory import agreement_scores, nearest


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_agreement_is_the_minimum_of_both_similarities():
    video, audio = unit(6, 4), unit(6, 4, seed=1)
    scores = agreement_scores(video[:2], audio[:2], video, audio, "consensus")
    torch.testing.assert_close(scores, torch.minimum(video[:2] @ video.T, audio[:2] @ audio.T))


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_nearest_equals_sorting_all_scores(backend):
    queries, vectors = unit(30, 16), unit(200, 16, seed=1)
    scores, rows = nearest(queries, vectors, 7, backend, block=8)
    expected = (queries.double() @ vectors.double().T).sort(dim=1, descending=True)
    assert torch.equal(rows, expected.indices[:, :7])
    torch.testing.assert_close(scores.double(), expected.values[:, :7], atol=1e-6, rtol=0)


def test_nearest_refuses_more_neighbours_than_vectors():
    with pytest.raises(ValueError, match="between 1 and the 3 vectors searched; got 4"):
        nearest(unit(2, 4), unit(3, 4), 4)
