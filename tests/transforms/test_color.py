import itertools

import pytest
import torch
from torch import Tensor
from torchvision.transforms import ColorJitter as TorchvisionJitter
from torchvision.transforms import functional as tv

from avssl.errors import ConfigError
from avssl.transforms import ColorJitter
from avssl.transforms.clip_colour import colour_clip
from avssl.transforms.color import shift_hue
from avssl.transforms.resample import Axis, resample_in_turn

ADJUST = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
}


def random_clips(num_clips: int, num_frames: int = 3, size: int = 12) -> Tensor:
    x = torch.rand(num_clips, 3, num_frames, size, size, generator=torch.Generator().manual_seed(0))
    x[:, :, :, 0] = x[:, :1, :, 0]  # gray pixels
    x[:, :, :, 1, :4] = torch.tensor([0.0, 1.0]).repeat(2)  # black and white
    x[:, 0, :, 2] = x[:, 1, :, 2]  # two channels share the maximum or the minimum
    return x


@pytest.mark.parametrize(
    "strengths",
    [
        (0.4, 0.4, 0.4, 0.2),
        (1.0, 1.0, 1.0, 0.5),
        (0.4, 0.4, 0.4, 0.0),
        (0.4, 0.0, 0.0, 0.0),
        (0.0, 0.7, 0.0, 0.1),
        (0.0, 0.0, 0.4, 0.0),
        (0.0, 0.0, 0.0, 0.5),
    ],
)
def test_jitter_equals_torchvision_in_each_clips_order(strengths: tuple[float, ...]) -> None:
    x = random_clips(16)
    before = x.clone()
    jitter = ColorJitter(*strengths)
    jittered = jitter(x, torch.Generator().manual_seed(2))
    factors, order = jitter.draw(len(x), torch.Generator().manual_seed(2))
    names = list(jitter.strengths)
    assert len(names) == sum(strength > 0 for strength in strengths)
    for b in range(len(x)):
        images = x[b].transpose(0, 1)
        for op in order[b].tolist():
            images = ADJUST[names[op]](images, float(factors[b, op]))
        torch.testing.assert_close(jittered[b], images.transpose(0, 1), rtol=0, atol=2e-5)
    assert torch.equal(x, before)


def test_jitter_of_all_clips_at_once_equals_that_of_one_after_the_other() -> None:
    x = random_clips(24)
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.2)
    drawn = jitter.draw(len(x), torch.Generator().manual_seed(3))
    at_once, in_turn = jitter._apply_at_once(x, *drawn), jitter.apply_factors(x.clone(), *drawn)
    torch.testing.assert_close(at_once, in_turn, rtol=0, atol=2e-5)
    assert (at_once - x).abs().max() > 0.1


def test_hue_equals_torchvision_for_any_turn() -> None:
    """Both ways: that of accelerators and that of processors."""
    turns = torch.cat([torch.linspace(-0.5, 0.5, 21), torch.arange(-3, 4) / 6])
    x = random_clips(len(turns))
    turned = shift_hue(x, turns)
    for b, turn in enumerate(turns.tolist()):
        expected = tv.adjust_hue(x[b].transpose(0, 1), turn).transpose(0, 1)
        torch.testing.assert_close(turned[b], expected, rtol=0, atol=2e-6)
        alone = x[b].clone()
        colour_clip(alone, [("hue", turn)])
        torch.testing.assert_close(alone, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
@pytest.mark.parametrize("brightness", [0.0, 1e-9, 0.3, 2.0])
def test_colours_of_a_clip_are_those_of_one_step_after_the_other(order: tuple, brightness: float) -> None:
    """In place, larger than the blocks that are worked on, and row by row from bytes; normalised."""
    steps = [("brightness", brightness), ("contrast", 1.7), ("saturation", 1.9), ("hue", -0.27)]
    operations = [steps[i] for i in order]
    source = (255 * random_clips(1, num_frames=2, size=45)[0]).byte().transpose(0, 1)
    images = source / 255
    for name, value in operations:
        images = ADJUST[name](images, value)
    expected = ((images - 0.4) / 0.2).transpose(0, 1)
    statistics = (0.4,) * 3, (0.2,) * 3
    for clip in (source.transpose(0, 1).float().contiguous(), source.float().transpose(0, 1)):
        colour_clip(clip, operations, 1 / 255, *statistics)
        torch.testing.assert_close(clip, expected, rtol=0, atol=1e-4)
    whole = Axis(*torch.tensor([[0, 45, 45, 0, 0]], dtype=torch.float64).T)
    for frames in (source.permute(0, 2, 3, 1), source.permute(0, 2, 3, 1).contiguous()):
        (clip,) = resample_in_turn([frames], whole, whole, 45, "bilinear", False, [operations], *statistics)
        torch.testing.assert_close(clip, expected, rtol=0, atol=1e-4)


def test_zero_strengths_do_no_work() -> None:
    x = random_clips(2)
    assert ColorJitter(0, 0, 0, 0)(x) is x


def test_factors_have_the_ranges_of_torchvision() -> None:
    strengths = (0.4, 1.5, 0.2, 0.3)
    factors, _ = ColorJitter(*strengths).draw(4000, torch.Generator().manual_seed(0))
    reference = TorchvisionJitter(*strengths)
    ranges = (reference.brightness, reference.contrast, reference.saturation, reference.hue)
    for column, (low, high) in zip(factors.T, ranges, strict=True):
        width = high - low
        assert low <= float(column.min()) < low + 0.01 * width
        assert high - 0.01 * width < float(column.max()) <= high
        assert float(column.mean()) == pytest.approx((low + high) / 2, abs=0.02 * width)


def test_orders_are_uniform_over_permutations() -> None:
    _, order = ColorJitter(0.4, 0.4, 0.4, 0.2).draw(9600, torch.Generator().manual_seed(0))
    permutations, counts = order.unique(dim=0, return_counts=True)
    assert len(permutations) == 24
    # 400 expected each, standard deviation 20.
    assert int(counts.min()) > 300
    assert int(counts.max()) < 500


@pytest.mark.parametrize(
    "strengths, message",
    [
        ((-0.1, 0, 0, 0), "brightness is -0.1"),
        ((0, 0, 0, 0.6), r"hue is 0.6; must be in \[0, 0.5\]"),
        ((0, float("nan"), 0, 0), "contrast is nan"),
    ],
)
def test_impossible_strengths_are_refused(strengths: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ColorJitter(*strengths)
