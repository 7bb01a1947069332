"""Colours of one clip on a processor: jitter and normalisation in one go, in `avssl.transforms.kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
"""In the order of the numbers that the compiled code has for them."""

Operations = Sequence[tuple[str, float]]


def as_numbers(operations: Operations) -> tuple[np.ndarray, np.ndarray]:
    """Operations as the compiled code takes them: kinds, int64 (A,), and factors, float64 (A,)."""
    kinds = np.array([OPERATIONS.index(name) for name, _ in operations], np.int64)
    return kinds, np.array([factor for _, factor in operations], np.float64)


def colour_clip(
    clip: Tensor,
    operations: Operations,
    scale: float = 1.0,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
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
    """
    from avssl.transforms.kernels import colour_frames

    frames = clip.to(torch.float32).contiguous()
    colour_frames(
        frames.flatten(2).numpy(),
        *as_numbers(operations),
        np.float32(scale),
        np.array(mean, np.float32),
        np.array(std, np.float32),
    )
    if frames is not clip:
        clip.copy_(frames)
