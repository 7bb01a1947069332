"""The ledger: each thing once on disk, all of it counted, a limit that stops the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from media import write_media

from avssl.data import Skipped, scan
from avssl.data.dataset import Failure
from avssl.data.ledger import SkipLedger
from avssl.errors import ManifestError, TooManySkippedError


def failure(name: str, stage: str = "video", reason: str = "no frame") -> Failure:
    return Failure(0, name, f"/media/{name}", stage, reason)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_written_once_and_counted_always(tmp_path: Path) -> None:
    path = tmp_path / "run" / "skipped.jsonl"
    ledger = SkipLedger(path)
    for epoch in range(3):
        ledger.add(failure("a"), epoch)
        ledger.add(failure("b", "audio", "é"), epoch)
    assert lines(path) == [
        {"id": "a", "path": "/media/a", "stage": "video", "reason": "no frame", "epoch": 0},
        {"id": "b", "path": "/media/b", "stage": "audio", "reason": "é", "epoch": 0},
    ]
    summary = ledger.summary()
    assert summary["occurrences_by_stage"] == {"audio": 3, "video": 3}
    assert summary["samples_by_stage"] == {"audio": 1, "video": 1}
    assert summary["failing_samples"] == 2
    assert summary["ledger"] == str(path)
    json.dumps(summary)


def test_a_resumed_run_records_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    SkipLedger(path).add(failure("a"), 0)
    resumed = SkipLedger(path)
    resumed.add(failure("a"), 1)
    resumed.add(failure("b"), 1)
    assert [record["id"] for record in lines(path)] == ["a", "b"]
    assert resumed.summary()["failing_samples"] == 2
    assert resumed.summary()["occurrences_by_stage"] == {"video": 3}


def test_a_file_no_scan_could_open_goes_by_the_id_it_would_have(tmp_path: Path) -> None:
    good, broken = tmp_path / "films" / "a.mkv", tmp_path / "films" / "deep" / "b.mkv"
    broken.parent.mkdir(parents=True)
    write_media(good, seconds=0.5, size=(32, 32))
    broken.write_bytes(b"no video")
    result = scan(tmp_path / "films")
    ledger = SkipLedger(tmp_path / "skipped.jsonl")
    for skipped in result.skipped:
        ledger.add_unopened(skipped, result.manifest.root)
    ledger.add_unopened(Skipped("a.mkv#8-9", "open", "outside the file"), result.manifest.root)
    places = [(record["id"], record["path"]) for record in lines(tmp_path / "skipped.jsonl")]
    assert places == [("deep/b.mkv", str(broken)), ("a.mkv#8-9", f"{good}#8-9")]
    assert result.manifest.ids == ["a.mkv"]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    first = SkipLedger(path)
    first.add(failure("a"), 0)
    first.add(failure("b"), 0)
    path.write_bytes(path.read_bytes()[:-9])
    resumed = SkipLedger(path)
    assert resumed.summary()["failing_samples"] == 1
    resumed.add(failure("b"), 1)
    assert [(record["id"], record["epoch"]) for record in lines(path)] == [("a", 0), ("b", 1)]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    SkipLedger(path).add(failure("a"), 0)
    path.write_text(path.read_text() + '{"id": 3}\n')
    with pytest.raises(ManifestError, match="line 2 is no record"):
        SkipLedger(path)


def test_check_stops_above_the_limit_and_says_why(tmp_path: Path) -> None:
    ledger = SkipLedger(tmp_path / "skipped.jsonl")
    reasons = ["no frame"] * 3 + ["cut"] * 2 + ["gone", "odd"]
    for i, reason in enumerate(reasons):
        ledger.add(failure(f"f{i}", "video", reason), 0)
        ledger.add(failure(f"f{i}", "audio", "also"), 0)
    ledger.check(0.07, 100)
    with pytest.raises(TooManySkippedError) as caught:
        ledger.check(0.0699, 100)
    message = str(caught.value)
    assert "7 of 100 samples (7.0%)" in message
    assert "video: no frame (3 x); video: cut (2 x); video: gone (1 x)." in message
    assert "odd" not in message
    assert str(tmp_path / "skipped.jsonl") in message
    assert message.endswith("or allow more with data.max_skipped=0.1")
    ledger.check(0.1, 100)
    with pytest.raises(TooManySkippedError, match=r"data\.max_skipped=1$"):
        ledger.check(0.5, 7)
    with pytest.raises(TooManySkippedError, match=r"data\.max_skipped=0\.75$"):
        ledger.check(0.5, 10)


def test_silent_windows_do_not_count_against_the_limit() -> None:
    ledger = SkipLedger(None)
    ledger.add(failure("a", "silent", "the peak is -90 dB, below -80 dB"), 0)
    ledger.check(0.0, 10)
    assert ledger.summary()["silent_samples"] == 1
    assert ledger.summary()["failing_samples"] == 0
    ledger.add(failure("a"), 0)
    with pytest.raises(
        TooManySkippedError, match=r"1 of 10 samples \(10.0%\) could not be read; at most 0.0%"
    ):
        ledger.check(0.0, 10)
