"""Order, resuming, and the same batches however many workers read them."""

from __future__ import annotations

import os
import pickle
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from avssl.data.batch import ClipBatch, PackedFrames, collate
from avssl.data.dataset import ClipDataset, ClipKey, EvalDataset, Failure
from avssl.data.loader import BatchKey, EpochSampler, RunSampler, make_loader, ordered_batches
from avssl.data.sampling import AudioSpec, VideoSpec
from avssl.data.workers import worker_context
from avssl.types import Clip

VIDEO, AUDIO = VideoSpec(4, 8.0), AudioSpec(0.5, 1000)


def rows(batch: BatchKey) -> list[int]:
    return [key.row for key in batch.keys]


# ---- samplers


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "repeats"), [(10, 4, 1), (10, 4, 3), (7, 7, 4), (5, 8, 3)]
)
def test_epoch_holds_each_row_as_often_as_asked_and_never_twice_in_a_batch(
    num_rows, batch_size, repeats
) -> None:
    batches = list(EpochSampler(num_rows, batch_size, 0, 0, repeats, drop_last=False))
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys) == [ClipKey(0, row, repeat) for row in range(num_rows) for repeat in range(repeats)]
    assert all(len(set(rows(batch))) == len(batch.keys) for batch in batches)
    assert [batch.batch for batch in batches] == list(range(len(batches)))


def test_no_row_twice_in_a_batch_for_many_sizes() -> None:
    for num_rows in range(1, 14):
        for batch_size in range(1, 16):
            for batch in EpochSampler(num_rows, batch_size, 3, 1, repeats=4, drop_last=False):
                assert len(set(rows(batch))) == len(batch.keys), (num_rows, batch_size)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = list(EpochSampler(50, 8, seed=1, epoch=2))
    assert list(EpochSampler(50, 8, seed=1, epoch=2)) == first
    assert [rows(b) for b in EpochSampler(50, 8, seed=1, epoch=3)] != [rows(b) for b in first]
    assert [rows(b) for b in EpochSampler(50, 8, seed=2, epoch=2)] != [rows(b) for b in first]
    assert [row for b in first for row in rows(b)] != list(range(48))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_rows_with_sound_are_spread_over_each_batch_whose_rows_stay(share) -> None:
    has_sound = np.random.default_rng(0).random(300) < share
    plain = list(EpochSampler(300, 30, seed=1, epoch=2, repeats=2))
    whole = list(EpochSampler(300, 30, seed=1, epoch=2, repeats=2, has_sound=has_sound))
    assert [sorted(batch.keys) for batch in whole] == [sorted(batch.keys) for batch in plain]
    for world_size in (2, 3, 5):
        parts = [
            list(EpochSampler(300, 30, 1, 2, 2, rank=rank, world_size=world_size, has_sound=has_sound))
            for rank in range(world_size)
        ]
        for batch, *shares in zip(whole, *parts, strict=True):
            assert batch.keys == tuple(key for part in shares for key in part.keys)
            counts = [int(has_sound[rows(part)].sum()) for part in shares]
            assert max(counts) - min(counts) <= 1


def test_positions_are_uniform() -> None:
    places = Counter(rows(next(iter(EpochSampler(5, 1, seed=0, epoch=epoch))))[0] for epoch in range(2000))
    assert all(300 < places[row] < 500 for row in range(5))


def test_last_small_batch_is_dropped_unless_it_is_the_only_one() -> None:
    assert [len(batch.keys) for batch in EpochSampler(10, 4, 0, 0)] == [4, 4]
    assert [len(batch.keys) for batch in EpochSampler(10, 4, 0, 0, drop_last=False)] == [4, 4, 2]
    assert [len(batch.keys) for batch in EpochSampler(3, 4, 0, 0)] == [3]
    assert len(EpochSampler(10, 4, 0, 0)) == 2


def test_epoch_resumes_at_any_batch() -> None:
    whole = list(EpochSampler(20, 3, 0, 1, repeats=2))
    for start in range(len(whole) + 1):
        rest = EpochSampler(20, 3, 0, 1, repeats=2, start_batch=start)
        assert list(rest) == whole[start:]
        assert len(rest) == len(whole) - start


def test_run_is_its_epochs_and_resumes_anywhere() -> None:
    run = RunSampler(10, 3, seed=4, epochs=3, repeats=2)
    whole = list(run)
    assert run.batches_per_epoch == 6
    assert len(run) == len(whole) == 18
    assert whole == [batch for epoch in range(3) for batch in EpochSampler(10, 3, 4, epoch, repeats=2)]
    for start in [(0, 0), (0, 5), (1, 2), (1, 6), (2, 0), (2, 6), (3, 0)]:
        rest = RunSampler(10, 3, seed=4, epochs=3, repeats=2, start=start)
        assert list(rest) == whole[start[0] * 6 + start[1] :]
        assert len(rest) == len(list(rest))


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "repeats"), [(10, 4, 1), (10, 4, 3), (7, 2, 1), (3, 8, 2)]
)
def test_a_filled_epoch_leaves_no_row_out_and_no_batch_small(num_rows, batch_size, repeats) -> None:
    batches = list(EpochSampler(num_rows, batch_size, 0, 1, repeats, fill_last=True))
    size = min(batch_size, num_rows)
    assert {len(batch.keys) for batch in batches} == {size}
    assert len(batches) == -(-num_rows * repeats // size)
    assert all(len(set(rows(batch))) == size for batch in batches)
    keys = [key for batch in batches for key in batch.keys]
    assert keys[: num_rows * repeats] == [
        key
        for batch in EpochSampler(num_rows, batch_size, 0, 1, repeats, drop_last=False)
        for key in batch.keys
    ]


def test_epochs_of_warming_up_are_filled_and_the_others_not() -> None:
    run = RunSampler(10, 4, seed=0, epochs=3, warmup_epochs=1)
    assert (run.batches_per_warmup_epoch, run.batches_per_epoch) == (3, 2)
    whole = list(run)
    assert [(batch.epoch, batch.batch) for batch in whole] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert {key.row for batch in whole[:3] for key in batch.keys} == set(range(10))
    assert len(run) == 7
    rest = RunSampler(10, 4, seed=0, epochs=3, warmup_epochs=1, start=(0, 2))
    assert list(rest) == whole[2:]
    assert len(rest) == 5


def test_ranks_share_each_batch() -> None:
    whole = list(RunSampler(20, 6, 0, epochs=2))
    parts = [list(RunSampler(20, 6, 0, epochs=2, rank=rank, world_size=4)) for rank in range(4)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert tuple(key for share in shares for key in share.keys) == batch.keys  # in order, as gathered
        assert [len(share.keys) for share in shares] == [2, 2, 1, 1]
        assert {(share.epoch, share.batch) for share in shares} == {(batch.epoch, batch.batch)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": 0}, "num_rows must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"repeats": 0}, "repeats must be at least 1; got 0"),
        ({"start_batch": 3}, r"start_batch must lie in \[0, 2\]; got 3"),
        ({"rank": 1}, "got rank 1 of 1"),
    ],
)
def test_impossible_samplers_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochSampler(**({"num_rows": 10, "batch_size": 4, "seed": 0, "epoch": 0} | change))


def test_ordered_batches_leave_nothing_out() -> None:
    batches = ordered_batches(3, 4, num_clips=2)
    assert [len(batch.keys) for batch in batches] == [4, 2]
    assert [key for batch in batches for key in batch.keys] == [
        ClipKey(0, r, c) for r in range(3) for c in range(2)
    ]


# ---- batches


def clip(row: int, width: int) -> Clip:
    frames = torch.full((2, 3, width, 3), row, dtype=torch.uint8)
    return Clip(frames, torch.full((1, 5), float(row)), 8.0, 10, 0.0, 0.0, row)


def test_collate_keeps_sizes_and_puts_failures_aside() -> None:
    failure = Failure(7, "x", "/x", "open", "gone")
    batch = collate([clip(4, 5), failure, clip(2, 6)], epoch=3, batch=9)
    assert len(batch) == 2
    assert [tuple(frames.shape) for frames in batch.frames] == [(2, 3, 5, 3), (2, 3, 6, 3)]
    assert [int(frames.float().mean()) for frames in batch.frames] == [4, 2]
    assert batch.waveform.shape == (2, 1, 5)
    assert batch.index.tolist() == [4, 2]
    assert batch.index.dtype == torch.int64
    assert (batch.failures, batch.epoch, batch.batch) == ([failure], 3, 9)


def test_collate_of_failures_alone_is_an_empty_batch() -> None:
    batch = collate([Failure(7, "x", "/x", "open", "gone")])
    assert len(batch) == 0
    assert list(batch.frames) == []
    assert batch.waveform is None
    assert len(batch.to("cpu").failures) == 1


def test_frames_share_one_buffer_through_pickle_and_device() -> None:
    apart = ClipBatch([clip(1, 5).frames, clip(2, 6).frames], None, torch.tensor([1, 2]))
    assert apart.to("cpu").frames is apart.frames  # nothing is copied where nothing travels
    batch = replace(apart, frames=PackedFrames.pack(apart.frames))
    for copy in (batch, pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
        assert len({frames.untyped_storage().data_ptr() for frames in copy.frames}) == 1
        assert all(torch.equal(a, b) for a, b in zip(copy.frames, batch.frames, strict=True))
    assert PackedFrames.pack(batch.frames) is batch.frames
    assert [tuple(frames.shape) for frames in batch.frames[1:]] == [(2, 3, 6, 3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batch_reaches_the_gpu_whole() -> None:
    batch = collate([clip(4, 5), clip(2, 6)])
    pinned = batch.pin_memory()
    assert all(frames.is_pinned() for frames in pinned.frames)
    assert pinned.waveform.is_pinned()
    there = pinned.to("cuda", non_blocking=True)
    assert there.index.tolist() == [4, 2]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(there.frames, batch.frames, strict=True))


# ---- loader


def assert_equal(a: ClipBatch, b: ClipBatch) -> None:
    assert (a.epoch, a.batch, a.failures) == (b.epoch, b.batch, b.failures)
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.waveform, b.waveform)
    assert all(torch.equal(x, y) for x, y in zip(a.frames, b.frames, strict=True))


def test_batches_are_the_same_for_any_number_of_workers(manifest, reader) -> None:
    dataset = ClipDataset(manifest, reader, VIDEO, AUDIO, seed=1)
    sampler = RunSampler(len(manifest), 4, seed=1, epochs=2, repeats=2, start=(0, 1))
    runs = [list(make_loader(dataset, sampler, num_workers=workers)) for workers in (0, 1, 2)]
    assert [(batch.epoch, batch.batch) for batch in runs[0]] == [(e, b) for e in range(2) for b in range(5)][
        1:
    ]
    assert {f.stage for batch in runs[0] for f in batch.failures} == {"video", "silent"}
    for batches in runs[1:]:
        for a, b in zip(runs[0], batches, strict=True):
            assert_equal(a, b)


def test_loader_leaves_the_random_state_of_the_training_alone(manifest, reader) -> None:
    state = torch.get_rng_state()
    loader = make_loader(
        ClipDataset(manifest, reader, VIDEO, AUDIO), EpochSampler(10, 4, 0, 0), num_workers=1
    )
    assert len(loader) == len(list(loader)) == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_loader_sees_every_clip_in_order(manifest, reader) -> None:
    dataset = EvalDataset(manifest, reader, VIDEO, AUDIO, num_clips=2)
    batches = list(make_loader(dataset, ordered_batches(len(manifest), 6, num_clips=2)))
    assert torch.cat([batch.index for batch in batches]).tolist() == [
        r for r in range(10) if r != 3 for _ in range(2)
    ]
    assert [failure.row for batch in batches for failure in batch.failures] == [3, 3]


def test_workers_keep_few_file_descriptors_open(manifest, reader) -> None:
    dataset = ClipDataset(manifest, reader, VIDEO, AUDIO, silent="keep")
    sampler = RunSampler(len(manifest), 10, seed=0, epochs=12)
    iterator = iter(make_loader(dataset, sampler, num_workers=1))
    first = next(iterator)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    held = [first, *iterator]
    assert sum(len(batch.frames) for batch in held) == 9 * 12
    # Three buffers a batch (frames, sound, index), not one a clip.
    assert len(os.listdir("/proc/self/fd")) - before <= 3 * len(held)


class Inspecting:
    """Returns what it sees of its worker as a waveform."""

    def read(self, path, video=None, audio=None, row=-1, audio_source=None) -> Clip:
        seen = [signal.getsignal(signal.SIGINT) == signal.SIG_IGN, torch.get_num_threads(), os.getpid()]
        return Clip(None, torch.tensor([seen], dtype=torch.float32), 0.0, 1, 0.0, 0.0, row)


def test_workers_ignore_interrupts_use_one_thread_and_live_through_all_epochs(manifest) -> None:
    dataset = ClipDataset(manifest, Inspecting(), None, AUDIO)
    batches = list(make_loader(dataset, RunSampler(10, 5, 0, epochs=4), num_workers=1))
    seen = torch.cat([batch.waveform[:, 0] for batch in batches])
    assert (seen[:, 0] == 1).all()
    assert (seen[:, 1] == 1).all()
    assert len(seen[:, 2].unique()) == 1


def test_workers_start_by_fork_only_while_cuda_is_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert worker_context() == "fork"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert worker_context() == "forkserver"
