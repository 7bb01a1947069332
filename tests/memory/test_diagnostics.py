"""Diagnostics of positive sets against plain loops in float64."""

import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from avssl.memory import precision as precision_module
from avssl.memory.diagnostics import diagnose

KINDS = {"consensus": min, "union": max, "video": lambda v, a: v, "audio": lambda v, a: a}


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def random_sets(num_rows, k, seed=0, empty=0.2):
    """Distinct other rows for each row; some places empty, at the end."""
    generator = torch.Generator().manual_seed(seed)
    sets = torch.full((num_rows, k), -1, dtype=torch.int32)
    for row in range(num_rows):
        others = [i for i in torch.randperm(num_rows, generator=generator).tolist() if i != row]
        filled = int((torch.rand(k, generator=generator) > empty).sum())
        sets[row, :filled] = torch.tensor(sorted(others[:filled]), dtype=torch.int32)
    return sets


@pytest.fixture
def world():
    """60 instances: 5 unseen, 9 of unknown class, 4 classes, groups of two."""
    num_rows = 60
    labels = torch.arange(num_rows) % 4
    labels[[3, 8, 13, 18, 23, 28, 33, 38, 43]] = -1
    seen = torch.ones(num_rows, dtype=torch.bool)
    seen[[0, 8, 20, 41, 59]] = False
    centres = unit(4, 8, seed=5)[torch.arange(num_rows) % 4]
    return {
        "video": F.normalize(centres + 0.7 * unit(num_rows, 8), dim=1),
        "audio": F.normalize(centres + 0.7 * unit(num_rows, 8, seed=1), dim=1),
        "positives": random_sets(num_rows, 5),
        "seen": seen,
        "labels": labels,
        "groups": torch.arange(num_rows) // 2,
    }


def naive_sets(video, audio, k, combine, seen, groups):
    """The k best of each row by a float64 loop."""
    sets = []
    for i in range(len(video)):
        scores = []
        for j in range(len(video)):
            if seen[i] and seen[j] and groups[i] != groups[j]:
                by_sight = float(video[i].double() @ video[j].double())
                by_sound = float(audio[i].double() @ audio[j].double())
                scores.append((combine(by_sight, by_sound), j))
        sets.append([j for _, j in sorted(scores, reverse=True)[:k]])
    return sets


def naive_precision(sets, labels, seen):
    pairs = [
        labels[i] == labels[j]
        for i, found in enumerate(sets)
        for j in found
        if seen[i] and labels[i] >= 0 and j >= 0 and labels[j] >= 0
    ]
    return sum(map(bool, pairs)) / len(pairs)


def naive_chance(labels, seen, groups):
    shares = []
    rows = [i for i in range(len(labels)) if seen[i] and labels[i] >= 0]
    for i in rows:
        others = [j for j in rows if groups[i] != groups[j]]
        shares.append(sum(bool(labels[i] == labels[j]) for j in others) / len(others))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("scored_rows", [2, 7, 8192])
@pytest.mark.parametrize("grouped", [True, False])
def test_precision_equals_a_naive_loop(world, monkeypatch, grouped, scored_rows):
    monkeypatch.setattr(precision_module, "SCORED_ROWS", scored_rows)
    if not grouped:
        world["groups"] = None
    found = diagnose(**world)
    video, audio, seen, labels = (world[name] for name in ("video", "audio", "seen", "labels"))
    groups = torch.arange(60) if world["groups"] is None else world["groups"]
    for kind, combine in KINDS.items():
        sets = naive_sets(video, audio, 5, combine, seen, groups)
        assert found.precision[kind] == pytest.approx(naive_precision(sets, labels, seen), abs=1e-12), kind
    used = naive_precision(world["positives"].tolist(), labels, seen)
    assert found.precision["used"] == pytest.approx(used, abs=1e-12)
    assert found.precision["chance"] == pytest.approx(naive_chance(labels, seen, groups), abs=1e-12)
    assert found.precision_queries == int((seen & (labels >= 0)).sum())


def test_precision_of_a_sample_is_near_that_of_all_and_the_same_each_time():
    num_rows = 4000
    labels = torch.arange(num_rows) % 20
    centres = unit(20, 16, seed=5)[labels]
    banks = [F.normalize(centres + unit(num_rows, 16, seed=seed), dim=1) for seed in (0, 1)]
    sets = torch.randint(num_rows, (num_rows, 8), generator=torch.Generator().manual_seed(0))
    whole = diagnose(*banks, sets, labels=labels, num_queries=num_rows)
    state = torch.get_rng_state()
    part = diagnose(*banks, sets, labels=labels, num_queries=500)
    assert torch.equal(torch.get_rng_state(), state)
    assert part == diagnose(*banks, sets, labels=labels, num_queries=500)
    assert part != diagnose(*banks, sets, labels=labels, num_queries=500, seed=1)
    assert part.precision_queries == 500
    for kind, share in whole.precision.items():
        assert part.precision[kind] == pytest.approx(share, abs=0.03), kind
    assert whole.precision["chance"] == pytest.approx((200 - 1) / (num_rows - 1))
    assert whole.precision["consensus"] > whole.precision["video"] > 3 * whole.precision["chance"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_of_a_bank_in_half_precision_is_scored_in_float32(world, dtype):
    for name in ("video", "audio"):
        world[name] = world[name].to(dtype)
    wide = world | {name: world[name].float() for name in ("video", "audio")}
    assert diagnose(**world) == diagnose(**wide)


def test_precision_needs_classes():
    banks, sets = (unit(10, 4), unit(10, 4, seed=1)), random_sets(10, 3)
    without = diagnose(*banks, sets)
    assert without.precision == {}
    assert without.precision_queries == 0
    assert diagnose(*banks, sets, labels=torch.full((10,), -1)).precision == {}
    assert not [name for name in without.numbers() if "precision" in name]


def test_overlap_equals_a_naive_loop(world):
    previous = random_sets(60, 7, seed=3, empty=0.5)
    previous[::2, :4] = world["positives"][::2, :4]  # some places that are kept
    previous = torch.stack([torch.tensor(sorted(set(r.tolist()) - {-1}) + [-1] * 9)[:7] for r in previous])
    previous[10:14] = -1
    found = diagnose(**world, previous=previous)
    sets = [
        (set(old.tolist()) - {-1}, set(new.tolist()) - {-1})
        for old, new in zip(previous, world["positives"], strict=True)
    ]
    kept = sum(len(old & new) for old, new in sets) / sum(len(old) for old, _ in sets)
    jaccard = [len(old & new) / len(old | new) for old, new in sets if old]
    assert found.kept_share == pytest.approx(kept, abs=1e-12)
    assert found.jaccard == pytest.approx(sum(jaccard) / len(jaccard), abs=1e-12)
    assert 0 < found.jaccard < 1


def test_overlap_is_unknown_before_the_second_mining(world):
    first = diagnose(**world)
    assert (first.kept_share, first.jaccard) == (None, None)
    empty = diagnose(**world, previous=torch.full((60, 5), -1, dtype=torch.int32))
    assert (empty.kept_share, empty.jaccard) == (None, None)
    assert "kept_share" not in empty.numbers()
    same = diagnose(**world, previous=world["positives"])
    assert (same.kept_share, same.jaccard) == (1.0, 1.0)


def test_in_degree_equals_a_naive_count(world):
    world["seen"] = world["seen"] & (torch.arange(60) != 7)
    found = diagnose(**world)
    chosen = Counter(world["positives"].flatten().tolist())
    degrees = [chosen[i] for i in range(60) if world["seen"][i]]
    bins = list(zip(found.in_degree.edges[:-1], found.in_degree.edges[1:], strict=True))
    assert bins[:4] == [(0, 1), (1, 2), (2, 4), (4, 8)]
    assert found.in_degree.counts == [sum(low <= d < high for d in degrees) for low, high in bins]
    assert sum(found.in_degree.counts) == len(degrees)
    assert found.in_degree.mean == pytest.approx(sum(degrees) / len(degrees))
    assert found.largest_in_degree == max(degrees)
    assert found.never_chosen_share == pytest.approx(degrees.count(0) / len(degrees))
    differences = sum(abs(a - b) for a in degrees for b in degrees)
    assert found.gini == pytest.approx(differences / (2 * len(degrees) * sum(degrees)), abs=1e-12)


def test_gini_is_zero_for_a_ring_and_near_one_for_a_hub():
    banks = unit(40, 4), unit(40, 4, seed=1)
    ring = (torch.arange(40)[:, None] + 1) % 40
    assert diagnose(*banks, ring).gini == pytest.approx(0, abs=1e-12)
    hub = diagnose(*banks, torch.zeros(40, 1, dtype=torch.long))
    assert hub.gini == pytest.approx(1 - 1 / 40)
    assert (hub.largest_in_degree, hub.never_chosen_share) == (40, 39 / 40)
    assert hub.in_degree.counts == [39, 0, 0, 0, 0, 0, 1]


def test_similarity_of_positive_pairs_equals_a_naive_loop(world):
    found = diagnose(**world)
    for modality in ("video", "audio"):
        bank = world[modality].double()
        cosines = [
            float(bank[i] @ bank[j])
            for i, chosen in enumerate(world["positives"].tolist())
            for j in chosen
            if world["seen"][i] and j >= 0
        ]
        histogram = found.similarity[f"{modality}_positives"]
        assert len(histogram.counts) == 40
        assert (histogram.edges[0], histogram.edges[20], histogram.edges[-1]) == (-1, 0, 1)
        expected = [
            sum(low <= cosine < high for cosine in cosines)
            for low, high in zip(histogram.edges[:-1], histogram.edges[1:], strict=True)
        ]
        assert histogram.counts == expected
        assert histogram.mean == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
        spread = sum((cosine - histogram.mean) ** 2 for cosine in cosines) / len(cosines)
        assert histogram.std == pytest.approx(spread**0.5, abs=1e-6)


def test_random_pairs_join_neither_an_instance_with_itself_nor_with_its_group():
    vectors = torch.eye(2).repeat_interleave(30, dim=0)  # within a group 1, across 0
    sets = random_sets(60, 6)
    groups = torch.arange(60) // 30
    across = diagnose(vectors, vectors, sets, groups=groups).similarity["video_random"]
    assert across.counts[20] == sum(across.counts) > 100
    ones = F.normalize(torch.eye(60) + 1e-4, dim=1)
    assert diagnose(ones, ones, sets).similarity["audio_random"].counts[39] == 0


def test_a_cosine_of_one_falls_into_the_last_bin():
    same = torch.full((8, 4), 0.5)
    found = diagnose(same, -same, random_sets(8, 3, empty=0.0))
    assert found.similarity["video_positives"].counts[39] == 24


def test_diagnosis_can_be_written_as_json_and_as_scalars(world):
    found = diagnose(**world, previous=world["positives"])
    assert json.loads(json.dumps(found.record(), allow_nan=False)) == found.record()
    numbers = found.numbers()
    assert all(type(value) is float for value in numbers.values())
    assert numbers["precision_consensus"] == found.precision["consensus"]
    assert numbers["similarity_audio_random"] == found.similarity["audio_random"].mean
    assert numbers["largest_in_degree"] == found.largest_in_degree


def test_nothing_seen_and_nothing_mined_is_diagnosed_too():
    banks, nothing = (unit(6, 4), unit(6, 4)), torch.full((6, 3), -1)
    labels = torch.arange(6) % 2
    found = diagnose(*banks, nothing, seen=torch.zeros(6, dtype=torch.bool), labels=labels)
    assert found.precision == {}
    assert found.similarity == {}
    assert (found.gini, found.largest_in_degree, found.in_degree.counts) == (0, 0, [0])
    unmined = diagnose(*banks, nothing, labels=labels)
    assert unmined.never_chosen_share == 1
    assert "used" not in unmined.precision
    assert unmined.similarity.keys() == {"video_random", "audio_random"}
    json.dumps(found.record(), allow_nan=False)


def test_more_positives_than_instances_leave_empty_places():
    banks = unit(4, 4), unit(4, 4, seed=1)
    labels = torch.tensor([0, 0, 1, 1])
    found = diagnose(*banks, torch.full((4, 9), -1), labels=labels)
    assert found.precision["consensus"] == pytest.approx(1 / 3)
    assert found.precision["chance"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": torch.zeros(9, 4)}, r"video is \(10, 4\) and audio \(9, 4\); both must be \(N, D\)"),
        ({"positives": torch.zeros(9, 3).long()}, r"positives is \(9, 3\); must be \(10, k\)"),
        ({"positives": torch.zeros(10, 3)}, r"positives is torch\.float32; must hold integers"),
        ({"previous": torch.zeros(10).long()}, r"previous is \(10,\); must be \(10, k\)"),
        ({"seen": torch.ones(4).bool()}, r"seen is \(4,\); must be \(10,\)"),
        ({"labels": torch.ones(4).long()}, r"labels is \(4,\); must be \(10,\)"),
        ({"groups": torch.ones(4).long()}, r"groups is \(4,\); must be \(10,\)"),
        ({"num_queries": 0}, r"num_queries must be at least 1; got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    arguments = {"video": unit(10, 4), "audio": unit(10, 4), "positives": random_sets(10, 3)}
    with pytest.raises(ValueError, match=message):
        diagnose(**(arguments | change))
