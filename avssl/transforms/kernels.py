"""Views and colours of one clip, compiled for the processor that runs them.

A processor's time goes into fetching and storing pixels more than into sums. So a clip is worked on in rows
or blocks that stay in the innermost cache: each is fetched, passes through all operations, and is stored.
Only contrast needs the whole frame before it can begin; then a frame is gone through twice.

Imported where it is first needed: loading the compiler takes half a second, compiling (kept on disk where
Python keeps its own compiled files, if it can) ten more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from avssl.transforms.lanes import LANES, weigh_pixels

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLOCK = 1024
ZERO, ONE, HALF, WHITE = np.float32(0), np.float32(1), np.float32(0.5), np.float32(255)
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
def place_of(kind, kinds):  # type: ignore[no-untyped-def]
    """Where in the order an operation is; their number if it is not."""
    for n in range(kinds.size):
        if kinds[n] == kind:
            return n
    return kinds.size


@compiled
def colour_blocks(clip, t, operations, scale, gray, gains, offsets):  # type: ignore[no-untyped-def]
    """Operations on a frame, block by block in place; gives its mean luma after them, before the gains."""
    scratch = np.empty((3, BLOCK), np.float32)
    num_pixels = clip.shape[2]
    total = 0.0
    for start in range(0, num_pixels, BLOCK):
        end = min(start + BLOCK, num_pixels)
        red, green, blue = apply(fetch(clip, t, start, end, scratch, scale), *operations, gray)
        total += total_luma(red, green, blue)
        store(red, green, blue, clip, t, start, end, gains, offsets)
    return np.float32(total / num_pixels)


@compiled
def colour_frames(clip, kinds, factors, scale, mean, std):  # type: ignore[no-untyped-def]
    """``(jittered(scale clip) - mean) / std`` in place.

    Parameters
    ----------
    clip : float32 (3, T, pixels)
        Red, green, blue.
    kinds, factors : int64 (A,), float64 (A,)
        Operations; contrast at most once.
    scale : float32
    mean, std : float32 (3,)
    """
    gains, offsets = ONE / std, -mean / std
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    first = place_of(CONTRAST, kinds)
    for t in range(clip.shape[1]):
        factor, gray, start = scale, ZERO, 0
        if first < kinds.size:
            gray = colour_blocks(clip, t, (kinds[:first], factors[:first]), scale, ZERO, ones, zeros)
            factor, start = ONE, first
        colour_blocks(clip, t, (kinds[start:], factors[start:]), factor, gray, gains, offsets)


@compiled
def widen(source, target):  # type: ignore[no-untyped-def]
    """Copy bytes as floating-point numbers."""
    for i in range(source.size):
        target[i] = source[i]


@compiled
def settle(row, eight_bit, scale):  # type: ignore[no-untyped-def]
    """Cut off what overshoots [0, 255], round if wanted, and scale."""
    if eight_bit:
        for i in range(row.size):
            row[i] = np.floor(clamp(row[i], ZERO, WHITE) + HALF) * scale
    else:
        for i in range(row.size):
            row[i] = clamp(row[i], ZERO, WHITE) * scale


@compiled
def sum_across(line, offsets, weights, row):  # type: ignore[no-untyped-def]
    """A row of the frame resized, (3, width)."""
    red, green, blue = row[0], row[1], row[2]
    for x in range(0, offsets.size, LANES):
        weigh_pixels(line, offsets, weights, x, red, green, blue)  # type: ignore[call-arg]


@compiled
def sum_down(ring, first, weights, target, start, end):  # type: ignore[no-untyped-def]
    """A row of the result from rows resized, which lie in a ring by their numbers."""
    taps, size = weights.size, end - start
    weight, second = weights[0], (weights[1] if taps > 1 else ZERO)
    for c in range(3):
        a, b, row = ring[first % taps, c, :size], ring[(first + 1) % taps, c, :size], target[c, start:end]
        for i in range(size):
            row[i] = weight * a[i] + second * b[i]
        for k in range(2, taps):
            a, further = ring[(first + k) % taps, c, :size], weights[k]
            for i in range(size):
                row[i] += further * a[i]


@compiled
def make_view(frames, left, right, rows, columns, eight_bit, kinds, factors, mean, std, view):  # type: ignore[no-untyped-def]
    """``(jittered(resized(frames) / 255) - mean) / std``, a few rows at a time.

    Parameters
    ----------
    frames : uint8 (T, H, 3 W)
    left, right : int
        The columns that are read.
    rows : (int64 (size,), float32 (size, taps))
        The first row that each of the result is made of, and the weights from there on.
    columns : (int64 (width,), float32 (taps, width))
        The same, counted from `left`; `width` is `size` or more, a multiple of `LANES`.
    eight_bit : bool
        Round after each axis.
    kinds, factors, mean, std
        As in `colour_frames`.
    view : float32 (3, T, size * size)
        The result.
    """
    first_rows, row_weights = rows
    size, taps = row_weights.shape
    offsets, column_weights = 3 * columns[0], columns[1]
    line = np.zeros(3 * (right - left) + LANES, np.float32)
    ring = np.empty((taps, 3, offsets.size), np.float32)
    group = max(1, BLOCK // size)
    scratch = np.empty((3, group * size), np.float32)
    contrast = place_of(CONTRAST, kinds)
    last_gains, last_offsets = ONE / std, -mean / std
    is_last = contrast == kinds.size
    gains, additions = (last_gains, last_offsets) if is_last else (np.ones_like(std), np.zeros_like(std))
    for t in range(frames.shape[0]):
        ready, total = first_rows[0], 0.0
        for start in range(0, size, group):
            end = min(start + group, size)
            for y in range(start, end):
                while ready < first_rows[y] + taps:
                    widen(frames[t, ready, 3 * left : 3 * right], line)
                    sum_across(line, offsets, column_weights, ring[ready % taps])
                    if eight_bit:
                        settle(ring[ready % taps].reshape(-1), True, ONE)
                    ready += 1
                at = (y - start) * size
                sum_down(ring, first_rows[y], row_weights[y], scratch, at, at + size)
            pixels = (end - start) * size
            red, green, blue = scratch[0, :pixels], scratch[1, :pixels], scratch[2, :pixels]
            for channel in (red, green, blue):
                settle(channel, eight_bit, ONE / WHITE)
            red, green, blue = apply((red, green, blue), kinds[:contrast], factors[:contrast], ZERO)
            if not is_last:
                total += total_luma(red, green, blue)
            store(red, green, blue, view, t, start * size, end * size, gains, additions)
        if not is_last:
            gray = np.float32(total / (size * size))
            later = kinds[contrast:], factors[contrast:]
            colour_blocks(view, t, later, ONE, gray, last_gains, last_offsets)
