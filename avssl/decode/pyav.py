"""Reads clips with PyAV (FFmpeg's libraries)."""

from __future__ import annotations

from pathlib import Path

from avssl.decode.container import failures_as_decode_error, open_container, require_stream, start_seconds
from avssl.decode.frames import read_frames
from avssl.decode.sound import read_sound
from avssl.types import AudioWindow, Clip, VideoWindow


class PyAVReader:
    """The `avssl.types.ClipReader` over PyAV; keeps no state, so one reader serves any number of threads.

    The file is opened once a clip. Video is sought to the key frame before the window, and frames that
    neither the window nor another frame needs are not decoded; audio is sought by itself. Frames equal those
    of a decode of the whole file bit for bit. They are upright (rotation of the container applied) and RGB.
    """

    def read(
        self,
        path: str | Path,
        video: VideoWindow | None = None,
        audio: AudioWindow | None = None,
        row: int = -1,
    ) -> Clip:
        """Read the requested windows of a file on its time base.

        Time zero is the earliest start of any stream of the file. Frame i is the one on screen at its time:
        the latest that is due, the first before any is due, the last after the end. Sound outside the file is
        zeros.

        Parameters
        ----------
        path : str or Path
            The file.
        video, audio : VideoWindow, AudioWindow or None
            What to read; at least one is needed.
        row : int
            Passed on to the clip.

        Returns
        -------
        Clip
            Frames (T, H, W, 3) uint8 and waveform (1, samples) float32, each None when not asked for.

        Raises
        ------
        DecodeError
            Stage "open", "video" or "audio": the file cannot be opened, lacks the stream, or nothing of the
            stream can be decoded inside the window.
        ValueError
            Neither window is given.
        """
        if video is None and audio is None:
            raise ValueError("nothing to read: give a video window, an audio window or both")
        frames = waveform = None
        with open_container(path) as container:
            with failures_as_decode_error(path, "open"):
                zero = start_seconds(container)
            if video is not None:
                stream = require_stream(path, container, "video")
                with failures_as_decode_error(path, "video"):
                    frames = read_frames(container, stream, video, zero)
            if audio is not None:
                stream = require_stream(path, container, "audio")
                with failures_as_decode_error(path, "audio"):
                    waveform = read_sound(container, stream, audio, zero)
        return Clip(
            frames=frames,
            waveform=waveform,
            fps=video.fps if video else 0.0,
            sample_rate=audio.sample_rate if audio else 0,
            video_start_seconds=video.start_seconds if video else 0.0,
            audio_start_seconds=audio.start_seconds if audio else 0.0,
            row=row,
        )
