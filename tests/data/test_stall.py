"""Reading that hangs, and processes that die in awkward places."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from acting import BROKEN, Acting, assert_only_the_broken_file_lacks, loader_of, nothing

from avssl.data import ClipBatch, ClipKey
from avssl.data.batch import collate
from avssl.data.loader import BatchKey
from avssl.data.stall import Readings, Stacks, Watch
from avssl.data.workers import WorkerError


def sleep_for_ever(path: str) -> None:
    time.sleep(10**6)


def hang_in_native_code(path: str) -> None:
    reading, writing = os.pipe()
    # Holds the interpreter's lock all the while.
    ctypes.PyDLL(None).read(reading, ctypes.create_string_buffer(1), 1)
    os.close(writing)


# ---- hanging


@pytest.mark.parametrize(("hang", "workers"), [(sleep_for_ever, 1), (hang_in_native_code, 2)])
def test_a_worker_that_hangs_is_ended_and_its_sample_recorded(
    manifest, reader, hang, workers, capsys
) -> None:
    batches = list(loader_of(manifest, Acting(reader, hang), workers=workers, stall_seconds=3))
    assert_only_the_broken_file_lacks(batches, list(loader_of(manifest, Acting(reader, nothing), workers=0)))
    failures = [failure for batch in batches for failure in batch.failures]
    assert {(f.row, f.path, f.stage, f.reason) for f in failures} == {
        (BROKEN, manifest.path(BROKEN), "worker", "reading took longer than 3 s; the process was ended")
    }
    said = capsys.readouterr().err
    assert f"warning: {manifest.path(BROKEN)}: reading took " in said
    assert "more than data.stall_seconds (3); the process was ended and the file is given up" in said
    assert f"in {hang.__name__}\n" in said  # the stack
    assert multiprocessing.active_children() == []


def test_a_worker_that_hangs_before_it_handed_over_its_last_batch_hangs_nobody(manifest, reader) -> None:
    rows = [(0, 1), (2, 4), (BROKEN, 6), (7, 8)]
    keys = [BatchKey(0, i, tuple(ClipKey(0, row) for row in pair)) for i, pair in enumerate(rows)]
    iterator = iter(loader_of(manifest, Acting(reader, hang_in_native_code), keys, stall_seconds=3))
    batches = [next(iterator)]
    time.sleep(1.0)  # the second batch is under way, and its tensors have to be asked for
    batches += iterator
    whole = list(loader_of(manifest, Acting(reader, nothing), keys, workers=0))
    assert_only_the_broken_file_lacks(batches, whole)


def test_reading_that_is_slow_goes_on_and_is_said_once(manifest, reader, capsys) -> None:
    slow = Acting(reader, lambda path: time.sleep(0.6), everywhere=True)
    keys = [BatchKey(0, 0, tuple(ClipKey(0, row) for row in range(9)))]
    [batch] = loader_of(manifest, slow, keys, stall_seconds=3)
    assert (len(batch), batch.failures) == (9, [])
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert said.startswith("warning: no batch for 4 s; being read: ")
    assert said.endswith(" s); the storage or decoding is slow\n")
    assert str(manifest.root) in said


def test_without_workers_it_is_said_what_hangs(manifest, reader, capsys) -> None:
    keys = [BatchKey(0, 0, (ClipKey(0, BROKEN),))]
    slow = Acting(reader, lambda path: time.sleep(3.5))
    [batch] = loader_of(manifest, slow, keys, workers=0, stall_seconds=1)
    assert len(batch) == 1
    said = capsys.readouterr().err
    assert f"being read: {manifest.path(BROKEN)} (" in said
    assert said.endswith("; data.num_workers=0, so nothing ends it\n")


def test_reading_that_always_hangs_ends_the_run_with_a_remedy(manifest, reader, monkeypatch) -> None:
    monkeypatch.setattr("avssl.data.workers.MAX_DEATHS_IN_A_ROW", 2)
    hanging = Acting(reader, sleep_for_ever, everywhere=True)
    expected = (
        r"2 times in a row reading hung .*clip\d.*see whether the storage answers.*stall_seconds \(now 1\)"
    )
    with pytest.raises(WorkerError, match=expected):
        list(loader_of(manifest, hanging, stall_seconds=1))
    assert multiprocessing.active_children() == []


def test_workers_that_hang_while_they_read_nothing_are_started_again(
    manifest, reader, tmp_path, monkeypatch, capsys
) -> None:
    def hang_once(*args: Any) -> ClipBatch:
        if not (tmp_path / "hung").exists():
            (tmp_path / "hung").touch()
            time.sleep(10**6)
        return collate(*args)

    monkeypatch.setattr("avssl.data.reading.collate", hang_once)
    monkeypatch.setattr("avssl.data.stall.IDLE_SECONDS", 3.0)
    batches = list(loader_of(manifest, Acting(reader, nothing), stall_seconds=3))
    assert [(len(batch), batch.failures) for batch in batches] == [(5, [])] * 4
    assert "and no clip is being read: workers are started again" in capsys.readouterr().err


def test_a_process_that_nothing_ends_is_left_behind(manifest, reader, monkeypatch, capsys) -> None:
    # As one that waits in the kernel for a disk. SIGTERM of torch ends it here, so that none is left.
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", lambda worker: None)
    monkeypatch.setattr("avssl.data.stall.DYING_SECONDS", 0.5)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 1.0)
    batches = list(loader_of(manifest, Acting(reader, sleep_for_ever), stall_seconds=3))
    assert {failure.row for batch in batches for failure in batch.failures} == {BROKEN}
    assert len(batches) == 4
    assert "the process was ended" in capsys.readouterr().err


def test_a_stack_that_cannot_be_had_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr("avssl.data.stall.STACK_SECONDS", 0.2)
    monkeypatch.setattr("avssl.data.stall.STACK_SIGNAL", signal.SIGCHLD)  # which this process ignores
    assert "it waits inside the system" in Stacks().of(os.getpid())


def test_what_is_read_is_unknown_while_it_is_being_written() -> None:
    readings = Readings(2)
    assert readings.all() == {}
    readings.begin(1, ClipKey(4, 5, 6))
    assert readings.all().keys() == {1}
    assert readings.of(1).key == ClipKey(4, 5, 6)
    assert 0 <= readings.of(1).seconds < 60
    for place in range(4):  # some of it is still that of no clip
        readings.begin(0, ClipKey(0, 1, 2))
        readings._table[0, place] = -1
        assert readings.of(0) is None
    readings.end(1)
    assert readings.of(1) is None


# ---- deaths in awkward places


def test_a_death_whose_exit_code_comes_late_is_waited_for() -> None:
    def die_slowly() -> None:
        os.closerange(3, 1024)  # as the system does first: whoever is connected sees the end
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    worker = multiprocessing.get_context("fork").Process(target=die_slowly)
    worker.start()
    watch = Watch(Readings(1), [worker], 1.0, Stacks(), str, print)
    assert watch.exit_codes(patience=10.0) == {0: -signal.SIGKILL}


class DrawingSlowly:
    """A sampler at work while the worker dies of the batch that was drawn before."""

    def __init__(self, keys: list[BatchKey]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[BatchKey]:
        for number, key in enumerate(self.keys):
            if number >= 2:
                for _ in range(50):
                    time.sleep(0.01)
            yield key


def test_a_death_while_a_batch_is_drawn_loses_none(manifest, reader) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    rows = [(0, 1), (BROKEN, 2), (4, 5), (6, 7), (8, 9)]
    keys = [BatchKey(0, i, tuple(ClipKey(0, row) for row in pair)) for i, pair in enumerate(rows)]

    def abort(path: str) -> None:
        time.sleep(0.2)  # until the batch before has come, and another one is drawn
        faulthandler.disable()  # no traceback in the output of the tests
        os.abort()

    dying = Acting(reader, abort)
    batches = list(loader_of(manifest, dying, DrawingSlowly(keys)))
    whole = list(loader_of(manifest, Acting(reader, nothing), keys, workers=0))
    assert_only_the_broken_file_lacks(batches, whole)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_processes_that_are_always_killed_end_the_run_with_a_remedy(manifest, reader) -> None:
    killed = Acting(reader, lambda path: os.kill(os.getpid(), signal.SIGKILL), everywhere=True)
    expected = r"5 times in a row .* died with no batch between .*use fewer .*: data\.num_workers \(now 1\)"
    with pytest.raises(WorkerError, match=expected):
        list(loader_of(manifest, killed))
