"""From samples that are wished for to rows of a manifest: each file is probed once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from avssl.data.measure import Parts, Skipped, measure
from avssl.data.tables import Sample
from avssl.decode import MediaInfo


@dataclass(frozen=True)
class Wish:
    """A sample before its file was probed; None where nothing was said."""

    path: str
    id: str
    start_seconds: float = 0.0
    end_seconds: float | None = None
    label: str | None = None
    split: str | None = None
    parts: Parts = (None, None)


def probe_wishes(
    wishes: list[Wish], root: Path, workers: int | None, progress: Callable[[int, int], None] | None
) -> tuple[list[Sample], list[Skipped]]:
    """Probe each file once, in threads: the decoding libraries release the interpreter lock."""
    first = {(wish.path, wish.parts): wish for wish in reversed(wishes)}
    places = list(dict.fromkeys((wish.path, wish.parts) for wish in wishes))
    found: dict[tuple[str, Parts], tuple[MediaInfo, str] | Skipped] = {}
    pool = ThreadPoolExecutor(workers or min(32, (os.cpu_count() or 1) + 4))
    try:
        results = pool.map(lambda place: measure(place[0], root, place[1]), places)
        for done, (place, result) in enumerate(zip(places, results, strict=True), start=1):
            if isinstance(result, Skipped) and any(place[1]):
                result = replace(result, path=f"{result.path}: {first[place].id}")
            found[place] = result
            if progress is not None:
                progress(done, len(places))
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the files in the queue
    skipped = [result for result in found.values() if isinstance(result, Skipped)]
    samples = []
    for wish in wishes:
        result = found[wish.path, wish.parts]
        if isinstance(result, Skipped):
            continue
        sample = _sample(wish, *result)
        if isinstance(sample, Skipped):
            skipped.append(sample)
        else:
            samples.append(sample)
    return samples, skipped


def _sample(wish: Wish, info: MediaInfo, fingerprint: str) -> Sample | Skipped:
    """The row of a file, or why the part asked for is not in it."""
    # An end of 0, as of rows never probed, means the end of the file.
    end = min(wish.end_seconds or info.duration_seconds, info.duration_seconds)
    if not 0 <= wish.start_seconds < end:
        reason = (
            f"{wish.start_seconds} s to {end} s is empty or outside the {info.duration_seconds} s of the file"
        )
        return Skipped(wish.id, "open", reason)
    return Sample(
        id=wish.id,
        path=wish.path,
        start_seconds=wish.start_seconds,
        end_seconds=end,
        label=wish.label,
        split=wish.split or "train",
        has_video=info.has_video,
        has_audio=info.has_audio,
        duration_seconds=info.duration_seconds,
        fps=info.fps,
        width=info.width,
        height=info.height,
        content_hash=fingerprint,
        **_places(wish.parts),
    )


def _places(parts: Parts) -> dict[str, int]:
    places: dict[str, int] = {}
    for kind, part in zip(("video", "audio"), parts, strict=True):
        if part is not None:
            places |= {f"{kind}_offset_bytes": part.offset_bytes, f"{kind}_num_bytes": part.num_bytes}
    return places
