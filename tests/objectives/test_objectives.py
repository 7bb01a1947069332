import math

import pytest
import torch
import torch.nn.functional as F

from avssl.memory import MemoryBank
from avssl.models import DualEncoder
from avssl.objectives import AVID, CMA, nce_loss, softmax_loss
from avssl.types import Views

N, B, D, K = 40, 6, 16, 12


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    z = [torch.randn(B, D, generator=g, requires_grad=True) for _ in range(2)]
    index = torch.randperm(N, generator=g)[:B]
    return (*z, index)


def naive_total(objective, naive, z_video, z_audio, index, negatives, few=None):
    """The weighted sum of all terms from their definition, in float64; `few` are those of positive sets."""
    z = {"v": z_video, "a": z_audio}
    memory = {"v": objective.bank.video, "a": objective.bank.audio}
    own = [[int(i)] for i in index]

    def mean_of(kind, directions, positives, negatives):
        losses = []
        for query, target in directions:
            arguments = (z[query], memory[target], positives, negatives)
            name = f"{kind.split('_')[0]}_{query}2{target}" if "_" in kind else f"{query}2{target}"
            extra = (float(objective.partition.of(name)),) if objective.contrast == "nce" else ()
            losses.append(naive[objective.contrast](*arguments, *extra))
        return torch.stack(losses).mean()

    cross, within = ("va", "av"), ("vv", "aa")
    if not isinstance(objective, CMA):
        kinds = {"cross": (cross, own, negatives), "within": (within, own, negatives)}
    else:
        mined = [[j for j in objective.positive_set[i].tolist() if j >= 0] for i in index]
        few = few or [rows[: objective.num_negatives_positive] for rows in negatives]
        kinds = {
            "instance_cross": (cross, own, negatives),
            "instance_within": (within, own, negatives),
            "positive_cross": (cross, mined, few),
            "positive_within": (within, mined, few),
        }
    return sum(w * mean_of(kind, *kinds[kind]) for kind, w in objective.weights.items() if w > 0)


def prepared(objective, seed=0):
    """Everything seen, Z known, mining done: the state in the middle of training, frozen for comparison."""
    torch.manual_seed(seed)
    objective.bank.seen.fill_(True)
    log_z = objective.partition.log_z
    log_z.copy_(1.5 + 0.3 * torch.arange(log_z.numel()).view(log_z.shape))  # each term its own, if it may
    objective.before_epoch(0)
    return objective.eval()


@pytest.mark.parametrize(
    ("contrast", "partition"), [("nce", "first_batch"), ("nce", "per_term"), ("softmax", None)]
)
@pytest.mark.parametrize(("cross", "within"), [(1, 0), (0, 1), (1, 1), (1, 3)])
def test_avid_equals_its_equation_in_float64(passing, naive, contrast, partition, cross, within):
    settings = {"cross": cross, "within": within, "contrast": contrast, "partition": partition}
    objective = prepared(AVID(passing(D), N, num_negatives=K, **settings))
    z_video, z_audio, index = batch()
    negatives = objective.negatives_for(objective.excluded(index)).rows
    out = objective.contrast_embeddings(z_video, z_audio, index, negatives)
    expected = naive_total(objective, naive, z_video, z_audio, index, negatives.tolist())
    torch.testing.assert_close(out["loss"].double(), expected, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(out["loss"], [z_video, z_audio])
    want = torch.autograd.grad(expected, [z_video, z_audio])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("contrast", "partition"), [("nce", "first_batch"), ("nce", "per_term"), ("softmax", None)]
)
@pytest.mark.parametrize("coefficients", [(1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0), (1, 2, 3, 4)])
def test_cma_equals_its_equation_in_float64(passing, naive, contrast, partition, coefficients):
    names = ("instance_cross", "instance_within", "positive_cross", "positive_within")
    objective = CMA(
        passing(D),
        N,
        num_negatives=K,
        num_negatives_positive=5,
        num_positives=4,
        contrast=contrast,
        partition=partition,
        **dict(zip(names, coefficients, strict=True)),
    )
    prepared(objective)
    z_video, z_audio, index = batch()
    objective.positive_set[index[0]] = -1  # a sample without positives
    objective.positive_set[index[1], 2:] = -1  # one with fewer
    negatives = objective.negatives_for(objective.excluded(index)).rows
    out = objective.contrast_embeddings(z_video, z_audio, index, negatives)
    expected = naive_total(objective, naive, z_video, z_audio, index, negatives.tolist())
    torch.testing.assert_close(out["loss"].double(), expected, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(out["loss"], [z_video, z_audio], allow_unused=True)
    want = torch.autograd.grad(expected, [z_video, z_audio], allow_unused=True)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("contrast", ["nce", "softmax"])
@pytest.mark.parametrize("kind", [AVID, CMA])
def test_a_shared_pool_equals_the_equation_over_what_each_sample_may_use(passing, naive, contrast, kind):
    settings = {"num_negatives": 30, "shared_negatives": True, "contrast": contrast}
    if kind is CMA:
        settings |= {"num_negatives_positive": 10, "num_positives": 4, "positive_cross": 1.0}
    objective = prepared(kind(passing(D), N, **settings))
    z_video, z_audio, index = batch()
    exclude = objective.excluded(index)
    negatives = objective.negatives_for(exclude)
    assert negatives.rows.shape == (30,)

    def allowed(rows):
        return [[j for j in rows.tolist() if j not in own] for own in exclude.tolist()]

    assert any(len(rows) < 30 for rows in allowed(negatives.rows))  # something is left out somewhere
    few = allowed(negatives.first(10).rows)
    out = objective.contrast_embeddings(z_video, z_audio, index, negatives.rows)
    expected = naive_total(
        objective, naive, z_video, z_audio, index, allowed(negatives.rows), few if kind is CMA else None
    )
    torch.testing.assert_close(out["loss"].double(), expected, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(out["loss"], [z_video, z_audio])
    want = torch.autograd.grad(expected, [z_video, z_audio])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)


def test_a_shared_pool_trains_like_any_other(passing):
    torch.manual_seed(0)
    objective = AVID(passing(D), N, num_negatives=20, shared_negatives=True)
    z_video, z_audio, index = batch()
    first = objective(Views((z_video,), (z_audio,), index))
    first["loss"].backward()
    assert math.isfinite(objective.partition.log_z)
    assert z_video.grad.abs().sum() > 0
    assert objective.bank.seen.sum() == B


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_banks_give_nearly_the_loss_of_full_ones(passing, dtype):
    losses = {}
    full = {f"bank.{name}": value for name, value in MemoryBank(N, D).state_dict().items()}
    for bank_dtype in ("float32", dtype):
        objective = AVID(passing(D), N, num_negatives=K, bank_dtype=bank_dtype)
        objective.bank.load_from(full)
        prepared(objective)
        z_video, z_audio, index = batch()
        negatives = torch.arange(B * K).view(B, K) % N
        out = objective.contrast_embeddings(z_video, z_audio, index, negatives)
        losses[bank_dtype] = float(out["loss"].detach()), torch.autograd.grad(out["loss"], z_video)[0]
    assert losses[dtype][0] == pytest.approx(losses["float32"][0], rel=2e-2)
    torch.testing.assert_close(losses[dtype][1], losses["float32"][1], rtol=0.2, atol=0.05)


def test_a_fixed_partition_is_what_was_given_from_the_first_step_on(passing):
    objective = AVID(passing(D), N, num_negatives=K, partition=2.5)
    z_video, z_audio, index = batch()
    out = objective(Views((z_video,), (z_audio,), index))
    assert float(out["log_z"]) == pytest.approx(math.log(2.5))
    objective.start_from({"partition.log_z": torch.tensor(9.0), "encoders.scale": torch.ones(())})
    assert float(objective.partition.log_z) == pytest.approx(math.log(2.5))


def test_every_term_estimates_its_own_partition_from_its_own_scores(passing):
    torch.manual_seed(0)
    objective = CMA(passing(D), N, num_negatives=K, num_negatives_positive=5, num_positives=3)
    objective.bank.seen.fill_(True)
    objective.before_epoch(0)
    z_video, z_audio, index = batch()
    negatives = objective.negatives_for(objective.excluded(index)).rows
    memory = {"v": objective.bank.video.clone(), "a": objective.bank.audio.clone()}
    out = objective.contrast_embeddings(z_video, z_audio, index, negatives)
    z = {"v": z_video.detach(), "a": z_audio.detach()}
    names = ["instance_v2a", "instance_a2v", "positive_v2v", "positive_a2a"]
    assert objective.partition.terms == names
    for name in names:
        query, target = name[-3], name[-1]
        rows = negatives if name.startswith("instance") else negatives[:, :5]
        unit = F.normalize(z[query].double(), dim=1)
        scores = (memory[target][rows].double() * unit[:, None]).sum(dim=2) / 0.07
        assert float(out[f"log_z_{name}"]) == pytest.approx(float(scores.exp().mean().log()), rel=1e-5)
    before = objective.partition.log_z.clone()
    objective.contrast_embeddings(*batch(seed=1))
    assert torch.equal(objective.partition.log_z, before)  # frozen


def test_filling_the_memory_learns_nothing(passing):
    objective = AVID(passing(D), N, num_negatives=K)
    z_video, z_audio, index = batch()
    objective.fill_memory(Views((z_video,), (z_audio,), index))
    assert sorted(objective.bank.seen.nonzero().flatten().tolist()) == sorted(index.tolist())
    assert objective.partition.log_z.isnan()
    assert objective.encoders.scale.grad is None
    expected = F.normalize(objective.bank.video.new_tensor(z_video.detach().numpy()), dim=1)
    cosine = (objective.bank.video[index] * expected).sum(dim=1)
    assert (cosine > 0.5).all()


def test_cma_negatives_are_neither_the_instance_nor_its_positives(passing):
    objective = prepared(CMA(passing(D), N, num_negatives=500, num_positives=6))
    drawn = {}
    objective.terms = lambda z, index, negatives: drawn.update(rows=negatives.rows) or [
        ("instance_cross", "v2a", z["video"].sum()),
    ]
    z_video, z_audio, index = batch()
    objective.contrast_embeddings(z_video, z_audio, index)
    for i, rows in zip(index.tolist(), drawn["rows"], strict=True):
        assert not {i, *objective.positive_set[i].tolist()} & set(rows.tolist())
    objective.exclude_self = False
    objective.contrast_embeddings(z_video, z_audio, index)
    assert any(i in rows.tolist() for i, rows in zip(index.tolist(), drawn["rows"], strict=True))


def test_unseen_slots_are_negatives_only_on_request(passing):
    objective = AVID(passing(D), N, num_negatives=300)
    objective.bank.seen[:10] = True
    index = torch.tensor([0, 1])
    assert objective.negatives_for(objective.excluded(index)).rows.max() < 10
    objective.unseen_negatives = True
    assert objective.negatives_for(objective.excluded(index)).rows.max() >= 10


def test_mining_happens_every_few_epochs(passing):
    objective = CMA(passing(D), N, num_positives=3, refresh_epochs=2)
    objective.bank.seen.fill_(True)
    first = objective.before_epoch(0)
    assert first["instances_with_positives"] == N
    assert (objective.previous_positive_set == -1).all()
    assert objective.last_mining.method == "exact"
    before = objective.positive_set.clone()
    objective.bank.video.copy_(F.normalize(torch.randn(N, D), dim=1))
    assert objective.before_epoch(1) == {}
    assert torch.equal(objective.positive_set, before)
    assert objective.before_epoch(2)
    assert torch.equal(objective.previous_positive_set, before)
    assert not torch.equal(objective.positive_set, before)
    objective.before_epoch(4)
    assert torch.equal(objective.positive_set, objective.previous_positive_set)


def test_losses_stay_finite_at_extreme_scores_and_low_precision():
    high, low = torch.full((2, 1), 1 / 0.07), torch.full((2, 8), -1 / 0.07)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        pos, neg = high.to(dtype), low.to(dtype)
        for a, b in ((pos, neg), (-pos, -neg)):
            assert math.isfinite(nce_loss(a, b, torch.tensor(0.5)))
            assert math.isfinite(softmax_loss(a, b))


def test_training_under_bfloat16_autocast_gives_finite_gradients():
    torch.manual_seed(0)
    objective = AVID(DualEncoder.tiny(), 30, num_negatives=8)
    views = Views((torch.randn(4, 3, 4, 32, 32),), (torch.randn(4, 1, 32, 32),), torch.arange(4))
    with torch.autocast("cpu", torch.bfloat16):
        out = objective(views)
    out["loss"].backward()
    assert out["loss"].dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters())


def test_ten_lines_of_plain_pytorch_learn_to_tell_instances_apart():
    torch.manual_seed(0)
    views = Views((torch.randn(16, 3, 4, 32, 32),), (torch.randn(16, 1, 32, 32),), torch.arange(16))
    objective = AVID(DualEncoder.tiny(), num_instances=16, num_negatives=64, contrast="softmax")
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        out = objective(views)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["loss"].detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert float(out["mean_norm_video"]) < 0.9


def test_state_dict_holds_the_whole_method():
    torch.manual_seed(0)
    objective = CMA(DualEncoder.tiny(), 30, num_negatives=8, num_positives=3)
    views = Views((torch.randn(4, 3, 4, 32, 32),), (torch.randn(4, 1, 32, 32),), torch.arange(4))
    objective(views)
    objective.bank.seen.fill_(True)
    objective.before_epoch(0)
    torch.manual_seed(99)
    copy = CMA(DualEncoder.tiny(), 30, num_negatives=8, num_positives=3)
    copy.load_state_dict(objective.state_dict())
    losses = []
    for one in (objective, copy):
        torch.manual_seed(1)
        losses.append(one(views)["loss"])
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(objective.bank.video, copy.bank.video)


def test_evaluation_mode_leaves_the_bank_alone(passing):
    objective = AVID(passing(D), N, num_negatives=K).eval()
    before = objective.bank.video.clone()
    z_video, z_audio, index = batch()
    objective(Views((z_video,), (z_audio,), index))
    assert torch.equal(objective.bank.video, before)
    assert not objective.bank.seen.any()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (AVID, {"cross": 0, "within": 0}, "not all 0"),
        (AVID, {"cross": -1}, "at least 0"),
        (AVID, {"temperature": 0}, "temperature must be above 0; got 0"),
        (AVID, {"contrast": "nc"}, "'nce' or 'softmax'; got 'nc'"),
        (AVID, {"num_negatives": 0}, "num_negatives must be at least 1"),
        (AVID, {"partition": "fresh"}, "must be first_batch, start_of_stage, per_term or a number above 0"),
        (AVID, {"partition": -1.0}, "partition is -1.0"),
        (AVID, {"partition": 0.0}, "partition is 0.0"),
        (AVID, {"partition": "first_batch", "contrast": "softmax"}, "null with a softmax; got 'first"),
        (CMA, {"partition": 2.0, "contrast": "softmax", "num_positives": 3}, "null with a softmax; got 2.0"),
        (AVID, {"bank_dtype": "int8"}, "must be one of float32, float16, bfloat16; got 'int8'"),
        (CMA, {"num_positives": N}, f"between 1 and num_instances - 1 = {N - 1}; got {N}"),
        (CMA, {"agreement": "both", "num_positives": 3}, "consensus, union, video or audio; got 'both'"),
        (CMA, {"refresh_epochs": 0, "num_positives": 3}, "refresh_epochs"),
    ],
)
def test_impossible_settings_are_refused(passing, kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(passing(D), N, **arguments)
