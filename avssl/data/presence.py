"""Whether the data are still where the manifest says.

When a disk is unmounted or a folder deleted in the middle of a run, each clip fails to open. That says
nothing about the samples, so it must end the run before it is held against them.
"""

from __future__ import annotations

import os

import pyarrow.compute as pc

from avssl.data.manifest import Manifest
from avssl.errors import DataGoneError


def common_folder(manifest: Manifest) -> str:
    """The deepest folder that all paths of a manifest lie in, as it would be on a local disk.

    It may lie below the root, as when all files are in a folder of it that is a disk of its own.
    """
    ends = pc.min_max(manifest.table["path"]).as_py()  # what the two have in common, all between them have
    return os.path.join(manifest.root, os.path.dirname(os.path.commonprefix(list(ends.values()))))


def require_folder(folder: str, manifest: Manifest) -> None:
    """Raise `DataGoneError` if a folder is missing, does not answer, or is as empty as a mount point."""
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
            what = "is empty now"
    except PermissionError:  # to open files in a folder takes less than to list it
        return
    except OSError as error:
        what = f"is gone ({error.strerror})"
    raise DataGoneError(
        f"{folder} {what}, and all {len(manifest):,} samples lie there; mount or restore it, then give the "
        f"same command again to go on; if {manifest.root} moved, give data.root=NEW too"
    )
