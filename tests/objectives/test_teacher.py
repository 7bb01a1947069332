import pytest
import torch
from torch import nn

from avssl.objectives.teacher import Teacher


@pytest.fixture
def student():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    return trunk, nn.Linear(4, 3, bias=False)


def move(student):
    for part in student:
        for parameter in part.parameters():
            parameter.data.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.996, 1.0])
def test_teacher_moves_by_its_share(student, momentum):
    teacher = Teacher(*student)
    before = [p.clone() for p in teacher.parameters()]
    move(student)
    teacher.follow(*student, momentum=momentum)
    moved = [p.detach() for part in student for p in part.parameters()]
    for old, new, target in zip(before, teacher.parameters(), moved, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * target)
        if momentum in (0.0, 1.0):
            assert torch.equal(new, old if momentum else target)


def test_teacher_is_its_own_and_takes_no_gradient(student):
    teacher = Teacher(*student)
    x = torch.randn(6, 5, requires_grad=True)
    expected = student[1](student[0](x))
    assert torch.equal(teacher(x), expected)
    assert not teacher(x).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for part in student for p in part.parameters())
    move(student)
    assert torch.equal(teacher(x), expected)


def test_following_leaves_buffers_and_starting_takes_them(student):
    teacher = Teacher(*student)
    student[0](torch.randn(6, 5) + 4)
    teacher.follow(*student, momentum=0.0)
    assert torch.equal(teacher.trunk[1].running_mean, torch.zeros(4))
    teacher.start_from(*student)
    assert torch.equal(teacher.trunk[1].running_mean, student[0][1].running_mean)
    assert float(student[0][1].running_mean.abs().sum()) > 0
