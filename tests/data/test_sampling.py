"""Windows: where they may lie, that they depend on the key alone, and how they are spread."""

from __future__ import annotations

import numpy as np
import pytest

from avssl.data.sampling import AudioSpec, VideoSpec, clip_windows, eval_windows
from avssl.data.tables import Sample

VIDEO, AUDIO = VideoSpec(8, 16.0), AudioSpec(2.0, 24000)


def sample(length: float, start: float = 0.0) -> Sample:
    return Sample("a", "a", start, start + length, duration_seconds=start + length + 3)


def starts(length: float, count: int = 4000, video: VideoSpec = VIDEO, offset: float = 0.5) -> np.ndarray:
    pairs = [
        clip_windows(sample(length), video, AUDIO, seed=0, epoch=0, row=row, max_offset_seconds=offset)
        for row in range(count)
    ]
    return np.array([[v.start_seconds, a.start_seconds] for v, a in pairs])


def test_windows_are_a_function_of_seed_epoch_row_and_repeat() -> None:
    key = {"seed": 3, "epoch": 1, "row": 7, "repeat": 2}
    first = clip_windows(sample(10), VIDEO, AUDIO, **key)
    assert clip_windows(sample(10), VIDEO, AUDIO, **key) == first
    others = [clip_windows(sample(10), VIDEO, AUDIO, **(key | {name: 9})) for name in key]
    assert len({first, *others}) == 5


def test_windows_stay_in_the_file_and_near_each_other() -> None:
    video, audio = starts(3.0).T
    assert audio.min() >= 0
    assert audio.max() <= 1.0
    assert video.min() >= 0
    assert video.max() <= 3.0 - 0.5 + 1e-9
    assert (video >= audio - 0.5 - 1e-9).all()
    assert (video + 0.5 <= audio + 2.5 + 1e-9).all()


def test_windows_are_uniform_over_their_range() -> None:
    video, audio = starts(60.0).T
    assert np.quantile(audio, [0.1, 0.5, 0.9]) == pytest.approx(58 * np.array([0.1, 0.5, 0.9]), abs=2.0)
    inner = (audio > 1) & (audio < 57)
    offset = (video - audio)[inner]
    assert np.quantile(offset, [0.0, 0.5, 1.0]) == pytest.approx([-0.5, 0.75, 2.0], abs=0.1)


def test_windows_are_relative_to_the_segment() -> None:
    key = {"seed": 0, "epoch": 0, "row": 0}
    video, audio = clip_windows(sample(10), VIDEO, AUDIO, **key)
    later_video, later_audio = clip_windows(sample(10, start=100), VIDEO, AUDIO, **key)
    assert later_video.start_seconds == pytest.approx(video.start_seconds + 100)
    assert later_audio.start_seconds == pytest.approx(audio.start_seconds + 100)


def test_a_file_shorter_than_the_windows_starts_at_zero() -> None:
    assert (starts(0.3, count=20) == 0).all()
    video, audio = starts(1.2, count=500).T
    assert (audio == 0).all()
    assert video.max() <= 1.2 - 0.5
    assert video.max() > 0.6


def test_frames_longer_than_the_reach_are_centred_on_the_sound() -> None:
    video, audio = starts(60.0, count=200, video=VideoSpec(64, 16.0), offset=0.5).T
    inner = (audio > 1) & (audio < 57)
    assert (video + 2.0)[inner] == pytest.approx((audio + 1.0)[inner])


def test_offset_zero_keeps_frames_inside_the_sound() -> None:
    video, audio = starts(10.0, offset=0.0).T
    assert (video >= audio - 1e-9).all()
    assert (video + 0.5 <= audio + 2.0 + 1e-9).all()


def test_one_modality_alone() -> None:
    key = {"seed": 0, "epoch": 0}
    times = [clip_windows(sample(10), VIDEO, None, **key, row=row) for row in range(500)]
    assert all(sound is None for _, sound in times)
    assert min(v.start_seconds for v, _ in times) < 0.2
    assert max(v.start_seconds for v, _ in times) > 9.3
    both = clip_windows(sample(10), VIDEO, AUDIO, **key, row=4)
    assert clip_windows(sample(10), None, AUDIO, **key, row=4) == (None, both[1])


def test_specs_reach_the_windows() -> None:
    video, audio = clip_windows(
        sample(10), VideoSpec(4, 8.0, 128), AudioSpec(1.5, 16000), seed=0, epoch=0, row=0
    )
    assert (video.num_frames, video.fps, video.short_side) == (4, 8.0, 128)
    assert (audio.duration_seconds, audio.sample_rate) == (1.5, 16000)
    with pytest.raises(ValueError, match="num_frames >= 1"):
        VideoSpec(0, 8.0)
    with pytest.raises(ValueError, match="sample_rate > 0"):
        AudioSpec(1.0, 0)


def test_eval_windows_are_evenly_spaced_and_centred() -> None:
    windows = eval_windows(sample(10, start=5), VIDEO, AUDIO, 5)
    assert [a.start_seconds for _, a in windows] == pytest.approx([5, 7, 9, 11, 13])
    assert [v.start_seconds for v, _ in windows] == pytest.approx([5.75, 7.75, 9.75, 11.75, 13.75])


def test_one_eval_window_is_the_middle() -> None:
    [(video, audio)] = eval_windows(sample(10), VIDEO, AUDIO, 1)
    assert audio.start_seconds == pytest.approx(4.0)
    assert video.start_seconds == pytest.approx(4.75)
    [(video, none)] = eval_windows(sample(10), VIDEO, None, 1)
    assert none is None
    assert video.start_seconds == pytest.approx(4.75)


def test_eval_windows_of_a_short_file_lie_where_there_is_something() -> None:
    for video, audio in eval_windows(sample(1.0), VIDEO, AUDIO, 3):
        assert audio.start_seconds == 0
        assert video.start_seconds == pytest.approx(0.25)
    with pytest.raises(ValueError, match="num_clips"):
        eval_windows(sample(1.0), VIDEO, AUDIO, 0)
