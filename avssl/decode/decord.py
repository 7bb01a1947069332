"""Reads clips with decord."""

from __future__ import annotations

import ctypes
import importlib
import io
import re
import sys
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import torch
from av.container import InputContainer
from torch import Tensor

from avssl.decode.container import CannotReadError
from avssl.decode.excerpt import find_excerpt
from avssl.decode.reader import Reader
from avssl.types import Source, VideoWindow


class DecordReader(Reader):
    """The clip reader over decord.

    PyAV finds the packets of the window and the sound, because decord seeks wrongly in open groups of
    pictures and in transport streams, ignores rotation and decodes the sound of the whole file.

    Raises
    ------
    ImportError
        Decord is not installed, or cannot be loaded.
    """

    def __init__(self) -> None:
        load_decord()

    def _read_frames(
        self, source: Source, container: InputContainer, stream: Any, window: VideoWindow, zero: Fraction
    ) -> Tensor:
        decord = load_decord()
        excerpt = find_excerpt(container, stream, window, zero)
        width, height = excerpt.size or (-1, -1)
        places, inverse = np.unique(excerpt.indices, return_inverse=True)
        try:
            reader = decord.VideoReader(io.BytesIO(excerpt.data), width=width, height=height, num_threads=1)
            frames = reader.get_batch(places.tolist()).asnumpy()[inverse]
        except (decord.DECORDError, IndexError) as error:
            reason = re.sub(
                r"^(\[[\d:]+\] \S+:\d+: )+", "", str(error).splitlines()[0]
            )  # its time and source line
            name = stream.codec_context.codec.canonical_name
            raise CannotReadError(f"decord cannot decode this {name} stream: {reason}") from error
        return torch.from_numpy(np.ascontiguousarray(np.rot90(frames, excerpt.quarter_turns, (1, 2))))


def load_decord() -> Any:
    """The module, loaded so that its FFmpeg does not take the place of PyAV's.

    Decord offers the symbols of its libraries to the whole process; what is loaded later, or bound later,
    calls them instead of its own (PyAV can then no longer encode VP9). Loading it locally keeps them apart.

    Raises
    ------
    ImportError
        Decord is not installed, or cannot be loaded.
    """
    if sys.modules.get("decord") is None:
        try:
            with mock.patch.object(ctypes, "RTLD_GLOBAL", ctypes.RTLD_LOCAL):
                decord = importlib.import_module("decord")
        except OSError as error:  # built for another machine
            raise ImportError(str(error)) from error
        decord.logging.set_level(decord.logging.QUIET)  # what is damaged is reported as an error
    return sys.modules["decord"]
