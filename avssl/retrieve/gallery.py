"""A gallery: query clips and what the other modality finds for them, with previews any browser plays."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avssl.data import Manifest
from avssl.decode import open_reader, probe
from avssl.errors import DecodeError
from avssl.features import Features
from avssl.files import write_json
from avssl.memory import nearest
from avssl.sounding_shapes.write import FPS, SAMPLE_RATE, encode_mp4
from avssl.types import AudioWindow, Source, VideoWindow

PREVIEW_SECONDS = 4.0
PREVIEW_SHORT_SIDE = 128


def write_gallery(
    folder: Path,
    sections: dict[str, tuple[Features, str]],
    manifest: Manifest,
    num_queries: int = 8,
    k: int = 5,
) -> Path:
    """Write ``gallery.json`` and previews under ``media/``.

    Parameters
    ----------
    folder : Path
        Run folder.
    sections : dict of title to (Features, direction)
        Direction is ``"a2v"`` or ``"v2a"``.
    manifest : Manifest
        What the features' rows count.
    num_queries : int >= 1
        Queries a section, evenly spread over the rows, so over the classes of a sorted manifest.
    k : int >= 1
        Matches a query.
    """
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    content = [
        {"title": title, "queries": _queries(features, direction, manifest, media, num_queries, k)}
        for title, (features, direction) in sections.items()
    ]
    path = folder / "gallery.json"
    write_json(path, {"sections": content})
    return path


def _queries(
    features: Features, direction: str, manifest: Manifest, media: Path, num_queries: int, k: int
) -> list[dict[str, Any]]:
    video, audio = torch.from_numpy(features.video_embedding), torch.from_numpy(features.audio_embedding)
    queries, gallery = (audio, video) if direction == "a2v" else (video, audio)
    chosen = np.unique(np.linspace(0, len(queries) - 1, num_queries).round().astype(int))
    scores, found = nearest(queries[chosen], gallery, min(k, len(gallery)))
    entries = []
    for number, position in enumerate(chosen):
        row = int(features.rows[position])
        query = _entry(row, manifest, media)
        matches = []
        for score, match in zip(scores[number].tolist(), found[number].tolist(), strict=True):
            other = int(features.rows[match])
            same_class = manifest.row(row).label is not None and (
                manifest.row(row).label == manifest.row(other).label
            )
            entry = _entry(other, manifest, media)
            matches.append(entry | {"score": score, "is_self": other == row, "same_class": same_class})
        entries.append(query | {"matches": matches})
    return entries


def _entry(row: int, manifest: Manifest, media: Path) -> dict[str, Any]:
    sample = manifest.row(row)
    name = hashlib.sha256(sample.id.encode()).hexdigest()[:16] + ".mp4"
    target = media / name
    source, sound = manifest.sources(row)
    found = target.exists() or write_preview(source, sample.start_seconds, target, sound=sound)
    preview = f"{media.name}/{name}" if found else None
    return {"id": sample.id, "path": sample.path, "label": sample.label, "media": preview}


def write_preview(
    path: Source,
    start_seconds: float,
    target: Path,
    seconds: float = PREVIEW_SECONDS,
    sound: Source | None = None,
) -> bool:
    """Re-encode the first seconds of a file as a small MP4 (H.264, AAC) that browsers play.

    `sound` is where the sound is if it is not in the file itself.

    Returns
    -------
    bool
        False when the file cannot be read; nothing is written then.
    """
    reader = open_reader()
    duration = max(min(seconds, _duration_seconds(path) - start_seconds), 1 / FPS)
    num_frames = max(1, int(duration * FPS))
    try:
        clip = reader.read(
            path,
            VideoWindow(start_seconds, num_frames, FPS, PREVIEW_SHORT_SIDE),
            AudioWindow(start_seconds, num_frames / FPS, SAMPLE_RATE),
            audio_source=sound,
        )
    except DecodeError:
        return False
    assert clip.frames is not None
    assert clip.waveform is not None
    height, width = (side // 2 * 2 for side in clip.frames.shape[1:3])  # H.264 4:2:0 needs even sides
    encode_mp4(target, clip.frames[:, :height, :width].numpy(), clip.waveform[0].numpy())
    return True


def _duration_seconds(path: Source) -> float:
    """Length of a file in seconds, 0 when it cannot be opened."""
    try:
        return probe(path).duration_seconds
    except DecodeError:
        return 0.0
