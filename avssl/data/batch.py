"""Clips side by side: what travels from the workers to the trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from avssl.data.dataset import Failure
from avssl.types import Clip


class PackedFrames(Sequence[Tensor]):
    """A list of uint8 (T, H, W, 3) tensors of any sizes that share one buffer.

    One buffer a batch, because each tensor that crosses from a worker costs a file descriptor (hundreds in
    flight end in "too many open files"), and because one copy to the device is faster than many.

    Parameters
    ----------
    pixels : Tensor, (total,)
        All values, one clip after another.
    shapes : sequence of (T, H, W, 3)
        Shape of each clip.
    """

    def __init__(self, pixels: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
        self.pixels = pixels
        self.shapes = tuple(tuple(shape) for shape in shapes)
        sizes = [math.prod(shape) for shape in self.shapes]
        self._clips = [part.view(shape) for part, shape in zip(pixels.split(sizes), self.shapes, strict=True)]

    @classmethod
    def pack(cls, frames: Sequence[Tensor]) -> PackedFrames:
        """Copy tensors into one buffer, shared in a worker; what is packed already stays as it is."""
        if isinstance(frames, PackedFrames):
            return frames
        shapes = [tuple(clip.shape) for clip in frames]
        flat = [clip.reshape(-1) for clip in frames]
        if not flat:
            return cls(torch.empty(0, dtype=torch.uint8), shapes)
        room = None if get_worker_info() is None else _shared(sum(clip.numel() for clip in flat))
        return cls(torch.cat(flat, out=room), shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @overload
    def __getitem__(self, i: int) -> Tensor: ...
    @overload
    def __getitem__(self, i: slice) -> list[Tensor]: ...
    def __getitem__(self, i: int | slice) -> Tensor | list[Tensor]:
        return self._clips[i]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._clips)

    def __reduce__(self) -> tuple[type[PackedFrames], tuple[Tensor, tuple[tuple[int, ...], ...]]]:
        """Pickle the buffer and the shapes, not the views."""
        return type(self), (self.pixels, self.shapes)


def _shared(num_bytes: int) -> Tensor:
    """Shared memory for the bytes of a worker: from any other they would be copied there to be sent."""
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(num_bytes))


@dataclass(eq=False)
class ClipBatch:
    """Clips that could be read, and a note of those that could not.

    Parameters
    ----------
    frames : sequence of Tensor, each uint8 (T, H, W, 3)
        One a clip, sizes may differ; empty when no video was asked for. From a worker, and on a device,
        `PackedFrames`.
    waveform : Tensor or None
        float32 (A, channels, samples) of the A = B clips or of those in `sounding`; None when no audio was
        asked for, or no clip with sound is left.
    index : Tensor, int64 (B,)
        Row of the manifest of each clip.
    failures : list of Failure
        What is missing from the batch.
    epoch, batch : int
        Which batch of the run, both counted from 0: a run that stopped after it resumes at ``(epoch, batch +
        1)``.
    sounding : Tensor or None
        int64 (A,), places in the batch of the clips that have sound; None where they are all or none.
    """

    frames: Sequence[Tensor]
    waveform: Tensor | None
    index: Tensor
    failures: list[Failure] = field(default_factory=list)
    epoch: int = 0
    batch: int = 0
    sounding: Tensor | None = None

    def __post_init__(self) -> None:
        if get_worker_info() is not None:  # elsewhere a copy into one buffer can wait until a device asks
            self.frames = PackedFrames.pack(self.frames)

    def __len__(self) -> int:
        """Number of clips, failures not counted."""
        return int(self.index.shape[0])

    @property
    def num_sounding(self) -> int:
        """Number of clips that have sound."""
        return 0 if self.waveform is None else len(self.waveform)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipBatch:
        """The batch on a device."""
        frames, waveform, sounding = self.frames, self.waveform, self.sounding
        if len(frames) and frames[0].device != torch.device(device):
            packed = PackedFrames.pack(frames)
            frames = PackedFrames(packed.pixels.to(device, non_blocking=non_blocking), packed.shapes)
        return replace(
            self,
            frames=frames,
            waveform=None if waveform is None else waveform.to(device, non_blocking=non_blocking),
            index=self.index.to(device, non_blocking=non_blocking),
            sounding=None if sounding is None else sounding.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> ClipBatch:
        """The batch in page-locked memory, from which a GPU copies asynchronously."""
        packed = PackedFrames.pack(self.frames)
        return replace(
            self,
            frames=PackedFrames(packed.pixels.pin_memory(), packed.shapes),
            waveform=None if self.waveform is None else self.waveform.pin_memory(),
            index=self.index.pin_memory(),
            sounding=None if self.sounding is None else self.sounding.pin_memory(),
        )


def collate(items: Sequence[Clip | Failure], epoch: int = 0, batch: int = 0) -> ClipBatch:
    """Put clips side by side and failures aside.

    Parameters
    ----------
    items : sequence of Clip or Failure
        Clips of one dataset: all with or all without frames, waveforms of one length, where there are any.
    epoch, batch : int
        Which batch of the run it is.
    """
    clips = [item for item in items if isinstance(item, Clip)]
    waveforms = [clip.waveform for clip in clips if clip.waveform is not None]
    sounding = [place for place, clip in enumerate(clips) if clip.waveform is not None]
    return ClipBatch(
        frames=[clip.frames for clip in clips if clip.frames is not None],
        waveform=torch.stack(waveforms) if waveforms else None,
        index=torch.tensor([clip.row for clip in clips], dtype=torch.int64),
        failures=[item for item in items if isinstance(item, Failure)],
        epoch=epoch,
        batch=batch,
        sounding=torch.tensor(sounding) if 0 < len(sounding) < len(clips) else None,
    )
