"""Vectorised drawing of a whole clip at once, from signed distances to simple shapes.

Arrays hold all frames: pixel coordinates broadcast to (T, H, W) and whatever moves is given as (T,) values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating]
Color = NDArray[np.floating]


def over_time(values: ArrayLike) -> FloatArray:
    """Shape (T,) values, or one number, so that they broadcast against (T, H, W)."""
    array = np.asarray(values, dtype=np.float32)
    return array.reshape(-1, 1, 1) if array.ndim == 1 else array


@dataclass(frozen=True)
class Pen:
    """A local coordinate system on part of a clip, in which shapes are filled.

    Parameters
    ----------
    planes : ndarray, (3, T, h, w), float32
        View into the clip, changed in place; values in [0, 1].
    u, v : ndarray, broadcastable to (T, h, w)
        Local coordinates of the pixels: the figure lies in [-1, 1], v points down.
    pixels_per_unit : float
        Length of one local unit in pixels; edges are blended over one pixel.
    """

    planes: FloatArray
    u: FloatArray
    v: FloatArray
    pixels_per_unit: float

    def moved(self, du: ArrayLike = 0.0, dv: ArrayLike = 0.0, angle: ArrayLike | None = None) -> Pen:
        """Pen with its origin at (du, dv), then turned clockwise by `angle` radians."""
        u, v = self.u - over_time(du), self.v - over_time(dv)
        if angle is None:
            return replace(self, u=u, v=v)
        cos, sin = over_time(np.cos(angle)), over_time(np.sin(angle))
        return replace(self, u=cos * u + sin * v, v=cos * v - sin * u)

    def disc(self, radius: ArrayLike) -> FloatArray:
        """Signed distance to a disc around the origin."""
        return np.sqrt(self.u**2 + self.v**2) - over_time(radius)

    def ellipse(self, half_width: ArrayLike, half_height: ArrayLike) -> FloatArray:
        """Approximate signed distance to an ellipse around the origin."""
        width, height = over_time(half_width), over_time(half_height)
        return (np.sqrt((self.u / width) ** 2 + (self.v / height) ** 2) - 1) * np.minimum(width, height)

    def box(self, half_width: ArrayLike, half_height: ArrayLike) -> FloatArray:
        """Signed distance (Chebyshev) to a rectangle around the origin."""
        return np.maximum(np.abs(self.u) - over_time(half_width), np.abs(self.v) - over_time(half_height))

    def bar(self, length: ArrayLike, half_width: ArrayLike) -> FloatArray:
        """Signed distance to a bar with round ends, from the origin along the local u axis."""
        along = np.clip(self.u, 0, over_time(length))
        return np.sqrt((self.u - along) ** 2 + self.v**2) - over_time(half_width)

    def fill(
        self, distance: FloatArray, color: Color, stripes: float = 0.0, opacity: ArrayLike | FloatArray = 1.0
    ) -> None:
        """Blend `color` where `distance` is negative, darkened by diagonal stripes of the given contrast."""
        cover = np.clip(0.5 - distance * self.pixels_per_unit, 0, 1) * over_time(opacity)
        stripe = np.sin(9.0 * (self.u + self.v)) > 0 if stripes > 0 else np.zeros((1, 1, 1), bool)
        shade = 1 - np.float32(0.75 * stripes) * stripe
        for plane, value in zip(self.planes, color, strict=True):
            plane += cover * (value * shade - plane)


def pen_at(
    planes: FloatArray, center_x: FloatArray, center_y: FloatArray, size: float, reach: float = 1.4
) -> Pen:
    """Pen for a figure whose centre moves through the clip.

    Parameters
    ----------
    planes : ndarray, (3, T, H, W)
        The clip.
    center_x, center_y : ndarray, (T,)
        Centre of the figure as a share of the frame.
    size : float
        Half the extent of the figure as a share of the frame.
    reach : float
        How far from the centre the figure may draw, in local units; pixels beyond are left alone.
    """
    side = planes.shape[-1]
    columns = _window(center_x, size * reach, side)
    rows = _window(center_y, size * reach, side)
    x = (np.arange(side, dtype=np.float32)[columns] + 0.5) / side
    y = (np.arange(side, dtype=np.float32)[rows] + 0.5) / side
    u = (x[None, None, :] - over_time(center_x)) / np.float32(size)
    v = (y[None, :, None] - over_time(center_y)) / np.float32(size)
    return Pen(planes[:, :, rows, columns], u, v, size * side)


def _window(center: FloatArray, reach: float, side: int) -> slice:
    """Pixels that a figure can touch in any frame."""
    low = int(np.clip(np.floor((center.min() - reach) * side), 0, side - 1))
    high = int(np.clip(np.ceil((center.max() + reach) * side), low + 1, side))
    return slice(low, high)
