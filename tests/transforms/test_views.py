import pytest
import torch
from torch import Tensor

from avssl.transforms import AudioAugment, LogSpectrogram, VideoAugment, VideoEval, ViewMaker
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


def test_augmentation_of_sound_without_a_spectrogram_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a spectrogram"):
        ViewMaker(VideoEval(16), None, AudioAugment(0.1))
