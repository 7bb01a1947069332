import pytest
import torch
import torch.nn.functional as F

from avssl.errors import CheckpointError
from avssl.memory import MemoryBank, instance_keys


def test_bank_starts_with_unit_vectors_that_nobody_has_seen():
    bank = MemoryBank(20, 8)
    for modality in ("video", "audio"):
        torch.testing.assert_close(bank.vectors(modality).norm(dim=1), torch.ones(20))
    assert not bank.seen.any()
    assert len(bank.pool().rows) == 0


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
    pool = bank.pool()
    assert pool.rows.tolist() == [1, 4]
    assert pool.position.tolist() == [0, 0, 1, 1, 1, 2]
    fresh = MemoryBank(6, 4)
    assert len(fresh.pool().rows) == 0
    fresh.load_state_dict(bank.state_dict())
    assert fresh.pool().rows.tolist() == [1, 4]


def test_the_pool_of_everything_is_built_once():
    bank = MemoryBank(6, 4)
    assert bank.everything().rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert bank.everything() is bank.everything()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 4), "num_instances is 1"), ((5, 4, 1.0), "momentum must be in"), ((5, 4, -0.1), "got -0.1")],
)
def test_impossible_banks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(*arguments)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_types_store_less_and_update_as_precisely_as_they_can(dtype):
    full, short = MemoryBank(20, 8), MemoryBank(20, 8, dtype=dtype)
    short.load_from({f"bank.{name}": value for name, value in full.state_dict().items()})
    assert short.video.element_size() == 2
    index, z = torch.tensor([2, 5]), torch.randn(2, 8)
    full.update(index, z, z)
    short.update(index, z, z)
    assert short.video.dtype == getattr(torch, dtype)
    torch.testing.assert_close(short.video.float(), full.video, atol=8e-3, rtol=0)
    torch.testing.assert_close(short.video[index].float().norm(dim=1), torch.ones(2), atol=8e-3, rtol=0)


def named(ids, **settings):
    bank = MemoryBank(len(ids), 8, **settings)
    bank.keys.copy_(instance_keys(ids))
    return bank


def test_vectors_find_their_sample_in_grown_and_reordered_data():
    old = named(["a", "b", "c", "d"])
    old.update(torch.tensor([0, 2, 3]), torch.randn(3, 8), torch.randn(3, 8))
    new = named(["d", "x", "a", "c", "y"])
    before = new.video.clone()
    rows = new.load_from({f"bank.{name}": value for name, value in old.state_dict().items()})
    assert rows.tolist() == [3, -1, 0, 2, -1]
    assert torch.equal(new.video[[0, 2, 3]], old.video[[3, 0, 2]])
    assert torch.equal(new.audio[[0, 2, 3]], old.audio[[3, 0, 2]])
    assert torch.equal(new.video[[1, 4]], before[[1, 4]])
    assert new.seen.tolist() == [True, False, True, True, False]
    assert new.pool().rows.tolist() == [0, 2, 3]


def test_banks_without_ids_match_by_row_or_not_at_all():
    old, new = MemoryBank(4, 8), MemoryBank(4, 8)
    state = {f"bank.{name}": value for name, value in old.state_dict().items() if name != "keys"}
    assert new.load_from(state).tolist() == [0, 1, 2, 3]
    assert torch.equal(new.video, old.video)
    with pytest.raises(CheckpointError, match="4 instances without ids cannot be matched with 5 samples"):
        MemoryBank(5, 8).load_from(state)


def test_keys_are_stable_and_refuse_equal_ids():
    assert instance_keys(["a.mp4", "b.mp4"]).tolist() == [1461060205421071492, 5492012313577962450]
    with pytest.raises(ValueError, match="ids 'b' and 'b' have the same key"):
        instance_keys(["a", "b", "c", "b"])


def test_a_bank_is_saved_and_loaded_apart_from_weights(tmp_path):
    bank = named(["a", "b", "c"], dtype="float16")
    bank.update(torch.tensor([1]), torch.randn(1, 8), torch.randn(1, 8))
    bank.save(tmp_path / "bank.pt")
    loaded = MemoryBank.load(tmp_path / "bank.pt", momentum=0.2)
    assert loaded.momentum == 0.2
    for name, value in bank.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == value.dtype


@pytest.mark.parametrize("content", [b"", b"no bank", None])
def test_what_is_no_bank_is_refused(tmp_path, content):
    path = tmp_path / "bank.pt"
    if content is None:
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"bank\.pt: damaged or not a memory bank .* MemoryBank\.save wrote"
    ):
        MemoryBank.load(path)


def test_a_state_without_keys_loads_as_one_of_unknown_samples():
    bank = named(["a", "b"])
    state = MemoryBank(2, 8).state_dict()
    del state["keys"]
    bank.load_state_dict(state)
    assert not bank.keys.any()


def test_one_process_holds_all_of_a_sharded_bank():
    bank = MemoryBank(5, 4, storage="sharded")
    assert not bank.is_sharded
    assert bank.vectors("video").shape == (5, 4)
    with pytest.raises(ValueError, match="storage must be one of replicated, sharded, auto; got 'spread'"):
        MemoryBank(5, 4, storage="spread")
