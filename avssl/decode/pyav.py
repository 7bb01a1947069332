"""Reads clips with PyAV (FFmpeg's libraries)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from av.container import InputContainer
from torch import Tensor

from avssl.decode.frames import read_frames
from avssl.decode.reader import Reader
from avssl.types import Source, VideoWindow


class PyAVReader(Reader):
    """The clip reader over PyAV: frames equal those of a decode of the whole file bit for bit.

    Video is sought to the key frame before the window, and frames that neither the window nor another frame
    needs are not decoded.
    """

    opens_quickly = True

    def _read_frames(
        self, source: Source, container: InputContainer, stream: Any, window: VideoWindow, zero: Fraction
    ) -> Tensor:
        return read_frames(container, stream, window, zero)
