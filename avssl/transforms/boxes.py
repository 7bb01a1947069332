"""Where random crops lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avssl.transforms.draws import uniform

ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


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
