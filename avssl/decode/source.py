"""Where the bytes of a media file are: a file of its own, or a part of another such as a member of a tar."""

from __future__ import annotations

import os

from avssl.errors import DecodeError
from avssl.types import Part, Source


def span(source: Source) -> tuple[str, int, int]:
    """File, offset and length in bytes of a source that can be read.

    Raises
    ------
    DecodeError
        Stage "open": the file is missing, empty, a folder or a pipe, or ends before the part does.
    """
    path = os.fspath(source.path if isinstance(source, Part) else source)
    if not os.path.isfile(path):  # a pipe would block for ever
        kind = "not a regular file" if os.path.exists(path) else "no such file"
        raise DecodeError(str(source), "open", f"{kind}; give the path of a media file")
    size = os.path.getsize(path)
    offset, length = (source.offset_bytes, source.num_bytes) if isinstance(source, Part) else (0, size)
    if length == 0:
        raise DecodeError(str(source), "open", "the file is empty (0 bytes)")
    if offset + length > size:
        raise DecodeError(str(source), "open", f"{path} is cut off: it ends at byte {size}")
    return path, offset, length


def ffmpeg_url(source: Source) -> str:
    """The source as FFmpeg's libraries open it; checked as by `span`."""
    path, offset, length = span(source)
    # "file:" keeps a name with a colon from being read as a network address.
    if isinstance(source, Part):
        return f"subfile,,start,{offset},end,{offset + length},,:file:{path}"
    return f"file:{path}"


def head(source: Source, num_bytes: int) -> bytes:
    """The first bytes of a source."""
    path, offset, length = span(source)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(min(num_bytes, length))
