"""The operations of the image methods, against torchvision and Pillow given the same draws."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from avssl.errors import ConfigError
from avssl.transforms import IMAGENET_MEAN, IMAGENET_STD, VideoAugment
from avssl.transforms.blur import GaussianBlur, gaussian_blur
from avssl.transforms.color import grayscale, solarize
from avssl.transforms.draws import on_some
from avssl.transforms.multi_view import CropSpec, make_views
from avssl.transforms.presets import byol, seer, simsiam, swav
from avssl.transforms.resample import Interpolation
from avssl.transforms.video import random_boxes

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
WHOLE = {"min_area": 1.0, "flip": 0.0, "jitter": (0, 0, 0, 0), **PLAIN}  # a square clip as it is
ADJUST = (v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation, v2.adjust_hue)
TAPS = 25  # of the reference blur: more than six of the largest standard deviation, 2, on both sides


def random_clips(sizes: list[tuple[int, int]], num_frames: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (num_frames, *size, 3), generator=generator, dtype=torch.uint8)
        for size in sizes
    ]


def smooth_image(size: int, seed: int = 0) -> Tensor:
    """uint8 (3, size, size) of coloured blobs, as pictures are, rather than noise."""
    coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (255 * fine[0].clamp(0, 1)).round().byte()


def as_pillow(image: Tensor) -> Image.Image:
    return v2.to_pil_image(image)


def from_pillow(image: Image.Image) -> Tensor:
    """(3, H, W) in steps of 1/255."""
    return v2.pil_to_tensor(image).double()


def reference_blur(images: Tensor, sigma: float) -> Tensor:
    """torchvision's blur, which mirrors at borders, of images whose borders have been repeated."""
    padded = F.pad(images, (TAPS // 2,) * 4, mode="replicate")
    return v2.center_crop(v2.gaussian_blur(padded, [TAPS, TAPS], [sigma, sigma]), list(images.shape[-2:]))


class Replay:
    """The draws of `VideoAugment` in their order, and what torchvision makes of them frame by frame."""

    def __init__(self, crop: CropSpec, seed: int) -> None:
        self.crop = crop
        self.augment = make_views([crop])[0]
        self.generator = torch.Generator().manual_seed(seed)

    def rand(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, dtype=torch.float64)

    def chosen(self, probability: float, count: int) -> list[int]:
        if probability in (0, 1):
            return list(range(count)) if probability else []
        return (self.rand(count) < probability).nonzero().squeeze(1).tolist()

    def views(self, clips: list[Tensor]) -> list[Tensor]:
        """(T, 3, size, size) of each clip."""
        crop, count = self.crop, len(clips)
        sizes = torch.tensor([clip.shape[1:3] for clip in clips], dtype=torch.float64)
        boxes = random_boxes(sizes, crop.min_area, self.generator, crop.max_area)
        flips = self.rand(count) < crop.flip
        mode = InterpolationMode(crop.interpolation)
        views = []
        for clip, box, flip in zip(clips, boxes.tolist(), flips, strict=True):
            images = clip.permute(0, 3, 1, 2).float() / 255
            images = v2.resized_crop(images, *map(int, box), [crop.size, crop.size], mode, antialias=True)
            images = v2.horizontal_flip(images) if flip else images
            views.append(images.clamp(0, 1))
        jittered = self.chosen(crop.jitter_prob, count)
        factors, order = self.augment.jitter.draw(len(jittered), self.generator)
        for row, i in enumerate(jittered):
            for op in order[row].tolist():
                views[i] = ADJUST[op](views[i], float(factors[row, op]))
        for i in self.chosen(crop.gray, count):
            views[i] = v2.rgb_to_grayscale(views[i], 3)
        blurred = self.chosen(crop.blur, count)
        for i, number in zip(blurred, self.rand(len(blurred)).tolist(), strict=True):
            views[i] = reference_blur(views[i], 0.1 + 1.9 * number)
        for i in self.chosen(crop.solarize, count):
            views[i] = v2.solarize(views[i], 0.5)
        return [v2.normalize(view, list(IMAGENET_MEAN), list(IMAGENET_STD)) for view in views]


@pytest.mark.parametrize(
    "crop",
    [*swav(64, 32), *seer(48, 24), *byol(64), *simsiam(64)],
    ids=["swav", "swav_small", "seer", "seer_small", "byol", "byol_second", "simsiam"],
)
@pytest.mark.parametrize("num_frames", [1, 3])
def test_view_equals_torchvision_frame_by_frame(crop: CropSpec, num_frames: int) -> None:
    clips = random_clips([(90, 120), (70, 64), (50, 50), (40, 77), (100, 60), (33, 95)] * 2, num_frames)
    replay = Replay(crop, seed=7)
    views = replay.augment(clips, torch.Generator().manual_seed(7))
    assert views.shape == (12, 3, num_frames, crop.size, crop.size)
    for view, expected in zip(views, replay.views(clips), strict=True):
        torch.testing.assert_close(view.transpose(0, 1), expected, rtol=0, atol=1e-4)


def test_all_frames_of_a_clip_are_treated_alike() -> None:
    clips = [clip.expand(4, -1, -1, -1) for clip in random_clips([(60, 80)] * 8, num_frames=1)]
    crop = CropSpec(32, jitter_prob=0.8, gray=0.3, blur=0.5, solarize=0.5, interpolation="bicubic")
    views = make_views([crop])[0](clips, torch.Generator().manual_seed(0))
    torch.testing.assert_close(views, views[:, :, :1].expand_as(views))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("area", [(0.05, 0.14), (0.14, 1.0)])
def test_crop_differs_from_pillow_by_its_rounding(
    interpolation: Interpolation, area: tuple[float, float]
) -> None:
    clips = [smooth_image(120, seed).permute(1, 2, 0)[None] for seed in range(6)]
    options = {**WHOLE, "min_area": area[0], "max_area": area[1]}
    views = VideoAugment(48, interpolation=interpolation, **options)(clips, torch.Generator().manual_seed(3))
    sizes = torch.full((6, 2), 120, dtype=torch.float64)
    boxes = random_boxes(sizes, area[0], torch.Generator().manual_seed(3), area[1])
    mode = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for view, clip, (top, left, height, width) in zip(views, clips, boxes.tolist(), strict=True):
        image = as_pillow(clip[0].permute(2, 0, 1))
        image = image.crop((left, top, left + width, top + height)).resize((48, 48), mode)
        assert float((255 * view[:, 0] - from_pillow(image)).abs().max()) < 1.2


def test_boxes_have_their_areas() -> None:
    sizes = torch.tensor([[1000, 1400]], dtype=torch.float64).expand(20000, 2)
    boxes = random_boxes(sizes, 0.05, torch.Generator().manual_seed(0), 0.14)
    area = boxes[:, 2] * boxes[:, 3] / 1.4e6
    assert 0.0495 < float(area.min()) < 0.051
    assert 0.139 < float(area.max()) < 0.1405
    assert float(area.mean()) == pytest.approx(0.095, abs=0.001)


def test_blur_equals_torchvision_with_repeated_borders() -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.7, 2.0], dtype=torch.float64)
    x = torch.rand(5, 3, 2, 19, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blurred = gaussian_blur(x, sigma)
    for b in range(5):
        expected = reference_blur(x[b].transpose(0, 1), float(sigma[b])).transpose(0, 1)
        torch.testing.assert_close(blurred[b], expected, rtol=0, atol=1e-7)
        alone = gaussian_blur(x[b : b + 1].float(), sigma[b : b + 1])[0]
        torch.testing.assert_close(alone, expected.float(), rtol=0, atol=1e-6)


def test_blur_equals_the_23_taps_of_byol_inside() -> None:
    x = torch.rand(3, 3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 1.2, 2.0])
    blurred = gaussian_blur(x, sigma)
    for b in range(3):
        taps = v2.gaussian_blur(x[b, :, 0], [23, 23], [float(sigma[b])] * 2)
        torch.testing.assert_close(
            blurred[b, :, 0, 11:-11, 11:-11], taps[:, 11:-11, 11:-11], rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.3, 2.0])
def test_blur_is_that_of_pillow_up_to_its_approximation(sigma: float) -> None:
    """Pillow rounds to 8 bits and has three box blurs for a Gaussian; borders count too."""
    image = smooth_image(96)
    image[:, 40:60, 40:60] = 255 - image[:, 40:60, 40:60]  # edges
    blurred = 255 * gaussian_blur(image[None, :, None].float() / 255, torch.tensor([sigma]))
    pillow = from_pillow(as_pillow(image).filter(ImageFilter.GaussianBlur(sigma)))
    difference = (blurred[0, :, 0] - pillow).abs()
    assert float(difference.max()) < 9
    assert float(difference.mean()) < 0.8
    assert float(difference[:, 0].max()) < 2
    assert float(difference[:, :, -1].max()) < 2


def test_blur_draws_uniform_widths() -> None:
    sigma = GaussianBlur(0.5, 1.5).draw(4000, torch.Generator().manual_seed(0))
    assert 0.5 <= float(sigma.min()) < 0.51
    assert 1.49 < float(sigma.max()) < 1.5
    assert float(sigma.mean()) == pytest.approx(1, abs=0.02)


def test_grayscale_equals_torchvision_and_nearly_pillow() -> None:
    image = torch.randint(0, 256, (3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = image[None, :, None].float() / 255
    gray = grayscale(x)[0, :, 0]
    torch.testing.assert_close(gray, v2.rgb_to_grayscale(x[0, :, 0], 3), rtol=0, atol=1e-6)
    pillow = from_pillow(as_pillow(image).convert("L")).expand(3, -1, -1)
    assert float((255 * gray - pillow).abs().max()) < 0.6


def test_solarize_equals_torchvision_and_pillow_at_every_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    x = levels[None, :, None].float() / 255
    solarized = solarize(x)[0, :, 0]
    assert torch.equal(solarized, v2.solarize(x[0, :, 0], 0.5))
    pillow = from_pillow(ImageOps.solarize(as_pillow(levels)))  # threshold 128
    torch.testing.assert_close(255 * solarized.double(), pillow, rtol=0, atol=1e-4)


def test_operations_have_their_probabilities() -> None:
    count, size = 2000, 8
    image = torch.tensor([250, 130, 10], dtype=torch.uint8).expand(1, size, size, 3).clone()
    image[:, :, ::2] //= 2
    clips = [image] * count
    plain = VideoAugment(size, **WHOLE)(clips[:1])
    torch.testing.assert_close(plain[0].permute(1, 2, 3, 0), image / 255, rtol=0, atol=1e-6)
    for options in (
        {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_prob": 0.8},
        {"gray": 0.2},
        {"blur": 0.5, "blur_sigma": (1.0, 2.0)},
        {"solarize": 0.1},
    ):
        augment = VideoAugment(size, **{**WHOLE, **options})
        views = augment(clips, torch.Generator().manual_seed(1))
        changed = (views - plain).abs().flatten(1).amax(1) > 1e-3
        probability = next(value for name, value in options.items() if isinstance(value, float))
        # Four standard deviations of a binomial count of this size are below 0.045.
        assert float(changed.float().mean()) == pytest.approx(probability, abs=0.045), options
        assert torch.equal(views[~changed], plain.expand_as(views)[~changed])


def test_on_some_leaves_the_others_alone() -> None:
    x = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    out = on_some(x, 0.3, lambda part, _: part + 1, torch.Generator().manual_seed(1))
    chosen = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64) < 0.3
    assert torch.equal(out, torch.where(chosen[:, None], before + 1, before))


@pytest.mark.parametrize("probability, calls", [(0.0, 0), (1.0, 1)])
def test_on_some_draws_nothing_when_nothing_is_open(probability: float, calls: int) -> None:
    generator = torch.Generator().manual_seed(0)
    seen = []

    def operation(part: Tensor, _: torch.Generator | None) -> Tensor:
        seen.append(len(part))
        return part

    on_some(torch.zeros(5, 1), probability, operation, generator)
    assert seen == [5] * calls
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


def test_defaults_draw_boxes_flips_and_jitter_only() -> None:
    """Runs under way repeat their views: an operation that is off takes no random number."""
    used, expected = (torch.Generator().manual_seed(9) for _ in range(2))
    augment = VideoAugment(16)
    augment(random_clips([(20, 30)] * 4), used)
    random_boxes(torch.full((4, 2), 20, dtype=torch.float64), 0.08, expected)
    torch.rand(4, generator=expected, dtype=torch.float64)
    augment.jitter.draw(4, expected)
    assert torch.equal(used.get_state(), expected.get_state())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_area": 1.2}, "max_area 1.2; must be 0 < min_area <= max_area <= 1"),
        ({"min_area": 0.3, "max_area": 0.2}, "min_area is 0.3 and max_area 0.2"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; must be one of bilinear, bicubic"),
        ({"jitter_prob": 1.1}, "jitter_prob is 1.1; must be a probability"),
        ({"gray": -0.1}, "gray is -0.1"),
        ({"blur": 2}, "blur is 2"),
        ({"solarize": float("nan")}, "solarize is nan"),
        ({"blur_sigma": (0.0, 2.0)}, r"blur sigma is \(0.0, 2.0\); must be 0 < smallest <= largest"),
        ({"blur_sigma": (2.0, 0.1)}, r"blur sigma is \(2.0, 0.1\)"),
    ],
)
def test_impossible_parameters_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoAugment(8, **options)
