"""A whole prepared copy: planned, made in parallel, taken up again, and accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from avssl.data import Manifest, Skipped
from avssl.errors import PrepareError, TooManySkippedError
from avssl.files import write_json, write_text
from avssl.shards.make import make_sample
from avssl.shards.plan import Task, make_plan
from avssl.shards.pool import Died, run_tasks
from avssl.shards.scenes import MIN_SCENE_SECONDS, find_cuts, require_scenedetect
from avssl.shards.settings import ShardSettings
from avssl.shards.store import MANIFEST, RECORD, SKIPPED, Shard, Store, writing
from avssl.types import Progress

R = TypeVar("R")


@dataclass(frozen=True)
class SkipLimit:
    """How many samples may be skipped: a number of them, or a share of all."""

    value: float
    is_share: bool = False

    def passed(self, skipped: int, total: int) -> bool:
        """Whether more of `total` samples are skipped."""
        return skipped > (self.value * total if self.is_share else self.value)

    def check(self, skipped: int, total: int, ledger: Path) -> None:
        """Raise `TooManySkippedError`, which names the file with the reasons, when it is passed."""
        if self.passed(skipped, total):
            limit = f"{self.value:.4g} of all" if self.is_share else f"{self.value:g}"
            raise TooManySkippedError(
                f"{skipped} of {total} samples were skipped, the limit is {limit}; {ledger} has the reasons; "
                "repair the files, or raise --max-skipped and run again"
            )


@dataclass(frozen=True)
class Account:
    """What became of a source: samples written, shards they are in, and what is in none."""

    manifest: Manifest
    shards: list[Shard]
    skipped: list[Skipped]


class ShardJob:
    """Shards of one source in one folder; `cut`, `plan`, `make` and `finish` are called one after another.

    Parameters
    ----------
    source : Manifest
        What to prepare.
    unreadable : list of Skipped
        Files that are not in it; they count as skipped.
    store : Store
        Where to write; it was opened for this source and these settings.
    settings : ShardSettings
        What to write.
    limit : SkipLimit, optional
        Stop when more are skipped.
    workers, ray_address
        Where the work is done, see `avssl.shards.pool.run_tasks`.

    Raises
    ------
    PrepareError
        When scenes are wanted and the library is missing.
    TooManySkippedError
        Here and in all steps, when the limit is passed; what is finished stays.
    """

    def __init__(
        self,
        source: Manifest,
        unreadable: list[Skipped],
        store: Store,
        settings: ShardSettings,
        *,
        limit: SkipLimit | None = None,
        workers: int = 1,
        ray_address: str | None = None,
    ) -> None:
        self.source = source
        self.store = store
        self.settings = settings
        self.limit = limit
        self._unreadable = unreadable
        self.skipped = list(unreadable)
        self._run = partial(run_tasks, workers=workers, ray_address=ray_address)
        self._groups: list[list[Task]] = []
        self._missing: dict[int, list[Task]] = {}
        self._uncut: list[Skipped] = []
        self._total = len(source)
        if settings.scenes:
            require_scenedetect()
        self._check_limit()

    def cut(self, progress: Progress) -> dict[str, list[float] | None]:
        """Scene changes of each row by id; None for a row whose scenes cannot be found: it is skipped."""
        tasks = []
        for row in range(len(self.source)):
            sample = self.source.row(row)
            if sample.has_video and sample.end_seconds - sample.start_seconds >= 2 * MIN_SCENE_SECONDS:
                tasks.append(Task(row, sample, *self.source.sources(row)))
        known = self.store.cuts()
        self.skipped += [result for result in known.values() if isinstance(result, Skipped)]
        todo = [task for task in tasks if task.sample.id not in known]
        for task, result in self._results(find_cuts, todo):
            self.store.save_cuts(task.sample.id, result)
            known[task.sample.id] = result
            if isinstance(result, Skipped):
                self.skipped.append(result)
                self._check_limit()
            progress.update(len(known), total=len(tasks))
        found = (known[task.sample.id] for task in tasks)
        self._uncut = [result for result in found if isinstance(result, Skipped)]
        return {name: None if isinstance(cuts, Skipped) else cuts for name, cuts in known.items()}

    def plan(self, cuts: dict[str, list[float] | None]) -> tuple[int, int]:
        """Number of samples, and how many of them an earlier run has finished."""
        tasks = make_plan(self.source, self.settings, cuts)
        size = self.settings.shard_samples
        self._groups = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        self._total = len(tasks)
        saved = self.store.saved()
        self._missing = {}
        for number, group in enumerate(self._groups):
            shard = self.store.finished(number)
            if shard is not None:
                self.skipped += shard.skipped
                continue
            self._missing[number] = [task for task in group if task.key not in saved]
            results = (saved.get(task.key) for task in group)
            self.skipped += [result for result in results if result is not None]
        done = len(tasks) - sum(map(len, self._missing.values()))
        self._check_limit()
        return len(tasks), done

    def make(self, progress: Progress) -> None:
        """Make the samples that are missing, and join each shard as soon as all of its own are there."""
        missing = {number: len(tasks) for number, tasks in self._missing.items()}
        number_of = {task.number: number for number, tasks in self._missing.items() for task in tasks}
        todo = [task for tasks in self._missing.values() for task in tasks]
        for number in [number for number, count in missing.items() if count == 0]:
            self.store.finish(number, self._groups[number])
        done, written = self._total - len(todo), 0
        for task, result in self._results(partial(make_sample, settings=self.settings), todo):
            self.store.save(task, result)
            if isinstance(result, Skipped):
                self.skipped.append(result)
                self._check_limit()
            else:
                written += len(result.members)
            number = number_of[task.number]
            missing[number] -= 1
            if missing[number] == 0:
                self.store.finish(number, self._groups[number])
            done += 1
            progress.update(
                done, total=self._total, written=f"{written / 1e6:.4g} MB", skipped=len(self.skipped)
            )

    def finish(self) -> Account:
        """Write the manifest, what was skipped, and last the record that says that all is there.

        Raises
        ------
        PrepareError
            When not a single sample could be written.
        """
        shards = [shard for n in range(len(self._groups)) if (shard := self.store.finished(n)) is not None]
        # In the order of the plan: in that of the work they would differ from run to run.
        self.skipped = [*self._unreadable, *self._uncut]
        self.skipped += [item for shard in shards for item in shard.skipped]
        self._write_skipped()
        rows = [row for shard in shards for row in shard.rows]
        if not rows:
            first = self.skipped[0]
            raise PrepareError(
                f"none of the {self._total} samples could be written, the first: {first.path}: "
                f"{first.stage}: {first.reason}"
            )
        shards = [shard for shard in shards if shard.rows]
        output = self.store.output
        manifest = Manifest.from_samples(rows, output)
        record = self.store.order | {
            "samples": len(rows),
            "skipped": len(self.skipped),
            "manifest": manifest.hash,
            "shards": [
                {
                    "name": shard.name,
                    "samples": len(shard.rows),
                    "num_bytes": shard.num_bytes,
                    "sha256": shard.sha256,
                }
                for shard in shards
            ],
        }
        with writing(output):
            manifest.save(output / MANIFEST)
            write_json(output / RECORD, record)
        self.store.clear()
        return Account(manifest, shards, self.skipped)

    # ---- details

    def _results(
        self, function: Callable[[Task], R | Skipped], tasks: Iterable[Task]
    ) -> Iterator[tuple[Task, R | Skipped]]:
        """Results as they come; a process that died counts as a sample that cannot be read."""
        with closing(self._run(function, tasks)) as results:
            for task, result in results:
                if isinstance(result, Died):
                    reason = "the process that read it ended by itself: a decoder crashed or memory ran out"
                    result = Skipped(task.sample.id, "open", reason)
                yield task, result

    def _check_limit(self) -> None:
        total = max(self._total + len(self._unreadable), len(self.skipped))
        if self.limit is not None and self.limit.passed(len(self.skipped), total):
            self._write_skipped()
            self.limit.check(len(self.skipped), total, self.store.output / SKIPPED)

    def _write_skipped(self) -> None:
        path = self.store.output / SKIPPED
        with writing(self.store.output):
            write_text(path, "".join(json.dumps(asdict(item)) + "\n" for item in self.skipped))


def make_shards(job: ShardJob, show: Callable[..., Any]) -> Account:
    """All steps of a job, each under a progress bar of its own.

    Parameters
    ----------
    job : ShardJob
        The job.
    show : callable
        ``show(name, total, start=..., unit=...)`` is a context manager that gives a `Progress`.
    """
    cuts: dict[str, list[float] | None] = {}
    if job.settings.scenes:
        with show("scenes", None, start=0, unit="files") as progress:
            cuts = job.cut(progress)
    total, done = job.plan(cuts)
    with show("prepare", total, start=done, unit="samples") as progress:
        job.make(progress)
    return job.finish()
