"""Features of clips, extracted once and kept on disk for every protocol and every later call.

Layout of a cache folder (by habit ``features`` in the folder of a run)::

    <folder>/<key>/<names>.npz      features; <names> is a hash of which
    <folder>/<key>/<names>.parts/   chunks of an extraction that has not ended

The key is a SHA-256, shortened, over what decides the numbers: the weights of the encoders and how they are
built, the hash of the manifest, what a clip and its views are, clips a sample, precision of the pass, how
numbers are stored, and `FEATURES_VERSION`. ``about.json`` inside each file spells it out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import nn

from avssl.build import Config
from avssl.data import Failure, Manifest
from avssl.errors import EvaluationError
from avssl.evaluate.clip_features import Chunk, ClipFeatures, extract_chunks, feature_names
from avssl.evaluate.feature_file import DamagedError, Pieces, map_array, read_arrays, write_arrays
from avssl.files import drop_leftovers, make_folder
from avssl.models import DualEncoder, VisualEncoder

log = logging.getLogger(__name__)

FEATURES_VERSION = 1
"""Goes up when the same settings give other numbers than before: old entries are not found any more."""

FOLDER = "features"
"""Where a run keeps its cache, in its own folder."""

CHUNK_CLIPS = 256
"""Clips that are held in memory, and lost when the extraction is killed, at most (but for one sample's)."""

ROWS = "rows"
Stored = Literal["float32", "float16"]


def cached_features(
    folder: str | Path,
    encoders: DualEncoder | VisualEncoder,
    config: Config,
    manifest: Manifest,
    *,
    names: Sequence[str] | None = None,
    num_clips: int = 2,
    stored: Stored = "float32",
    precision: torch.dtype = torch.float32,
    batch_size: int = 32,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = log.warning,
) -> ClipFeatures:
    """Features from the cache; what is not in it is extracted, in chunks that outlive a kill.

    A file that holds more features than asked for serves too. A damaged file or chunk is said and made again.
    Several processes may use one folder: one extracts, the others wait for it.

    Parameters
    ----------
    folder : str or Path
        The cache; made if it is not there. Delete it, or any part of it, to free the space.
    encoders, config, manifest, num_clips, precision
        As for `extract_chunks`: what the numbers depend on.
    names : sequence of str, optional
        Which features. Default: all of `feature_names`, blocks included.
    stored : "float32" or "float16"
        How numbers are kept; float16 takes half the space and rounds to 3 digits.
    batch_size, num_workers, device
        How to work; they do not change the result beyond rounding, and are no part of the key.
    progress : callable, optional
        Called as ``progress(clips done, clips in all)`` while clips are read.
    say : callable, optional
        Takes messages about damaged files and clips that could not be read; default: a warning of the log.

    Raises
    ------
    EvaluationError
        When no sample could be read, the features do not exist or do not fit float16, or the folder cannot be
        written.
    """
    if num_clips < 1 or stored not in ("float32", "float16"):
        raise EvaluationError(
            f"got num_clips={num_clips} and stored={stored!r}; must be num_clips >= 1 and 'float32' or "
            "'float16'"
        )
    names = tuple(feature_names(encoders) if names is None else dict.fromkeys(names))
    settings = cache_settings(
        encoders, config, manifest, num_clips=num_clips, stored=stored, precision=precision
    )
    each = max(1, CHUNK_CLIPS // num_clips)
    starts = range(0, len(manifest), each)
    chunks = {number: range(start, min(start + each, len(manifest))) for number, start in enumerate(starts)}

    def extract(missing: Mapping[int, range]) -> Iterator[Chunk]:
        total = len(manifest) * num_clips
        before = total - num_clips * sum(map(len, missing.values()))
        return extract_chunks(
            encoders,
            config,
            manifest,
            missing,
            names,
            num_clips=num_clips,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            precision=precision,
            progress=None if progress is None else lambda done: progress(before + done, total),
        )

    entry = Path(folder) / _digest(settings)
    make_folder(entry)
    with FileLock(entry / "lock"):
        drop_leftovers(entry)
        found = _find(entry, names, say)
        if found is None:
            parts = _extract(entry / f"{_digest(names)}.parts", chunks, extract, stored, say)
            found = _merge(parts, entry / f"{_digest(names)}.npz", settings, names, say)
    if found.failures:
        first = found.failures[0]
        say(
            f"{len(found.failures)} clips could not be read, the first: {first.path}: {first.stage}: "
            f"{first.reason}; they are left out; delete {entry} to try again"
        )
    return found


def cache_settings(
    encoders: DualEncoder | VisualEncoder,
    config: Config,
    manifest: Manifest,
    *,
    num_clips: int,
    stored: Stored = "float32",
    precision: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """All that decides cached numbers, as JSON types; the key of an entry is its hash."""
    data, video = config.data, config.views.video
    clip = ("num_frames", "fps", "short_side", "audio_seconds", "sample_rate", "decoder")
    return {
        "version": FEATURES_VERSION,
        "weights": weights_hash(encoders),
        "model": {"video": config.model.video, "audio": config.model.audio},
        "manifest": manifest.hash,
        "clip": {key: getattr(data, key) for key in clip},
        # Augmentation plays no part in evaluation.
        "views": {key: video[key] for key in ("size", "mean", "std") if key in video},
        "spectrogram": config.views.spectrogram,
        "num_clips": num_clips,
        "precision": str(precision),
        "stored": stored,
    }


def weights_hash(module: nn.Module) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"\n{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _find(entry: Path, names: Sequence[str], say: Callable[[str], None]) -> ClipFeatures | None:
    """The features in a whole file of an entry, the smallest that has them; damaged files are removed."""
    for path in sorted(entry.glob("*.npz"), key=lambda path: path.stat().st_size):
        features = _read(path, say)
        if features is not None and set(names) <= features.arrays.keys():
            return ClipFeatures(features.rows, {n: features.arrays[n] for n in names}, features.failures)
    return None


def _read(path: Path, say: Callable[[str], None]) -> ClipFeatures | None:
    """Features of a file or chunk; None, and the file is removed, when it is damaged."""
    try:
        arrays, about = read_arrays(path)
        rows = np.array(arrays.pop(ROWS))
        if any(len(array) != len(rows) for array in arrays.values()):
            raise DamagedError("its arrays are of different lengths")
        return ClipFeatures(rows, arrays, [Failure(**failure) for failure in about["failures"]])
    except (DamagedError, KeyError, TypeError) as error:
        say(f"{path}: damaged ({error}); its features are extracted again")
        path.unlink()
        return None


@dataclass(frozen=True)
class _Part:
    """A chunk on disk. Its arrays are mapped when they are needed: each map holds a file open."""

    path: Path
    rows: NDArray[np.int64]
    failures: list[Failure]


def _extract(
    parts: Path,
    chunks: Mapping[int, range],
    extract: Callable[[Mapping[int, range]], Iterator[Chunk]],
    stored: Stored,
    say: Callable[[str], None],
) -> list[_Part]:
    """All chunks, on disk; those that an earlier call wrote are not extracted again."""
    make_folder(parts)
    drop_leftovers(parts)
    paths = {number: parts / f"chunk-{number:06d}.npz" for number in chunks}
    found: dict[int, _Part] = {}
    for number, path in paths.items():
        if path.exists() and (features := _read(path, say)) is not None:
            found[number] = _Part(path, features.rows, features.failures)
    missing = {number: rows for number, rows in chunks.items() if number not in found}
    for chunk in extract(missing) if missing else ():
        path, features = paths[chunk.number], chunk.features
        arrays = {name: Pieces.whole(_converted(name, x, stored)) for name, x in features.arrays.items()}
        about = {"failures": [asdict(failure) for failure in features.failures]}
        write_arrays(path, {ROWS: Pieces.whole(features.rows), **arrays}, about)
        found[chunk.number] = _Part(path, features.rows, features.failures)
    return [found[number] for number in chunks]


def _converted(name: str, array: NDArray[np.float32], stored: Stored) -> NDArray[Any]:
    if stored == "float16" and np.abs(array).max() > np.finfo(np.float16).max:
        raise EvaluationError(
            f"{name} reaches {np.abs(array).max():.3g}; float16 ends at 65504; store float32"
        )
    return array.astype(stored)


def _merge(
    parts: list[_Part],
    path: Path,
    settings: dict[str, Any],
    names: Sequence[str],
    say: Callable[[str], None],
) -> ClipFeatures:
    """Put chunks together into one file, and remove them."""
    failures = [failure for part in parts for failure in part.failures]
    filled = [part for part in parts if len(part.rows)]
    if not filled:
        shutil.rmtree(path.with_suffix(".parts"))
        first = failures[0]
        raise EvaluationError(
            f"none of the samples could be read, {len(failures)} clips in all; the first: {first.path}: "
            f"{first.stage}: {first.reason}"
        )
    rows = np.concatenate([part.rows for part in filled])
    arrays = {ROWS: Pieces.whole(rows)}
    for name in names:
        first_piece = map_array(filled[0].path, name)
        pieces = map(map_array, [part.path for part in filled], repeat(name))
        arrays[name] = Pieces(first_piece.dtype, (len(rows), first_piece.shape[1]), pieces)
    about = {**settings, "names": list(names), "failures": [asdict(failure) for failure in failures]}
    write_arrays(path, arrays, about)
    shutil.rmtree(path.with_suffix(".parts"))
    if (features := _read(path, say)) is None:
        raise EvaluationError(
            f"{path}: was just written and reads back damaged; the disk cannot be trusted; choose "
            "another folder"
        )
    return features
