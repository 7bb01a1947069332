"""Colours of clips: jitter with one set of factors and one order a clip, grayscale, solarisation.

Brightness, contrast and saturation are one and the same blend,
``x <- clamp(a x + b gray(x) + c mean(gray(x)), 0, 1)``: for a factor f, brightness has (a, b, c) = (f, 0, 0),
saturation (f, 1 - f, 0) and contrast (f, 0, 1 - f). A batch in which every clip has its own order therefore
needs one blend a position, whatever the clips do there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.transforms.clip_colour import OPERATIONS, Operations, colour_clip
from avssl.transforms.draws import uniform

# Luma of ITU-R BT.601 as Pillow and torchvision round it.
LUMA = (0.2989, 0.587, 0.114)
SOLARIZE_THRESHOLD = 0.5
MIN_CHROMA = 1e-12


def luma(x: Tensor) -> Tensor:
    """Brightness of each pixel, (B, 3, T, H, W) -> (B, T, H, W)."""
    red, green, blue = x.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def blend(x: Tensor, keep: Tensor, to_gray: Tensor, to_mean: Tensor) -> Tensor:
    """``clamp(keep x + to_gray gray(x) + to_mean mean(gray(x)), 0, 1)``, the mean over each frame.

    Parameters
    ----------
    x : Tensor, (B, 3, T, H, W)
        RGB in [0, 1].
    keep, to_gray, to_mean : Tensor, (B,)
        Weights of each clip.
    """
    gray = luma(x)
    mean = gray.mean((-2, -1), keepdim=True) * to_mean.view(-1, 1, 1, 1)
    offset = torch.addcmul(mean, gray, to_gray.view(-1, 1, 1, 1)).unsqueeze(1)
    return torch.addcmul(offset, x, keep.view(-1, 1, 1, 1, 1)).clamp_(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each clip as through HSV.

    With V the largest channel, m the smallest, C = V - m and h the hue in sixths of a turn, an HSV colour has
    the channels ``V - C clamp(2 - d, 0, 1)``, d the distance on the circle from h to 2 - n, with n = 5, 3, 1
    for red, green, blue. From red over yellow, green to cyan ``h C = (V - red) + (green - m) + (blue - m)``;
    where blue exceeds green the same holds the other way round the circle.

    Parameters
    ----------
    x : Tensor, (B, 3, T, H, W)
        RGB in [0, 1].
    shift : Tensor, (B,)
        Turn of each clip, in turns; [-0.5, 0.5] covers the circle.

    Returns
    -------
    Tensor, (B, 3, T, H, W)
        RGB in [0, 1].
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    least = torch.minimum(red, green)
    torch.minimum(least, blue, out=least)
    chroma = value - least
    sixths = (green - red).add_(blue).add_(value).sub_(least, alpha=2)
    # A gray pixel may have any hue, if it is finite.
    sixths.div_(torch.clamp_min(chroma, MIN_CHROMA, out=least)).copysign_(green - blue)
    result = torch.empty_like(x)
    top = value.add_(chroma)
    for channel, n in zip(result.unbind(1), (5, 3, 1), strict=True):
        turn = (6 * shift + n + 1) % 6 - 3  # in [-3, 3), as sixths are: 3 - d is | |their sum| - 3 |
        torch.add(sixths, turn.view(-1, 1, 1, 1), out=channel)
        channel.abs_().sub_(3).abs_().clamp_(1, 2)
        torch.addcmul(top, chroma, channel, value=-1, out=channel)
    return result


def grayscale(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Three equal channels of luma, (B, 3, T, H, W); an operation for `on_some`, nothing is random."""
    return luma(x).unsqueeze(1).expand_as(x).contiguous()


def solarize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Invert the pixels >= 1/2 of (B, 3, T, H, W); an operation for `on_some`, nothing is random.

    In 8 bits the threshold is 128, as Pillow and the official code of Barlow Twins have it.
    """
    return torch.where(x >= SOLARIZE_THRESHOLD, 1 - x, x)


class ColorJitter(nn.Module):
    """Random brightness, contrast, saturation and hue in random order, as torchvision on floats.

    Factors and order are drawn once a clip and used for all its frames. Contrast blends each frame with the
    mean of its own gray image, as torchvision does for a (T, 3, H, W) tensor. A strength of 0 leaves that
    operation out.

    Parameters
    ----------
    brightness, contrast, saturation : float >= 0
        Strength s: the factor is uniform in [max(0, 1 - s), 1 + s].
    hue : float in [0, 0.5]
        The hue is turned by a uniform part of a turn in [-hue, hue].

    Raises
    ------
    ConfigError
        For a strength outside its range.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        super().__init__()
        strengths = dict(zip(OPERATIONS, (brightness, contrast, saturation, hue), strict=True))
        for name, strength in strengths.items():
            limit = 0.5 if name == "hue" else float("inf")
            if not 0 <= strength <= limit:
                raise ConfigError(
                    f"jitter {name} is {strength}; must be in [0, {limit}]; use 0 to switch it off"
                )
        self.strengths = {name: strength for name, strength in strengths.items() if strength > 0}

    def extra_repr(self) -> str:
        """Strengths, for the printed module."""
        return ", ".join(f"{name}={strength}" for name, strength in self.strengths.items())

    def draw(self, num_clips: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw factors and orders.

        Returns
        -------
        factors : Tensor, (num_clips, A), float64, on the CPU
            Factor (for hue: turn) of each of the A operations in `strengths`.
        order : Tensor, (num_clips, A), int64, on the CPU
            ``order[b, p]`` is the operation that clip b undergoes at position p.
        """
        numbers = uniform((num_clips, 2, len(self.strengths)), generator)
        ranges = torch.tensor(
            [(-s, s) if name == "hue" else (max(0.0, 1 - s), 1 + s) for name, s in self.strengths.items()],
            dtype=torch.float64,
        ).view(-1, 2)
        factors = ranges[:, 0] + numbers[:, 0] * (ranges[:, 1] - ranges[:, 0])
        return factors, numbers[:, 1].argsort(1)

    def apply_factors(self, x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
        """Jitter (B, 3, T, H, W) clips with what `draw` gave; on a processor they are overwritten."""
        if x.device.type == "cpu":
            for clip, operations in zip(x, self.named(factors, order), strict=True):
                colour_clip(clip, operations)
            return x
        return self._apply_at_once(x, factors, order)

    def named(self, factors: Tensor, order: Tensor) -> list[Operations]:
        """What `draw` gave as names and numbers: the operations of each clip in their order."""
        names = list(self.strengths)
        return [
            [(names[op], its_factors[op]) for op in its_order]
            for its_factors, its_order in zip(factors.tolist(), order.tolist(), strict=True)
        ]

    def _apply_at_once(self, x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
        """For accelerators: few large operations, one blend a position whatever the clips do there."""
        names = list(self.strengths)
        is_op = {name: order == (names.index(name) if name in names else -1) for name in OPERATIONS}
        by_position = factors.gather(1, order)
        zero = torch.zeros_like(by_position)
        coefficients = torch.stack(
            [
                torch.where(is_op["hue"], 1.0, by_position),
                torch.where(is_op["saturation"], 1 - by_position, zero),
                torch.where(is_op["contrast"], 1 - by_position, zero),
                torch.where(is_op["hue"], by_position, zero),
            ]
        )
        keep, to_gray, to_mean, turn = coefficients.to(x.device, x.dtype, non_blocking=True).unbind()
        for p in range(len(names)):
            if names != ["hue"]:
                x = blend(x, keep[:, p], to_gray[:, p], to_mean[:, p])
            clips = is_op["hue"][:, p].nonzero().squeeze(1)
            if len(clips) > 0:
                clips = clips.to(x.device, non_blocking=True)
                turned = shift_hue(x.index_select(0, clips), turn[:, p].index_select(0, clips))
                x = x.index_copy(0, clips, turned)
        return x

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Jitter a batch of clips.

        Parameters
        ----------
        x : Tensor, (B, 3, T, H, W)
            RGB in [0, 1], floating point.
        generator : torch.Generator, optional
            Source of the factors and orders.

        Returns
        -------
        Tensor, (B, 3, T, H, W)
            RGB in [0, 1].
        """
        return self.apply_factors(x.clone(), *self.draw(len(x), generator)) if self.strengths else x
