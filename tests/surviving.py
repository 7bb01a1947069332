"""Read files in a child process, so that one that crashes, hangs or eats memory is seen and named.

for outcome in survive([Job("a.mp4", "pyav")]):
    outcome.result       # "clip", "info", "open: reason", or "died of SIGSEGV"
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SPARE_BYTES = 2**30  # memory a child may map beyond what it has once everything is loaded
CPU_SECONDS = 20.0  # of one job; nothing comes near it but a loop without end
EXPECTED = dict(num_frames=4, fps=16.0, short_side=32, seconds=0.5, sample_rate=16000)


class Job(NamedTuple):
    """A file, and what is done to it: "probe", or the name of a reader; `kinds` is "av", "v" or "a"."""

    path: str
    action: str
    kinds: str = "av"
    start_seconds: float = 0.25


class Outcome(NamedTuple):
    """What became of a job: resident memory of the child after it and at most, in bytes; CPU time."""

    job: Job
    result: str
    resident: int = 0
    peak: int = 0
    seconds: float = 0.0


def survive(jobs: Sequence[Job], spare_bytes: int = SPARE_BYTES) -> list[Outcome]:
    """Do all jobs in order, in one child process and after a death of it in another; one outcome a job."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(jobs):
        child = subprocess.run(
            [sys.executable, __file__, str(spare_bytes)],
            input=json.dumps(jobs[len(outcomes) :]),
            capture_output=True,
            text=True,
        )
        results = [json.loads(line) for line in child.stdout.splitlines() if line.endswith("]")]
        outcomes += [Outcome(jobs[len(outcomes) + i], *result) for i, result in enumerate(results)]
        if child.returncode < 0 and len(outcomes) < len(jobs):
            name = signal.Signals(-child.returncode).name
            outcomes.append(Outcome(jobs[len(outcomes)], f"died of {name}"))
        elif child.returncode != 0 or (not results and len(outcomes) < len(jobs)):
            raise AssertionError(f"the child ended with {child.returncode}: {child.stderr[-2000:]}")
    return outcomes


def _main() -> None:
    from avssl.decode import open_reader, probe

    jobs = [Job(*job) for job in json.load(sys.stdin)]
    readers = {job.action: open_reader(job.action) for job in jobs if job.action != "probe"}
    limit = 4096 * int(Path("/proc/self/statm").read_text().split()[0]) + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for job in jobs:
        # The default action of the signal ends a child that loops in native code, where no handler runs.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            result = _probe(probe, job) if job.action == "probe" else _read(readers[job.action], job)
        except Exception as error:  # every other is one too many: the test names the file
            result = f"raised {type(error).__name__}: {error}"
        seconds = CPU_SECONDS - signal.getitimer(signal.ITIMER_PROF)[0]
        print(json.dumps([result, *_memory(), seconds]), flush=True)


def _memory() -> tuple[int, int]:
    """Resident memory now and at most, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _probe(probe, job: Job) -> str:
    import math

    from avssl.errors import DecodeError

    try:
        info = probe(job.path)
    except DecodeError as error:
        return _reason(error)
    assert math.isfinite(info.duration_seconds + info.fps), info
    assert min(info.width, info.height, info.sample_rate) >= 0, info
    return "info"


def _read(reader, job: Job) -> str:
    import torch

    from avssl.errors import DecodeError
    from avssl.types import AudioWindow, VideoWindow

    frames, seconds, rate = EXPECTED["num_frames"], EXPECTED["seconds"], EXPECTED["sample_rate"]
    video = VideoWindow(job.start_seconds, frames, EXPECTED["fps"], EXPECTED["short_side"])
    audio = AudioWindow(job.start_seconds, seconds, rate)
    try:
        clip = reader.read(job.path, video if "v" in job.kinds else None, audio if "a" in job.kinds else None)
    except DecodeError as error:
        return _reason(error)
    if "v" in job.kinds:
        assert clip.frames.dtype == torch.uint8, clip
        assert clip.frames.shape[0] == frames, clip
        assert clip.frames.shape[3] == 3, clip
        assert 1 <= min(clip.frames.shape[1:3]) <= EXPECTED["short_side"], clip
    if "a" in job.kinds:
        assert clip.waveform.shape == (1, audio.num_samples), clip
        assert torch.isfinite(clip.waveform).all(), clip
    return "clip"


def _reason(error) -> str:
    assert error.stage in ("open", "video", "audio"), error
    assert error.reason, error
    assert error.path, error
    return f"{error.stage}: {error.reason}"


if __name__ == "__main__":
    _main()
