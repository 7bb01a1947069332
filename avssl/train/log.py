"""What a run writes down while it trains: JSON lines, TensorBoard events, Weights & Biases when asked."""

from __future__ import annotations

import importlib.util
import json
import math
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avssl import dist
from avssl.errors import ConfigError
from avssl.files import write_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BEGINNING_SECONDS, ENDING_SECONDS = 30.0, 60.0
"""The longest waits for Weights & Biases; while a run is going there are none."""


def drop_lines_after(path: Path, step: int) -> int:
    """Drop lines of steps later than `step`, and those a crash cut short; makes the file if there is none.

    Returns
    -------
    int
        The last step of all lines, dropped ones too; `step` where none is later.
    """
    lines = []
    last = step
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                at = json.loads(line)["step"]
                keep = at <= step
            except (ValueError, KeyError, TypeError):  # a line that a crash cut short
                continue
            last = max(last, at)
            if keep:
                lines.append(line + "\n")
    path.write_text("".join(lines))
    return last


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON object as a line."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


class MetricsLog:
    """Appends numbers to ``metrics.jsonl`` and to TensorBoard; a resumed run continues both.

    Parameters
    ----------
    folder : Path
        Run folder.
    step : int
        Step the run (re)starts from: lines of later steps, written after the checkpoint that is resumed, are
        dropped, since these steps are done again.
    project : str, optional
        Project on Weights & Biases that gets the numbers too.
    recipe : mapping, optional
        What it shows as the configuration.
    say : callable
        Takes what is wrong with Weights & Biases, and where to find the run there.

    Attributes
    ----------
    path : Path
        ``metrics.jsonl``.
    events : SummaryWriter
        TensorBoard's, for those who have more than scalars to tell it.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        project: str | None = None,
        recipe: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, needed only when training

        self.path = folder / "metrics.jsonl"
        told = drop_lines_after(self.path, step)
        self.events: SummaryWriter = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.wandb = None if project is None else WandbRun(folder, project, recipe or {}, told, say)

    def write(self, step: int, epoch: int, numbers: dict[str, float]) -> None:
        """Add one line; numbers that are not finite are written as null, since JSON has no word for them."""
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        append_line(self.path, {"step": step, "epoch": epoch, **finite})
        for name, value in numbers.items():
            self.events.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.write(step, {"epoch": epoch, **numbers})

    def close(self, finished: bool = True) -> None:
        """Flush the events; say on Weights & Biases whether the run came to its end."""
        self.events.close()
        if self.wandb is not None:
            self.wandb.close(finished)


class WandbRun:
    """The numbers of a run on Weights & Biases; whatever goes wrong there is said once and ends nothing.

    The run has an id of its own, kept in ``wandb.json``, under which a resumed run goes on. Steps are told
    once and in order: those done again after a crash were told before, and what is told later than another
    is lost there anyway.

    Parameters
    ----------
    folder : Path
        Run folder.
    project : str
        Where the run appears; entity, mode and server are taken from the variables ``WANDB_...``.
    recipe : mapping
        Shown as the configuration, with the name of the run.
    told : int
        Steps up to this one have been told, if the run was shown before.
    say : callable
        Takes lines for the user.
    """

    def __init__(
        self,
        folder: Path,
        project: str,
        recipe: Mapping[str, Any],
        told: int,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._run: Any = None
        place = folder / "wandb.json"
        self._told = told if place.exists() else -1
        self._try(lambda: self._begin(folder, place, project, recipe))

    def _begin(self, folder: Path, place: Path, project: str, recipe: Mapping[str, Any]) -> None:
        import wandb

        if not place.exists():
            write_json(place, {"id": secrets.token_hex(8)})
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=BEGINNING_SECONDS, finish_timeout=ENDING_SECONDS
        )
        wandb.setup(settings)  # silent before it begins, or it asks for a key at a terminal, and waits
        self._run = wandb.init(
            project=project,
            id=json.loads(place.read_text())["id"],
            name=folder.name,
            dir=str(folder),
            config=dict(recipe),
            resume="allow",
            reinit="create_new",
            allow_val_change=True,
            settings=settings,
        )
        if where := f"offline, in {folder / 'wandb'}" if self._run.offline else self._run.url:
            self._say(f"Weights & Biases: {where}")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Tell the numbers of a step; returns at once."""
        if self._run is not None and step > self._told:
            self._try(lambda: self._run.log(dict(numbers), step=step))

    def close(self, finished: bool) -> None:
        """Wait for what is on its way, not for ever."""
        if self._run is not None:
            self._try(lambda: self._run.finish(exit_code=0 if finished else 1))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # of any kind: of the package, of the network, of what it warns of
            self._run = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self._say(
                f"warning: Weights & Biases: {reason[:300]}; the run goes on without it, and metrics.jsonl "
                "has all numbers"
            )


def check_wandb(project: str | None) -> None:
    """Raise `ConfigError` when a run is to be shown on Weights & Biases and its package is missing."""
    if project is None:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder of that name, such as it makes itself, is no package
        raise ConfigError(
            f"run.wandb is {project!r}, but the package of Weights & Biases is not installed: pip install "
            "'avssl[wandb]', or leave run.wandb out"
        )


def peak_memory(device: torch.device) -> dict[str, float]:
    """``memory_gb``: the most memory so far, in 10^9 bytes.

    On a GPU that of this process's tensors there, elsewhere that of the process, without those that read
    clips; empty where the system does not say.
    """
    if device.type == "cuda":
        return {"memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    if sys.platform == "win32":
        return {}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}


class RunningMeans:
    """Means of tensors over the steps since the last read, without waiting for the device at each step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one step."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Mean of each name, over processes too, which must all ask; starts afresh."""
        if not self._sums:
            return {}
        own = torch.stack([total / self._counts[name] for name, total in self._sums.items()])
        means = dict(zip(self._sums, dist.all_mean(own).tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return means
