"""The checkpoints of a run: written beside the training, several kept, a damaged one passed over.

``checkpoint.pt`` is always the newest. Earlier ones are in ``checkpoints/``: ``step_00001200.pt`` of the few
newest, ``epoch_0010.pt`` of those kept for good, ``best.pt`` of the best by a metric. A name is given to a
whole file or to none: whatever ends the process, at most the newest checkpoint is lost.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from avssl.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from avssl.errors import CheckpointError
from avssl.files import drop_leftovers, give_second_name, write_json

FOLDER = "checkpoints"
BEST = "best.pt"
BEST_RECORD = "best.json"


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints of a run are kept.

    Parameters
    ----------
    last : int >= 1
        So many of the newest, ``checkpoint.pt`` among them.
    every_epochs : int >= 1, optional
        Those after every so many epochs, for good.
    best_by : str, optional
        Name of a logged number: the checkpoint at its best value too, the lowest of a loss and the highest of
        anything else.
    """

    last: int = 2
    every_epochs: int | None = None
    best_by: str | None = None


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread of its own, while the training goes on.

    `save` copies the state in main memory and returns. One checkpoint is written at a time, so that a slow
    disk slows the training down and does not fill the memory.

    Parameters
    ----------
    folder : Path
        Run folder.
    keeping : Keeping
        What is kept.
    step : int, optional
        Step of the checkpoint the folder holds already.
    """

    def __init__(self, folder: Path, keeping: Keeping, step: int | None = None) -> None:
        self.folder = folder
        self.keeping = keeping
        self._written_step = step
        self._best = _read_best(folder, keeping.best_by)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, state: dict[str, Any], numbers: Mapping[str, float]) -> None:
        """Write a checkpoint; returns once its state is copied and the one before is written.

        Parameters
        ----------
        state : dict
            As of `avssl.checkpoint.save_checkpoint`, with ``position`` (step, epoch, batch).
        numbers : mapping
            What was logged of this state, from which the best is told.

        Raises
        ------
        CheckpointError
            When the one before could not be written.
        """
        self.finish()
        value = numbers.get(self.keeping.best_by or "")
        best = value if value is not None and self.is_best(value) else None
        self._thread = threading.Thread(target=self._write, args=(copied(state), best), name="checkpoint")
        self._thread.start()

    def is_best(self, value: float) -> bool:
        """Whether a value of the metric is better than that of every checkpoint so far."""
        if self._best is None or not math.isfinite(value):
            return math.isfinite(value)
        return value < self._best if "loss" in str(self.keeping.best_by) else value > self._best

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written, if there is one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait until the last checkpoint is written, and `check`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    # ---- in the thread

    def _write(self, state: dict[str, Any], best: float | None) -> None:
        try:
            self._write_and_name(state, best)
        except OSError as error:
            self._error = CheckpointError(
                f"{self.folder}: checkpoints cannot be written: {error.strerror or error}; free some space "
                "or choose another place with run.folder="
            )
        except Exception as error:  # raised where the training sees it
            self._error = error

    def _write_and_name(self, state: dict[str, Any], best: float | None) -> None:
        newest, folder, position = self.folder / FILE_NAME, self.folder / FOLDER, state["position"]
        if self.keeping.last > 1 and self._written_step is not None and newest.exists():
            give_second_name(newest, folder / f"step_{self._written_step:08d}.pt")
        save_checkpoint(newest, state)
        self._written_step = position["step"]
        every = self.keeping.every_epochs
        if every and position["batch"] == 0 and position["epoch"] % every == 0:
            give_second_name(newest, folder / f"epoch_{position['epoch']:04d}.pt")
        if best is not None:
            self._best = best
            give_second_name(newest, folder / BEST)
            record = {"metric": self.keeping.best_by, "value": best, "step": position["step"]}
            write_json(folder / BEST_RECORD, record)
        earlier = sorted(folder.glob("step_*.pt"))
        for path in earlier[: len(earlier) - (self.keeping.last - 1)]:
            path.unlink(missing_ok=True)


def _read_best(folder: Path, metric: str | None) -> float | None:
    """Value of the best checkpoint so far; None without one, or when it was judged by another metric."""
    try:
        record = json.loads((folder / FOLDER / BEST_RECORD).read_text())
        return float(record["value"]) if record["metric"] == metric else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def copied(state: Any, known: dict[tuple[Any, ...], Tensor] | None = None) -> Any:
    """Copy of a state in main memory; tensors that were one, such as shared encoders, are one in it too."""
    known = {} if known is None else known
    if isinstance(state, Mapping):
        return {key: copied(value, known) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(copied(value, known) for value in state)
    if not isinstance(state, Tensor):
        return state
    storage = state.untyped_storage().data_ptr()
    place = (storage, state.storage_offset(), state.shape, state.stride(), state.dtype)
    if place not in known or state.numel() == 0:
        known[place] = state.detach().to("cpu", copy=True)
    return known[place]


# ---- taking up again


def newest_whole(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, which ``checkpoint.pt`` holds afterwards; None without any.

    Damaged ones are renamed to ``*.damaged`` and said to be so.

    Raises
    ------
    CheckpointError
        When there are checkpoints and all are damaged.
    """
    for place in (folder, folder / FOLDER):
        drop_leftovers(place)
    damaged: list[str] = []
    for path in _newest_first(folder):
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            damaged.append(str(error))
            path.rename(path.with_name(path.name + ".damaged"))
            continue
        for complaint in damaged:
            say(f"warning: {complaint.partition(';')[0]}; going on from {path.name}, written after step "
                f"{state['position']['step']}")  # fmt: skip
        if path.parent != folder:
            give_second_name(path, folder / FILE_NAME)
        return state
    if damaged:
        raise CheckpointError(
            f"{damaged[0].partition(';')[0]}; {folder} holds no other that is whole; give --restart to begin "
            "anew"
        )
    return None


def _newest_first(folder: Path) -> Iterator[Path]:
    """``checkpoint.pt``, then the earlier ones."""
    kept = folder / FOLDER
    earlier = [path for kind in ("step_*.pt", "epoch_*.pt") for path in sorted(kept.glob(kind), reverse=True)]
    for path in (folder / FILE_NAME, *earlier, kept / BEST):
        if path.is_file():
            yield path
