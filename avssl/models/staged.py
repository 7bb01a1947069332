"""What all encoders of this package share: named stages one after another, then a global pool."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class StagedEncoder(nn.Module):
    """Encoder written as a table of stages; gives pooled features or the map after every stage.

    A subclass fills `stages` and `axes`, creates the modules the table names, a global `pool`, and `dim`.

    Attributes
    ----------
    stages : dict of str to tuple of str
        Name of a feature map -> attribute names of the modules, in order, that lead to it from the one
        before.
    axes : tuple of str
        Names of the input's axes; the second is the number of channels, as text.
    dim : int
        Length of a pooled feature.
    """

    stages: ClassVar[dict[str, tuple[str, ...]]]
    axes: ClassVar[tuple[str, ...]]
    dim: int
    pool: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features.

        Parameters
        ----------
        x : Tensor, shaped as `axes` says
            Video (B, 3, T, H, W) or spectrograms (B, 1, frames, bins).

        Returns
        -------
        Tensor, (B, dim)

        Raises
        ------
        ValueError
            When `x` has another rank or number of channels.
        """
        self._check(x)
        for name in self.stages:
            x = self._stage(name, x)
        return self.pool(x).flatten(1)

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs of all stages by name, unpooled, and ``"pool"``, (B, dim), which `forward` returns.

        Parameters and errors are those of `forward`. Maps are (B, channels, T', H', W') for video and
        (B, channels, frames', bins') for sound.
        """
        self._check(x)
        maps = {}
        for name in self.stages:
            x = maps[name] = self._stage(name, x)
        maps["pool"] = self.pool(x).flatten(1)
        return maps

    def _stage(self, name: str, x: Tensor) -> Tensor:
        for attribute in self.stages[name]:
            x = getattr(self, attribute)(x)
        return x

    def _check(self, x: Tensor) -> None:
        if x.ndim != len(self.axes) or x.shape[1] != int(self.axes[1]):
            raise ValueError(
                f"{type(self).__name__} takes ({', '.join(self.axes)}); got shape {tuple(x.shape)}. "
                f"Put the {self.axes[1]} channel(s) on axis 1 and give every batch {len(self.axes)} axes"
            )
