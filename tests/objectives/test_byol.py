import math
from pathlib import Path

import pytest
import torch
from torch import nn

from avssl.errors import ConfigError
from avssl.objectives.byol import BYOL, byol_loss
from avssl.types import Views

IMAGE = torch.load(Path(__file__).parents[1] / "golden" / "image.pt", weights_only=True)


class Encoders(nn.Module):
    def __init__(self, dim=6):
        super().__init__()
        self.video = nn.Sequential(nn.Flatten(), nn.Linear(12, dim), nn.BatchNorm1d(dim))
        self.video.dim = dim


def small(**options):
    torch.manual_seed(0)
    return BYOL(Encoders(), hidden_dim=8, dim=4, **options)


def views(batch=10, seed=3):
    g = torch.Generator().manual_seed(seed)
    video = tuple(torch.randn(batch, 3, 1, 2, 2, generator=g) for _ in range(2))
    return Views(video, (), torch.arange(batch))


def naive_byol(p1, z2, p2, z1):
    total = 0.0
    for p, z in ((p1, z2), (p2, z1)):
        for a, b in zip(p.tolist(), z.tolist(), strict=True):
            norm_a, norm_b = (math.sqrt(sum(v * v for v in x)) for x in (a, b))
            total += sum((v / norm_a - w / norm_b) ** 2 for v, w in zip(a, b, strict=True))
    return total / len(p1)


def test_loss_and_gradient_equal_the_release():
    case = IMAGE["byol_loss"]
    p1, z2, p2, z1 = (case[k].clone().requires_grad_() for k in ("p1", "z2", "p2", "z1"))
    loss = byol_loss(p1, z2, p2, z1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(case["loss"]), rel=1e-12)
    torch.testing.assert_close(p1.grad, case["grad_p1"], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(p2.grad, case["grad_p2"], rtol=1e-10, atol=1e-14)
    assert z1.grad is None
    assert z2.grad is None


def test_loss_equals_its_equation_and_spans_zero_to_eight():
    g = torch.Generator().manual_seed(1)
    tensors = [torch.randn(5, 7, generator=g, dtype=torch.float64) for _ in range(4)]
    assert float(byol_loss(*tensors)) == pytest.approx(naive_byol(*tensors), rel=1e-12)
    p = tensors[0]
    assert float(byol_loss(p, 2 * p, p, 3 * p)) == pytest.approx(0, abs=1e-12)
    assert float(byol_loss(p, -p, p, -2 * p)) == pytest.approx(8, rel=1e-12)


def test_a_zero_embedding_is_finite():
    p = torch.zeros(2, 3, requires_grad=True)
    loss = byol_loss(p, torch.ones(2, 3), p, torch.ones(2, 3))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2)
    assert p.grad.isfinite().all()


def test_heads_are_those_of_the_release():
    encoders = nn.Module()
    encoders.video = nn.Identity()
    encoders.video.dim = 2048
    with torch.device("meta"):
        objective = BYOL(encoders)
    shapes = {k: tuple(v.shape) for k, v in objective.named_parameters()}
    for head, dim_in in (("projector", 2048), ("predictor", 256), ("teacher.projector", 2048)):
        found = {k.removeprefix(f"{head}."): s for k, s in shapes.items() if k.startswith(f"{head}.")}
        assert found == {
            "0.weight": (4096, dim_in),
            "0.bias": (4096,),
            "1.weight": (4096,),
            "1.bias": (4096,),
            "3.weight": (256, 4096),
        }


def test_teacher_starts_as_the_student_and_follows_after_the_step():
    objective = small(base_tau=0.9)
    before = [p.clone() for p in objective.teacher.parameters()]
    student = [*objective.encoders.video.parameters(), *objective.projector.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, student, strict=True))
    optimizer = torch.optim.SGD(objective.param_groups(), lr=0.5)
    objective.set_progress(3, 10)
    objective(views())["loss"].backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, objective.teacher.parameters(), strict=True))
    objective.after_step()
    tau = 1 - 0.1 * 0.5 * (1 + math.cos(math.pi * 3 / 10))
    for old, new, moved in zip(before, objective.teacher.parameters(), student, strict=True):
        torch.testing.assert_close(new, tau * old + (1 - tau) * moved.detach())
    assert any(not torch.equal(a, b) for a, b in zip(before, objective.teacher.parameters(), strict=True))


@pytest.mark.parametrize("base", [0.996, 0.99, 0.97])
def test_tau_passes_the_points_of_the_release_and_ends_at_one(base):
    objective = small(base_tau=base)
    total = IMAGE["byol_schedules"]["max_steps"]
    for step, expected in IMAGE["byol_schedules"]["target_ema"][base]:
        objective.set_progress(step, total)
        assert objective.tau == pytest.approx(expected, abs=1e-7)
    objective.set_progress(total, total)
    assert objective.tau == 1.0
    objective.set_progress(total // 2, total)
    logged = objective(views())["tau"]
    assert float(logged) == pytest.approx(objective.tau, abs=1e-7)


def naive_norm(x):
    return (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt()


def test_targets_come_from_the_teacher_and_its_batch_statistics():
    objective = small().double()
    batch = tuple(v.double() for v in views().video)
    trunk, head = objective.teacher.trunk, objective.teacher.projector
    trunk[2].weight.mul_(torch.linspace(0.5, 1.5, 6))  # no longer the student
    trunk[2].running_mean.fill_(100.0)  # must not matter
    z = [naive_norm(trunk[1](x.flatten(1))) * trunk[2].weight for x in batch]
    z = [naive_norm(head[0](h)).clamp_min(0) @ head[3].weight.T for h in z]
    p = [objective.predictor(objective.projector(objective.encoders.video(x))) for x in batch]
    out = objective(Views(batch, (), torch.arange(10)))
    assert float(out["loss"].detach()) == pytest.approx(naive_byol(p[0], z[1], p[1], z[0]), rel=1e-9)
    assert float(out["cosine"]) == pytest.approx(1 - float(out["loss"].detach()) / 4, rel=1e-9)


def test_buffers_do_not_follow_the_student():
    objective = small()
    objective(views())
    objective.teacher.trunk[2].running_mean.fill_(7.0)
    objective.after_step()
    assert torch.equal(objective.teacher.trunk[2].running_mean, torch.full((6,), 7.0))
    assert int(objective.teacher.trunk[2].num_batches_tracked) == 2  # one for each view


def test_teacher_by_the_epoch_waits_and_then_is_the_student():
    objective = small(teacher_update="epoch")
    before = [p.clone() for p in objective.teacher.parameters()]
    optimizer = torch.optim.SGD(objective.param_groups(), lr=0.5)
    assert objective.before_epoch(0) == {}
    for _ in range(2):
        out = objective(views())
        out["loss"].backward()
        optimizer.step()
        objective.after_step()
    assert "tau" not in out
    assert all(torch.equal(a, b) for a, b in zip(before, objective.teacher.parameters(), strict=True))
    objective.before_epoch(1)
    student = [*objective.encoders.video.parameters(), *objective.projector.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(student, objective.teacher.parameters(), strict=True))
    assert not torch.equal(before[0], student[0])


@pytest.mark.parametrize("teacher_update, epoch", [("epoch", 0), ("step", 1)])
def test_no_other_epoch_moves_the_teacher(teacher_update, epoch):
    objective = small(teacher_update=teacher_update)
    for p in objective.encoders.video.parameters():
        p.data.add_(1.0)
    before = [p.clone() for p in objective.teacher.parameters()]
    objective.before_epoch(epoch)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.teacher.parameters(), strict=True))


def test_teacher_of_a_new_stage_is_its_student():
    torch.manual_seed(5)
    other = BYOL(Encoders(), hidden_dim=8, dim=4)
    other(views())
    objective = small()
    objective.start_from(other.state_dict())
    for key, value in objective.encoders.video.state_dict().items():
        assert torch.equal(value, other.encoders.video.state_dict()[key])
        assert torch.equal(objective.teacher.trunk.state_dict()[key], value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"base_tau": 1.5}, r"base_tau is 1.5; it must lie in \[0, 1\]"),
        ({"teacher_update": "batch"}, "teacher_update is 'batch'; it must be 'step' or 'epoch'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)
