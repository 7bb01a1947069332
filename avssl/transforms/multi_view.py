"""Several views of each clip: what the image methods compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.transforms.resample import Interpolation, pad_frames
from avssl.transforms.video import IMAGENET_MEAN, IMAGENET_STD, VideoAugment


@dataclass(frozen=True)
class CropSpec:
    """Some views of one kind, as a recipe spells them.

    Parameters
    ----------
    size : int >= 1
        Height and width, in pixels.
    count : int >= 1
        Number of views of this kind; each has draws of its own.
    min_area, max_area, interpolation, flip, jitter, jitter_prob, gray, blur, blur_sigma, solarize, eight_bit
        See `VideoAugment`, which has the same defaults.
    """

    size: int
    count: int = 1
    min_area: float = 0.08
    max_area: float = 1.0
    interpolation: Interpolation = "bilinear"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.2)
    jitter_prob: float = 1.0
    gray: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    eight_bit: bool = False


def make_views(
    crops: Sequence[CropSpec],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> list[VideoAugment]:
    """One augmentation a view, in the order of `crops`; they share a normalisation.

    Raises
    ------
    ConfigError
        For a count below 1, and for whatever `VideoAugment` refuses; names the place in the list.
    """
    views = []
    for i, crop in enumerate(crops):
        arguments = dataclasses.asdict(crop)
        count = arguments.pop("count")
        try:
            if count < 1:
                raise ConfigError(f"count is {count}; must be at least 1; leave the crop out for none")
            views += [VideoAugment(**arguments, mean=mean, std=std) for _ in range(count)]
        except ConfigError as error:
            raise ConfigError(f"crops[{i}]: {error}") from error
    return views


class MultiView(nn.Module):
    """A tuple of views of each clip; the frames are sent to the device once.

    Parameters
    ----------
    views : sequence of nn.Module, at least one
        Each maps frames and a generator to (B, 3, T, size, size), such as `make_views` gives.
    """

    def __init__(self, views: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(views) == 0:
            raise ConfigError("a batch needs at least one view; got none; name a crop")
        self.views = nn.ModuleList(views)

    def forward(
        self, frames: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Make all views of a batch of clips, drawing for one after the other.

        Parameters
        ----------
        frames : sequence of Tensor, each uint8 (T, H, W, 3)
            As `VideoAugment` takes them.
        generator : torch.Generator, optional
            Source of all random numbers; best on the CPU.

        Returns
        -------
        tuple of Tensor, each (B, 3, T, size, size), float32
        """
        frames = self._on_device(frames)
        return tuple(view(frames, generator) for view in self.views)

    def _on_device(self, frames: Sequence[Tensor]) -> Sequence[Tensor]:
        """The clips where the views' buffers lie, in one copy: else each view would send them itself."""
        buffer = next(self.buffers(), None)
        if buffer is None or len(frames) == 0 or frames[0].device == buffer.device:
            return frames
        batch = pad_frames(frames).to(buffer.device, non_blocking=True)
        return [
            padded[:, : clip.shape[1], : clip.shape[2]] for padded, clip in zip(batch, frames, strict=True)
        ]
