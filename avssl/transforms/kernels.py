"""Colours of the frames of one clip, compiled for the processor that runs it.

A processor's time goes into fetching and storing pixels more than into sums. So a clip is worked on in blocks
that stay in the innermost cache: a block is fetched, passes through all operations, and is stored. Only
contrast needs the whole frame before it can begin; then a frame is gone through twice.

Imported where it is first needed: loading the compiler takes half a second, compiling (kept on disk where
Python keeps its own compiled files, if it can) a few more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLOCK = 1024
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)


def compiled(function: Callable[..., Any]) -> Any:
    """The function compiled; sums may be taken in any order, pixels are numbers."""
    try:
        return njit(function, cache=True, fastmath=True, nogil=True, error_model="numpy")
    except RuntimeError:  # no folder to keep the result in
        return njit(function, fastmath=True, nogil=True, error_model="numpy")


@compiled
def clamp(value, low, high):  # type: ignore[no-untyped-def]
    """Bounded from below, then from above."""
    return min(max(value, low), high)


@compiled
def blend(red, green, blue, factor, offset):  # type: ignore[no-untyped-def]
    """Each channel times a factor plus an offset."""
    for i in range(red.size):
        red[i] = clamp(red[i] * factor + offset, ZERO, ONE)
        green[i] = clamp(green[i] * factor + offset, ZERO, ONE)
        blue[i] = clamp(blue[i] * factor + offset, ZERO, ONE)


@compiled
def saturate(red, green, blue, factor):  # type: ignore[no-untyped-def]
    """Each pixel blended with its luma."""
    for i in range(red.size):
        gray = (ONE - factor) * (RED * red[i] + GREEN * green[i] + BLUE * blue[i])
        red[i] = clamp(red[i] * factor + gray, ZERO, ONE)
        green[i] = clamp(green[i] * factor + gray, ZERO, ONE)
        blue[i] = clamp(blue[i] * factor + gray, ZERO, ONE)


@compiled
def turn(x, y, z, share, sign):  # type: ignore[no-untyped-def]
    """Each hue turned by ``1 - share <= 1/2`` sixths from x towards y, and mirrored if the sign is negative.

    V is the largest channel of a pixel, m the smallest, C = V - m. In HSV each channel runs along the circle
    of hues through a trapezoid: V for two sixths of a turn, down to m within one, m for two, and up again.
    Mirroring it at (V + m) / 2 is half a turn. Turned by s sixths, 0 <= s <= 1/2, a channel x with the
    neighbours y and z becomes::

        clamp((V + m) / 2 + (x - y) + k clamp(y - z, -(1 - s) C, (1 - s) C), m, V),  k = (1/2 - s) / (1 - s)

    On both slopes the inner clamp is at its bounds: the channel has moved by s C, and turned the corner where
    a third channel takes over from it. Elsewhere the sum lies outside [m, V].
    """
    slope = (share - HALF) / share
    for i in range(x.size):
        high, low = max(max(x[i], y[i]), z[i]), min(min(x[i], y[i]), z[i])
        bound, middle = (high - low) * share, (high + low) * HALF
        xy, yz, zx = x[i] - y[i], y[i] - z[i], z[i] - x[i]
        x[i] = clamp(middle + sign * (xy + slope * clamp(yz, -bound, bound)), low, high)
        y[i] = clamp(middle + sign * (yz + slope * clamp(zx, -bound, bound)), low, high)
        z[i] = clamp(middle + sign * (zx + slope * clamp(xy, -bound, bound)), low, high)


@compiled
def turn_hue(red, green, blue, turns):  # type: ignore[no-untyped-def]
    """Hue turned by any part of the circle; gives the three channels, which have changed places."""
    whole = round(6 * turns)
    rest = np.float32(6 * turns - whole)
    mirrored = whole % 2
    share, sign = ONE - abs(rest), (-ONE if mirrored else ONE)
    if rest >= 0:
        turn(red, green, blue, share, sign)
    else:
        turn(red, blue, green, share, sign)
    places = ((whole - 3 * mirrored) // 2) % 3  # two sixths each
    if places == 1:
        return blue, red, green
    if places == 2:
        return green, blue, red
    return red, green, blue


@compiled
def apply(channels, kinds, factors, gray):  # type: ignore[no-untyped-def]
    """Operations on a block; contrast blends with `gray`."""
    red, green, blue = channels
    for n in range(kinds.size):
        factor = np.float32(factors[n])
        if kinds[n] == BRIGHTNESS:
            blend(red, green, blue, factor, ZERO)
        elif kinds[n] == CONTRAST:
            blend(red, green, blue, factor, (ONE - factor) * gray)
        elif kinds[n] == SATURATION:
            saturate(red, green, blue, factor)
        else:
            red, green, blue = turn_hue(red, green, blue, factors[n])
    return red, green, blue


@compiled
def move(source, target, factor, offset):  # type: ignore[no-untyped-def]
    """Copy pixels, times a factor plus an offset."""
    for i in range(source.size):
        target[i] = source[i] * factor + offset


@compiled
def fetch(clip, t, start, end, scratch, factor):  # type: ignore[no-untyped-def]
    """A block of a frame; its channels lie apart, each without gaps, which the compiler needs to know."""
    size = end - start
    red, green, blue = scratch[0][:size], scratch[1][:size], scratch[2][:size]
    move(clip[0, t, start:end], red, factor, ZERO)
    move(clip[1, t, start:end], green, factor, ZERO)
    move(clip[2, t, start:end], blue, factor, ZERO)
    return red, green, blue


@compiled
def store(red, green, blue, clip, t, start, end, gains, offsets):  # type: ignore[no-untyped-def]
    """A block put back, each channel times its gain plus its offset."""
    move(red, clip[0, t, start:end], gains[0], offsets[0])
    move(green, clip[1, t, start:end], gains[1], offsets[1])
    move(blue, clip[2, t, start:end], gains[2], offsets[2])


@compiled
def total_luma(red, green, blue):  # type: ignore[no-untyped-def]
    """Sum over a block."""
    total = ZERO
    for i in range(red.size):
        total += RED * red[i] + GREEN * green[i] + BLUE * blue[i]
    return total


@compiled
def unpack(pixels, clip, t):  # type: ignore[no-untyped-def]
    """Colours of a frame, side by side in each pixel, as frame t of a clip."""
    red, green, blue = clip[0, t], clip[1, t], clip[2, t]
    for i in range(red.size):
        red[i], green[i], blue[i] = pixels[i, 0], pixels[i, 1], pixels[i, 2]


@compiled
def colour_frames(packed, clip, kinds, factors, scale, mean, std):  # type: ignore[no-untyped-def]
    """``(jittered(scale clip) - mean) / std`` in place.

    Parameters
    ----------
    packed : uint8 (T, pixels, 3)
        What the clip is filled with first; without frames, the clip is what it is.
    clip : float32 (3, T, pixels)
        Red, green, blue.
    kinds, factors : int64 (A,), float64 (A,)
        Operations; contrast at most once.
    scale : float32
    mean, std : float32 (3,)
    """
    _, num_frames, num_pixels = clip.shape
    scratch = np.empty((3, BLOCK), np.float32)
    contrast = kinds.size
    for n in range(kinds.size):
        if kinds[n] == CONTRAST:
            contrast = n
    gains, offsets = ONE / std, -mean / std
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    for t in range(num_frames):
        if packed.shape[0] > 0:
            unpack(packed[t], clip, t)
        factor, gray, first = scale, ZERO, 0
        if contrast < kinds.size:
            before = kinds[:contrast]
            total = 0.0
            for start in range(0, num_pixels, BLOCK):
                end = min(start + BLOCK, num_pixels)
                red, green, blue = apply(fetch(clip, t, start, end, scratch, factor), before, factors, gray)
                total += total_luma(red, green, blue)
                store(red, green, blue, clip, t, start, end, ones, zeros)
            factor, gray, first = ONE, np.float32(total / num_pixels), contrast
        for start in range(0, num_pixels, BLOCK):
            end = min(start + BLOCK, num_pixels)
            block = fetch(clip, t, start, end, scratch, factor)
            red, green, blue = apply(block, kinds[first:], factors[first:], gray)
            store(red, green, blue, clip, t, start, end, gains, offsets)
