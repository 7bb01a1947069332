import contextlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from avssl.errors import ConfigError
from avssl.transforms import AudioAugment, LogSpectrogram, VideoAugment, VideoEval, ViewMaker
from avssl.transforms.multi_view import CropSpec, MultiView, make_views
from avssl.types import Views


def batch(num_clips: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = [
        torch.randint(0, 256, (2, 20 + i, 30, 3), generator=generator, dtype=torch.uint8)
        for i in range(num_clips)
    ]
    return frames, torch.randn(num_clips, 1, 4800, generator=generator), torch.arange(num_clips) + 7


def test_training_views_have_both_modalities_and_repeat_with_the_generator() -> None:
    maker = ViewMaker(VideoAugment(16), LogSpectrogram(), AudioAugment(0.1))
    first, again, other = (maker(*batch(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert isinstance(first, Views)
    assert [view.shape for view in first.video] == [(3, 3, 2, 16, 16)]
    assert [view.shape for view in first.audio] == [(3, 1, 20, 257)]
    assert first.index.tolist() == [7, 8, 9]
    assert len(first) == 3
    assert torch.equal(first.video[0], again.video[0])
    assert torch.equal(first.audio[0], again.audio[0])
    assert not torch.equal(first.video[0], other.video[0])
    assert not torch.equal(first.audio[0], other.audio[0])


def test_evaluation_views_do_not_depend_on_the_generator() -> None:
    maker = ViewMaker(VideoEval(16), LogSpectrogram())
    first, other = maker(*batch(), torch.Generator().manual_seed(1)), maker(*batch())
    assert torch.equal(first.video[0], other.video[0])
    assert torch.equal(first.audio[0], LogSpectrogram()(batch()[1]))


@pytest.mark.parametrize("frames", [None, []])
def test_audio_only_batch_has_no_video_view(frames: list[Tensor] | None) -> None:
    _, waveform, index = batch()
    views = ViewMaker(VideoEval(16), LogSpectrogram())(frames, waveform, index)
    assert views.video == ()
    assert len(views.audio) == 1


@pytest.mark.parametrize("waveform", [None, torch.empty(0), torch.empty(3, 1, 0)])
def test_video_only_batch_has_no_audio_view(waveform: Tensor | None) -> None:
    frames, _, index = batch()
    views = ViewMaker(VideoEval(16), LogSpectrogram())(frames, waveform, index)
    assert views.audio == ()
    assert len(views.video) == 1


def test_modality_without_a_transform_is_left_out() -> None:
    assert ViewMaker(None, LogSpectrogram())(*batch()).video == ()
    assert ViewMaker(VideoEval(16), None)(*batch()).audio == ()


def test_counts_that_disagree_are_named() -> None:
    maker = ViewMaker(VideoEval(16), LogSpectrogram())
    frames, waveform, index = batch()
    with pytest.raises(ValueError, match="frames has 2 clips but index has 3"):
        maker(frames[:2], waveform, index)
    with pytest.raises(ValueError, match="waveform has 2 clips but index has 3"):
        maker(frames, waveform[:2], index)
    with pytest.raises(ValueError, match="waveform has 2 clips but sounding has 1"):
        maker(frames, waveform[:2], index, sounding=torch.tensor([2]))


def test_clips_without_sound_have_views_of_video_alone() -> None:
    maker = ViewMaker(VideoEval(16), LogSpectrogram())
    frames, waveform, index = batch()
    whole, views = (
        maker(frames, waveform, index),
        maker(frames, waveform[1:], index, None, torch.tensor([1, 2])),
    )
    assert torch.equal(views.video[0], whole.video[0])
    assert torch.equal(views.audio[0], whole.with_sound(whole.audio[0])[1:])
    assert torch.equal(views.with_sound(index), index[1:])


def test_augmentation_of_sound_without_a_spectrogram_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a spectrogram"):
        ViewMaker(VideoEval(16), None, AudioAugment(0.1))


def test_one_view_is_what_its_transform_gives() -> None:
    frames, waveform, index = batch()
    used, expected = (torch.Generator().manual_seed(5) for _ in range(2))
    views = ViewMaker(VideoAugment(16), LogSpectrogram(), AudioAugment(0.1))(frames, waveform, index, used)
    assert len(views.video) == 1
    assert torch.equal(views.video[0], VideoAugment(16)(frames, expected))
    assert torch.equal(views.audio[0], LogSpectrogram()(AudioAugment(0.1)(waveform, expected)))
    assert torch.equal(used.get_state(), expected.get_state())


def test_several_views_come_in_order_with_draws_of_their_own() -> None:
    frames, waveform, index = batch()
    transforms = make_views([CropSpec(16, count=2), CropSpec(8, blur=0.5, max_area=0.3)])
    maker = ViewMaker(MultiView(transforms), LogSpectrogram(), AudioAugment(0.1))
    views = maker(frames, waveform, index, torch.Generator().manual_seed(5))
    assert [view.shape for view in views.video] == [(3, 3, 2, 16, 16)] * 2 + [(3, 3, 2, 8, 8)]
    assert not torch.equal(views.video[0], views.video[1])

    generator = torch.Generator().manual_seed(5)
    for view, transform in zip(views.video, transforms, strict=True):
        assert torch.equal(view, transform(frames, generator))
    assert torch.equal(views.audio[0], LogSpectrogram()(AudioAugment(0.1)(waveform, generator)))
    again, other = (maker(*batch(), torch.Generator().manual_seed(seed)) for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(views.video, again.video, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(views.video, other.video, strict=True))


def test_several_views_are_made_where_the_module_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without data shows that no step asks it for numbers and that none mixes devices."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no "meta"
    crop = CropSpec(16, 2, jitter_prob=0.8, gray=0.5, blur=0.5, solarize=0.5, interpolation="bicubic")
    maker = ViewMaker(MultiView(make_views([crop, CropSpec(8, max_area=0.3)])), None).to("meta")
    frames, _, index = batch(12)
    views = maker(frames, None, index, torch.Generator().manual_seed(0))
    assert [view.device.type for view in views.video] == ["meta"] * 3
    assert [view.shape[-1] for view in views.video] == [16, 16, 8]


def test_several_views_send_the_frames_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    frames, seen = batch()[0], []

    class Spy(VideoEval):
        def forward(self, frames: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
            seen.extend((clip.device.type, tuple(clip.shape)) for clip in frames)
            return super().forward(frames, generator)

    MultiView([Spy(8), Spy(8)]).to("meta")(frames)
    assert seen == [("meta", tuple(clip.shape)) for clip in frames] * 2


def test_no_views_and_no_clips_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one view; got none"):
        MultiView([])
    with pytest.raises(ValueError, match="at least one clip; got none"):
        MultiView([VideoAugment(8)])([])
