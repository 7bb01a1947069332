"""Checkpoints: everything a run needs to go on, in one file that is either whole or absent."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from avssl import __version__
from avssl.errors import CheckpointError
from avssl.files import atomic_write

FILE_NAME = "checkpoint.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: to a temporary name, flushed to disk, renamed.

    Whatever interrupts the writing, `path` holds the previous checkpoint or the new one, never a part.

    Parameters
    ----------
    path : Path
        Target.
    state : dict
        Tensors, numbers, strings and containers of them only, so that it loads without unpickling code.
    """
    try:
        with atomic_write(path) as file:
            torch.save({"avssl_version": __version__, **state}, file)
    except (OSError, RuntimeError) as error:
        # Where a write fails, torch goes on to finish its archive and complains of what is missing in it.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"{path}: cannot be written: {cause.strerror or cause}; free some space or choose another "
            "place with run.folder="
        ) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, or the one in a run folder, onto the CPU; never executes a pickle.

    Raises
    ------
    CheckpointError
        When there is none, or it is damaged or not one of this package.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; give a run folder that holds {FILE_NAME}")
    state: dict[str, Any] = read_tensors(path)
    if "avssl_version" not in state or "objective" not in state:
        raise CheckpointError(f"{path}: not a checkpoint of avssl; give one that `avssl pretrain` wrote")
    return state


def read_tensors(path: Path) -> dict[Any, Any]:
    """Read a dictionary of tensors onto the CPU, stored as today or as before PyTorch 1.6.

    The checksums (CRC-32) that `torch.save` stores with each tensor are compared first, which `torch.load`
    does not do. Files from before PyTorch 1.6 have none.

    Raises
    ------
    CheckpointError
        When the file is damaged or holds more than tensors, numbers and texts: no pickle is executed.
    """
    _compare_checksums(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders at damaged bytes; the error says what matters
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text tells how to run the pickle nevertheless
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint (it holds more than tensors, numbers and texts; nothing in "
            "it was run); use another copy"
        ) from error
    except Exception as error:  # what a damaged file makes torch raise is anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({first_line}); use another copy"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}; must be the dictionary of a checkpoint; give another"
        )
    return content


def _compare_checksums(path: Path) -> None:
    """Raise `CheckpointError` when a part of a file differs from what was written."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); use another copy") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path}: damaged: the checksum of {damaged!r} is not the one written; use another copy"
        )
