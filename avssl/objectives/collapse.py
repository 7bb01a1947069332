"""Signs that embeddings collapse, as every objective logs them, and what to say when they do.

| number | collapsed | healthy |
| --- | --- | --- |
| ``spread*`` | 0 | about 1: unit embeddings vary by 1 / sqrt(D) in every feature |
| ``effective_rank*`` | 1 | many: directions that the embeddings of a batch vary in |
| ``mean_norm*`` | 1 | near 0: length of the mean unit embedding |
| ``prototypes_used*`` | near 0 | share of the prototypes that are the likeliest of some sample |
| ``loss_over_ln_k*`` | 1 or more | falls below 1: SwAV predicts better than at random |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

PATIENCE = 0.1
"""Share of the training before which no sign counts: networks begin with embeddings that hardly differ."""


@torch.no_grad()
def embedding_health(z: Tensor, suffix: str = "") -> dict[str, Tensor]:
    """``spread`` and ``effective_rank`` of embeddings, with a suffix to their names.

    The spread is ``sqrt(D)`` times the mean over features of the standard deviation over this process's
    samples of ``z / |z|`` (Chen & He, "Exploring simple siamese representation learning", 2021, section 4.1).
    The effective rank is ``(sum of l)^2 / sum of l^2`` over the eigenvalues l of the covariance: the
    number of directions if all vary alike. It is taken from the Gram matrix of the batch, without any
    decomposition.

    Parameters
    ----------
    z : Tensor, (B, D)
        Embeddings of any scale.
    suffix : str
        Such as ``"_video"``.

    Returns
    -------
    dict of str to scalar Tensor
        The spread in [0, 1]; the effective rank in [1, min(B - 1, D)], 1 where all embeddings are the same.
    """
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(z.detach().float(), dim=1)
        centred = unit - unit.mean(dim=0)
        spread = centred.square().mean(dim=0).sqrt().mean() * z.shape[1] ** 0.5
        gram = centred @ centred.T
        trace, squares = gram.diagonal().sum(), gram.square().sum()
        rank = torch.where(squares > 1e-20, trace.square() / squares.clamp_min(1e-20), 1.0)
    return {f"spread{suffix}": spread, f"effective_rank{suffix}": rank}


def collapse_signs(numbers: Mapping[str, float], done: float) -> list[str]:
    """Say which logged numbers show a collapse, in sentences with their remedy.

    Parameters
    ----------
    numbers : mapping of str to float
        Means over the last steps, as an objective names them; parts of a `Joint` stand before a slash.
    done : float in [0, 1]
        Share of the training that is done; nothing is said before `PATIENCE`.
    """
    if done < PATIENCE:
        return []
    rules = (
        ("spread", lambda x: x < 0.1, "embeddings hardly differ between samples (healthy: about 1)"),
        ("effective_rank", lambda x: x < 1.2, "embeddings vary in a single direction"),
        ("mean_norm", lambda x: x > 0.95, "all embeddings lie in one cone (healthy: near 0)"),
        ("prototypes_used", lambda x: x < 0.05, "nearly all samples share a few prototypes"),
        (
            "loss_over_ln_k",
            lambda x: x > 0.99,
            "the loss stays at that of random guesses, ln K (a smaller epsilon helps)",
        ),
    )
    return [
        f"{name} is {value:.3g}: {meaning}; the training may have collapsed: lower optim.lr, soften the "
        "augmentation, or put batch norm into the head"
        for name, value in numbers.items()
        for sign, fires, meaning in rules
        if name.rpartition("/")[2].startswith(sign) and fires(value)
    ]
