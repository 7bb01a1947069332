"""What BYOL, SimSiam and Barlow Twins share: heads as released, and parameter groups.

| head | layers, with batch norm and ReLU between them | bias | at the end |
| --- | --- | --- | --- |
| BYOL projector | trunk - 4096 - 256 | first layer only | nothing |
| BYOL predictor | 256 - 4096 - 256 | first layer only | nothing |
| SimSiam projector | trunk - 2048 - 2048 - 2048 | last layer only, frozen at its initial value | norm |
| SimSiam predictor | 2048 - 512 - 2048 | last layer only | nothing |
| Barlow Twins projector | trunk - 8192 - 8192 - 8192 | none | nothing |

The norm at the end of SimSiam's projector has no scale and shift, so it takes the frozen bias out again; the
bias is kept because it is in the released files. Positions in the ``Sequential`` are those of the releases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.objectives.sync_norm import BatchNorm1d


def byol_head(dim_in: int, hidden_dim: int, dim: int) -> nn.Sequential:
    """BYOL's projector or predictor, (B, dim_in) to (B, dim)."""
    return nn.Sequential(*_hidden(dim_in, hidden_dim, bias=True), nn.Linear(hidden_dim, dim, bias=False))


def simsiam_projector(dim_in: int, hidden_dim: int, dim: int) -> nn.Sequential:
    """SimSiam's projector, (B, dim_in) to (B, dim)."""
    last = nn.Linear(hidden_dim, dim)
    last.bias.requires_grad_(False)
    return nn.Sequential(
        *_hidden(dim_in, hidden_dim, bias=False),
        *_hidden(hidden_dim, hidden_dim, bias=False),
        last,
        BatchNorm1d(dim, affine=False),
    )


def simsiam_predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """SimSiam's predictor, (B, dim) to (B, dim) through a bottleneck."""
    return nn.Sequential(*_hidden(dim, hidden_dim, bias=False), nn.Linear(hidden_dim, dim))


def barlow_twins_projector(dim_in: int, hidden_dim: int, dim: int) -> nn.Sequential:
    """Barlow Twins' projector, (B, dim_in) to (B, dim)."""
    return nn.Sequential(
        *_hidden(dim_in, hidden_dim, bias=False),
        *_hidden(hidden_dim, hidden_dim, bias=False),
        nn.Linear(hidden_dim, dim, bias=False),
    )


def _hidden(dim_in: int, dim: int, bias: bool) -> list[nn.Module]:
    return [nn.Linear(dim_in, dim, bias=bias), BatchNorm1d(dim), nn.ReLU(inplace=True)]


def trunk_dim(encoders: nn.Module) -> int:
    """Length of the features of the trunk ``encoders.video``.

    Raises
    ------
    ConfigError
        When there is no such trunk, or it has no int attribute `dim`.
    """
    dim = getattr(getattr(encoders, "video", None), "dim", None)
    if not isinstance(dim, int):
        raise ConfigError(
            f"the encoders {type(encoders).__name__} must have a trunk `video` with an int attribute `dim`, "
            f"the length of its features; got {dim!r}. Set `self.dim` in the trunk's constructor"
        )
    return dim


def weights_and_rest(module: nn.Module, lr_scale: float = 1.0) -> list[dict[str, Any]]:
    """Trained parameters in two groups: weights; biases and norms, which LARS neither adapts nor decays.

    Parameters
    ----------
    module : nn.Module
        Its vectors and scalars, which are the biases and the scales and shifts of norms, form the second.
    lr_scale : float > 0
        Factor on the base learning rate of the second group.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    weights = [p for p in trained if p.ndim > 1]
    rest = [p for p in trained if p.ndim <= 1]
    return [
        {"params": weights},
        {"params": rest, "adapt": False, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]


def at_least_float32(z: Tensor) -> Tensor:
    """Embeddings in float32, or float64 if they are: what losses are computed in, whatever autocast says."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
