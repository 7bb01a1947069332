import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avssl.errors import ConfigError
from avssl.objectives.sinkhorn import sinkhorn
from avssl.objectives.swav import EmbeddingQueue, SwAV, groups_of_one_size, swav_loss
from avssl.optim import make_optimizer
from avssl.types import Views

CASE = torch.load(Path(__file__).parents[1] / "golden" / "image.pt", weights_only=True)["swav_2+6"]


class Encoders(nn.Module):
    """A trunk without batch norm that takes frames of any size."""

    def __init__(self):
        super().__init__()
        self.video = nn.Sequential(
            nn.AdaptiveAvgPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(12, 10), nn.Tanh()
        )
        self.video.dim = 10


def make_objective(seed=1, **options):
    torch.manual_seed(seed)
    settings = {"num_prototypes": 6, "head_dims": (8, 5)} | options
    return SwAV(Encoders(), **settings)


def make_views(batch=8, sizes=(6, 6, 4, 4, 4), seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    clips = torch.randn(batch, 3, 1, 6, 6, generator=g, dtype=dtype)
    noise = [0.2 * torch.randn(clips.shape, generator=g, dtype=dtype) for _ in sizes]
    crops = [(clips + n)[..., :size, :size] for n, size in zip(noise, sizes, strict=True)]
    return Views(tuple(crops), (), torch.arange(batch))


def golden_objective(**options):
    objective = make_objective(**options).double()
    with torch.no_grad():
        objective.prototypes.weight.copy_(CASE["prototypes"])
    return objective


def naive_loss(scores, codes, temperature):
    """The two means as they stand, pair by pair and number by number."""
    per_crop = []
    for i, q in codes.items():
        per_pair = []
        for v, score in enumerate(scores):
            if v == i:
                continue
            total = 0.0
            for s, code in zip(score.tolist(), q.tolist(), strict=True):
                norm = sum(math.exp(x / temperature) for x in s)
                total -= sum(
                    c * math.log(math.exp(x / temperature) / norm) for c, x in zip(code, s, strict=True)
                )
            per_pair.append(total / len(score))
        per_crop.append(sum(per_pair) / len(per_pair))
    return sum(per_crop) / len(per_crop)


# ---- the equation


def test_loss_and_gradients_equal_the_release():
    objective = golden_objective(
        temperature=CASE["T"], epsilon=CASE["eps"], sinkhorn_iterations=CASE["iters"]
    )
    embeddings = CASE["emb"].clone().requires_grad_()
    loss = objective.swap_predictions(embeddings, sum(CASE["nmb_crops"]))["loss"]
    loss.backward()
    torch.testing.assert_close(loss.detach(), CASE["loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(embeddings.grad, CASE["grad_emb"], rtol=1e-10, atol=1e-14)
    weight = objective.prototypes.weight
    torch.testing.assert_close(weight.grad, CASE["grad_prototypes"], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(weight.detach(), CASE["prototypes_normalised"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("assigned, crops", [((0, 1), 2), ((0, 1), 5), ((2,), 3), ((0, 2, 3), 4)])
def test_loss_equals_its_equation(assigned, crops):
    g = torch.Generator().manual_seed(2)
    scores = [2 * torch.rand(7, 6, generator=g, dtype=torch.float64) - 1 for _ in range(crops)]
    codes = {i: torch.rand(7, 6, generator=g, dtype=torch.float64).softmax(dim=1) for i in assigned}
    expected = naive_loss(scores, codes, 0.2)
    assert float(swav_loss(scores, codes, 0.2)) == pytest.approx(expected, rel=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(swav_loss(scores, codes, 0.2)) == pytest.approx(expected, rel=1e-12)


def test_a_queue_adds_its_scores_to_those_of_the_batch():
    objective = golden_objective(queue_length=16)
    queue = F.normalize(
        torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=2
    )
    objective.queue.rows.copy_(queue)
    loss = objective.swap_predictions(CASE["emb"], 8)["loss"].detach()
    w = CASE["prototypes_normalised"]
    scores = (F.normalize(CASE["emb"], dim=1) @ w.T).chunk(8)
    codes = {i: sinkhorn(torch.cat([queue[i] @ w.T, scores[i]]))[-8:] for i in (0, 1)}
    expected = naive_loss(scores, codes, 0.1)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert float(loss) != pytest.approx(float(CASE["loss"]), rel=1e-3)


# ---- crops


def test_neighbours_of_one_size_go_through_the_trunk_together_and_all_through_the_head():
    objective = make_objective()
    seen = {"video": [], "projector": []}
    objective.encoders.video.register_forward_hook(lambda m, args, out: seen["video"].append(args[0].shape))
    objective.projector.register_forward_hook(lambda m, args, out: seen["projector"].append(out.shape))
    objective(make_views())
    assert [(s[0], s[-1]) for s in seen["video"]] == [(16, 6), (24, 4)]
    assert seen["projector"] == [(40, 5)]
    assert groups_of_one_size(make_views(sizes=(6, 4, 4, 6)).video) == [(0,), (1, 2), (3,)]


def test_crops_keep_their_numbers():
    objective = make_objective(head_batch_norm=False).double()
    views = make_views(sizes=(6, 4, 4, 6), dtype=torch.float64)
    loss = objective(views)["loss"]
    trunk, head = objective.encoders.video, objective.projector
    z = [F.normalize(head(trunk(crop)), dim=1) for crop in views.video]
    scores = [objective.prototypes(v).detach() for v in z]
    codes = {i: sinkhorn(scores[i]) for i in (0, 1)}
    assert float(loss.detach()) == pytest.approx(naive_loss(scores, codes, 0.1), rel=1e-12)


def test_too_few_views_are_refused():
    with pytest.raises(ValueError, match=r"needs video view 1 .*the batch has 1; add views"):
        make_objective()(make_views(sizes=(6,)))
    with pytest.raises(ValueError, match=r"needs video view 3 .*the batch has 3; add views"):
        make_objective(crops_for_assign=(0, 3))(make_views(sizes=(6, 6, 4)))


# ---- prototypes


def test_prototypes_get_unit_length_in_training_only():
    objective = make_objective()
    with torch.no_grad():
        objective.prototypes.weight.mul_(3)
    before = objective.prototypes.weight.detach().clone()
    objective.eval()
    objective(make_views())
    assert torch.equal(objective.prototypes.weight, before)
    objective.train()
    objective(make_views())
    torch.testing.assert_close(objective.prototypes.weight.detach(), F.normalize(before, dim=1))


@pytest.mark.parametrize("name", ["sgd", "larc"])
def test_frozen_prototypes_are_moved_by_neither_decay_nor_momentum(name):
    objective = make_objective(freeze_prototypes_steps=3)
    optimizer = make_optimizer(name, objective.param_groups(), lr=1.0, weight_decay=0.1)
    head = objective.projector[0].weight
    for step in range(5):
        objective.set_progress(step, 5)
        optimizer.zero_grad()
        objective(make_views(seed=step))["loss"].backward()
        prototypes, other = objective.prototypes.weight.detach().clone(), head.detach().clone()
        objective.before_step()
        optimizer.step()
        assert torch.equal(objective.prototypes.weight, prototypes) == (step < 3)
        assert not torch.equal(head, other)
        if step == 3:  # the first step of the prototypes is one without a past
            state = optimizer.state[objective.prototypes.weight]["momentum_buffer"]
            expected = objective.prototypes.weight.grad + 0.1 * prototypes
            torch.testing.assert_close(
                F.normalize(state.flatten(), dim=0), F.normalize(expected.flatten(), dim=0)
            )


# ---- queue


def test_queue_keeps_the_latest_and_is_full_at_its_last_row():
    queue = EmbeddingQueue(2, 5, 3)
    batches = torch.arange(1.0, 37.0).reshape(3, 2, 2, 3)  # three batches of two
    for number, batch in enumerate(batches):
        assert not queue.is_full
        queue.push(batch)
        assert torch.equal(queue.rows[:, :2], batch)
        assert queue.is_full == (number == 2)
    assert torch.equal(queue.rows, torch.cat([*batches.flip(0)], dim=1)[:, :5])
    assert torch.equal(queue.own_share(), queue.rows)


def test_queue_fills_from_its_start_and_is_used_once_full():
    plain, queued = make_objective(), make_objective(queue_length=20, queue_start=0.25)
    queued.load_state_dict(plain.state_dict(), strict=False)
    same = []
    for step in range(8):
        queued.set_progress(step, 8)
        expected, got = (o(make_views(seed=step))["loss"] for o in (plain, queued))
        same.append(torch.equal(expected, got))
        filled = int(queued.queue.rows[0].any(dim=1).sum())
        assert filled == min(20, 8 * max(0, step - 1))
    assert same == [True] * 5 + [False] * 3
    queued.eval()
    rows = queued.queue.rows.clone()
    queued(make_views(seed=9))
    assert torch.equal(queued.queue.rows, rows)


def test_queue_holds_the_embeddings_of_the_assigned_crops():
    objective = make_objective(queue_length=8, crops_for_assign=(1, 3)).double()
    embeddings = CASE["emb"].clone()
    objective.swap_predictions(embeddings, 8)
    crops = F.normalize(embeddings, dim=1).chunk(8)
    torch.testing.assert_close(objective.queue.rows, torch.stack([crops[1], crops[3]]))
    objective.double()
    assert not objective.queue.rows.requires_grad


def one_step(objective, optimizer, seed):
    objective.set_progress(seed, 10)
    out = objective(make_views(seed=seed))
    optimizer.zero_grad()
    out["loss"].backward()
    objective.before_step()
    optimizer.step()
    objective.after_step()
    return {key: value.detach() for key, value in out.items()}


@pytest.mark.parametrize("queue_length", [0, 16, 40])
def test_state_restores_the_next_steps(queue_length):
    options = {"queue_length": queue_length, "freeze_prototypes_steps": 3}
    first = make_objective(**options)
    optimizer = torch.optim.SGD(first.param_groups(), lr=0.1)
    for seed in (1, 2):
        one_step(first, optimizer, seed)
    second = make_objective(seed=99, **options)
    if queue_length:
        second.queue.rows.fill_(1)
        assert second.queue.is_full
    second.load_state_dict(first.state_dict())
    again = torch.optim.SGD(second.param_groups(), lr=0.1)
    for seed in (3, 4):
        expected, got = one_step(first, optimizer, seed), one_step(second, again, seed)
        assert all(torch.equal(expected[key], got[key]) for key in expected)


# ---- the module


def test_plain_loop_learns():
    objective = make_objective(head_dims=(16, 8), freeze_prototypes_steps=10, queue_length=64)
    optimizer = make_optimizer("sgd", objective.param_groups(), lr=0.3)
    losses = []
    for step in range(80):
        objective.set_progress(step, 80)
        out = objective(make_views(batch=32))
        optimizer.zero_grad()
        out["loss"].backward()
        objective.before_step()
        optimizer.step()
        objective.after_step()
        losses.append(out["loss"].item())
    assert losses[-1] < 0.6 * losses[0]
    assert float(out["spread"]) > 0.5
    assert float(out["prototypes_used"]) > 0.5
    assert float(out["loss_over_ln_k"]) == pytest.approx(losses[-1] / math.log(6), rel=1e-5)


def test_a_collapse_shows_in_the_numbers():
    embeddings = torch.randn(1, 5, generator=torch.Generator().manual_seed(4)).expand(40, 5)
    out = make_objective().swap_predictions(embeddings, 5)
    assert float(out["loss_over_ln_k"].detach()) >= 1
    assert float(out["spread"]) == pytest.approx(0, abs=1e-4)
    assert float(out["prototypes_used"]) == pytest.approx(1 / 6)
    assert float(out["prototype_perplexity"]) == pytest.approx(1, abs=1e-4)


def test_codes_are_hard_at_first():
    soft, hard = make_objective().double(), make_objective(hard_assignment_steps=2).double()
    embeddings = CASE["emb"]
    w = F.normalize(soft.prototypes.weight.detach(), dim=1)
    scores = (F.normalize(embeddings, dim=1) @ w.T).chunk(8)
    codes = {i: F.one_hot(sinkhorn(scores[i]).argmax(dim=1), 6).double() for i in (0, 1)}
    loss = hard.swap_predictions(embeddings, 8)["loss"]
    assert float(loss.detach()) == pytest.approx(naive_loss(scores, codes, 0.1), rel=1e-12)
    hard.set_progress(2, 10)
    expected = soft.swap_predictions(embeddings, 8)["loss"]
    torch.testing.assert_close(hard.swap_predictions(embeddings, 8)["loss"], expected, rtol=1e-12, atol=0)


def test_half_precision_changes_little_and_the_numbers_stay_float32():
    objective = make_objective(queue_length=8)
    exact = objective(make_views())["loss"].detach()
    objective.queue.rows.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        out = objective(make_views())
    assert {value.dtype for value in out.values()} == {torch.float32}
    torch.testing.assert_close(out["loss"].detach(), exact, rtol=0.05, atol=0.05)
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters())


def test_scores_codes_and_loss_are_float32_under_autocast():
    embeddings = CASE["emb"].float()
    expected = make_objective().swap_predictions(embeddings, 8)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make_objective().swap_predictions(embeddings, 8)["loss"], expected)


def test_all_parameters_are_decayed_and_adapted():
    objective = make_objective()
    (group,) = make_optimizer("larc", objective.param_groups(), lr=0.6, weight_decay=1e-6).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in objective.parameters()}
    assert (group["adapt"], group["weight_decay"]) == (True, 1e-6)


def shapes_of(dim, **options):
    encoders = nn.Module()
    encoders.video = nn.Identity()
    encoders.video.dim = dim
    with torch.device("meta"):
        objective = SwAV(encoders, **options)
    return {key: tuple(value.shape) for key, value in objective.state_dict().items()}


def norm(position, dim):
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"projector.{position}.{name}": (dim,) for name in names} | {
        f"projector.{position}.num_batches_tracked": ()
    }


def linear(position, before, after):
    return {f"projector.{position}.weight": (after, before), f"projector.{position}.bias": (after,)}


def test_heads_are_those_of_the_releases():
    expected = linear(0, 2048, 2048) | norm(1, 2048) | linear(3, 2048, 128)
    assert shapes_of(2048) == expected | {"prototypes.weight": (3000, 128)}
    seer = {"num_prototypes": 16000, "epsilon": 0.03, "sinkhorn_iterations": 10}
    expected = linear(0, 7392, 8192) | linear(2, 8192, 8192) | linear(4, 8192, 256)
    got = shapes_of(7392, head_dims=(8192, 8192, 256), head_batch_norm=False, **seer)
    assert got == expected | {"prototypes.weight": (16000, 256)}
    expected = (
        linear(0, 3712, 4096) | norm(1, 4096) | linear(3, 4096, 4096) | norm(4, 4096) | linear(6, 4096, 256)
    )
    got = shapes_of(3712, head_dims=(4096, 4096, 256), **seer)
    assert got == expected | {"prototypes.weight": (16000, 256)}


def test_settings_of_seer_learn():
    seer = {"head_dims": (16, 16, 8), "head_batch_norm": False, "epsilon": 0.03, "sinkhorn_iterations": 10}
    objective = make_objective(**seer)
    optimizer = make_optimizer("sgd", objective.param_groups(), lr=0.03, weight_decay=1e-5)
    views = make_views(batch=32)
    # without norm anywhere, unit noise would start in a cone too narrow for a short test
    views = Views(tuple(4 * crop for crop in views.video), (), views.index)
    for _ in range(150):
        optimizer.zero_grad()
        out = objective(views)
        out["loss"].backward()
        optimizer.step()
    assert float(out["loss_over_ln_k"]) < 0.6
    assert float(out["spread"]) > 0.5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_prototypes": 1}, "num_prototypes is 1; it must be at least 2"),
        ({"head_dims": ()}, r"head_dims is \(\); it must be lengths above 0"),
        ({"head_dims": (8, 0)}, r"head_dims is \(8, 0\)"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be above 0"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations is 0; it must be at least 1"),
        ({"crops_for_assign": ()}, r"crops_for_assign is \(\); it must be different views"),
        ({"crops_for_assign": (0, 0)}, r"crops_for_assign is \(0, 0\)"),
        ({"crops_for_assign": (-1, 0)}, r"crops_for_assign is \(-1, 0\)"),
        ({"queue_length": -1}, "queue_length is -1; it must be at least 0"),
        ({"queue_start": 15}, "queue_start is 15; it must be a share of the training"),
        ({"freeze_prototypes_steps": -1}, "freeze_prototypes_steps is -1"),
        ({"hard_assignment_steps": -1}, "hard_assignment_steps is -1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_objective(**options)


def test_trunk_without_dim_is_refused():
    encoders = Encoders()
    del encoders.video.dim
    with pytest.raises(ConfigError, match="attribute `dim`"):
        SwAV(encoders)
