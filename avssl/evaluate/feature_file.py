"""Large arrays in one ``.npz`` file: written piece by piece, read without loading, checked by checksums."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avssl.errors import EvaluationError
from avssl.files import atomic_write

ABOUT = "about.json"
_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name and its extra field


class DamagedError(Exception):
    """A file of features whose content is not what was written."""


@dataclass(frozen=True)
class Pieces:
    """An array that comes in pieces along its first axis."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Iterable[NDArray[Any]]

    @classmethod
    def whole(cls, array: NDArray[Any]) -> Pieces:
        """An array that is there."""
        return cls(array.dtype, array.shape, [array])


def write_arrays(path: Path, arrays: Mapping[str, Pieces], about: Mapping[str, Any]) -> None:
    """Write arrays and a note, whole or not at all; each has a CRC-32 in the file.

    Raises
    ------
    EvaluationError
        When the file cannot be written.
    """
    try:
        with atomic_write(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            archive.writestr(ABOUT, json.dumps(about, indent=1))
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(array.dtype),
                        "fortran_order": False,
                        "shape": array.shape,
                    }
                    np.lib.format.write_array_header_2_0(member, header)
                    for piece in array.pieces:
                        member.write(np.ascontiguousarray(piece).data)
    except OSError as error:
        raise EvaluationError(
            f"{path}: cannot be written: {error.strerror or error}; free some space, store features as "
            "float16, ask for fewer of them, or choose another folder"
        ) from error


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays, mapped into memory rather than loaded, and the note.

    The whole file is read once to compare its checksums.

    Raises
    ------
    DamagedError
        When it is not what `write_arrays` wrote.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise DamagedError(f"the checksum of {damaged!r} is not the one written")
            about = json.loads(archive.read(ABOUT))
            members = [info for info in archive.infolist() if info.filename != ABOUT]
        arrays = {info.filename.removesuffix(".npy"): _mapped(path, info) for info in members}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError, NotImplementedError) as error:
        raise DamagedError(str(error) or type(error).__name__) from error
    return arrays, about


def map_array(path: Path, name: str) -> NDArray[Any]:
    """One array of a file whose checksums were compared before."""
    with zipfile.ZipFile(path) as archive:
        return _mapped(path, archive.getinfo(f"{name}.npy"))


def _mapped(path: Path, info: zipfile.ZipInfo) -> NDArray[Any]:
    """An uncompressed member as an array on disk."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        lengths = [int.from_bytes(header[start : start + 2], "little") for start in (26, 28)]
        file.seek(info.header_offset + _LOCAL_HEADER_BYTES + sum(lengths))
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        if 0 in shape:  # nothing cannot be mapped
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape)
