"""Frames to views: crop, antialiased resize, flip, colour jitter and normalisation, batched over clips.

Crop, resize and flip of a clip are linear and separable: two matrices, rows and columns, hold all three.
Clips of a batch differ only in these matrices, so the whole batch is two batched matrix products whatever
its boxes. Where ``torch.set_float32_matmul_precision`` allows TF32, its roundings (three of at most 2^-10)
move a pixel by less than one step of uint8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.transforms.color import ColorJitter
from avssl.transforms.draws import uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10
EVAL_CROP_SHARE = 0.875


class Axis(NamedTuple):
    """How each clip is resampled along one axis; every field is (B,), in pixels.

    Parameters
    ----------
    begin, length : Tensor
        The stretch of the frame that is read.
    resized : Tensor
        Number of pixels the stretch would have after resizing as a whole.
    first : Tensor
        Which of those is the first one wanted.
    flip : Tensor
        1 to reverse the result, else 0.
    """

    begin: Tensor
    length: Tensor
    resized: Tensor
    first: Tensor
    flip: Tensor


def resampling_matrices(axis: Axis, size_in: int, size_out: int) -> Tensor:
    """Weights of an antialiased bilinear resize, as Pillow and torch compute it.

    Output pixel i lies at ``begin + (first + i + 1/2) * scale``, ``scale = length / resized``; it is the
    mean of the pixels of the stretch under a triangle of half width max(scale, 1), which shrinking widens
    and enlarging does not.

    Returns
    -------
    Tensor, (B, size_out, size_in)
        Rows sum to 1; zero outside the stretch.
    """
    begin, length, resized, first, flip = (value[:, None, None] for value in axis)
    scale = length / resized
    i = torch.arange(size_out, device=scale.device, dtype=scale.dtype)[:, None]
    i = torch.where(flip > 0, size_out - 1 - i, i)
    pixel = torch.arange(size_in, device=scale.device, dtype=scale.dtype) - begin
    distance = pixel + 0.5 - (first + i + 0.5) * scale
    weights = (1 - distance.abs() / scale.clamp_min(1)).clamp_min(0)
    weights = weights * ((pixel >= 0) & (pixel < length))
    return weights / weights.sum(-1, keepdim=True)


def pad_frames(frames: Sequence[Tensor]) -> Tensor:
    """Stack clips of different sizes, zero-padded at the bottom and right: (B, T, H, W, 3), uint8.

    Raises
    ------
    ValueError
        Without clips, for another dtype or layout, or when the numbers of frames differ.
    """
    for clip in frames:
        if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or clip.numel() == 0:
            raise ValueError(f"a clip must be uint8 (T, H, W, 3); got {clip.dtype} {tuple(clip.shape)}")
    if len(frames) == 0:
        raise ValueError("a batch must have at least one clip; got none")
    lengths = {clip.shape[0] for clip in frames}
    if len(lengths) != 1:
        raise ValueError(f"clips of one batch must have the same number of frames; got {sorted(lengths)}")
    if len({clip.shape for clip in frames}) == 1:
        return torch.stack(list(frames))
    height, width = max(clip.shape[1] for clip in frames), max(clip.shape[2] for clip in frames)
    batch = frames[0].new_zeros(len(frames), frames[0].shape[0], height, width, 3)
    for padded, clip in zip(batch, frames, strict=True):
        padded[:, : clip.shape[1], : clip.shape[2]] = clip
    return batch


def resample(batch: Tensor, rows: Axis, columns: Axis, size: int) -> Tensor:
    """Resample uint8 (B, T, H, W, 3) frames to (B, 3, T, size, size) float32 in [0, 1]."""
    num_clips, num_frames, height, width, _ = batch.shape
    # Rows first: a frame is a contiguous (H, 3 W) matrix as it lies, and less is left to rearrange.
    x = (resampling_matrices(rows, height, size) / 255)[:, None] @ batch.float().flatten(3)
    x = x.unflatten(3, (width, 3)).permute(0, 4, 1, 2, 3).reshape(num_clips, -1, width)
    x = x @ resampling_matrices(columns, width, size).transpose(1, 2)
    return x.view(num_clips, 3, num_frames, size, size)


def random_boxes(sizes: Tensor, min_area: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw a crop a clip by the law of torchvision's ``RandomResizedCrop``.

    The area is uniform in [min_area, 1] of the frame, the ratio of width to height log-uniform in
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

    Returns
    -------
    Tensor, (B, 4), float64
        Top, left, height, width, whole numbers.
    """
    numbers = uniform((len(sizes), 2 * CROP_TRIES + 2), generator)
    height, width = sizes[:, :1], sizes[:, 1:]
    area = height * width * (min_area + (1 - min_area) * numbers[:, :CROP_TRIES])
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

    def _resample(self, frames: Sequence[Tensor], rows: Axis, columns: Axis) -> Tensor:
        """Frames on the module's device, cropped and resized, (B, 3, T, size, size) in [0, 1]."""
        device = self.mean.device
        batch = pad_frames(frames).to(device)
        axes = torch.stack([torch.stack(rows), torch.stack(columns)]).to(torch.float32)
        rows_there, columns_there = axes.to(device, non_blocking=True).unbind()
        return resample(batch, Axis(*rows_there), Axis(*columns_there), self.size)

    def _normalise(self, x: Tensor) -> Tensor:
        return x.sub_(self.mean).div_(self.std)


class VideoAugment(_FrameTransform):
    """Random resized crop, horizontal flip, colour jitter, normalisation; one draw a clip.

    The augmentation of AVID (Morgado et al., 2021), with antialiased bilinear resizing; all frames of a
    clip are treated alike.

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
    ) -> None:
        super().__init__(size, mean, std)
        if not 0 < min_area <= 1:
            raise ConfigError(f"min_area is {min_area}; must be in (0, 1]; use 1 to keep the whole frame")
        if not 0 <= flip <= 1:
            raise ConfigError(f"flip is {flip}; must be a probability in [0, 1]; use 0 to switch it off")
        if len(jitter) != 4:
            raise ConfigError(
                f"jitter is {tuple(jitter)}; must be four strengths: brightness, contrast, saturation, hue"
            )
        self.min_area = min_area
        self.flip = flip
        self.jitter = ColorJitter(*jitter)

    def extra_repr(self) -> str:
        """Parameters, for the printed module."""
        return f"size={self.size}, min_area={self.min_area}, flip={self.flip}"

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
        top, left, height, width = random_boxes(sizes, self.min_area, generator).unbind(1)
        flip = (uniform((len(sizes),), generator) < self.flip).double()
        zero, out = torch.zeros_like(top), torch.full_like(top, self.size)
        rows, columns = Axis(top, height, out, zero, zero), Axis(left, width, out, zero, flip)
        with torch.autocast(self.mean.device.type, enabled=False):
            x = self._resample(frames, rows, columns)
            return self._normalise(self.jitter(x, generator))


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
