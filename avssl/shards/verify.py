"""Whether shards are still what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from avssl.data import Manifest
from avssl.errors import AvsslError, PrepareError
from avssl.shards.store import MANIFEST, RECORD

BLOCK_BYTES = 2**20


def verify(output: Path, progress: Callable[[int, int], None]) -> int:
    """Compare every shard with its SHA-256 and the manifest with its hash.

    Parameters
    ----------
    output : Path
        A folder of shards.
    progress : callable
        Called as ``progress(done, total)`` after each shard.

    Returns
    -------
    int
        Number of shards, all of them good.

    Raises
    ------
    PrepareError
        When the folder holds no finished shards, or names of all files that are missing or changed.
    """
    try:
        record = json.loads((output / RECORD).read_text())
        shards = [(str(shard["name"]), str(shard["sha256"])) for shard in record["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrepareError(f"{output} holds no finished shards ({error}); give a prepared folder") from error
    bad = []
    for done, (name, wanted) in enumerate(shards, start=1):
        path = output / name
        if not path.is_file():
            bad.append(f"{name} is missing")
        elif _sha256(path) != wanted:
            bad.append(f"{name} is damaged")
        progress(done, len(shards))
    try:
        if Manifest.load(output / MANIFEST).hash != record["manifest"]:
            bad.append(f"{MANIFEST} is another one")
    except AvsslError as error:
        bad.append(str(error))
    if bad:
        raise PrepareError(f"{output}: {', '.join(bad)}; prepare again with --overwrite, or copy again")
    return len(shards)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
