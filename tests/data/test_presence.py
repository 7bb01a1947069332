"""Reading that finds no memory, or no data any more."""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from acting import AUDIO, BROKEN, VIDEO, Acting, loader_of

from avssl.data import ClipDataset, ClipKey, Manifest, RunSampler
from avssl.data.dataset import NO_MEMORY, lacks_memory
from avssl.data.presence import common_folder
from avssl.data.workers import WorkerError
from avssl.errors import DataGoneError, DecodeError
from avssl.types import Clip

# ---- no memory


def raise_memory_error(path: str) -> None:
    raise MemoryError


def ask_for_a_petabyte(path: str) -> None:
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize(("lack", "workers"), [(raise_memory_error, 0), (ask_for_a_petabyte, 1)])
def test_one_clip_without_memory_is_a_failure_and_several_end_the_run(
    manifest, reader, lack, workers
) -> None:
    batches = list(loader_of(manifest, Acting(reader, lack), workers=workers))
    failures = [failure for batch in batches for failure in batch.failures]
    assert {(f.row, f.stage, f.reason) for f in failures} == {(BROKEN, "worker", NO_MEMORY)}
    remedy = r"data\.num_workers \(now 1\)" if workers else r"make train\.batch_size smaller"
    expected = rf"no memory left to read clips \(for 5 clips of batch 0 of epoch 0\).*{remedy}"
    with pytest.raises(WorkerError, match=expected):
        list(loader_of(manifest, Acting(reader, lack, everywhere=True), workers=workers))


def test_no_shared_memory_is_said_with_a_remedy(manifest, reader) -> None:
    def allow_no_large_files(path: str) -> None:  # shared memory is files
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    poor = Acting(reader, allow_no_large_files, everywhere=True)
    expected = r"no memory left to read clips \(RuntimeError: unable to [^\n]*\); .*--shm-size"
    with pytest.raises(WorkerError, match=expected) as caught:
        list(loader_of(manifest, poor))
    assert "\n" not in str(caught.value)


def test_processes_that_cannot_start_are_said_with_a_remedy(manifest, reader, monkeypatch) -> None:
    def refuse() -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", refuse)
    expected = r"the processes cannot be started: Cannot allocate memory\).*data\.num_workers \(now 2\)"
    with pytest.raises(WorkerError, match=expected):
        list(loader_of(manifest, reader, workers=2))


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (MemoryError(), True),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left"), True),
        (RuntimeError("unable to mmap 8 bytes from file </torch_1>: Cannot allocate memory (12)"), True),
        (RuntimeError("Caught _ArrayMemoryError in DataLoader worker process 0"), True),
        (RuntimeError("a defect"), False),
        (OSError(errno.EIO, "Input/output error"), False),
    ],
)
def test_lack_of_memory_is_recognised(error, is_lack) -> None:
    assert lacks_memory(error) == is_lack


# ---- no data


class Opening:
    """Reads files that are there."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def read(self, path: str, *args: Any, **kwargs: Any) -> Clip:
        if not os.path.exists(path):
            raise DecodeError(path, "audio", "No such file or directory")
        return self.reader.read(path.replace("broken", "whole"), *args, **kwargs)


@pytest.fixture
def on_disk(manifest, tmp_path) -> Manifest:
    """The manifest with its files in a folder of the root."""
    (tmp_path / "root" / "disk").mkdir(parents=True)
    samples = [manifest.row(i) for i in range(len(manifest))]
    samples = [replace(sample, path=f"disk/{sample.path}") for sample in samples]
    for sample in samples:
        (tmp_path / "root" / sample.path).touch()
    return Manifest.from_samples(samples, tmp_path / "root")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("lose", "what"),
    [
        (lambda disk: disk.rename(disk.with_name("elsewhere")), r"is gone \(No such file or directory\)"),
        (lambda disk: [file.unlink() for file in disk.iterdir()], "is empty now"),
    ],
)
def test_data_that_vanish_end_the_run_and_are_held_against_no_sample(
    on_disk, reader, workers, lose, what
) -> None:
    sampler = RunSampler(len(on_disk), 2, seed=1, epochs=4)
    expected = (
        rf"^{on_disk.root}/disk {what}, and all 10 samples lie there; mount or restore it, then give the "
        rf"same command again to go on; if {on_disk.root} moved, give data\.root=NEW too$"
    )
    iterator = iter(loader_of(on_disk, Opening(reader), sampler, workers=workers))
    batches = [next(iterator)]
    lose(on_disk.root / "disk")
    with pytest.raises(DataGoneError, match=expected):
        batches.extend(iterator)
    assert 1 <= len(batches) < 20
    assert [failure for batch in batches for failure in batch.failures] == []


def test_one_file_that_vanishes_is_a_failure(on_disk, reader) -> None:
    Path(on_disk.path(4)).unlink()
    failures = [failure for batch in loader_of(on_disk, Opening(reader)) for failure in batch.failures]
    assert {(f.row, f.reason) for f in failures} == {(4, "No such file or directory")}


def test_a_folder_that_may_not_be_listed_is_not_gone(on_disk, reader, monkeypatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    Path(on_disk.path(4)).unlink()
    dataset = ClipDataset(on_disk, Opening(reader), VIDEO, AUDIO)
    monkeypatch.setattr(os, "scandir", refuse)
    assert dataset[ClipKey(0, 4)].stage == "audio"


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (["a/b/c1.mp4", "a/b/c2.mp4"], "/root/a/b"),
        (["a/b1/c.mp4", "a/b2/c.mp4"], "/root/a"),
        (["a.mp4", "b.mp4"], "/root"),
        (["/mnt/1/a.mp4", "/mnt/2/a.mp4"], "/mnt"),
        (["/mnt/1/a.mp4", "b.mp4"], "/root"),
        (["only/one.mp4"], "/root/only"),
    ],
)
def test_the_common_folder_is_the_deepest_of_all_files(manifest, paths, folder) -> None:
    samples = [replace(manifest.row(0), id=path, path=path) for path in paths]
    assert common_folder(Manifest.from_samples(samples, "/root")).rstrip("/") == folder
