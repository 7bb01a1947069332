"""Gaussian blur of clips as two matrix products; one width a clip, the same for all its frames.

A blur along one axis is a banded matrix. Clips of a batch differ only in these matrices, so a batch with a
width for each clip is two batched products; the matrices also hold what happens at the borders.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.transforms.draws import uniform

# Beyond six standard deviations a Gaussian is below 2e-8 of its peak: nothing in float32.
REACH_SIGMAS = 6.0


def blur_matrices(sigma: Tensor, size: int, reach: int) -> Tensor:
    """Weights of a normalised Gaussian along an axis of `size` pixels, (B, size, size).

    Pixels up to `reach` beyond a border repeat the one on it, as Pillow has it: their weights fall to it.

    Parameters
    ----------
    sigma : Tensor, (B,)
        Standard deviations, in pixels.
    size, reach : int
        Pixels of the axis, and beyond each border.
    """
    taps = torch.arange(2 * reach + 1, device=sigma.device)
    distance = (taps - reach).abs() / sigma[:, None]
    # Exact zeros far away: a CPU multiplies denormal numbers ten times slower.
    kernel = (-0.5 * distance.masked_fill(distance > REACH_SIGMAS, math.inf).square()).exp()
    kernel = kernel / kernel.sum(-1, keepdim=True)
    place = torch.arange(size, device=sigma.device)[:, None] + taps  # row i has the kernel from column i on
    weights = sigma.new_zeros(len(sigma), size, size + 2 * reach)
    weights.scatter_(2, place.expand(len(sigma), -1, -1), kernel[:, None].expand(-1, size, -1))
    before, matrices, after = weights.split([reach, size, reach], -1)
    matrices[..., 0] += before.sum(-1)
    matrices[..., -1] += after.sum(-1)
    return matrices


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each clip with a width of its own.

    Parameters
    ----------
    x : Tensor, (B, 3, T, H, W)
        Frames, floating point.
    sigma : Tensor, (B,)
        Standard deviations, > 0, in pixels; best on the CPU, which decides how far the blur reaches.

    Returns
    -------
    Tensor, (B, 3, T, H, W)
    """
    height, width = x.shape[-2:]
    reach = math.ceil(REACH_SIGMAS * float(sigma.max()))
    sigma = sigma.to(x.device, x.dtype, non_blocking=True)
    columns = blur_matrices(sigma, width, reach)
    rows = columns if height == width else blur_matrices(sigma, height, reach)
    x = rows[:, None, None] @ x
    return (x.flatten(1, 3) @ columns.transpose(1, 2)).view_as(x)


class GaussianBlur(nn.Module):
    """Gaussian blur with a standard deviation drawn uniformly a clip.

    The kernel is not cut, as in Pillow, which SwAV, SimSiam and Barlow Twins blur with; the 23 taps of BYOL
    at 224 pixels are 5.5 of its largest standard deviations and leave out 4e-8 of the weight. BYOL pads
    with zeros, which darkens borders; here pixels at a border are repeated, as in Pillow.

    Parameters
    ----------
    min_sigma, max_sigma : float
        Range of the standard deviation, 0 < min_sigma <= max_sigma, in pixels.

    Raises
    ------
    ConfigError
        For an impossible range.
    """

    def __init__(self, min_sigma: float = 0.1, max_sigma: float = 2.0) -> None:
        super().__init__()
        if not 0 < min_sigma <= max_sigma < float("inf"):
            raise ConfigError(
                f"blur sigma is ({min_sigma}, {max_sigma}); must be 0 < smallest <= largest, in pixels; "
                "the papers have (0.1, 2.0) at 224 pixels"
            )
        self.min_sigma, self.max_sigma = min_sigma, max_sigma

    def extra_repr(self) -> str:
        """Parameters, for the printed module."""
        return f"sigma=({self.min_sigma}, {self.max_sigma})"

    def draw(self, num_clips: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw standard deviations, (num_clips,), float64, on the CPU."""
        return self.min_sigma + (self.max_sigma - self.min_sigma) * uniform((num_clips,), generator)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Blur (B, 3, T, H, W) clips, each with its own draw."""
        return gaussian_blur(x, self.draw(len(x), generator))
