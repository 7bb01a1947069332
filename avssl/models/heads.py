"""The projection between an encoder and its objective."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from avssl.errors import ConfigError


class ProjectionHead(nn.Module):
    """Multi-layer perceptron with ReLU between its layers; its output is not normalised.

    Without batch norm it is the head of AVID and CMA (Morgado et al., CVPR 2021):
    Linear-ReLU-Linear-ReLU-Linear, all with bias, or one Linear. Its keys are then ``projection.{0,2,4}.*``.

    With batch norm every Linear, without bias, is followed by a BatchNorm1d: hidden ones before their ReLU,
    and the last by one without scale and shift. That last one centres the embeddings. In small runs without
    it all embeddings soon lie in one narrow cone, where no negative is far away; centred ones cannot. It
    needs at least 2 samples in a training batch, and ties the samples of a batch together, as every batch
    norm does.

    Parameters
    ----------
    dim_in : int >= 1
        Length of the encoder's features.
    dims : sequence of int, not empty
        Lengths after each Linear; the last is the length of the embedding, kept as `dim`.
    batch_norm : bool
        See above.

    Raises
    ------
    ConfigError
        When `dims` is empty or a length is below 1.
    """

    def __init__(self, dim_in: int, dims: Sequence[int] = (512, 512, 128), batch_norm: bool = False) -> None:
        super().__init__()
        if not dims or min(dim_in, *dims) < 1:
            raise ConfigError(
                "a projection head needs output lengths, each at least 1, such as (512, 512, 128); "
                f"got dims {tuple(dims)} after features of length {dim_in}"
            )
        layers: list[nn.Module] = []
        lengths = (dim_in, *dims)
        for position, (before, after) in enumerate(pairwise(lengths), start=1):
            last = position == len(dims)
            layers.append(nn.Linear(before, after, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(after, affine=not last))
            if not last:
                layers.append(nn.ReLU(inplace=True))
        self.projection = nn.Sequential(*layers)
        self.dim = lengths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, dim_in) to embeddings (B, dim)."""
        return self.projection(x)
