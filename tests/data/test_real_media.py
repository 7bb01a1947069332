"""Real files all the way: scan, sample, decode in workers, collate, ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from media import frame_numbers, lag_seconds, write_media

from avssl.data import AudioSpec, ClipDataset, ClipKey, RunSampler, SkipLedger, VideoSpec, make_loader, scan
from avssl.decode import open_reader

VIDEO, AUDIO = VideoSpec(8, 16.0), AudioSpec(1.0, 24000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, size in (("dog/a.mp4", (96, 96)), ("dog/b.mp4", (128, 96)), ("cat/c.mkv", (96, 128))):
        (folder / name).parent.mkdir(exist_ok=True)
        write_media(folder / name, seconds=3.0, fps=16, size=size)
    write_media(folder / "cat" / "mute.mp4", seconds=2.0, fps=16, audio=False)
    whole = (folder / "dog" / "a.mp4").read_bytes()
    (folder / "dog" / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


def test_scan_measures_real_files_and_names_the_broken_one(folder: Path) -> None:
    result = scan(folder)
    assert result.manifest.ids == ["cat/c.mkv", "cat/mute.mp4", "dog/a.mp4", "dog/b.mp4"]
    assert [Path(skipped.path).name for skipped in result.skipped] == ["cut.mp4"]
    assert result.skipped[0].reason
    row = result.manifest.row(3)
    assert (row.width, row.height, row.label, row.has_audio) == (128, 96, "dog", True)
    assert row.fps == pytest.approx(16, abs=0.01)
    assert row.end_seconds == pytest.approx(3.0, abs=0.1)
    assert not result.manifest.row(1).has_audio


def test_clips_hold_the_frames_and_the_sound_of_their_windows(folder: Path) -> None:
    manifest = scan(folder).manifest.select(need_audio=True)
    dataset = ClipDataset(manifest, open_reader(), VIDEO, AUDIO, seed=2)
    for row in range(len(manifest)):
        for repeat in range(3):
            clip = dataset[ClipKey(0, row, repeat)]
            first = int(clip.video_start_seconds * 16 + 1e-6)
            numbers = frame_numbers(clip.frames)
            assert numbers == list(range(numbers[0], numbers[0] + 8))
            assert abs(numbers[0] - first) <= 1
            assert abs(lag_seconds(clip.waveform, 24000, clip.audio_start_seconds)) < 0.005


def test_workers_read_real_files_and_failures_reach_the_ledger(folder: Path, tmp_path: Path) -> None:
    manifest = scan(folder).manifest
    (folder / "cat" / "c.mkv").rename(folder / "cat" / "moved.mkv")
    try:
        dataset = ClipDataset(manifest, open_reader(), VIDEO, AUDIO)
        batches = list(
            make_loader(dataset, RunSampler(4, 4, seed=0, epochs=2), num_workers=1, stall_seconds=60)
        )
    finally:
        (folder / "cat" / "moved.mkv").rename(folder / "cat" / "c.mkv")
    assert [sorted(batch.index.tolist()) for batch in batches] == [[2, 3], [2, 3]]
    ledger = SkipLedger(tmp_path / "skipped.jsonl")
    for batch in batches:
        for failure in batch.failures:
            ledger.add(failure, batch.epoch)
    assert ledger.summary()["samples_by_stage"] == {"audio": 1, "open": 1}
    assert ledger.summary()["occurrences_by_stage"] == {"audio": 2, "open": 2}


def test_workers_that_start_after_cuda_read_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ClipDataset(scan(folder).manifest, open_reader(), VIDEO, AUDIO)
    sampler = RunSampler(4, 4, seed=0, epochs=1)
    [here] = make_loader(dataset, sampler)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    [there] = make_loader(dataset, sampler, num_workers=1, stall_seconds=120)
    assert there.index.tolist() == here.index.tolist()
    assert there.failures == here.failures
    assert all((a == b).all() for a, b in zip(there.frames, here.frames, strict=True))
    assert (there.waveform == here.waveform).all()
