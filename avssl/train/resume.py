"""Going on with a run: whether the folder holds the run that is asked for, and what may change on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from avssl.build import Config
from avssl.config import config_diff, config_from_dict, config_to_dict
from avssl.data import Manifest
from avssl.errors import CheckpointError
from avssl.objectives import Objective
from avssl.train.position import LoopSettings, Position

try:
    import fcntl
except ImportError:  # there are no such locks on Windows
    fcntl = None  # type: ignore[assignment]

FREE_TO_CHANGE = (
    "run.", "data.num_workers", "data.max_skipped", "data.root", "data.manifest", "data.held_out",
    "data.stall_seconds", "train.device", "train.threads", "train.sharding", "train.compile",
    "train.channels_last", "train.log_every", "train.checkpoint_minutes", "train.keep_", "train.nonfinite",
    "train.held_out_every",
)  # fmt: skip
"""Keys that may differ when a run is resumed; what the data are is checked by the manifest's hash."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the run folder while the block runs, so that no second training writes into it.

    The hold ends with the process, however it ends. Where the file system knows no locks there is none.

    Raises
    ------
    CheckpointError
        When another process holds it.
    """
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("a+") as file:
        try:
            # Not flock: the loader's workers would inherit that, and they outlive a killed training.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise CheckpointError(
                f"{folder}: is being trained by another process ({file.read().strip()}); wait for it, stop "
                "it, or choose another name with run.name="
            ) from error
        except OSError:  # network file systems without locks
            pass
        file.truncate(0)
        file.write(f"{os.uname().nodename}, process {os.getpid()}")
        file.flush()
        yield


def resume_notice(checkpoint: dict[str, Any] | None, config: Config, folder: Path) -> str | None:
    """What a user may not expect of a run that goes on; None for a new one."""
    if checkpoint is None:
        return None
    if checkpoint["position"]["epoch"] >= config.train.epochs + config.train.memory_warmup_epochs:
        return f"{folder}: finished already; choose another name with run.name=, or give --restart"
    if checkpoint["config"]["data"]["root"] != config.data.root:
        return f"{folder}: goes on with the samples it began with, now looked for in {config.data.root}"
    return None


def changes(
    checkpoint: dict[str, Any], config: Config, before: Manifest, manifest: Manifest, folder: Path
) -> list[str]:
    """What is different from the run that a checkpoint is of, in words: keys of the recipe, and data.

    Parameters
    ----------
    before, manifest : Manifest
        The samples it was trained on so far, and those it is to go on with.
    """
    recipe = config_from_dict(checkpoint["config"], Config, str(folder))
    old, new = config_to_dict(recipe), config_to_dict(config)
    found = [
        f"{key} was {_value(old, key)}, is {_value(new, key)}"
        for key in config_diff(recipe, config)
        if not key.startswith(FREE_TO_CHANGE)
    ]
    if checkpoint["manifest_hash"] != manifest.hash:
        found.append(_difference(before, manifest))
    return found


def _value(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name, "not given") if isinstance(value, dict) else "not given"
    return value


def _difference(before: Manifest, now: Manifest) -> str:
    """Samples that came, went or are described otherwise."""
    old, new = before.ids, now.ids
    came, went = sorted(set(new) - set(old)), sorted(set(old) - set(new))
    parts = [
        f"{len(ids):,} {what} (such as {ids[0]!r})" for ids, what in ((came, "new"), (went, "gone")) if ids
    ]
    if not parts:
        where = now.rows_of(old)
        tables = before.table, now.table.take(where)
        names = [n for n in tables[0].column_names if n != "path" and tables[0][n] != tables[1][n]]
        parts = [f"{', '.join(names) or 'the order'} of some changed"]
    return f"the samples: {' and '.join(parts)}, of {len(old):,}"


def refuse_changes(found: list[str], folder: Path, allowed: bool) -> None:
    """Raise `CheckpointError` for changes nobody allowed."""
    if found and not allowed:
        raise CheckpointError(
            f"{folder}: holds a run that differs: {'; '.join(found)}; give --allow-changes to go on with it "
            "all the same, choose another name with run.name=, or give --restart to move that run aside and "
            "begin anew"
        )


def carry_over(objective: Objective, checkpoint: dict[str, Any], same_data: bool, name: str) -> None:
    """Load the state of a checkpoint into the objective, whose instances may be others.

    With other data, memories and positive sets follow the ids of their samples; new samples begin with
    random memories that count as unseen. All the rest is loaded as it is.
    """
    state: dict[str, Tensor] = checkpoint["objective"]
    try:
        if same_data:
            objective.load_state_dict(state)
            return
        own = objective.state_dict()
        fitting = {
            k: v for k, v in state.items() if k in own and own[k].shape == v.shape and not _is_memory(k)
        }
        objective.start_from(state)  # also resets what begins anew in a new stage, which this is not:
        objective.load_state_dict(fitting, strict=False)
    except (RuntimeError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"run {name}: its checkpoint does not fit this recipe: {' '.join(str(error).split())[:300]}; "
            "what the model and the objective are made of cannot change; begin a run of another name with "
            "run.start_from"
        ) from error


def _is_memory(key: str) -> bool:
    return "bank." in key or key.rpartition(".")[2] == "positive_set"


def place_in(checkpoint: dict[str, Any], settings: LoopSettings, same_data: bool) -> Position:
    """Where a run goes on, also if its batches have become others: then at most a batch before where it was.

    With other data the epoch it is in begins anew.
    """
    position = Position(**checkpoint["position"])
    train = checkpoint["config"]["train"]
    part = settings.batch_size // settings.accumulate
    if not same_data:
        position.batch = 0
    elif (before := train["batch_size"] // train["accumulate"]) != part:
        position.batch = position.batch * before // part
    if position.batch and position.batch >= settings.batches(position.epoch):
        position.epoch, position.batch = position.epoch + 1, 0
    return position


def note_changes(folder: Path, step: int, found: list[str]) -> None:
    """Add what changed, and when, to ``changes.jsonl``."""
    if found:
        with (folder / "changes.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "changes": found}) + "\n")


def move_aside(folder: Path) -> None:
    """Rename a run folder to the first free NAME.oldN."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(aside)
