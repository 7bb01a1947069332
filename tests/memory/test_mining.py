from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from avssl.memory import candidates, clusters, exact, mine_positives
from avssl.memory.methods import recall_of
from avssl.memory.rows import Rows

COMBINE = {"consensus": min, "union": max, "video": lambda v, a: v, "audio": lambda v, a: a}
EXACT_METHODS = ["exact", "flat"]


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def clustered(num, dim=16, classes=10, noise=0.7, seed=0):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (num,), generator=g)
    banks = []
    for _ in range(2):
        centres = torch.randn(classes, dim, generator=g)
        banks.append(F.normalize(centres[label] + noise * torch.randn(num, dim, generator=g), dim=1))
    return banks


def naive_positives(video, audio, k, agreement="consensus", seen=None, groups=None):
    by_sight = (video.double() @ video.double().T).tolist()
    by_sound = (audio.double() @ audio.double().T).tolist()
    found = []
    for i in range(len(video)):
        scores = []
        for j in range(len(video)):
            taking_part = seen is None or (seen[i] and seen[j])
            if j != i and taking_part and (groups is None or groups[i] != groups[j]):
                scores.append((COMBINE[agreement](by_sight[i][j], by_sound[i][j]), j))
        best = sorted(j for _, j in sorted(scores, reverse=True)[:k])
        found.append(best + [-1] * (k - len(best)))
    return found


@pytest.mark.parametrize("agreement", list(COMBINE))
@pytest.mark.parametrize("method", EXACT_METHODS)
def test_mining_equals_a_naive_float64_loop(agreement, method):
    video, audio = unit(150, 8), unit(150, 8, seed=1)
    seen = torch.rand(150, generator=torch.Generator().manual_seed(2)) < 0.9
    groups = torch.arange(150) // 2
    found = mine_positives(video, audio, 5, agreement, seen=seen, groups=groups, method=method)
    assert found.positives.dtype == torch.int32
    assert found.positives.tolist() == naive_positives(video, audio, 5, agreement, seen, groups)
    assert (found.certified_share, found.recall, found.method) == (1.0, 1.0, method)
    assert found.num_rows == int(seen.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 70])
def test_many_tiles_equal_the_naive_loop_in_either_screen(dtype, k, monkeypatch):
    monkeypatch.setattr("avssl.memory.methods.default_side", lambda device: 64)
    monkeypatch.setattr(exact, "screen_dtype", lambda device: dtype)
    video, audio = clustered(300)
    assert mine_positives(video, audio, k).positives.tolist() == naive_positives(video, audio, k)


def test_vectors_too_alike_for_the_screen_are_settled_in_float32(monkeypatch):
    monkeypatch.setattr("avssl.memory.methods.default_side", lambda device: 64)
    monkeypatch.setattr(exact, "screen_dtype", lambda device: torch.bfloat16)
    video = F.normalize(torch.ones(600, 8) + 0.03 * unit(600, 8), dim=1)
    audio = F.normalize(torch.ones(600, 8) + 0.03 * unit(600, 8, seed=1), dim=1)
    found = mine_positives(video, audio, 1).positives.tolist()
    scores = torch.minimum(video.double() @ video.double().T, audio.double() @ audio.double().T)
    scores.fill_diagonal_(-1)
    reached = scores[torch.arange(600), torch.tensor(found)[:, 0]]
    torch.testing.assert_close(reached, scores.amax(dim=1), atol=3e-7, rtol=0)  # but for float ties


@pytest.mark.parametrize("method", EXACT_METHODS)
def test_a_duplicate_is_a_positive_unless_grouped_and_the_instance_itself_never_is(method):
    video, audio = unit(20, 8), unit(20, 8, seed=1)
    video[7], audio[7] = video[3], audio[3]
    found = mine_positives(video, audio, 2, method=method).positives
    assert 7 in found[3].tolist()
    assert 3 in found[7].tolist()
    assert not (found == torch.arange(20)[:, None]).any()
    groups = torch.arange(20)
    groups[7] = 3
    found = mine_positives(video, audio, 2, groups=groups, method=method).positives
    assert 7 not in found[3].tolist()
    assert 3 not in found[7].tolist()


@pytest.mark.parametrize("method", [*EXACT_METHODS, "clusters", "ivf", "hnsw", "ivfpq"])
def test_fewer_instances_than_positives_leave_empty_places(method):
    found = mine_positives(unit(3, 4), unit(3, 4, seed=1), 5, method=method).positives
    assert found.tolist() == [[1, 2, -1, -1, -1], [0, 2, -1, -1, -1], [0, 1, -1, -1, -1]]


@pytest.mark.parametrize("num_seen", [0, 1])
def test_without_company_there_are_no_positives(num_seen):
    found = mine_positives(unit(3, 4), unit(3, 4, seed=1), 2, seen=torch.arange(3) < num_seen)
    assert (found.positives == -1).all()
    assert found.num_rows == num_seen


def test_one_group_has_no_positives():
    groups = torch.zeros(10, dtype=torch.int64)
    for method in EXACT_METHODS:
        found = mine_positives(unit(10, 4), unit(10, 4, seed=1), 2, groups=groups, method=method)
        assert (found.positives == -1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_banks_are_searched_in_float32(dtype):
    video, audio = unit(100, 16).to(dtype), unit(100, 16, seed=1).to(dtype)
    expected = naive_positives(video.float(), audio.float(), 4)
    assert mine_positives(video, audio, 4).positives.tolist() == expected


def test_banks_need_not_be_contiguous():
    both = unit(2, 16, 80).transpose(1, 2)
    video, audio = F.normalize(both[0], dim=1), both[1] / both[1].norm(dim=1, keepdim=True)
    video = torch.stack([video, video], dim=2)[:, :, 0]
    assert not video.is_contiguous()
    assert mine_positives(video, audio, 3).positives.tolist() == naive_positives(video, audio, 3)


def test_a_row_whose_best_agreement_has_a_low_sum_is_searched_deeper(monkeypatch):
    # Row 0: 300 rows are seen alike (sum 1) but not heard; row 301 agrees with 0.3 in both (sum 0.6).
    video, audio = torch.zeros(302, 304), torch.zeros(302, 304)
    video[:301, 0] = audio[0, 0] = 1
    audio[torch.arange(1, 301), torch.arange(1, 301)] = 1
    for bank, column in ((video, 302), (audio, 303)):
        bank[301, 0], bank[301, column] = 0.3, (1 - 0.3**2) ** 0.5
    depths = []
    search = candidates.CandidateSearch.search
    monkeypatch.setattr(
        candidates.CandidateSearch,
        "search",
        lambda self, queries, k, depth: depths.append((depth, len(queries)))
        or search(self, queries, k, depth),
    )
    found = mine_positives(video, audio, 1, method="flat")
    assert found.positives[0].tolist() == [301]
    assert [depth for depth, _ in depths] == sorted({depth for depth, _ in depths})
    assert depths[-1][0] == found.depth > 256
    monkeypatch.setattr(candidates, "DEEPEST", 16)
    shallow = mine_positives(video, audio, 1, method="flat")
    assert shallow.depth == 16
    assert shallow.positives[0].tolist() == [301]


@pytest.mark.parametrize("agreement", ["consensus", "union", "video"])
@pytest.mark.parametrize("method", ["clusters", "ivf", "hnsw", "ivfpq"])
def test_approximate_methods_find_the_positives_of_clustered_rows(method, agreement, monkeypatch):
    monkeypatch.setattr("avssl.memory.methods.default_side", lambda device: 64)
    video, audio = clustered(1200, classes=60, noise=0.3)
    found = mine_positives(video, audio, 8, agreement, method=method)
    reference = mine_positives(video, audio, 8, agreement, method="exact").positives
    assert recall_of(found.positives, reference) > 0.93
    assert abs(found.recall - recall_of(found.positives, reference)) < 0.03
    if found.method == method:
        assert found.certified_share == 0
        assert found.recall_rows > 0
    if (method, agreement) == ("clusters", "consensus"):
        assert found.method == "clusters"
        assert found.compared_share < 0.5


def test_clusters_of_rows_without_structure_become_exact():
    video, audio = unit(300, 32), unit(300, 32, seed=1)
    found = mine_positives(video, audio, 5, method="clusters")
    assert (found.method, found.certified_share, found.compared_share) == ("exact", 1.0, 1.0)


def test_rows_that_are_all_the_same_have_an_order():
    rows = Rows(torch.ones(500, 4) / 2, torch.ones(500, 4) / 2, "consensus")
    assert clusters.similar_order(rows, 64).sort().values.tolist() == list(range(500))
    positives = mine_positives(rows.video, rows.audio, 3).positives
    assert (positives >= 0).all()
    assert not (positives == torch.arange(500)[:, None]).any()


@pytest.mark.parametrize("method", ["exact", "clusters", "flat", "ivf"])
def test_mining_tells_how_far_it_is(method, monkeypatch):
    monkeypatch.setattr("avssl.memory.methods.default_side", lambda device: 64)
    calls = []
    video, audio = clustered(300)
    mine_positives(video, audio, 2, method=method, progress=lambda *call: calls.append(call))
    assert calls[-1] == (300, 300)
    assert all(earlier[0] < later[0] for earlier, later in pairwise(calls))


def test_numbers_are_flat_and_prefixed():
    numbers = mine_positives(unit(10, 4), unit(10, 4, seed=1), 2).numbers()
    assert numbers["mining_recall"] == numbers["mining_certified_share"] == 1
    assert all(name.startswith("mining_") for name in numbers)
    assert all(isinstance(value, float) for value in numbers.values())


def test_faiss_threads_are_restored():
    import faiss

    before = faiss.omp_get_max_threads()
    with candidates.faiss_threads(before + 1):
        assert faiss.omp_get_max_threads() == before + 1
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_positives": 0}, "num_positives must be at least 1; got 0"),
        (
            {"method": "magic"},
            "method must be one of auto, exact, clusters, flat, ivf, hnsw, ivfpq; got 'magic'",
        ),
        ({"agreement": "both"}, "agreement must be one of consensus, union, video, audio; got 'both'"),
        ({"audio": unit(9, 4)}, "same N on one device"),
        ({"seen": torch.ones(9, dtype=torch.bool)}, "seen must have one entry a row, 10; got"),
        ({"groups": torch.ones(9, dtype=torch.int64)}, "groups must have one entry a row, 10; got"),
        ({"recall_target": 1.5}, "recall_target must be above 0 and at most 1; got 1.5"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    arguments = {"video": unit(10, 4), "audio": unit(10, 4, seed=1), "num_positives": 2} | change
    with pytest.raises(ValueError, match=message):
        mine_positives(**arguments)
