"""Interrupted, parallel and distributed runs give the shards of an undisturbed one, byte for byte."""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from media import write_media
from preparing import contents, prepare

from avssl.data import Manifest, scan
from avssl.shards import store
from avssl.shards.pool import Died, run_tasks


def kill_after(results: int, *arguments) -> subprocess.CompletedProcess:
    """Run ``avssl prepare`` until so many results are saved, then kill it with SIGKILL."""
    script = f"""
import os, signal, sys
from avssl.cli.main import main
from avssl.shards.store import Store

save = Store.save
saved = []

def save_and_die(self, task, result):
    save(self, task, result)
    saved.append(task)
    if len(saved) == {results}:
        os.kill(os.getpid(), signal.SIGKILL)

Store.save = save_and_die
main(["prepare", *sys.argv[1:]])
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, capture_output=True, text=True
    )


def test_killed_run_goes_on_after_the_finished_samples_and_gives_the_same_shards(videos, prepared, tmp_path):
    output = tmp_path / "out"
    options = ("--shard-samples", 3, "--workers", 1)
    killed = kill_after(4, videos, output, *options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in output.glob("*.tar")] == ["shard-000000.tar"]
    assert len(list((output / ".unfinished").glob("*.part"))) == 1
    code, _, errors = prepare(videos, output, *options)
    assert code == 0, errors
    assert "prepare 7/7 (100%)" in errors
    assert contents(output) == contents(prepared)


def test_parallel_run_gives_the_same_shards(videos, prepared, tmp_path):
    code, _, errors = prepare(videos, tmp_path / "out", "--shard-samples", 3, "--workers", 3)
    assert code == 0, errors
    assert contents(tmp_path / "out") == contents(prepared)


ON_A_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from avssl.cli.main import main

cluster = Cluster()
try:
    cluster.add_node(num_cpus=1, include_dashboard=False)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
except Exception as error:
    sys.exit(f"no nodes: {error}")
try:
    main(["prepare", *sys.argv[1:], "--ray-address", cluster.address], standalone_mode=False)
finally:
    cluster.shutdown()
"""


@pytest.mark.slow
def test_ray_cluster_of_two_workers_gives_the_same_shards(videos, prepared, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'avssl[ray]'")
    output = tmp_path / "out"
    arguments = [str(videos), str(output), "--shard-samples", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    # In a process of its own: Ray leaves signal handlers and child processes behind.
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CLUSTER, *arguments], env=environment, capture_output=True, text=True
    )
    if "no nodes: " in done.stderr:  # Ray gives each half a minute to start
        pytest.skip(f"Ray cannot start two nodes here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert contents(output) == contents(prepared)


def test_missing_cluster_is_one_line(videos, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'avssl[ray]'")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where a running cluster would be found
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, _, errors = prepare(videos / "dog", tmp_path / "out", "--ray-address", "auto")
    assert code == 2
    assert "avssl: error: no Ray cluster at 'auto': " in errors


def test_finished_folder_is_left_alone(videos, prepared):
    before = contents(prepared)
    code, account, _ = prepare(videos, prepared, "--shard-samples", 3)
    assert code == 0
    assert account == f"{prepared}: complete already; nothing to do (--overwrite prepares it again)\n"
    assert contents(prepared) == before


def test_interrupted_run_refuses_other_settings_and_another_source_until_overwritten(tmp_path, monkeypatch):
    (tmp_path / "v").mkdir()
    write_media(tmp_path / "v/a.mp4", seconds=1, size=(64, 64))
    output = tmp_path / "out"
    save = store.Store.save

    def interrupted(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(store.Store, "save", interrupted)
    code, _, errors = prepare(tmp_path / "v", output)
    assert code == 130
    assert "finished samples are kept; the same command goes on with the others\n" in errors
    monkeypatch.undo()
    code, _, errors = prepare(tmp_path / "v", output, "--fps", 8)
    assert code == 2
    assert "out holds shards of fps 16.0 and not 8.0; give another folder, or --overwrite" in errors
    write_media(tmp_path / "v/a.mp4", seconds=1, size=(64, 48))
    code, _, errors = prepare(tmp_path / "v", output)
    assert code == 2
    assert "holds shards of another source: files were added, removed or changed" in errors
    assert prepare(tmp_path / "v", output, "--overwrite")[0] == 0
    assert Manifest.load(output / "manifest.parquet").row(0).height == 48
    assert not (output / ".unfinished").exists()


def test_other_files_in_the_folder_are_never_touched(videos, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for option in ((), ("--overwrite",)):
        code, _, errors = prepare(videos / "dog", tmp_path, *option)
        assert code == 2
        assert "holds other files; give a new or an empty folder for the shards" in errors
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_second_process_on_one_folder_is_refused(videos, tmp_path):
    source = scan(videos / "dog").manifest
    first = store.Store(tmp_path / "out", store.order_of(source, store.ShardSettings()))
    try:
        code, _, errors = prepare(videos / "dog", tmp_path / "out")
    finally:
        first.close()
    assert code == 2
    assert "another process is writing" in errors


@pytest.mark.parametrize(("limit", "code"), [("0", 2), ("0.1", 2), ("10%", 2), ("1", 0), ("0.3", 0)])
def test_run_stops_when_too_many_are_skipped(videos, tmp_path, limit, code):
    found, _, errors = prepare(videos / "dog", tmp_path / "out", "--max-skipped", limit)
    assert found == code, errors
    (record,) = map(json.loads, (tmp_path / "out/skipped.jsonl").read_text().splitlines())
    assert record["path"].endswith("dog/cut.mp4")
    if code:
        assert "1 of 4 samples were skipped, the limit is 0" in errors
        assert "raise --max-skipped and run again" in errors
        assert prepare(videos / "dog", tmp_path / "out", "--max-skipped", "1")[0] == 0


def test_full_disk_is_one_line_and_nothing_finished_is_lost(videos, prepared, tmp_path, monkeypatch):
    real, calls = store.atomic_write, []

    def full(path: Path):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path)

    monkeypatch.setattr(store, "atomic_write", full)
    options = ("--shard-samples", 3, "--workers", 1)
    code, _, errors = prepare(videos, tmp_path / "out", *options)
    assert code == 2
    assert "avssl: error: cannot write to" in errors
    assert "No space left on device; make room and run the same command again" in errors
    monkeypatch.undo()
    assert prepare(videos, tmp_path / "out", *options)[0] == 0
    assert contents(tmp_path / "out") == contents(prepared)


def test_damage_is_found_by_verify(prepared, tmp_path):
    code, answer, _ = prepare("--verify", prepared)
    assert (code, answer) == (0, f"{prepared}: 3 shards, all as they were written\n")
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    content = bytearray((copy / "shard-000001.tar").read_bytes())
    content[5000] ^= 1
    (copy / "shard-000001.tar").write_bytes(content)
    (copy / "shard-000002.tar").unlink()
    code, _, errors = prepare("--verify", copy)
    assert code == 2
    assert "shard-000001.tar is damaged, shard-000002.tar is missing; prepare again" in errors
    code, _, errors = prepare("--verify", tmp_path)
    assert code == 2
    assert "holds no finished shards" in errors


def double(number: int) -> int:
    if number == 13:
        faulthandler.disable()  # its report would be noise
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * number


def test_task_that_ends_its_process_is_the_only_one_lost():
    results = dict(run_tasks(double, range(20), workers=2))
    assert isinstance(results.pop(13), Died)
    assert results == {number: 2 * number for number in range(20) if number != 13}


ORPHANS = """
import os, sys, time
from avssl.shards.pool import run_tasks

def report(number):
    return os.getpid()

seen = []
for _, process in run_tasks(report, range(4), 2):
    print(process, flush=True)
    seen.append(process)
    if len(seen) == 4:
        time.sleep(600)
"""


def test_workers_end_when_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    workers = {int(parent.stdout.readline()) for _ in range(4)}
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while any(is_running(process) for process in workers):
        signal.sigtimedwait([], 0.1)
    assert workers


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
