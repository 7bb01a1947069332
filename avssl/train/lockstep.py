"""What processes that train together tell one another before each step, so that all take the same one.

Clips that cannot be read leave processes with unequally many. Objectives exchange embeddings of equal numbers
and take means over their own samples, so in a step of training every process uses as many clips as the one
with fewest: each clip used counts alike, and those beyond are left out of that step and counted. Where
memories are filled nothing may be left out; there the others repeat some of their clips, which changes no
memory. Where clips without sound take part, the same holds of the sound of the others: in training that of
those beyond is left out, and they take part with their video alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from avssl import dist
from avssl.data import ClipBatch, Failure
from avssl.train.position import LoopSettings


@dataclass(frozen=True)
class Agreement:
    """What all processes do next.

    Parameters
    ----------
    parts : list of ClipBatch
        Equally many clips on each process, equally many of them with sound, and that none or at least two;
        without those parts that are too small to train on.
    clips : int
        Clips used, over all processes.
    mute : int
        Those of the clips used that take part with their video alone.
    surplus : int
        Clips left out, over all processes.
    failures : list of (Failure, epoch)
        Of all processes, in the order of the clips.
    stop : int
        Signal that asks to stop; 0 for none.
    save : bool
        Whether the first process wants a checkpoint.
    """

    parts: list[ClipBatch]
    clips: int
    mute: int
    surplus: int
    failures: list[tuple[Failure, int]]
    stop: int
    save: bool


def grouped(batches: Iterable[ClipBatch], settings: LoopSettings) -> Iterator[list[ClipBatch]]:
    """Batches in groups of `accumulate`, never across an epoch."""
    parts: list[ClipBatch] = []
    for batch in batches:
        parts.append(batch)
        last = batch.batch == settings.batches(batch.epoch) - 1
        if len(parts) == settings.accumulate or last:
            yield parts
            parts = []


def agree(parts: Sequence[ClipBatch], *, stop: int, save: bool, fill: bool) -> Agreement:
    """Exchange a few numbers with the other processes; every process calls it once a step.

    Parameters
    ----------
    parts : sequence of ClipBatch
        This process's part of each batch of the step.
    stop : int
        Signal this process caught, 0 for none; the greatest of all counts.
    save : bool
        Whether a checkpoint is due by the clock; the first process's counts.
    fill : bool
        Whether processes repeat clips to be equal, rather than leave some out.
    """
    failed = [(failure, part.epoch) for part in parts for failure in part.failures]
    sizes = [len(part) for part in parts] + [part.num_sounding for part in parts]
    own = [stop, int(save), len(failed), *sizes]
    numbers = dist.all_gather(torch.tensor([own]))  # on the CPU: no GPU is waited for
    if bool(numbers[:, 2].any()):
        failed = [item for part in dist.gather_objects(failed) for item in part]
    counts = numbers[:, 3:].unflatten(1, (2, len(parts)))  # of clips, and of those with sound
    fewest, total = counts.amin(dim=0), counts.sum(dim=0)
    each = counts.amax(dim=0) if fill else fewest
    each = torch.where((fewest >= 1) & (each >= 2), each, 0)  # batch norm needs two
    used = torch.where(each > 0, total if fill else each * len(numbers), 0)
    clips, sounding = used.sum(dim=1).tolist()
    return Agreement(
        parts=[_take(part, *each[:, i].tolist()) for i, part in enumerate(parts) if each[0, i]],
        clips=clips,
        mute=clips - sounding,
        surplus=int((total - used)[0].sum()),
        failures=failed,
        stop=int(numbers[:, 0].max()),
        save=bool(numbers[0, 1]),
    )


def _take(part: ClipBatch, count: int, num_sounding: int) -> ClipBatch:
    """The first clips with sound, then the first others; from the beginning again where there are fewer."""
    if count == len(part) and num_sounding == part.num_sounding:
        return part
    heard = list(range(part.num_sounding)) if part.sounding is None else part.sounding.tolist()
    first = [i % part.num_sounding for i in range(num_sounding)]  # rows of the waveform
    places = [heard[i] for i in first]
    others = sorted(set(range(len(part))) - set(places)) or heard
    places += [others[i % len(others)] for i in range(count - num_sounding)]
    return replace(
        part,
        frames=[part.frames[i] for i in places] if len(part.frames) else part.frames,
        waveform=None if part.waveform is None or num_sounding == 0 else part.waveform[first],
        index=part.index[places],
        sounding=torch.arange(num_sounding) if 0 < num_sounding < count else None,
    )
