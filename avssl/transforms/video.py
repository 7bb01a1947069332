"""Frames to views: crop, antialiased resize, flip, colours, blur and normalisation, batched over clips.

An image is a clip of one frame; all frames of a clip are treated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.transforms.blur import GaussianBlur
from avssl.transforms.boxes import random_boxes
from avssl.transforms.clip_colour import Operations, colour_clip
from avssl.transforms.color import ColorJitter, grayscale, solarize
from avssl.transforms.draws import Operation, apply_to, choose, on_some, uniform
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
EVAL_CROP_SHARE = 0.875


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

    def _is_on_processor(self) -> bool:
        return self.mean.device.type == "cpu"

    def _resample_at_once(
        self, frames: Sequence[Tensor], rows: Axis, columns: Axis, interpolation: Interpolation
    ) -> Tensor:
        """Frames on the module's device, cropped and resized, (B, 3, T, size, size) in [0, 1]."""
        batch = pad_frames(frames).to(self.mean.device)
        axes = torch.stack([torch.stack(rows), torch.stack(columns)]).to(torch.float32)
        rows_there, columns_there = axes.to(self.mean.device, non_blocking=True).unbind()
        x = resample(batch, Axis(*rows_there), Axis(*columns_there), self.size, interpolation)
        return x.clamp_(0, 1) if interpolation == "bicubic" else x

    def _make_in_turn(
        self,
        frames: Sequence[Tensor],
        rows: Axis,
        columns: Axis,
        operations: Sequence[Operations],
        normalised: bool = True,
        interpolation: Interpolation = "bilinear",
        eight_bit: bool = False,
    ) -> Tensor:
        """Cropped, resized, jittered and, if wanted, normalised: clip by clip, each while it is cached."""
        check_frames(frames)
        mean, std = self._statistics() if normalised else ([0.0] * 3, [1.0] * 3)

        clips = [clip.cpu() for clip in frames]
        return resample_in_turn(
            clips, rows, columns, self.size, interpolation, eight_bit, operations, mean, std
        )

    def _statistics(self) -> tuple[list[float], list[float]]:
        return self.mean.flatten().tolist(), self.std.flatten().tolist()

    def _normalise(self, x: Tensor) -> Tensor:
        if not self._is_on_processor():
            return x.sub_(self.mean).div_(self.std)
        for clip in x:
            colour_clip(clip, (), 1.0, *self._statistics())
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
        Round pixels to whole 255ths as they are resized, as Pillow does in the official code; no faster. On
        an accelerator only the result is rounded; on a processor, as in Pillow, also what lies between the
        two axes, where bicubic overshoots are cut off.

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
        if (
            self.max_area < 1 and not self._is_on_processor()
        ):  # small boxes: what lies outside them need not be moved and multiplied
            frames = [
                clip[:, top : top + height, left : left + width]
                for clip, (top, left, height, width) in zip(frames, boxes.long().tolist(), strict=True)
            ]
            boxes[:, :2] = 0
        top, left, height, width = boxes.unbind(1)
        flip = (uniform((len(sizes),), generator) < self.flip).double()
        zero, out = torch.zeros_like(top), torch.full_like(top, self.size)
        rows, columns = Axis(top, height, out, zero, zero), Axis(left, width, out, zero, flip)
        jittered = choose(len(frames), self.jitter_prob, generator)
        drawn = self.jitter.draw(len(jittered), generator)
        later: list[tuple[float, Operation]] = [
            (self.gray, grayscale),
            (self.blur_prob, self.blur),
            (self.solarize, solarize),
        ]
        with torch.autocast(self.mean.device.type, enabled=False):
            if self._is_on_processor():
                operations: list[Operations] = [()] * len(frames)
                for number, its_operations in zip(jittered.tolist(), self.jitter.named(*drawn), strict=True):
                    operations[number] = its_operations
                normalised = not any(probability for probability, _ in later)
                options = operations, normalised, self.interpolation, self.eight_bit
                x = self._make_in_turn(frames, rows, columns, *options)
                if normalised:
                    return x
            else:
                x = self._resample_at_once(frames, rows, columns, self.interpolation)
                x = x.mul_(255).round_().div_(255) if self.eight_bit else x
                x = apply_to(x, jittered, lambda clips: self.jitter.apply_factors(clips, *drawn))
            for probability, operation in later:
                x = on_some(x, probability, operation, generator)
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
            if self._is_on_processor():
                return self._make_in_turn(frames, rows, columns, [()] * len(frames))
            return self._normalise(self._resample_at_once(frames, rows, columns, "bilinear"))
