"""The dataset: a clip or a failure for each key, never another sample."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from avssl.data.dataset import ClipDataset, ClipKey, EvalDataset, Failure
from avssl.data.manifest import Manifest
from avssl.data.sampling import AudioSpec, VideoSpec, clip_windows, eval_windows
from avssl.data.tables import Sample
from avssl.errors import ManifestError
from avssl.types import Clip

VIDEO, AUDIO = VideoSpec(4, 8.0), AudioSpec(0.5, 1000)


def test_clip_has_the_windows_of_its_key(manifest, reader) -> None:
    dataset = ClipDataset(manifest, reader, VIDEO, AUDIO, seed=5, max_offset_seconds=0.2)
    clip = dataset[ClipKey(2, 6, 1)]
    expected = clip_windows(
        manifest.row(6), VIDEO, AUDIO, seed=5, epoch=2, row=6, repeat=1, max_offset_seconds=0.2
    )
    assert isinstance(clip, Clip)
    assert clip.row == 6
    assert reader.calls == [(manifest.path(6), *expected)]
    assert len(dataset) == 10


def test_undecodable_file_is_a_failure_of_that_file(manifest, reader) -> None:
    dataset = ClipDataset(manifest, reader, VIDEO, AUDIO)
    assert dataset[ClipKey(0, 3)] == Failure(
        3, "clip3_broken.mp4", str(manifest.root / "clip3_broken.mp4"), "video", "no frame can be decoded"
    )
    assert len(reader.calls) == 1


@pytest.mark.parametrize("missing", ["video", "audio"])
def test_missing_stream_is_a_failure_without_opening(missing: str, manifest, reader) -> None:
    row = dataclasses.replace(manifest.row(0), **{f"has_{missing}": False})
    lacking = Manifest.from_samples([row], "/media")
    failure = ClipDataset(lacking, reader, VIDEO, AUDIO)[ClipKey(0, 0)]
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.reason) == (missing, f"the file has no {missing} stream")
    assert reader.calls == []
    other = {"video": (None, AUDIO), "audio": (VIDEO, None)}[missing]
    assert isinstance(ClipDataset(lacking, reader, *other)[ClipKey(0, 0)], Clip)


def test_silent_window_is_skipped_or_kept(manifest, reader) -> None:
    failure = ClipDataset(manifest, reader, VIDEO, AUDIO, silent="skip")[ClipKey(0, 5)]
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.reason) == ("silent", "the peak is -inf dB, below -80 dB")
    kept = ClipDataset(manifest, reader, VIDEO, AUDIO, silent="keep")[ClipKey(0, 5)]
    assert isinstance(kept, Clip)
    assert isinstance(ClipDataset(manifest, reader, VIDEO, None)[ClipKey(0, 5)], Clip)


@pytest.mark.parametrize(("peak", "silent"), [(1.01e-4, False), (0.9e-4, True)])
def test_silence_is_a_peak_below_minus_80_decibels(peak: float, silent: bool, manifest) -> None:
    class Quiet:
        def read(self, path, video=None, audio=None, row=-1, audio_source=None) -> Clip:
            waveform = torch.zeros(1, audio.num_samples)
            waveform[0, 7] = -peak
            return Clip(None, waveform, 0.0, audio.sample_rate, 0.0, 0.0, row)

    result = ClipDataset(manifest, Quiet(), None, AUDIO)[ClipKey(0, 0)]
    assert isinstance(result, Failure) == silent


def test_other_errors_of_the_reader_are_not_hidden(manifest) -> None:
    class Defective:
        def read(self, path, video=None, audio=None, row=-1, audio_source=None) -> Clip:
            raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        ClipDataset(manifest, Defective(), VIDEO, None)[ClipKey(0, 0)]


def test_evaluation_clips_are_those_of_eval_windows(manifest, reader) -> None:
    dataset = EvalDataset(manifest, reader, VIDEO, AUDIO, num_clips=3)
    clips = [dataset[ClipKey(0, 5, i)] for i in range(3)]
    assert all(isinstance(clip, Clip) for clip in clips)
    assert [call[1:] for call in reader.calls] == eval_windows(manifest.row(5), VIDEO, AUDIO, 3)


def test_samples_that_were_never_probed_are_refused(reader) -> None:
    manifest = Manifest.from_samples([Sample("a", "a"), Sample("b", "b", 0, 1, duration_seconds=1)], "/")
    with pytest.raises(ManifestError, match="1 of 2 samples have no duration, the first is 'a'; scan"):
        ClipDataset(manifest, reader, VIDEO, AUDIO)


def test_arguments_without_meaning_are_refused(manifest, reader) -> None:
    with pytest.raises(ValueError, match="got neither"):
        ClipDataset(manifest, reader, None, None)
    with pytest.raises(ValueError, match="silent must be 'skip' or 'keep'; got 'drop'"):
        ClipDataset(manifest, reader, VIDEO, AUDIO, silent="drop")
