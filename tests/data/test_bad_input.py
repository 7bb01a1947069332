"""Bad input on its way to the training: what a scan says of it, and workers that die of it."""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from media import write_media

from avssl.cli.main import main
from avssl.data import (
    AudioSpec,
    ClipDataset,
    ClipKey,
    Manifest,
    RunSampler,
    SkipLedger,
    VideoSpec,
    make_loader,
    scan,
)
from avssl.data.batch import collate
from avssl.data.workers import WorkerError
from avssl.errors import AvsslError
from avssl.types import Clip

VIDEO, AUDIO = VideoSpec(4, 8.0), AudioSpec(0.5, 1000)
TINY = {"seconds": 1.0, "fps": 8, "size": (32, 32)}


# ---- scans


def test_each_file_of_a_bad_folder_is_in_the_account(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    (folder / "a").mkdir(parents=True)
    good = write_media(folder / "a" / "good.mp4", **TINY)
    content = good.read_bytes()
    long = "ü" * 125 + "x.mp4"  # 255 bytes, the most a name can have
    files = {
        "été 日本語 🎵.mp4": content,
        long: content,
        "an mp4 named so.avi": content,
        "text.mp4": b"This is no video.\n" * 100,
        "empty.mkv": b"",
        "half.mp4": content[: len(content) // 2],
        "table.mp4": b"path,label\n1.mp4,dog\n",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "itself.mp4").symlink_to("itself.mp4")
    (folder / "notes.docx").write_bytes(b"x")
    result = scan(folder)
    ids = ["a/good.mp4", "an mp4 named so.avi", long, "été 日本語 🎵.mp4"]
    assert sorted(result.manifest.ids) == sorted(ids)
    names = ["empty.mkv", "half.mp4", "itself.mp4", "table.mp4", "text.mp4"]
    assert sorted(Path(item.path).name for item in result.skipped) == names
    assert {item.stage for item in result.skipped} == {"open"}
    assert all(item.reason for item in result.skipped)
    assert result.ignored == {".docx": 1}


def test_a_file_that_may_not_be_read_is_skipped_and_said(tmp_path, monkeypatch) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_media(tmp_path / name, **TINY)
    # The permission bits do not hold for root: refused as by them.
    import avssl.decode.container as container

    real = container.av.open

    def refuse(url, *args, **kwargs):
        if "b.mp4" in str(url):
            raise PermissionError(13, "Permission denied")
        return real(url, *args, **kwargs)

    monkeypatch.setattr(container.av, "open", refuse)
    result = scan(tmp_path)
    assert result.manifest.ids == ["a.mp4"]
    [skipped] = result.skipped
    assert (Path(skipped.path).name, skipped.stage, skipped.reason) == ("b.mp4", "open", "Permission denied")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch) -> None:
    write_media(tmp_path / "a.mp4", **TINY)
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def refuse(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        AvsslError, match=r"cannot list .*closed \(Permission denied\); allow it or remove it"
    ):
        scan(tmp_path)


def test_prepare_accounts_for_damage_by_the_line(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    write_media(tmp_path / "v" / "good.mp4", **TINY)
    for name, data in (("text.mp4", b"no video " * 99), ("empty.mp4", b"")):
        (tmp_path / "v" / name).write_bytes(data)
    result = CliRunner().invoke(main, ["prepare", str(tmp_path / "v"), "-o", str(tmp_path / "m.csv")])
    assert result.exit_code == 0
    assert "2 skipped, listed in" in result.stdout
    records = [json.loads(line) for line in (tmp_path / "m.skipped.jsonl").read_text().splitlines()]
    assert sorted(Path(record["path"]).name for record in records) == ["empty.mp4", "text.mp4"]


# ---- files without sound


def mute(manifest: Manifest, row: int) -> Manifest:
    samples = [replace(manifest.row(i), has_audio=i != row) for i in range(len(manifest))]
    return Manifest.from_samples(samples, manifest.root)


def test_a_file_without_sound_is_a_failure_or_has_silence_in_its_place(manifest, reader) -> None:
    muted, key = mute(manifest, 2), ClipKey(1, 2)
    failure = ClipDataset(muted, reader, VIDEO, AUDIO, silent="keep")[key]
    assert (failure.row, failure.stage, failure.reason) == (2, "audio", "the file has no audio stream")
    dataset = ClipDataset(muted, reader, VIDEO, AUDIO, silent="keep", without_audio="silence")
    clip, heard = dataset[key], ClipDataset(manifest, reader, VIDEO, AUDIO, silent="keep")[key]
    assert clip.waveform.shape == heard.waveform.shape == (1, 500)
    assert not clip.waveform.any()
    assert (clip.sample_rate, clip.audio_start_seconds) == (heard.sample_rate, heard.audio_start_seconds)
    assert clip.video_start_seconds == heard.video_start_seconds
    assert reader.calls[0][2] is None  # sound is not asked for
    assert dataset[ClipKey(1, 4)].waveform.any()
    skipping = ClipDataset(muted, reader, VIDEO, AUDIO, without_audio="silence")
    assert skipping[key].stage == "silent"
    assert ClipDataset(muted, reader, None, AUDIO, without_audio="silence")[key].stage == "audio"
    with pytest.raises(ValueError, match="must be 'drop', 'silence' or 'video_only'; got 'guess'"):
        ClipDataset(muted, reader, VIDEO, AUDIO, without_audio="guess")


def test_a_file_without_sound_is_a_clip_of_video_alone_beside_others(manifest, reader) -> None:
    muted = mute(manifest, 2)
    dataset = ClipDataset(muted, reader, VIDEO, AUDIO, without_audio="video_only")
    whole = ClipDataset(manifest, reader, VIDEO, AUDIO, silent="keep")
    clip, heard = dataset[ClipKey(1, 2)], whole[ClipKey(1, 2)]
    assert clip.waveform is None
    assert clip.video_start_seconds == heard.video_start_seconds
    assert ClipDataset(muted, reader, None, AUDIO, without_audio="video_only")[ClipKey(1, 2)].stage == "audio"
    batch = collate([dataset[ClipKey(1, row)] for row in (4, 2, 6, 5)])  # row 5 is silent: skipped as ever
    assert [failure.stage for failure in batch.failures] == ["silent"]
    assert (batch.index.tolist(), batch.sounding.tolist()) == ([4, 2, 6], [0, 2])
    assert torch.equal(batch.waveform, torch.stack([whole[ClipKey(1, row)].waveform for row in (4, 6)]))
    for same in (batch.to("cpu"), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(same.sounding, batch.sounding)
    assert collate([dataset[ClipKey(1, row)] for row in (4, 6)]).sounding is None
    assert (collate([clip]).waveform, collate([clip]).sounding) == (None, None)


# ---- workers that die


class Deadly:
    """Ends its process by a signal at files named "broken"; `times` in all, counted in a file."""

    def __init__(self, reader, number: int, counter: Path | None = None, times: int = 0) -> None:
        self.reader = reader
        self.number = number
        self.counter = counter
        self.times = times

    def read(self, path, *args, **kwargs) -> Clip:
        if "broken" in str(path) and (self.counter is None or self._died() < self.times):
            faulthandler.disable()  # no traceback in the output of the tests
            os.kill(os.getpid(), self.number)
            signal.pause()
        return self.reader.read(str(path).replace("broken", "whole"), *args, **kwargs)

    def _died(self) -> int:
        deaths = self.counter.stat().st_size if self.counter.exists() else 0
        self.counter.open("a").write("x" if deaths < self.times else "")
        return deaths


class Healthy(Deadly):
    """Reads the same, and lives."""

    def __init__(self, reader) -> None:
        super().__init__(reader, 0)

    def read(self, path, *args, **kwargs) -> Clip:
        return self.reader.read(str(path).replace("broken", "whole"), *args, **kwargs)


def batches_of(manifest, reader, workers, start=(0, 0)):
    dataset = ClipDataset(manifest, reader, VIDEO, AUDIO, seed=1, silent="keep")
    sampler = RunSampler(len(manifest), 5, seed=1, epochs=3, start=start)
    return list(make_loader(dataset, sampler, num_workers=workers, prefetch_factor=2))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_replaced_and_its_sample_recorded(manifest, reader, number, workers) -> None:
    batches = batches_of(manifest, Deadly(reader, number), workers)
    whole = batches_of(manifest, Healthy(reader), 0)
    assert [(b.epoch, b.batch) for b in batches] == [(b.epoch, b.batch) for b in whole]
    failures = [failure for batch in batches for failure in batch.failures]
    assert {(f.row, f.stage) for f in failures} == {(3, "worker")}
    assert {f.reason for f in failures} == {
        f"the process that read the file ended by {signal.Signals(number).name}, "
        "as when a decoder crashes or memory runs out"
    }
    for got, expected in zip(batches, whole, strict=True):
        kept = expected.index != 3
        assert torch.equal(got.index, expected.index[kept])
        assert torch.equal(got.waveform, expected.waveform[kept])
    assert batches[0].frames[0].equal(whole[0].frames[0])
    rest = batches_of(manifest, Deadly(reader, number), workers, start=(1, 1))
    for got, expected in zip(rest, batches[3:], strict=True):
        assert torch.equal(got.waveform, expected.waveform)
        assert got.failures == expected.failures


def test_a_sample_that_was_read_when_memory_ran_out_once_is_kept(manifest, reader, tmp_path) -> None:
    deadly = Deadly(reader, signal.SIGKILL, tmp_path / "deaths", times=1)
    batches = batches_of(manifest, deadly, 1)
    assert (tmp_path / "deaths").stat().st_size == 1
    assert [failure for batch in batches for failure in batch.failures] == []
    assert 3 in torch.cat([batch.index for batch in batches])


def test_deaths_count_against_the_limit_of_skipped_samples(manifest, reader) -> None:
    ledger = SkipLedger(None)
    for batch in batches_of(manifest, Deadly(reader, signal.SIGSEGV), 1):
        for failure in batch.failures:
            ledger.add(failure, batch.epoch)
    assert ledger.summary()["samples_by_stage"] == {"worker": 1}
    with pytest.raises(AvsslError, match=r"1 of 10 samples \(10.0%\) could not be read.*ended by SIGSEGV"):
        ledger.check(0.05, 10)


def test_a_death_does_not_raise_in_the_middle_of_the_training(manifest, reader) -> None:
    dataset = ClipDataset(manifest, Deadly(reader, signal.SIGSEGV), VIDEO, AUDIO, silent="keep")
    iterator = iter(make_loader(dataset, RunSampler(10, 2, seed=1, epochs=3), num_workers=1))
    seen = []
    for batch in iterator:
        seen.append(batch)
        torch.randn(200, 200).mm(torch.randn(200, 200))
    assert len(seen) == 15


def test_workers_that_die_whatever_they_read_end_the_run_with_a_remedy(manifest, reader, monkeypatch) -> None:
    monkeypatch.setattr("avssl.data.reading.collate", lambda *args: os.kill(os.getpid(), signal.SIGBUS))
    dataset = ClipDataset(manifest, reader, VIDEO, AUDIO)
    with pytest.raises(WorkerError, match=r"5 times in a row .* free memory and space in /dev/shm"):
        list(make_loader(dataset, RunSampler(10, 4, seed=0, epochs=1), num_workers=1))


class Raising:
    def read(self, *args, **kwargs) -> Clip:
        raise RuntimeError("a defect")


def test_a_defect_is_raised_as_it_is(manifest) -> None:
    dataset = ClipDataset(manifest, Raising(), None, AUDIO)
    with pytest.raises(RuntimeError, match="a defect"):
        list(make_loader(dataset, RunSampler(10, 4, seed=0, epochs=1), num_workers=1))
