"""Rows of a manifest as clips. A file that cannot be read gives a `Failure`, never another file's clip."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch.utils.data import Dataset

from avssl.data.manifest import Manifest
from avssl.data.presence import common_folder, require_folder
from avssl.data.remote import CannotFetchError, is_url, local_copy
from avssl.data.sampling import AudioSpec, VideoSpec, Windows, clip_windows, eval_windows
from avssl.data.tables import Sample
from avssl.errors import DecodeError, ManifestError
from avssl.types import AudioWindow, Clip, ClipReader, VideoWindow

SILENCE_DB = -80.0
"""A waveform whose peak lies below this level (dB relative to full scale) counts as silent."""


NO_MEMORY = "there was no memory left to read the file"
"""Reason of such a `Failure`."""

MEMORY_SIGNS = ("MemoryError", "allocate memory", "allocate shared memory", "out of memory",
                "not enough memory", "unable to mmap", "unable to resize file")  # fmt: skip
"""How Python, torch and the system say that memory ran out; torch has no class of error for it."""


class ClipKey(NamedTuple):
    """Which clip: the epoch, the row of the manifest, and which of the clips of that row in that epoch."""

    epoch: int
    row: int
    repeat: int = 0


@dataclass(frozen=True)
class Failure:
    """A clip that could not be had.

    Parameters
    ----------
    row : int
        Row of the manifest.
    id, path : str
        Id of the sample, absolute path of its file.
    stage : str
        ``"open"``, ``"video"``, ``"audio"``, ``"silent"``, or ``"worker"``: the process that read it died,
        hung or had no memory left.
    reason : str
        What went wrong, in words.
    """

    row: int
    id: str
    path: str
    stage: str
    reason: str


class ClipDataset(Dataset[Clip | Failure]):
    """Training clips: `dataset[ClipKey(epoch, row, repeat)]` is a `Clip` or a `Failure`.

    Parameters
    ----------
    manifest : Manifest
        Samples; all must have been probed.
    reader : ClipReader
        How files are read.
    video, audio : VideoSpec, AudioSpec or None
        What a clip holds; at least one.
    seed : int >= 0
        Decides, with the key, where clips start.
    max_offset_seconds : float >= 0
        Most time between frames and sound, see `clip_windows`.
    silent : "skip" or "keep"
        Whether a waveform whose peak is below -80 dB is a `Failure` of stage ``"silent"``.
    without_audio : "drop", "silence" or "video_only"
        Whether a file without sound is a `Failure` of stage ``"audio"``, has zeros for a waveform, which
        `silent` then judges, or has none; a clip of sound alone needs sound.

    Raises
    ------
    ManifestError
        When a sample was never probed, so that nobody knows how long it is.
    DataGoneError
        When a clip cannot be read because the folder of all files is missing or empty.
    """

    def __init__(
        self,
        manifest: Manifest,
        reader: ClipReader,
        video: VideoSpec | None,
        audio: AudioSpec | None,
        *,
        seed: int = 0,
        max_offset_seconds: float = 0.5,
        silent: Literal["skip", "keep"] = "skip",
        without_audio: Literal["drop", "silence", "video_only"] = "drop",
    ) -> None:
        if video is None and audio is None:
            raise ValueError("a clip holds video, audio or both; got neither")
        if silent not in ("skip", "keep"):
            raise ValueError(f"silent must be 'skip' or 'keep'; got {silent!r}")
        if without_audio not in ("drop", "silence", "video_only"):
            raise ValueError(
                f"without_audio must be 'drop', 'silence' or 'video_only'; got {without_audio!r}"
            )
        unprobed = manifest.table["duration_seconds"].to_numpy() == 0
        if unprobed.any():
            first = manifest.row(int(unprobed.argmax())).id
            raise ManifestError(
                f"{int(unprobed.sum())} of {len(manifest)} samples have no duration, the first is {first!r}; "
                "scan the list first: a scan probes each file"
            )
        self.manifest = manifest
        self.reader = reader
        self.video = video
        self.audio = audio
        self.seed = seed
        self.max_offset_seconds = max_offset_seconds
        self.silent = silent
        self.without_audio = without_audio
        self._folder = common_folder(manifest)

    def __len__(self) -> int:
        return len(self.manifest)

    def windows(self, sample: Sample, key: ClipKey) -> Windows:
        """Which parts of the file the clip holds."""
        return clip_windows(
            sample,
            self.video,
            self.audio,
            seed=self.seed,
            epoch=key.epoch,
            row=key.row,
            repeat=key.repeat,
            max_offset_seconds=self.max_offset_seconds,
        )

    def __getitem__(self, key: ClipKey) -> Clip | Failure:
        sample, path = self.manifest.row(key.row), self.manifest.path(key.row)

        def failed(stage: str, reason: str) -> Failure:
            return Failure(key.row, sample.id, path, stage, reason)

        if self.video is not None and not sample.has_video:
            return failed("video", "the file has no video stream")
        is_mute = self.audio is not None and not sample.has_audio
        if is_mute and (self.without_audio == "drop" or self.video is None):
            return failed("audio", "the file has no audio stream")
        video, audio = self.windows(sample, key)
        try:
            clip = self._read(sample, path, video, None if is_mute else audio, key.row)
        except CannotFetchError as error:
            return failed("open", str(error))
        except DecodeError as error:
            if not is_url(path):
                require_folder(self._folder, self.manifest)
            return failed(error.stage, error.reason)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            return failed("worker", NO_MEMORY)
        if is_mute and audio is not None and self.without_audio == "silence":
            clip = replace(
                clip,
                waveform=torch.zeros(1, audio.num_samples),
                sample_rate=audio.sample_rate,
                audio_start_seconds=audio.start_seconds,
            )
        if self.silent == "skip" and clip.waveform is not None:
            peak = float(clip.waveform.abs().max())
            level = 20 * math.log10(peak) if peak > 0 else -math.inf
            if level < SILENCE_DB:
                # Whole decibels, so that the windows of one silent file give few different reasons.
                return failed("silent", f"the peak is {level:.0f} dB, below {SILENCE_DB:.0f} dB")
        return clip

    def _read(
        self, sample: Sample, path: str, video: VideoWindow | None, audio: AudioWindow | None, row: int
    ) -> Clip:
        local = local_copy(path)
        try:
            source, sound = sample.sources(local)
            return self.reader.read(source, video, audio, row=row, audio_source=sound)
        except DecodeError:
            if local == path or os.path.exists(local):
                raise
        # Another process made room for its shard with ours, just before it was opened.
        source, sound = sample.sources(local_copy(path))
        return self.reader.read(source, video, audio, row=row, audio_source=sound)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in MEMORY_SIGNS)


class EvalDataset(ClipDataset):
    """Evaluation clips: `dataset[ClipKey(0, row, i)]` is clip `i` of the evenly spaced ones of a row.

    Parameters
    ----------
    manifest, reader, video, audio, silent
        As in `ClipDataset`; silent windows are kept by default, because every sample has to be judged.
    num_clips : int >= 1
        Clips a sample.
    """

    def __init__(
        self,
        manifest: Manifest,
        reader: ClipReader,
        video: VideoSpec | None,
        audio: AudioSpec | None,
        *,
        num_clips: int = 1,
        silent: Literal["skip", "keep"] = "keep",
    ) -> None:
        super().__init__(manifest, reader, video, audio, silent=silent)
        self.num_clips = num_clips

    def windows(self, sample: Sample, key: ClipKey) -> Windows:
        """Which parts of the file clip ``key.repeat`` holds."""
        return eval_windows(sample, self.video, self.audio, self.num_clips)[key.repeat]
