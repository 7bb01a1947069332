import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as v2

from avssl.errors import ConfigError
from avssl.transforms import IMAGENET_MEAN, IMAGENET_STD, VideoAugment, VideoEval
from avssl.transforms.boxes import random_boxes
from avssl.transforms.resample import LARGE_BYTES, Axis, new_views, pad_frames, resample, resample_in_turn

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def random_clip(height: int, width: int, num_frames: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, height, width, 3), generator=generator, dtype=torch.uint8)


def smooth_clip(height: int, width: int, seed: int) -> Tensor:
    """One frame of coloured blobs, as pictures are, rather than noise."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return (255 * fine.clamp(0, 1)).round().byte().permute(0, 2, 3, 1)


def as_images(clip: Tensor) -> Tensor:
    """(T, H, W, 3) uint8 to (T, 3, H, W) float in [0, 1]."""
    return clip.permute(0, 3, 1, 2).float() / 255


def drawn(sizes: list[tuple[int, int]], seed: int, min_area: float = 0.08) -> tuple[Tensor, Tensor]:
    """Boxes and flips that `VideoAugment` draws from a generator with this seed."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(torch.tensor(sizes, dtype=torch.float64), min_area, generator)
    return boxes.long(), torch.rand(len(sizes), generator=generator, dtype=torch.float64) < 0.5


def reference_view(clip: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    top, left, height, width = box.tolist()
    crop = as_images(clip)[:, :, top : top + height, left : left + width]
    view = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return (view.flip(-1) if flip else view).transpose(0, 1)


@pytest.mark.parametrize(
    "sizes",
    [
        [(96, 96)] * 6,
        [(240, 320), (120, 90), (64, 200), (20, 17), (180, 180)],  # shrinking and enlarging in one batch
        [(48, 16), (16, 48)],  # no box of an allowed ratio may fit: the centre
    ],
)
def test_augment_equals_crop_antialiased_resize_and_flip_a_clip(sizes: list[tuple[int, int]]) -> None:
    clips = [random_clip(height, width, seed=i) for i, (height, width) in enumerate(sizes)]
    augment = VideoAugment(56, jitter=(0, 0, 0, 0), **PLAIN)
    views = augment(clips, torch.Generator().manual_seed(5))
    boxes, flips = drawn(sizes, seed=5)
    assert views.shape == (len(sizes), 3, 3, 56, 56)
    assert views.dtype == torch.float32
    for i, clip in enumerate(clips):
        torch.testing.assert_close(views[i], reference_view(clip, boxes[i], flips[i], 56), rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_matrices_and_clip_by_clip_resample_alike(interpolation: str) -> None:
    """Accelerators have the first, processors the second."""
    clips = [random_clip(*size, seed=i) for i, size in enumerate([(40, 60), (70, 33), (24, 24)])]
    columns = {"rows": [[3, 30, 20, 2, 0], [0, 70, 45, 9, 0], [4, 11, 18, 1, 0]]}
    columns["columns"] = [[5, 44, 32, 0, 1], [1, 30, 24, 3, 0], [0, 24, 16, 0, 1]]
    axes = [Axis(*torch.tensor(values, dtype=torch.float64).T) for values in columns.values()]
    by_matrices = resample(
        pad_frames(clips), *(Axis(*(x.float() for x in axis)) for axis in axes), 16, interpolation
    )
    in_turn = resample_in_turn(clips, *axes, 16, interpolation)
    torch.testing.assert_close(by_matrices.clamp(0, 1), in_turn, rtol=0, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eight_bit_views_are_those_of_pillow(interpolation: str) -> None:
    sizes = [(96, 96), (240, 320), (64, 200), (20, 17)]
    clips = [random_clip(*shape, num_frames=1, seed=i) for i, shape in enumerate(sizes)]
    augment = VideoAugment(56, jitter=(0, 0, 0, 0), interpolation=interpolation, eight_bit=True, **PLAIN)
    views = 255 * augment(clips, torch.Generator().manual_seed(5))
    torch.testing.assert_close(views, views.round(), rtol=0, atol=1e-4)
    boxes, flips = drawn(sizes, seed=5)
    mode = tv.InterpolationMode(interpolation)
    for view, clip, box, flip in zip(views, clips, boxes.tolist(), flips, strict=True):
        image = tv.resized_crop(tv.to_pil_image(clip[0].permute(2, 0, 1)), *box, [56, 56], mode)
        image = tv.hflip(image) if flip else image
        torch.testing.assert_close(view[:, 0], 255 * tv.to_tensor(image), rtol=0, atol=1.01)


def test_eight_bit_views_differ_from_exact_ones_by_rounding() -> None:
    clips = [random_clip(*shape, seed=i) for i, shape in enumerate([(96, 96), (240, 320), (20, 17)])]
    exact, eight_bit = (
        255 * VideoAugment(56, jitter=(0, 0, 0, 0), eight_bit=choice, **PLAIN)(clips, generator)
        for choice, generator in ((choice, torch.Generator().manual_seed(5)) for choice in (False, True))
    )
    assert 0.1 < float((exact - eight_bit).abs().max()) < 1.1


def test_views_in_large_pages_are_memory_as_any_other() -> None:
    views = [new_views(2, LARGE_BYTES // 8 + 1).fill_(value) for value in (1.0, 2.0)]
    for value, view in enumerate(views, start=1):
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        assert bool((view == value).all())
    assert views[0].data_ptr() != views[1].data_ptr()
    views[0].share_memory_()
    assert bool((views[0] == 1).all())


def test_memory_of_large_views_is_used_again_once_nobody_has_them() -> None:
    def place(views: Tensor) -> int:
        return views.untyped_storage().data_ptr()

    shape = (3, LARGE_BYTES // 8)
    views = [new_views(*shape) for _ in range(2)]
    part, places = views[0][1:], [place(view) for view in views]
    del views
    assert place(new_views(*shape)) == places[1]  # a part of the first is still in use
    del part
    again = [new_views(*shape) for _ in range(2)]
    assert {place(view) for view in again} == {*places}


def test_augment_of_equal_frames_gives_equal_frames() -> None:
    clips = [random_clip(60, 80, num_frames=1, seed=i).expand(4, -1, -1, -1) for i in range(5)]
    views = VideoAugment(32)(clips, torch.Generator().manual_seed(0))
    torch.testing.assert_close(views, views[:, :, :1].expand_as(views))
    assert (views[0] - views[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "sizes, size, num_frames", [([(90, 120), (70, 64)], 40, 3), ([(256, 340), (240, 320)], 224, 8)]
)
def test_augment_order_is_crop_flip_jitter_normalise(
    sizes: list[tuple[int, int]], size: int, num_frames: int
) -> None:
    clips = [random_clip(*shape, num_frames, seed=i) for i, shape in enumerate(sizes)]
    augment = VideoAugment(size)
    views = augment(clips, torch.Generator().manual_seed(11))

    generator = torch.Generator().manual_seed(11)
    boxes = random_boxes(torch.tensor(sizes, dtype=torch.float64), 0.08, generator).tolist()
    flips = torch.rand(2, generator=generator, dtype=torch.float64) < 0.5
    factors, order = augment.jitter.draw(2, generator)
    adjust = (v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation, v2.adjust_hue)
    for i, clip in enumerate(clips):
        for t, image in enumerate(as_images(clip).double()):  # frame by frame: all have the clip's one draw
            image = v2.resized_crop(image, *map(int, boxes[i]), [size, size], antialias=True)
            image = v2.horizontal_flip(image) if flips[i] else image
            for op in order[i].tolist():
                image = adjust[op](image, float(factors[i, op]))
            expected = v2.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD))
            torch.testing.assert_close(views[i, :, t].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "jitter, most, mean",
    [
        ((0, 0, 0, 0), 1.1, 0.4),  # crop and resize round to a 255th, twice
        ((0.4, 0.4, 0.4, 0), 8, 3),  # each blend truncates, and scales what was rounded before
        ((0.4, 0.4, 0.4, 0.2), 30, 4),  # hue goes through HSV in 8 bits
    ],
)
def test_augment_differs_from_pillow_by_its_rounding(jitter: tuple, most: float, mean: float) -> None:
    """The official code jitters 8-bit Pillow images; differences in steps of 1/255."""
    clips = [smooth_clip(256, 340, seed=i) for i in range(8)]
    augment = VideoAugment(112, jitter=jitter, **PLAIN)
    views = augment(clips, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    boxes = random_boxes(torch.tensor([[256, 340]] * 8, dtype=torch.float64), 0.08, generator).tolist()
    flips = torch.rand(8, generator=generator, dtype=torch.float64) < 0.5
    factors, order = augment.jitter.draw(8, generator)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for i, clip in enumerate(clips):
        image = tv.to_pil_image(clip[0].permute(2, 0, 1))
        image = tv.resized_crop(image, *map(int, boxes[i]), [112, 112])
        image = tv.hflip(image) if flips[i] else image
        for op in order[i].tolist():
            image = adjust[op](image, float(factors[i, op]))
        difference = 255 * (views[i, :, 0] - tv.to_tensor(image)).abs()
        assert float(difference.max()) < most
        assert float(difference.mean()) < mean


def test_augment_repeats_with_its_generator_and_differs_otherwise() -> None:
    clips = [random_clip(50, 70, seed=i) for i in range(3)]
    augment = VideoAugment(24)
    first, again, other = (augment(clips, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augment_leaves_its_input_alone_and_ignores_autocast() -> None:
    clips = [random_clip(30, 30, seed=i) for i in range(2)]
    copies = [clip.clone() for clip in clips]
    augment = VideoAugment(16)
    plain = augment(clips, torch.Generator().manual_seed(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = augment(clips, torch.Generator().manual_seed(3))
    assert torch.equal(plain, under_autocast)
    assert all(torch.equal(a, b) for a, b in zip(clips, copies, strict=True))


@pytest.mark.parametrize("probability, expected", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_flip_has_its_probability(probability: float, expected: float) -> None:
    ramp = torch.arange(16, dtype=torch.uint8).mul(10).view(1, 1, 16, 1).expand(1, 16, 16, 3)
    augment = VideoAugment(8, min_area=0.5, flip=probability, jitter=(0, 0, 0, 0))
    views = augment([ramp] * 400, torch.Generator().manual_seed(0))
    share = (views[..., 0] > views[..., -1]).float().mean()
    assert abs(float(share) - expected) < 0.08


def test_random_boxes_follow_the_law_of_torchvision() -> None:
    height, width, count = 120, 160, 4000
    sizes = torch.tensor([[height, width]], dtype=torch.float64).expand(count, 2)
    boxes = random_boxes(sizes, 0.08, torch.Generator().manual_seed(0))
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    reference = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    ).double()
    assert (boxes >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width).all()
    for statistic in (
        lambda b: b[:, 2] * b[:, 3] / (height * width),
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0] / height,
        lambda b: b[:, 1] / width,
    ):
        ours, theirs = statistic(boxes), statistic(reference)
        grid = torch.linspace(float(theirs.min()), float(theirs.max()), 60, dtype=torch.float64)
        distance = (
            (ours[:, None] <= grid).double().mean(0) - (theirs[:, None] <= grid).double().mean(0)
        ).abs()
        # Kolmogorov-Smirnov at a level of 1e-3 for two samples of this size.
        assert float(distance.max()) < 1.95 * math.sqrt(2 / count)


def test_random_boxes_keep_the_official_limits() -> None:
    height, width = 1000, 1400  # large, so that rounding to pixels hardly moves area and ratio
    sizes = torch.tensor([[height, width]], dtype=torch.float64).expand(20000, 2)
    _, _, box_height, box_width = random_boxes(sizes, 0.08, torch.Generator().manual_seed(1)).unbind(1)
    area, ratio = box_height * box_width / (height * width), box_width / box_height
    assert 0.079 < float(area.min()) < 0.082
    assert 0.9 < float(area.max()) <= 1  # the whole frame has no allowed ratio
    assert 3 / 4 - 0.003 < float(ratio.min()) < 3 / 4 + 0.003
    assert 4 / 3 - 0.005 < float(ratio.max()) < 4 / 3 + 0.005


@pytest.mark.parametrize(
    "size, box", [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((9, 9), (0, 0, 9, 9))]
)
def test_random_boxes_fall_back_to_the_centre(size: tuple[int, int], box: tuple[int, ...]) -> None:
    # With the whole area asked for, no box of an allowed ratio fits a long frame, and only itself a square.
    sizes = torch.tensor([size], dtype=torch.float64)
    for seed in range(5):
        assert tuple(random_boxes(sizes, 1.0, torch.Generator().manual_seed(seed))[0].tolist()) == box
    assert RandomResizedCrop.get_params(torch.empty(3, *size), [1.0, 1.0], [3 / 4, 4 / 3]) == box


def test_random_boxes_of_a_clip_do_not_depend_on_the_other_sizes() -> None:
    mixed = torch.tensor([[64, 64], [200, 300], [90, 91]], dtype=torch.float64)
    alike = mixed[2:].expand(3, 2)
    first = random_boxes(mixed, 0.08, torch.Generator().manual_seed(4))
    second = random_boxes(alike, 0.08, torch.Generator().manual_seed(4))
    assert torch.equal(first[2], second[2])


@pytest.mark.parametrize("sizes", [[(240, 320)] * 2, [(300, 200), (50, 61), (112, 112), (37, 200)]])
@pytest.mark.parametrize("size", [56, 64, 112, 224])
def test_eval_equals_resize_and_centre_crop(sizes: list[tuple[int, int]], size: int) -> None:
    clips = [random_clip(*shape, seed=i) for i, shape in enumerate(sizes)]
    views = VideoEval(size, **PLAIN)(clips)
    for i, clip in enumerate(clips):
        resized = tv.resize(as_images(clip), int(size / 0.875), antialias=True)
        expected = tv.center_crop(resized, [size, size]).transpose(0, 1)
        torch.testing.assert_close(views[i], expected, rtol=0, atol=2e-5)


def test_eval_normalises_each_channel() -> None:
    gray = torch.full((2, 20, 20, 3), 128, dtype=torch.uint8)
    view = VideoEval(8)([gray])
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        torch.testing.assert_close(
            view[0, channel], torch.full((2, 8, 8), (128 / 255 - mean) / std), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("transform", [VideoAugment(16), VideoEval(16)])
def test_frames_of_the_wrong_form_are_named(transform: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(T, H, W, 3\); got torch.float32 \(2, 8, 8, 3\)"):
        transform([torch.zeros(2, 8, 8, 3)])
    with pytest.raises(ValueError, match=r"got torch.uint8 \(3, 2, 8, 8\)"):
        transform([torch.zeros(3, 2, 8, 8, dtype=torch.uint8)])
    with pytest.raises(ValueError, match=r"same number of frames; got \[2, 3\]"):
        transform([random_clip(8, 8, 2), random_clip(8, 8, 3)])
    with pytest.raises(ValueError, match=r"at least one clip"):
        transform([])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0}, "size is 0"),
        ({"size": 8, "min_area": 0.0}, "min_area is 0.0"),
        ({"size": 8, "min_area": 1.5}, "min_area is 1.5"),
        ({"size": 8, "flip": -0.1}, "flip is -0.1"),
        ({"size": 8, "jitter": (0.4, 0.4)}, "four strengths"),
        ({"size": 8, "mean": (0.5,)}, "three numbers"),
        ({"size": 8, "std": (1.0, 1.0, 0.0)}, "std above 0"),
    ],
)
def test_impossible_parameters_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoAugment(**options)
