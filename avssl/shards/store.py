"""The folder of the shards while they are written: what is finished survives, whatever ends the run."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from avssl.data import Manifest, Sample, Skipped
from avssl.errors import PrepareError
from avssl.files import atomic_write, write_json
from avssl.shards.make import Made
from avssl.shards.plan import Task
from avssl.shards.settings import VERSION, ShardSettings

UNFINISHED = ".unfinished"
RECORD = "shards.json"
MANIFEST = "manifest.parquet"
SKIPPED = "skipped.jsonl"
ORDER = "order.json"
CUTS = "scenes.jsonl"
RECORD_BYTES = 10240
"""A tar ends with zeros up to a multiple of this."""


def order_of(source: Manifest, settings: ShardSettings) -> dict[str, Any]:
    """What the shards depend on, as JSON keeps it."""
    return {"version": VERSION, "source": source.hash, "settings": asdict(settings)}


@dataclass(frozen=True)
class Shard:
    """What is known about a finished shard; name, hash and bytes are empty when all its samples failed."""

    name: str
    sha256: str
    num_bytes: int
    rows: list[Sample]
    skipped: list[Skipped]


class Store:
    """Results one by one, then shard by shard.

    Each result is a file of its own until its shard is complete: one line of JSON (the row, or why it was
    skipped), then the bytes for the tar. Every file appears whole or not at all.

    Parameters
    ----------
    output : Path
        Folder of the shards: new, empty, or begun in the same order.
    order : dict
        Of `order_of`.

    Raises
    ------
    PrepareError
        When the folder holds anything else, or another process is writing there.
    """

    def __init__(self, output: Path, order: dict[str, Any]) -> None:
        self.output = output
        self.order = order
        self.folder = output / UNFINISHED
        self.is_complete = _is_complete(output, order)
        if self.is_complete:
            shutil.rmtree(self.folder, ignore_errors=True)  # a kill may have come just before
            return
        with writing(output):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / "lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise PrepareError(
                    f"another process is writing {output}; wait for it, or give another folder"
                ) from None
            write_json(self.folder / ORDER, order)

    def close(self) -> None:
        """Let others write."""
        if not self.is_complete:
            self._lock.release()

    # ---- scene changes

    def cuts(self) -> dict[str, list[float] | Skipped]:
        """Scene changes found so far, by id."""
        path = self.folder / CUTS
        known: dict[str, list[float] | Skipped] = {}
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # a kill may have torn the last line
            if len(whole) < len(content):
                path.write_bytes(whole)
            for line in whole.splitlines():
                name, found = json.loads(line)
                known[name] = found if isinstance(found, list) else Skipped(**found)
        return known

    def save_cuts(self, name: str, found: list[float] | Skipped) -> None:
        """Keep the scene changes of one row."""
        line = json.dumps([name, found if isinstance(found, list) else asdict(found)])
        with writing(self.output), (self.folder / CUTS).open("ab") as file:
            file.write(line.encode() + b"\n")

    # ---- results

    def save(self, task: Task, result: Made | Skipped) -> None:
        """Keep a result."""
        row = result.row if isinstance(result, Made) else result
        line = json.dumps({type(row).__name__: asdict(row)})
        with writing(self.output), atomic_write(self._part(task)) as file:
            file.write(line.encode() + b"\n")
            if isinstance(result, Made):
                file.write(result.members)

    def saved(self) -> dict[str, Skipped | None]:
        """Keys of the kept results whose shards are not complete; of those skipped, why."""
        return {path.stem: self._skipped(path) for path in self.folder.glob("[0-9]*.part")}

    def _skipped(self, path: Path) -> Skipped | None:
        with path.open("rb") as file:
            values = json.loads(file.readline()).get(Skipped.__name__)
        return None if values is None else Skipped(**values)

    def _part(self, task: Task) -> Path:
        return self.folder / f"{task.key}.part"

    # ---- shards

    def finished(self, number: int) -> Shard | None:
        """The shard of this number, if it is complete."""
        path = self._index(number)
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        if content["name"] and not (self.output / content["name"]).exists():
            return None  # somebody removed it
        rows = [Sample(**row) for row in content.pop("rows")]
        return Shard(rows=rows, skipped=[Skipped(**item) for item in content.pop("skipped")], **content)

    def finish(self, number: int, tasks: Sequence[Task]) -> Shard:
        """Join the results of all tasks of a shard; the same results give the same bytes."""
        with writing(self.output):
            shard = self._joined(number, tasks)
            write_json(self._index(number), asdict(shard))
            for task in tasks:
                self._part(task).unlink()
        return shard

    def _index(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.json"

    def _joined(self, number: int, tasks: Sequence[Task]) -> Shard:
        name, size, digest = f"shard-{number:06d}.tar", 0, hashlib.sha256()
        rows: list[Sample] = []
        skipped: list[Skipped] = []
        with atomic_write(self.folder / name) as file:
            for task in tasks:
                line, _, members = self._part(task).read_bytes().partition(b"\n")
                for kind, values in json.loads(line).items():
                    if kind == Skipped.__name__:
                        skipped.append(Skipped(**values))
                    else:
                        rows.append(_placed(Sample(**values), name, size))
                size += file.write(members)
                digest.update(members)
            end = bytes(-(size + 1024) % RECORD_BYTES + 1024)
            size += file.write(end)
            digest.update(end)
        if not rows:
            (self.folder / name).unlink()
            return Shard("", "", 0, rows, skipped)
        (self.folder / name).replace(self.output / name)
        return Shard(name, digest.hexdigest(), size, rows, skipped)

    def clear(self) -> None:
        """Remove what is kept only for a run that goes on."""
        self.close()
        shutil.rmtree(self.folder)


def _placed(row: Sample, name: str, offset: int) -> Sample:
    """A row whose places count from the start of its shard."""
    moved: dict[str, Any] = {"path": name}
    for field in ("video_offset_bytes", "audio_offset_bytes"):
        place = getattr(row, field)
        moved[field] = None if place is None else place + offset
    return replace(row, **moved)


def _is_complete(output: Path, order: dict[str, Any]) -> bool:
    """Whether all shards of this order are there; `PrepareError` when something else is."""
    if output.exists() and not output.is_dir():
        raise PrepareError(f"{output} is a file; give a folder for shards, or a name that ends in .parquet")
    for path in (output / RECORD, output / UNFINISHED / ORDER):
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        differing = [key for key in order if found.get(key) != order[key]]
        if differing:
            raise PrepareError(
                f"{output} holds shards of {_difference(found, order)}; give another folder, or --overwrite "
                "to begin anew"
            )
        return path.name == RECORD
    if output.exists() and any(path.name != UNFINISHED for path in output.iterdir()):
        raise PrepareError(f"{output} holds other files; give a new or an empty folder for the shards")
    return False


def _difference(found: dict[str, Any], order: dict[str, Any]) -> str:
    if found.get("version") != order["version"]:
        return "another version of this package"
    if found.get("settings") == order["settings"]:
        return "another source: files were added, removed or changed"
    old = found.get("settings", {})
    return ", ".join(
        f"{name} {old.get(name)} and not {value}"
        for name, value in order["settings"].items()
        if old.get(name) != value
    )


def remove_shards(output: Path) -> None:
    """Remove whatever an earlier preparation wrote to a folder, and nothing else."""
    if not ((output / RECORD).exists() or (output / UNFINISHED / ORDER).exists()):
        return
    with writing(output):
        for path in [output / RECORD, output / MANIFEST, output / SKIPPED, *output.glob("shard-*.tar")]:
            path.unlink(missing_ok=True)
        shutil.rmtree(output / UNFINISHED, ignore_errors=True)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Errors of the disk as a `PrepareError` that says what is left."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "check the folder and its permissions"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room"
        raise PrepareError(
            f"cannot write to {output}: {reason}; {remedy} and run the same command again: it goes on after "
            "the finished samples"
        ) from error
