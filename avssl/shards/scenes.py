"""Where the scene changes, found by PySceneDetect."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

from avssl.data import Skipped
from avssl.decode.container import open_container, pick_stream, start_seconds
from avssl.errors import DecodeError, PrepareError
from avssl.shards.plan import Task
from avssl.types import Part, Source

MIN_SCENE_SECONDS = 2.0
"""Shorter scenes are joined with their neighbours: a clip with its sound is about that long."""


def require_scenedetect() -> None:
    """Raise `PrepareError` unless the library is installed."""
    try:
        import scenedetect  # noqa: F401
    except ImportError as error:
        raise PrepareError(
            f"cutting into scenes needs PySceneDetect ({error}): pip install 'avssl[scenes]'"
        ) from error


def find_cuts(task: Task) -> list[float] | Skipped:
    """Times of the scene changes within a sample, in seconds of its file."""
    from scenedetect import ContentDetector, SceneManager
    from scenedetect.backends.pyav import VideoStreamAv

    sample = task.sample
    try:
        offset = _first_frame_seconds(task.video)
        with _opened(task.video) as file:
            video: Any = VideoStreamAv(file, name=sample.id, suppress_output=True)
            if sample.start_seconds > offset:
                video.seek(sample.start_seconds - offset)
            manager = SceneManager()
            manager.add_detector(ContentDetector(min_scene_len=MIN_SCENE_SECONDS))
            manager.detect_scenes(video, end_time=sample.end_seconds - offset)
            scenes = manager.get_scene_list()
    except DecodeError as error:
        return Skipped(sample.id, error.stage, error.reason)
    except Exception as error:  # the library raises what its backends raise
        return Skipped(sample.id, "video", f"no scenes: {type(error).__name__}: {error}")
    return [float(start.seconds) + offset for start, _ in scenes[1:]]


def _first_frame_seconds(source: Source) -> float:
    """Time of the first frame on the clock of the file; the library counts from it."""
    with open_container(source) as container:
        stream = pick_stream(container, "video")
        if stream is None or stream.start_time is None:
            return 0.0
        return float(stream.start_time * stream.time_base - start_seconds(container))


def _opened(source: Source) -> BinaryIO:
    if isinstance(source, Part):
        with open(source.path, "rb") as file:
            file.seek(source.offset_bytes)
            return io.BytesIO(file.read(source.num_bytes))
    return Path(source).open("rb")
