import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from avssl.data.batch import PackedFrames


class Packed(Dataset):
    """Two clips of different sizes packed, and whether the memory is shared before anything is sent."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> tuple[PackedFrames, bool]:
        packed = PackedFrames.pack([torch.full((1, 2, size, 3), size, dtype=torch.uint8) for size in (4, 7)])
        return packed, packed.pixels.is_shared()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_pack_into_shared_memory_at_once(num_workers: int) -> None:
    ((packed, is_shared),) = DataLoader(Packed(), batch_size=None, num_workers=num_workers)
    assert is_shared == (num_workers > 0)
    assert [tuple(clip.shape) for clip in packed] == [(1, 2, 4, 3), (1, 2, 7, 3)]
    assert all(bool((clip == clip.shape[2]).all()) for clip in packed)


def test_nothing_is_packed_as_nothing() -> None:
    assert len(PackedFrames.pack([])) == 0
