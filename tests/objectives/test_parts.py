"""A batch computed in parts is the batch: gradients add up, and memories change once, at its end."""

import pytest
import torch

from avssl.memory import MemoryBank
from avssl.models import DualEncoder
from avssl.objectives import AVID, CMA, Joint

N, B, D = 40, 8, 8


def make(name):
    torch.manual_seed(3)
    encoders = DualEncoder.tiny()
    size = encoders.embedding_dim
    if name == "CMA":
        objective = CMA(encoders, N, num_negatives=12, num_positives=3, partition=9.0)
    else:
        objective = AVID(encoders, N, num_negatives=12, partition=9.0, within=1.0)
    objective.bank.seen.fill_(True)
    objective.before_epoch(0)
    objective.train()
    z = [torch.randn(B, size, requires_grad=True) for _ in range(2)]
    rows = torch.randint(N, (B, 12))
    return objective, z, torch.randperm(N)[:B], rows


def step(objective, z, index, rows, parts):
    """Gradients in the embeddings of a batch in so many parts; their sum is weighted as the trainer does."""
    with objective.in_parts():
        for chosen in torch.arange(B).chunk(parts):
            out = objective.contrast_embeddings(*(x[chosen] for x in z), index[chosen], rows[chosen])
            (out["loss"] * (len(chosen) / B)).backward()
    return [x.grad.clone() for x in z]


@pytest.mark.parametrize("name", ["AVID", "CMA"])
@pytest.mark.parametrize("parts", [2, 3])
def test_gradients_and_memories_are_those_of_the_whole_batch(name, parts):
    whole = make(name)
    divided = make(name)
    # Each part has instances of the others among its negatives: their vectors must not have moved yet.
    whole[3][:, :2] = divided[3][:, :2] = whole[2].roll(3)[:, None]
    objective, z, index, rows = whole
    out = objective.contrast_embeddings(*z, index, rows)
    out["loss"].backward()
    for one, other in zip(z, step(*divided, parts), strict=True):
        torch.testing.assert_close(one.grad, other)
    assert torch.equal(whole[0].bank.video, divided[0].bank.video)
    assert torch.equal(whole[0].bank.audio, divided[0].bank.audio)


def test_without_holding_memories_the_parts_would_differ():
    whole, divided = make("AVID"), make("AVID")
    whole[3][:, :2] = divided[3][:, :2] = whole[2].roll(3)[:, None]
    objective, z, index, rows = whole
    objective.contrast_embeddings(*z, index, rows)["loss"].backward()
    other, z_parts, *_ = divided
    for chosen in torch.arange(B).chunk(2):
        out = other.contrast_embeddings(*(x[chosen] for x in z_parts), index[chosen], rows[chosen])
        (out["loss"] / 2).backward()
    assert not torch.allclose(z[0].grad, z_parts[0].grad)


def test_a_joint_objective_holds_the_memories_of_its_parts():
    encoders = DualEncoder.tiny()
    avid = AVID(encoders, N, num_negatives=4)
    joint = Joint(encoders, {"avid": avid})
    before = avid.bank.video.clone()
    z = torch.randn(4, encoders.embedding_dim)
    with joint.in_parts():
        avid.bank.update(torch.arange(4), z, z)
        assert torch.equal(avid.bank.video, before)
    assert not torch.equal(avid.bank.video, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_memories_take_in_finite_vectors_only(value):
    bank = MemoryBank(6, D)
    before = bank.video.clone(), bank.audio.clone()
    z_video, z_audio = torch.randn(3, D), torch.randn(3, D)
    z_audio[1, 2] = value
    bank.update(torch.tensor([0, 2, 4]), z_video, z_audio)
    assert bank.seen.tolist() == [True, False, False, False, True, False]
    for vectors, old in zip((bank.video, bank.audio), before, strict=True):
        assert vectors.isfinite().all()
        assert torch.equal(vectors[2], old[2])
        assert not torch.equal(vectors[0], old[0])
    bank.update(torch.tensor([2]), z_video[1:2], z_video[1:2])
    assert bank.seen[2]
