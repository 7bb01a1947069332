"""Files become clips: synchronised frames and sound on one time base."""

from __future__ import annotations

from avssl.decode.probe import MediaInfo, probe
from avssl.decode.pyav import PyAVReader
from avssl.errors import ConfigError
from avssl.types import ClipReader

__all__ = ["MediaInfo", "PyAVReader", "open_reader", "probe"]

READERS = {"pyav": PyAVReader}


def open_reader(name: str = "pyav") -> ClipReader:
    """The clip reader over the named library.

    Raises
    ------
    ConfigError
        The name is not one of the readers.
    """
    if name not in READERS:
        raise ConfigError(f"reader: got {name!r}; must be one of {', '.join(sorted(READERS))}")
    return READERS[name]()
