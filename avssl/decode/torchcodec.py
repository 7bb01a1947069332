"""Reads clips with torchcodec, which needs FFmpeg's libraries on the system."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from av.container import InputContainer
from torch import Tensor

from avssl.decode.container import CannotReadError
from avssl.decode.excerpt import find_excerpt
from avssl.decode.reader import Reader
from avssl.types import Source, VideoWindow


class TorchcodecReader(Reader):
    """The clip reader over torchcodec.

    PyAV finds the packets of the window and the sound: torchcodec does not read transport streams to their
    end, and scans the whole file where it has to be exact.

    Parameters
    ----------
    device : str
        Where frames are decoded: "cpu", or "cuda" for the decoder of an NVIDIA GPU. Clips are on the CPU
        all the same.

    Raises
    ------
    ImportError
        Torchcodec is not installed, or finds no FFmpeg.
    """

    def __init__(self, device: str = "cpu") -> None:
        _load()
        self.device = device

    def _read_frames(
        self, source: Source, container: InputContainer, stream: Any, window: VideoWindow, zero: Fraction
    ) -> Tensor:
        decoders, transforms = _load()
        excerpt = find_excerpt(container, stream, window, zero)
        resize = [] if excerpt.size is None else [transforms.Resize(excerpt.size[::-1])]
        try:
            decoder = decoders.VideoDecoder(
                excerpt.data, dimension_order="NHWC", device=self.device, transforms=resize
            )
            frames = decoder.get_frames_at(excerpt.indices).data.cpu()
        except (RuntimeError, IndexError) as error:
            name = stream.codec_context.codec.canonical_name
            reason = str(error).splitlines()[0]
            raise CannotReadError(f"torchcodec cannot decode this {name} stream: {reason}") from error
        return torch.rot90(frames, excerpt.quarter_turns, (1, 2)).contiguous()


def _load() -> tuple[Any, Any]:
    try:
        from torchcodec import decoders, transforms
    except RuntimeError as error:  # its libraries find no FFmpeg
        raise ImportError(str(error).strip().splitlines()[0]) from error
    return decoders, transforms
