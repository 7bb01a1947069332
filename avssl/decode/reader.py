"""What all clip readers share: opening, time zero, the sound, and the clip at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any, ClassVar

from av.container import InputContainer
from torch import Tensor

from avssl.decode.container import failures_as_decode_error, open_container, require_stream, start_seconds
from avssl.decode.sound import read_sound
from avssl.decode.wave import read_wave
from avssl.errors import DecodeError
from avssl.types import AudioWindow, Clip, Source, VideoWindow


class Reader(ABC):
    """A `avssl.types.ClipReader` but for the frames, which each library decodes in its own way.

    Keeps no state, so one reader serves any number of threads and processes. A source is opened by PyAV once
    a clip; its sound is sought by itself, and of a WAVE file only the bytes of the window are read.
    """

    opens_quickly: ClassVar[bool] = False  # see `open_container`; what fails then is tried again thoroughly

    def read(
        self,
        path: Source,
        video: VideoWindow | None = None,
        audio: AudioWindow | None = None,
        row: int = -1,
        audio_source: Source | None = None,
    ) -> Clip:
        """Read the requested windows of a source, see `avssl.types.ClipReader.read`."""
        if video is None and audio is None:
            raise ValueError("nothing to read: give a video window, an audio window or both")
        frames = waveform = None
        if audio is not None and (video is None or audio_source is not None):
            waveform = _read_sound_alone(path if audio_source is None else audio_source, audio)
        if video is not None:
            together = audio if waveform is None else None
            try:
                frames, sound = self._read_streams(path, video, together, self.opens_quickly)
            except DecodeError:
                if not self.opens_quickly:
                    raise
                frames, sound = self._read_streams(path, video, together, False)
            waveform = waveform if sound is None else sound
        return Clip(
            frames=frames,
            waveform=waveform,
            fps=video.fps if video else 0.0,
            sample_rate=audio.sample_rate if audio else 0,
            video_start_seconds=video.start_seconds if video else 0.0,
            audio_start_seconds=audio.start_seconds if audio else 0.0,
            row=row,
        )

    def _read_streams(
        self, source: Source, video: VideoWindow, audio: AudioWindow | None, quick: bool
    ) -> tuple[Tensor, Tensor | None]:
        with open_container(source, quick) as container:
            with failures_as_decode_error(source, "open"):
                zero = start_seconds(container)
            stream = require_stream(source, container, "video")
            with failures_as_decode_error(source, "video"):
                frames = self._read_frames(source, container, stream, video, zero)
            return frames, None if audio is None else _read_stream(source, container, audio, zero)

    @abstractmethod
    def _read_frames(
        self, source: Source, container: InputContainer, stream: Any, window: VideoWindow, zero: Fraction
    ) -> Tensor:
        """Frames of `window`, uint8 (T, H, W, 3).

        `container` is the open source, `stream` its video, and time `zero` of its clock is the start of the
        source. Whatever in `avssl.decode.container.AV_FAILURES` is raised becomes a `DecodeError`.
        """


def _read_sound_alone(source: Source, window: AudioWindow) -> Tensor:
    with failures_as_decode_error(source, "audio"):
        waveform = read_wave(source, window)
    if waveform is not None:
        return waveform
    with open_container(source) as container:
        with failures_as_decode_error(source, "open"):
            zero = start_seconds(container)
        return _read_stream(source, container, window, zero)


def _read_stream(source: Source, container: InputContainer, window: AudioWindow, zero: Fraction) -> Tensor:
    stream = require_stream(source, container, "audio")
    with failures_as_decode_error(source, "audio"):
        return read_sound(container, stream, window, zero)
