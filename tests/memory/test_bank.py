import pytest
import torch
import torch.nn.functional as F

from avssl.memory import MemoryBank


def test_bank_starts_with_unit_vectors_that_nobody_has_seen():
    bank = MemoryBank(20, 8)
    for modality in ("video", "audio"):
        torch.testing.assert_close(bank.vectors(modality).norm(dim=1), torch.ones(20))
    assert not bank.seen.any()
    assert len(bank.pool()[0]) == 0


def test_update_is_the_normalised_mixture():
    bank = MemoryBank(20, 8, momentum=0.3)
    old = bank.video.clone()
    index, z_video, z_audio = torch.tensor([3, 7]), torch.randn(2, 8), torch.randn(2, 8)
    bank.update(index, z_video, z_audio)
    expected = F.normalize(0.3 * old[index] + 0.7 * F.normalize(z_video, dim=1), dim=1)
    torch.testing.assert_close(bank.video[index], expected)
    untouched = [i for i in range(20) if i not in (3, 7)]
    assert torch.equal(bank.video[untouched], old[untouched])
    assert bank.seen.nonzero().flatten().tolist() == [3, 7]


def test_update_takes_the_last_of_duplicate_indices():
    bank, other = MemoryBank(20, 8), MemoryBank(20, 8)
    other.load_state_dict(bank.state_dict())
    z = torch.randn(3, 8)
    bank.update(torch.tensor([4, 9, 4]), z, z)
    other.update(torch.tensor([4, 9]), z[[2, 1]], z[[2, 1]])
    assert torch.equal(bank.video, other.video)
    assert torch.equal(bank.audio, other.audio)


def test_pool_follows_updates_and_loading():
    bank = MemoryBank(6, 4)
    bank.update(torch.tensor([1, 4]), torch.randn(2, 4), torch.randn(2, 4))
    rows, position = bank.pool()
    assert rows.tolist() == [1, 4]
    assert position.tolist() == [0, 0, 1, 1, 1, 2]
    fresh = MemoryBank(6, 4)
    assert len(fresh.pool()[0]) == 0
    fresh.load_state_dict(bank.state_dict())
    assert fresh.pool()[0].tolist() == [1, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 4), "num_instances is 1"), ((5, 4, 1.0), "momentum must be in"), ((5, 4, -0.1), "got -0.1")],
)
def test_impossible_banks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(*arguments)
