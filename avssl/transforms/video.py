"""Frames to views: crop, antialiased resize, flip, colours, blur and normalisation, batched over clips.

An image is a clip of one frame; all frames of a clip are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.transforms.blur import GaussianBlur
from avssl.transforms.color import ColorJitter, grayscale, solarize
from avssl.transforms.draws import on_some, uniform
from avssl.transforms.resample import (
    Axis,
    Interpolation,
    check_frames,
    pad_frames,
    resample,
    resample_in_turn,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10
EVAL_CROP_SHARE = 0.875


def random_boxes(
    sizes: Tensor, min_area: float, generator: torch.Generator | None = None, max_area: float = 1.0
) -> Tensor:
    """Draw a crop a clip by the law of torchvision's ``RandomResizedCrop``.

    The area is uniform in [min_area, max_area] of the frame, the ratio of width to height log-uniform in
    [3/4, 4/3], and the first of ten draws that fits is placed uniformly; if none fits, the centre, cut to
    the nearest allowed ratio.

    Parameters
    ----------
    sizes : Tensor, (B, 2), float64
        Height and width of each clip, in pixels.
    min_area : float in (0, 1]
        Smallest share of the frame.
    generator : torch.Generator, optional
        Source of the numbers.
    max_area : float in [min_area, 1]
        Largest share of the frame.

    Returns
    -------
    Tensor, (B, 4), float64
        Top, left, height, width, whole numbers.
    """
    numbers = uniform((len(sizes), 2 * CROP_TRIES + 2), generator)
    height, width = sizes[:, :1], sizes[:, 1:]
    area = height * width * (min_area + (max_area - min_area) * numbers[:, :CROP_TRIES])
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = (low + (high - low) * numbers[:, CROP_TRIES:-2]).exp()
    tried_width, tried_height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (tried_width >= 1) & (tried_width <= width) & (tried_height >= 1) & (tried_height <= height)
    first = fits.int().argmax(1, keepdim=True)
    box_height, box_width = tried_height.gather(1, first), tried_width.gather(1, first)
    top = (numbers[:, -2:-1] * (height - box_height + 1)).floor()
    left = (numbers[:, -1:] * (width - box_width + 1)).floor()

    central_width = torch.minimum(width, (height * ASPECT_RATIOS[1]).round())
    central_height = torch.minimum(height, (width / ASPECT_RATIOS[0]).round())
    central_top = ((height - central_height) / 2).floor()
    central_left = ((width - central_width) / 2).floor()
    drawn = torch.cat([top, left, box_height, box_width], 1)
    central = torch.cat([central_top, central_left, central_height, central_width], 1)
    return torch.where(fits.any(1, keepdim=True), drawn, central)


class _FrameTransform(nn.Module):
    """What training and evaluation share: resampling along two axes and normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"video size is {size}; must be at least 1 pixel; 112 and 224 are usual")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(
                f"video mean {tuple(mean)} and std {tuple(std)} must be three numbers each, std above 0; "
                "give one a colour channel, red first, for pixels in [0, 1]"
            )
        self.size = size
        for name, values in (("mean", mean), ("std", std)):
            channels = torch.tensor(tuple(values), dtype=torch.float32).view(3, 1, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    def _resample(
        self,
        frames: Sequence[Tensor],
        rows: Axis,
        columns: Axis,
        interpolation: Interpolation = "bilinear",
        eight_bit: bool = False,
    ) -> Tensor:
        """Frames on the module's device, cropped and resized, (B, 3, T, size, size) in [0, 1]."""
        check_frames(frames)
        device = self.mean.device
        if device.type == "cpu":
            clips = [clip.to(device) for clip in frames]
            x = resample_in_turn(clips, rows, columns, self.size, interpolation, eight_bit)
        else:
            batch = pad_frames(frames).to(device)
            axes = torch.stack([torch.stack(rows), torch.stack(columns)]).to(torch.float32)
            rows_there, columns_there = axes.to(device, non_blocking=True).unbind()
            x = resample(batch, Axis(*rows_there), Axis(*columns_there), self.size, interpolation)
            x = x.mul_(255).round_().div_(255) if eight_bit else x
        return x.clamp_(0, 1) if interpolation == "bicubic" else x

    def _normalise(self, x: Tensor) -> Tensor:
        for clip in x.unbind() if x.device.type == "cpu" else [x]:  # each while it is in the cache
            clip.sub_(self.mean).div_(self.std)
        return x


class VideoAugment(_FrameTransform):
    """Random crop, flip, colour jitter, grayscale, blur, solarisation, normalisation, in this order.

    By default the augmentation of AVID (Morgado et al., 2021): crop, flip and jitter. With the values of
    `avssl.transforms.presets` those of SwAV, BYOL, SimSiam and Barlow Twins, which share this order (SimSiam
    flips last, which makes no difference). Each clip has draws of its own, used for all its frames.

    Parameters
    ----------
    size : int >= 1
        Height and width of the views, in pixels.
    min_area : float in (0, 1]
        Smallest share of the frame that a crop may have.
    flip : float in [0, 1]
        Probability of a horizontal flip.
    jitter : four floats
        Strengths of brightness, contrast, saturation and hue; see `ColorJitter`.
    mean, std : three floats
        Normalisation a channel, for pixels in [0, 1].
    max_area : float in [min_area, 1]
        Largest share of the frame that a crop may have.
    interpolation : "bilinear" or "bicubic"
        Kernel of the antialiased resize; what bicubic overshoots is clamped to [0, 1].
    jitter_prob, gray, blur, solarize : float in [0, 1]
        Probabilities of colour jitter, grayscale, Gaussian blur and solarisation (inverting pixels >= 1/2).
    blur_sigma : two floats > 0
        Range of the blur's standard deviation, in pixels of the view; see `GaussianBlur`.
    eight_bit : bool
        Round pixels to whole 255ths as they are resized, as Pillow does in the official code: several times
        faster on a processor, no gain on an accelerator. There only the result is rounded; on a processor,
        as in Pillow, also what lies between the two axes, where bicubic overshoots are cut off too.

    Raises
    ------
    ConfigError
        For a parameter outside its range.
    """

    def __init__(
        self,
        size: int,
        min_area: float = 0.08,
        flip: float = 0.5,
        jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.2),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        max_area: float = 1.0,
        interpolation: Interpolation = "bilinear",
        jitter_prob: float = 1.0,
        gray: float = 0.0,
        blur: float = 0.0,
        blur_sigma: Sequence[float] = (0.1, 2.0),
        solarize: float = 0.0,
        eight_bit: bool = False,
    ) -> None:
        super().__init__(size, mean, std)
        if not 0 < min_area <= max_area <= 1:
            raise ConfigError(
                f"min_area is {min_area} and max_area {max_area}; must be 0 < min_area <= max_area <= 1; "
                "use 1 for both to keep the whole frame"
            )
        probabilities = {
            "flip": flip,
            "jitter_prob": jitter_prob,
            "gray": gray,
            "blur": blur,
            "solarize": solarize,
        }
        for name, probability in probabilities.items():
            if not 0 <= probability <= 1:
                raise ConfigError(
                    f"{name} is {probability}; must be a probability in [0, 1]; use 0 to switch it off"
                )
        if len(jitter) != 4:
            raise ConfigError(
                f"jitter is {tuple(jitter)}; must be four strengths: brightness, contrast, saturation, hue"
            )
        if interpolation not in get_args(Interpolation):
            raise ConfigError(
                f"interpolation is {interpolation!r}; must be one of {', '.join(get_args(Interpolation))}"
            )
        self.min_area, self.max_area = min_area, max_area
        self.interpolation, self.eight_bit = interpolation, eight_bit
        self.flip, self.jitter_prob, self.gray = flip, jitter_prob, gray
        self.blur_prob, self.solarize = blur, solarize
        self.jitter = ColorJitter(*jitter)
        self.blur = GaussianBlur(*blur_sigma)

    def extra_repr(self) -> str:
        """Parameters, for the printed module."""
        return (
            f"size={self.size}, min_area={self.min_area}, max_area={self.max_area}, "
            f"interpolation={self.interpolation}, flip={self.flip}, jitter_prob={self.jitter_prob}, "
            f"gray={self.gray}, blur_prob={self.blur_prob}, solarize={self.solarize}, "
            f"eight_bit={self.eight_bit}"
        )

    def forward(self, frames: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Augment a batch of clips.

        Parameters
        ----------
        frames : sequence of Tensor, each (T, H, W, 3)
            RGB, uint8; T is the same for all, H and W may differ. On any one device.
        generator : torch.Generator, optional
            Source of all random numbers; best on the CPU (see `avssl.transforms.draws.uniform`).

        Returns
        -------
        Tensor, (B, 3, T, size, size), float32
            On the device of the module.

        Raises
        ------
        ValueError
            For clips that do not have this form.
        """
        sizes = torch.tensor([clip.shape[1:3] for clip in frames], dtype=torch.float64).view(-1, 2)
        boxes = random_boxes(sizes, self.min_area, generator, self.max_area)
        if self.max_area < 1:  # small boxes: what lies outside them need not be moved and multiplied
            frames = [
                clip[:, top : top + height, left : left + width]
                for clip, (top, left, height, width) in zip(frames, boxes.long().tolist(), strict=True)
            ]
            boxes[:, :2] = 0
        top, left, height, width = boxes.unbind(1)
        flip = (uniform((len(sizes),), generator) < self.flip).double()
        zero, out = torch.zeros_like(top), torch.full_like(top, self.size)
        rows, columns = Axis(top, height, out, zero, zero), Axis(left, width, out, zero, flip)
        with torch.autocast(self.mean.device.type, enabled=False):
            x = self._resample(frames, rows, columns, self.interpolation, self.eight_bit)
            x = on_some(x, self.jitter_prob, self.jitter.overwrite, generator)
            x = on_some(x, self.gray, grayscale, generator)
            x = on_some(x, self.blur_prob, self.blur, generator)
            x = on_some(x, self.solarize, solarize, generator)
            return self._normalise(x)


class VideoEval(_FrameTransform):
    """Resize the short side to ``int(size / 0.875)``, centre crop, normalise: nothing is random.

    Parameters
    ----------
    size : int >= 1
        Height and width of the views, in pixels.
    mean, std : three floats
        Normalisation a channel, for pixels in [0, 1].

    Raises
    ------
    ConfigError
        For a parameter outside its range.
    """

    def __init__(
        self, size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__(size, mean, std)

    def extra_repr(self) -> str:
        """Parameters, for the printed module."""
        return f"size={self.size}"

    def forward(self, frames: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Resize and crop a batch of clips; as `VideoAugment`, but `generator` is not used."""
        sizes = torch.tensor([clip.shape[1:3] for clip in frames], dtype=torch.float64).view(-1, 2)
        short_side = int(self.size / EVAL_CROP_SHARE)
        resized = (short_side * sizes / sizes.amin(1, keepdim=True)).floor()
        first = ((resized - self.size) / 2).round()
        zero = torch.zeros(len(sizes), dtype=torch.float64)
        rows, columns = (
            Axis(zero, sizes[:, axis], resized[:, axis], first[:, axis], zero) for axis in (0, 1)
        )
        with torch.autocast(self.mean.device.type, enabled=False):
            return self._normalise(self._resample(frames, rows, columns))
