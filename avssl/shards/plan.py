"""Which samples are made and which shard each goes to: decided before the work, by the source alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from avssl.data import Manifest, Sample
from avssl.data.tables import default_id
from avssl.shards.settings import ShardSettings
from avssl.types import Source


@dataclass(frozen=True)
class Task:
    """One sample to make.

    Parameters
    ----------
    number : int
        Place among all samples, which is also the key of its members in the tar.
    sample : Sample
        Row of the source, cut to the stretch of this sample.
    video, audio : Source and Source or None
        What to open, and where the sound is when it lies apart.
    """

    number: int
    sample: Sample
    video: Source
    audio: Source | None

    @property
    def key(self) -> str:
        """Name of the members of the sample without their extension."""
        return f"{self.number:09d}"


def make_plan(
    manifest: Manifest, settings: ShardSettings, cuts: Mapping[str, list[float] | None]
) -> list[Task]:
    """Tasks in the order they are written; each run of ``settings.shard_samples`` is a shard.

    The order is random but fixed, by a hash of the ids, so that every shard holds a bit of everything.

    Parameters
    ----------
    manifest : Manifest
        The source.
    settings : ShardSettings
        What to write.
    cuts : mapping of id to list of float or None
        Times of scene changes in seconds of the file, rising, for the rows that have any; None leaves a row
        out.
    """
    pieces = []
    for row in range(len(manifest)):
        sample = manifest.row(row)
        times = cuts.get(sample.id, [])
        if times is not None:
            sources = manifest.sources(row)
            pieces += [(piece, sources) for piece in cut_sample(sample, settings, times)]
    pieces.sort(key=lambda piece: hashlib.blake2b(piece[0].id.encode(), digest_size=16).digest())
    return [Task(number, sample, *sources) for number, (sample, sources) in enumerate(pieces)]


def cut_sample(sample: Sample, settings: ShardSettings, cuts: list[float]) -> list[Sample]:
    """Pieces of a sample; a sample in one piece keeps its id, others get ``#start-end`` behind it."""
    times = [sample.start_seconds]
    times += [time for time in cuts if sample.start_seconds < time < sample.end_seconds]
    times.append(sample.end_seconds)
    length = settings.segment_seconds
    if length is not None:
        inner = [
            start + i * length
            for start, end in pairwise(times)
            for i in range(1, round_half_up((end - start) / length))
        ]
        times = sorted(times + inner)
    if len(times) == 2:
        return [sample]
    name = sample.id.partition("#")[0] if sample.id == _own_id(sample) else sample.id
    return [
        replace(sample, id=default_id(name, start, end), start_seconds=start, end_seconds=end)
        for start, end in pairwise(times)
    ]


def _own_id(sample: Sample) -> str:
    """The id a list gives to a part of a file: its times need not be said twice."""
    return default_id(sample.path, sample.start_seconds, sample.end_seconds)


def round_half_up(value: float) -> int:
    """Nearest whole number, the larger one if two are as near."""
    return int(value + 0.5)
