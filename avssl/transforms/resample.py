"""Crop, resize and flip: on accelerators two matrix products over the batch, on a processor clip by clip.

Crop, resize and flip of a clip are linear and separable: two matrices, rows and columns, hold all three.
Clips of a batch differ only in these matrices, so the whole batch is two batched matrix products whatever
its boxes. Where ``torch.set_float32_matmul_precision`` allows TF32, its roundings (three of at most 2^-10)
move a pixel by less than one step of uint8.

A processor has less arithmetic to spare: there each clip is cropped first, and only its few neighbours are
summed for a pixel.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from avssl.transforms.clip_colour import Operations, as_numbers

Interpolation = Literal["bilinear", "bicubic"]

LARGE_BYTES = 32 * 2**20
"""glibc keeps freed blocks up to this size for the next request (the largest M_MMAP_THRESHOLD)."""
KEPT_BYTES = 2**29
"""Most memory of earlier views that is kept."""


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


def cubic_kernel(t: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 at t >= 0, as Pillow and torch's antialiased resize have it."""
    near, far = (1.5 * t - 2.5) * t * t + 1, ((2.5 - 0.5 * t) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def resampling_matrices(
    axis: Axis, size_in: int, size_out: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Weights of an antialiased resize, as Pillow and torch compute it.

    Output pixel i lies at ``begin + (first + i + 1/2) * scale``, ``scale = length / resized``; it is the
    mean of the pixels of the stretch under a kernel stretched by max(scale, 1): shrinking widens it and
    enlarging does not. Bilinear has a triangle of half width 1, bicubic `cubic_kernel`.

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
    distance = distance.abs() / scale.clamp_min(1)
    weights = (1 - distance).clamp_min(0) if interpolation == "bilinear" else cubic_kernel(distance)
    weights = weights * ((pixel >= 0) & (pixel < length))
    return weights / weights.sum(-1, keepdim=True)


def check_frames(frames: Sequence[Tensor]) -> None:
    """Refuse what is no batch of clips.

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


def pad_frames(frames: Sequence[Tensor]) -> Tensor:
    """Stack clips of different sizes, zero-padded at the bottom and right: (B, T, H, W, 3), uint8.

    Raises
    ------
    ValueError
        As `check_frames`.
    """
    check_frames(frames)
    if len({clip.shape for clip in frames}) == 1:
        return torch.stack(list(frames))
    height, width = max(clip.shape[1] for clip in frames), max(clip.shape[2] for clip in frames)
    batch = frames[0].new_zeros(len(frames), frames[0].shape[0], height, width, 3)
    for padded, clip in zip(batch, frames, strict=True):
        padded[:, : clip.shape[1], : clip.shape[2]] = clip
    return batch


def resample(
    batch: Tensor, rows: Axis, columns: Axis, size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Resample uint8 (B, T, H, W, 3) frames to (B, 3, T, size, size) float32.

    Bilinear pixels lie in [0, 1]; bicubic ones overshoot at edges.
    """
    num_clips, num_frames, height, width, _ = batch.shape
    to_rows = resampling_matrices(rows, height, size, interpolation)
    to_columns = resampling_matrices(columns, width, size, interpolation)
    # Rows first: a frame is a contiguous (H, 3 W) matrix as it lies, and less is left to rearrange.
    x = (to_rows / 255)[:, None] @ batch.float().flatten(3)
    x = x.unflatten(3, (width, 3)).permute(0, 4, 1, 2, 3).reshape(num_clips, -1, width)
    x = x @ to_columns.transpose(1, 2)
    return x.view(num_clips, 3, num_frames, size, size)


def taps(
    axis: Axis, size: int, interpolation: Interpolation = "bilinear", multiple: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What `resampling_matrices` holds without most of its zeros, clip by clip.

    `size` is filled up to a multiple with pixels that nobody wants.

    Yields
    ------
    first : int64 (size,)
        For each pixel of the result the first one of the stretch that it is made of.
    weights : float32 (size, taps)
        Weights from there on; none lies outside the stretch.
    """
    _, length, resized, first, flip = (value[:, None] for value in axis)
    scale = length / resized
    i = torch.arange(size + -size % multiple, dtype=scale.dtype).clamp_max(size - 1)
    centre = (first + torch.where(flip > 0, size - 1 - i, i) + 0.5) * scale
    reach = scale.clamp_min(1) * (1 if interpolation == "bilinear" else 2)
    low = (centre - reach + 0.5).floor().clamp_min(0)
    counts = ((centre + reach + 0.5).floor().minimum(length) - low).amax(1, keepdim=True)
    low = low.minimum(length - counts)
    pixel = low[..., None] + torch.arange(int(counts.max()), dtype=scale.dtype)
    distance = (pixel + 0.5 - centre[..., None]).abs() / scale.clamp_min(1)[..., None]
    weights = (1 - distance).clamp_min(0) if interpolation == "bilinear" else cubic_kernel(distance)
    weights = weights * (pixel < length[..., None])
    weights = weights / weights.sum(-1, keepdim=True)
    rows = low.long().numpy(), weights.float().numpy(), counts.long().flatten().tolist()
    for its_low, its_weights, count in zip(*rows, strict=True):
        yield its_low, its_weights[:, :count]


def resample_in_turn(
    frames: Sequence[Tensor],
    rows: Axis,
    columns: Axis,
    size: int,
    interpolation: Interpolation = "bilinear",
    eight_bit: bool = False,
    operations: Sequence[Operations] | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """The same clip by clip on a processor, with jitter and normalisation; see `avssl.transforms.kernels`.

    Parameters
    ----------
    frames : sequence of Tensor, each uint8 (T, H, W, 3), on a processor
        Clips that `check_frames` lets pass.
    rows, columns : Axis
        Whole numbers, float64; rows are not flipped.
    size, interpolation
        As in `resample`; what overshoots is cut off.
    eight_bit : bool
        Round to whole 255ths after each axis.
    operations : sequence of Operations, optional
        Jitter of each clip, see `colour_clip`.
    mean, std : three floats
        Normalisation a channel, for pixels in [0, 1].
    """
    from avssl.transforms.kernels import LANES, make_view

    result = new_views(len(frames), 3, len(frames[0]), size, size)
    views = result.flatten(3).numpy()
    statistics = np.array(mean, np.float32), np.array(std, np.float32)
    tops, lefts, widths = (x.long().tolist() for x in (rows.begin, columns.begin, columns.length))
    by_row, by_column = taps(rows, size, interpolation), taps(columns, size, interpolation, LANES)
    for number, (first_row, row_weights) in enumerate(by_row):
        first_column, column_weights = next(by_column)
        clip, left = frames[number], lefts[number]
        make_view(
            clip.contiguous().numpy().reshape(*clip.shape[:2], -1),
            left,
            left + widths[number],
            (first_row + tops[number], np.ascontiguousarray(row_weights)),
            (first_column, np.ascontiguousarray(column_weights.T)),
            eight_bit,
            *as_numbers(operations[number] if operations else ()),
            *statistics,
            views[number],
        )
    return result


def new_views(*shape: int) -> Tensor:
    """Memory for float32 views, not set, on a processor.

    Beyond `LARGE_BYTES` the C library asks the system for new memory each time, whose pages of 4 KiB take
    longer to hand out than to fill; so large pages are asked for, and kept for the next views of this size
    when nobody has these any more.
    """
    num_bytes = 4 * math.prod(shape)
    if num_bytes < LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape)
    try:
        memory = _kept[num_bytes].pop()
    except IndexError:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    numbers = np.frombuffer(memory, np.float32)
    weakref.finalize(numbers, _keep, memory).atexit = False
    return torch.from_numpy(numbers).view(shape)


_kept: defaultdict[int, list[mmap.mmap]] = defaultdict(list)  # by size; the steps are safe between threads


def _keep(memory: mmap.mmap) -> None:
    """Keep memory that nobody has any more; if it gets too much, none but this."""
    if sum(size * len(memories) for size, memories in list(_kept.items())) + len(memory) > KEPT_BYTES:
        _kept.clear()
    if len(memory) <= KEPT_BYTES:
        _kept[len(memory)].append(memory)
