"""Files become clips: synchronised frames and sound on one time base."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from avssl.decode.decord import DecordReader
from avssl.decode.probe import MediaInfo, probe
from avssl.decode.pyav import PyAVReader
from avssl.decode.torchcodec import TorchcodecReader
from avssl.decode.trial import try_reader
from avssl.errors import AvsslError, ConfigError
from avssl.types import ClipReader

__all__ = [
    "READERS",
    "DecordReader",
    "MediaInfo",
    "PyAVReader",
    "TorchcodecReader",
    "open_reader",
    "probe",
    "try_reader",
]

READERS: dict[str, Callable[[], ClipReader]] = {  # in the order in which "auto" tries them
    "pyav": PyAVReader,
    "torchcodec": TorchcodecReader,
    "decord": DecordReader,
}


def open_reader(name: str = "pyav") -> ClipReader:
    """The clip reader over the named library; "auto" is the first in `READERS` that reads a clip rightly.

    Raises
    ------
    ConfigError
        The name is not one of the readers, its library is not installed, or with "auto" none works.
    """
    if name == "auto":
        return open_reader(_first_that_works())
    if name not in READERS:
        raise ConfigError(f"reader: got {name!r}; must be one of {', '.join([*READERS, 'auto'])}")
    try:
        return READERS[name]()
    except ImportError as error:
        raise ConfigError(
            f"reader: {name!r} cannot be loaded ({error}); install it, or use 'auto' or 'pyav'"
        ) from error


@cache
def _first_that_works() -> str:
    reasons = []
    for name in READERS:
        try:
            try_reader(open_reader(name))
            return name
        except AvsslError as error:
            reasons.append(str(error))
    raise ConfigError("reader: 'auto' found none that works: " + "; ".join(reasons))
