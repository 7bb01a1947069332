"""Where in a file a clip starts: pure functions, so that order, workers, ranks and resuming change nothing.

Sound and frames of one clip come from nearby but not equal times, as in AVID (Morgado et al. 2021; official
code: `max_offsync_augm`): the sound starts anywhere it fits, the frames start at most `max_offset_seconds`
before the sound does and end at most as much after it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avssl.data.tables import Sample
from avssl.types import AudioWindow, VideoWindow

Windows = tuple[VideoWindow | None, AudioWindow | None]


@dataclass(frozen=True)
class VideoSpec:
    """Frames of a clip.

    Parameters
    ----------
    num_frames : int >= 1
        Frames a clip.
    fps : float > 0
        Frames a second.
    short_side : int or None
        Size of the short side in pixels after decoding, see `avssl.types.VideoWindow`.
    """

    num_frames: int
    fps: float
    short_side: int | None = None

    def __post_init__(self) -> None:
        self.window(0.0)  # VideoWindow knows the rules

    @property
    def duration_seconds(self) -> float:
        """Length of a clip: num_frames / fps."""
        return self.num_frames / self.fps

    def window(self, start_seconds: float) -> VideoWindow:
        """The clip that starts at this time of the file."""
        return VideoWindow(start_seconds, self.num_frames, self.fps, self.short_side)


@dataclass(frozen=True)
class AudioSpec:
    """Sound of a clip.

    Parameters
    ----------
    duration_seconds : float > 0
        Length of a clip.
    sample_rate : int > 0
        Samples a second, in hertz.
    """

    duration_seconds: float
    sample_rate: int

    def __post_init__(self) -> None:
        self.window(0.0)  # AudioWindow knows the rules

    def window(self, start_seconds: float) -> AudioWindow:
        """The clip that starts at this time of the file."""
        return AudioWindow(start_seconds, self.duration_seconds, self.sample_rate)


def clip_windows(
    sample: Sample,
    video: VideoSpec | None,
    audio: AudioSpec | None,
    *,
    seed: int,
    epoch: int,
    row: int,
    repeat: int = 0,
    max_offset_seconds: float = 0.5,
) -> Windows:
    """Windows of one training clip, a pure function of its arguments.

    With L the length of the sample, A and V those of the windows and m = `max_offset_seconds`, relative to
    the start of the sample: a ~ U[0, L - A]; v ~ U[max(0, a - m), min(L - V, a + A + m - V)]. Without sound v
    ~ U[0, L - V]. A window longer than the sample starts at 0; frames too long for that range are centred on
    the sound.

    Parameters
    ----------
    sample : Sample
        Row of the manifest; its `start_seconds` and `end_seconds` bound the clip.
    video, audio : VideoSpec, AudioSpec or None
        What is wanted; None for a modality that is not.
    seed, epoch, row, repeat : int >= 0
        Which random numbers: the same four give the same windows.
    max_offset_seconds : float >= 0
        Most time between the two windows.

    Returns
    -------
    (VideoWindow or None, AudioWindow or None)
        Times from the start of the file.
    """
    stream = np.random.SeedSequence(seed, spawn_key=(1, epoch, row, repeat))
    audio_share, video_share = np.random.Generator(np.random.Philox(stream)).random(2)
    length = sample.end_seconds - sample.start_seconds
    low, high = 0.0, length
    sound = None
    if audio is not None:
        start = float(audio_share) * max(0.0, length - audio.duration_seconds)
        sound = audio.window(sample.start_seconds + start)
        low, high = start - max_offset_seconds, start + audio.duration_seconds + max_offset_seconds
    if video is None:
        return None, sound
    first, last = _starts(low, high, video.duration_seconds, length)
    start = first + float(video_share) * (last - first)
    return video.window(sample.start_seconds + start), sound


def _starts(low: float, high: float, duration: float, length: float) -> tuple[float, float]:
    """Earliest and latest start of a window that stays within [low, high] and within [0, length]."""
    first, last = low, high - duration
    if last < first:
        first = last = (first + last) / 2
    room = max(0.0, length - duration)
    return min(max(first, 0.0), room), min(max(last, 0.0), room)


def eval_windows(
    sample: Sample, video: VideoSpec | None, audio: AudioSpec | None, num_clips: int
) -> list[Windows]:
    """Windows of the clips a sample is judged by: evenly spaced from start to end; one clip is the middle.

    Parameters
    ----------
    sample : Sample
        Row of the manifest.
    video, audio : VideoSpec, AudioSpec or None
        What is wanted. With both, the frames lie in the middle of the sound.
    num_clips : int >= 1
        Number of clips.

    Returns
    -------
    list of (VideoWindow or None, AudioWindow or None)
        One pair a clip.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1; got {num_clips}")
    length = sample.end_seconds - sample.start_seconds
    outer = audio or video
    room = 0.0 if outer is None else max(0.0, length - outer.duration_seconds)
    shares = [0.5] if num_clips == 1 else [i / (num_clips - 1) for i in range(num_clips)]
    windows: list[Windows] = []
    for start in (room * share for share in shares):
        frames = sound = None
        video_start = start
        if audio is not None:
            sound = audio.window(sample.start_seconds + start)
        if audio is not None and video is not None:
            # The sound of a short file ends with the file: the frames go to the middle of what is heard.
            end = min(start + audio.duration_seconds, length)
            middle = (start + end - video.duration_seconds) / 2
            video_start = min(max(middle, 0.0), max(0.0, length - video.duration_seconds))
        if video is not None:
            frames = video.window(sample.start_seconds + video_start)
        windows.append((frames, sound))
    return windows
