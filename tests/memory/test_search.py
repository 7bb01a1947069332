import pytest
import torch
import torch.nn.functional as F

from avssl.memory import agreement_scores, mine_positives, nearest


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_positives(video, audio, k, combine, seen):
    found = []
    for i in range(len(video)):
        scores = []
        for j in range(len(video)):
            if j != i and seen[i] and seen[j]:
                by_sight = (video[i].double() * video[j].double()).sum()
                by_sound = (audio[i].double() * audio[j].double()).sum()
                scores.append((float(combine(by_sight, by_sound)), j))
        best = sorted(j for _, j in sorted(scores, reverse=True)[:k])
        found.append(best + [-1] * (k - len(best)))
    return found


COMBINE = {"consensus": min, "union": max, "video": lambda v, a: v, "audio": lambda v, a: a}


@pytest.mark.parametrize("agreement", list(COMBINE))
@pytest.mark.parametrize("block", [7, 256])
def test_mining_equals_a_naive_float64_loop(agreement, block):
    video, audio = unit(50, 8), unit(50, 8, seed=1)
    seen = torch.ones(50, dtype=torch.bool)
    seen[[4, 30]] = False
    found = mine_positives(video, audio, 5, agreement, seen, block=block)
    assert found.dtype == torch.int32
    assert found.tolist() == naive_positives(video, audio, 5, COMBINE[agreement], seen)


def test_a_duplicate_is_a_positive_and_the_instance_itself_is_not():
    video, audio = unit(20, 8), unit(20, 8, seed=1)
    video[7], audio[7] = video[3], audio[3]
    found = mine_positives(video, audio, 2)
    assert 7 in found[3].tolist()
    assert not (found == torch.arange(20)[:, None]).any()


def test_fewer_instances_than_positives_leave_empty_places():
    found = mine_positives(unit(3, 4), unit(3, 4, seed=1), 5)
    assert found.tolist() == [[1, 2, -1, -1, -1], [0, 2, -1, -1, -1], [0, 1, -1, -1, -1]]
    nobody = torch.zeros(3, dtype=torch.bool)
    assert (mine_positives(unit(3, 4), unit(3, 4), 5, seen=nobody) == -1).all()


def test_mining_tells_how_far_it_is():
    calls = []
    mine_positives(
        unit(10, 4), unit(10, 4), 2, block=4, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(4, 10), (8, 10), (10, 10)]


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
