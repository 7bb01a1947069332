"""Colours of one clip on a processor: jitter and normalisation in one go, in `avssl.transforms.kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
"""In the order of the numbers that the compiled code has for them."""

Operations = Sequence[tuple[str, float]]


def colour_clip(
    clip: Tensor,
    operations: Operations,
    scale: float = 1.0,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    source: Tensor | None = None,
) -> None:
    """Jitter and normalise a clip in place: ``(jittered(scale clip) - mean) / std``.

    Parameters
    ----------
    clip : Tensor, (3, T, H, W), on a processor
        RGB in [0, 1 / scale]; overwritten.
    operations : sequence of (str, float)
        "brightness", "contrast" (at most once), "saturation" (factors >= 0) and "hue" (turns in [-0.5, 0.5]),
        in the order in which they are to happen.
    scale : float > 0
        What makes the pixels lie in [0, 1].
    mean, std : three floats
        Normalisation a channel, for pixels in [0, 1].
    source : Tensor, (T, 3, H, W), optional
        Frames to fill the clip with first; quickest are bytes in the order of `torch.channels_last`.
    """
    from avssl.transforms.kernels import colour_frames

    packed = np.empty((0, 0, 3), np.uint8)
    if source is not None and source.dtype == torch.uint8:
        packed = source.permute(0, 2, 3, 1).contiguous().flatten(1, 2).numpy()
    elif source is not None:
        clip.copy_(source.transpose(0, 1))
    frames = clip.to(torch.float32).contiguous()
    colour_frames(
        packed,
        frames.flatten(2).numpy(),
        np.array([OPERATIONS.index(name) for name, _ in operations], np.int64),
        np.array([factor for _, factor in operations], np.float64),
        np.float32(scale),
        np.array(mean, np.float32),
        np.array(std, np.float32),
    )
    if frames is not clip:
        clip.copy_(frames)
