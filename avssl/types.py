"""The few types everybody meets: what a file becomes (`Clip`) and what an objective sees (`Views`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A media file that lies inside another file, as a member of a tar archive does, byte for byte.

    Parameters
    ----------
    path : str
        The outer file.
    offset_bytes : int >= 0
        Where in it the media file begins.
    num_bytes : int >= 0
        Length of the media file.
    """

    path: str
    offset_bytes: int
    num_bytes: int

    def __post_init__(self) -> None:
        if self.offset_bytes < 0 or self.num_bytes < 0:
            raise ValueError(f"a part needs offset_bytes >= 0 and num_bytes >= 0; got {self!r}")

    def __str__(self) -> str:
        return f"{self.path}[{self.offset_bytes}:+{self.num_bytes}]"


Source: TypeAlias = str | Path | Part
"""Where a media file is: a file of its own or a part of another."""


@dataclass(frozen=True)
class VideoWindow:
    """Which frames of a file are wanted.

    Parameters
    ----------
    start_seconds : float
        Time of the first frame, measured from the start of the file.
    num_frames : int >= 1
        Number of frames; frame i is the one on screen at ``start_seconds + i / fps``.
    fps : float > 0
        Frames a second after sampling, whatever the rate of the file.
    short_side : int or None
        Shrink frames so that their short side has this many pixels (never enlarged); None keeps the size.
    """

    start_seconds: float
    num_frames: int
    fps: float
    short_side: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.fps <= 0:
            raise ValueError(f"a video window needs num_frames >= 1 and fps > 0; got {self}")
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side must be at least 1 pixel or None; got {self.short_side}")


@dataclass(frozen=True)
class AudioWindow:
    """Which part of the sound of a file is wanted, mixed to mono.

    Parameters
    ----------
    start_seconds : float
        Time of the first sample, measured from the start of the file.
    duration_seconds : float > 0
        Length; the waveform has ``round(duration_seconds * sample_rate)`` samples.
    sample_rate : int > 0
        Samples a second after resampling, in hertz.
    """

    start_seconds: float
    duration_seconds: float
    sample_rate: int

    def __post_init__(self) -> None:
        if self.duration_seconds <= 0 or self.sample_rate <= 0:
            raise ValueError(f"an audio window needs duration_seconds > 0 and sample_rate > 0; got {self}")

    @property
    def num_samples(self) -> int:
        """Number of samples of the waveform."""
        return round(self.duration_seconds * self.sample_rate)


@dataclass(frozen=True, repr=False)
class Clip:
    """Frames and sound of one stretch of a file, on one time base.

    Parameters
    ----------
    frames : Tensor or None
        uint8, (T, H, W, 3), RGB; None when no video was asked for.
    waveform : Tensor or None
        float32, (channels, samples), in [-1, 1]; None when no audio was asked for.
    fps : float
        Frames a second of `frames` (0 without video).
    sample_rate : int
        Samples a second of `waveform` (0 without audio).
    video_start_seconds, audio_start_seconds : float
        Time of the first frame and of the first sample, from the start of the file.
    row : int
        Row of the manifest the clip comes from, -1 if none.
    """

    frames: Tensor | None
    waveform: Tensor | None
    fps: float
    sample_rate: int
    video_start_seconds: float
    audio_start_seconds: float
    row: int = -1

    def __post_init__(self) -> None:
        if self.frames is not None and (
            self.frames.dtype != torch.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3
        ):
            raise ValueError(
                f"frames must be uint8 (T, H, W, 3); got {self.frames.dtype} {tuple(self.frames.shape)}"
            )
        if self.waveform is not None and (self.waveform.dtype != torch.float32 or self.waveform.ndim != 2):
            raise ValueError(
                "waveform must be float32 (channels, samples); "
                f"got {self.waveform.dtype} {tuple(self.waveform.shape)}"
            )

    def __repr__(self) -> str:
        frames = None if self.frames is None else tuple(self.frames.shape)
        waveform = None if self.waveform is None else tuple(self.waveform.shape)
        return (
            f"Clip(row={self.row}, "
            f"frames={frames} at {self.fps:g} fps from {self.video_start_seconds:.3f} s, "
            f"waveform={waveform} at {self.sample_rate} Hz from {self.audio_start_seconds:.3f} s)"
        )


DecoderName = Literal["pyav", "decord", "torchcodec", "auto"]
"""Which library a `ClipReader` decodes frames with; auto is the first that works."""


class ClipReader(Protocol):
    """Anything that reads a `Clip` from a file; one implementation a library (see `avssl.decode`)."""

    def read(
        self,
        path: Source,
        video: VideoWindow | None = None,
        audio: AudioWindow | None = None,
        row: int = -1,
        audio_source: Source | None = None,
    ) -> Clip:
        """Read the requested windows of a source on its time base.

        Time zero is the earliest start of any stream of the source. Frame i is the one on screen at its time:
        the latest that is due, the first before any is due, the last after the end. Frames are upright. Sound
        outside the source is zeros.

        Parameters
        ----------
        path : str, Path or Part
            The source.
        video, audio : VideoWindow, AudioWindow or None
            What to read; at least one is needed.
        row : int
            Passed on to the clip.
        audio_source : str, Path, Part or None
            Where the sound is, if not in `path`; its time is counted from its own start.

        Returns
        -------
        Clip
            Frames (T, H, W, 3) uint8 and waveform (1, samples) float32, each None when not asked for.

        Raises
        ------
        DecodeError
            Stage "open", "video" or "audio": the source cannot be opened, lacks the stream, or nothing of
            the stream can be decoded inside the window.
        ValueError
            Neither window is given.
        """
        ...


class Progress(Protocol):
    """What long work reports to; the work does not know whether anybody is watching."""

    def update(self, completed: int, total: int | None = None, **fields: object) -> None:
        """Say how much is done.

        Parameters
        ----------
        completed : int
            Steps or files done in all.
        total : int, optional
            New total, when it is known only now.
        **fields
            Shown by name, such as ``loss=3.21``. A field ``rate`` replaces the measured one.
        """
        ...


@dataclass(frozen=True)
class Views:
    """What an objective sees: augmented, normalised tensors on the training device.

    Parameters
    ----------
    video : tuple of Tensor, each (B, 3, T, H, W)
        Views of the frames (an image is T = 1); may be empty.
    audio : tuple of Tensor, each (A, 1, frames, bins)
        Views of the sound as spectrograms, of the A = B samples or of those in `sounding`; may be empty.
    index : Tensor, (B,), int64
        Instance number of each sample: its row in the manifest and in the memory bank.
    sounding : Tensor, (A,), int64, or None
        Places in the batch of the samples that have sound, in the order of the audio views; None for all.
    """

    video: tuple[Tensor, ...]
    audio: tuple[Tensor, ...]
    index: Tensor
    sounding: Tensor | None = None

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def with_sound(self, x: Tensor) -> Tensor:
        """Those of the batch's rows (B, ...) whose samples have sound, (A, ...)."""
        return x if self.sounding is None else x[self.sounding]


@runtime_checkable
class Encoder(Protocol):
    """A module that maps (B, ...) to (B, dim)."""

    dim: int

    def __call__(self, x: Tensor) -> Tensor:
        """Features of a batch, (B, dim)."""
        ...
