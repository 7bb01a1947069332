"""SGD whose steps are scaled layer by layer: LARS of BYOL and Barlow Twins, LARC of SwAV and SEER.

Large batches need large learning rates, and one rate fits no two layers: the ratio of weight to gradient
norm differs by orders of magnitude between them. Both optimisers let every tensor move by a set share of its
own norm.

Many tensors go through one fused kernel (`torch._foreach_*`) and no norm is read back to the host, so a step
never waits for the GPU. Sharded parameters (DTensor) need nothing special: their norms are the global ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LayerwiseSGD(Optimizer):
    """What LARS and LARC share: decay, a factor for every tensor, momentum and the step.

    For the gradient g, the tensor p and its momentum buffer v::

        d <- factor (g + weight_decay p)
        v <- momentum v + d
        p <- p - lr v

    The rate stays outside the buffer, so a schedule acts on the whole step at once. Tensors without a
    gradient are left alone altogether: no decay, no momentum.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        A group's own `lr`, `momentum`, `weight_decay`, `trust_coefficient` replace the arguments below;
        ``"adapt": False`` sets the factor of its tensors to 1 (biases and norms in most recipes).
    lr : float >= 0
        Learning rate.
    momentum : float in [0, 1)
        Share of the buffer that stays.
    weight_decay : float >= 0
        Added to the gradient, before the factor.
    trust_coefficient : float > 0
        Share of its norm a tensor moves by in a step of rate 1 (eta in the papers).

    Raises
    ------
    ValueError
        For an argument out of its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ) -> None:
        for name, value, fits, rule in (
            ("lr", lr, lr >= 0, ">= 0"),
            ("momentum", momentum, 0 <= momentum < 1, "in [0, 1)"),
            ("weight_decay", weight_decay, weight_decay >= 0, ">= 0"),
            ("trust_coefficient", trust_coefficient, trust_coefficient > 0, "> 0"),
        ):
            if not fits:
                raise ValueError(f"{name} is {value}; must be {rule}; choose one in that range")
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "adapt": True,
        }
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every tensor that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients anew; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for params in _batches_of_a_kind(group["params"]):
                self._step_batch(params, group)
        return loss

    def _step_batch(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        direction = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if group["adapt"]:
            factors = self._factors(params, grads, direction, group)
            torch._foreach_mul_(direction, list(factors.unbind()))
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, direction)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _factors(
        self, params: list[Tensor], grads: list[Tensor], direction: list[Tensor], group: dict[str, Any]
    ) -> Tensor:
        """Factor (n,) of each of n tensors, from the gradients and from these with the decay added."""
        raise NotImplementedError

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


class LARS(LayerwiseSGD):
    r"""Layer-wise adaptive rate scaling as BYOL and Barlow Twins use it.

    The factor of `LayerwiseSGD` is

    .. math:: \eta \, \lVert p \rVert \,/\, \lVert g + \lambda p \rVert

    with decay :math:`\lambda`, and 1 where a norm is 0. Both recipes exclude biases and norms: give these
    a group with ``"adapt": False, "weight_decay": 0.0``. Source: You et al., "Large batch training of
    convolutional networks", 2017; both releases divide by the norm of the decayed gradient.
    """

    def _factors(
        self, params: list[Tensor], grads: list[Tensor], direction: list[Tensor], group: dict[str, Any]
    ) -> Tensor:
        weight_norm, step_norm = _norms(params), _norms(direction)
        ratio = group["trust_coefficient"] * weight_norm / step_norm
        return torch.where((weight_norm > 0) & (step_norm > 0), ratio, 1.0)


class LARC(LayerwiseSGD):
    r"""Layer-wise adaptive rate control as SwAV and SEER use it: unclipped, on all parameters.

    The factor of `LayerwiseSGD` is

    .. math:: \eta \, \lVert p \rVert \,/\, (\lVert g \rVert + \lambda \lVert p \rVert + \epsilon)

    with decay :math:`\lambda` and :math:`\epsilon = 10^{-8}`. Where a norm is 0 the gradient is taken as it
    is, without decay. Source: NVIDIA apex ``LARC(clip=False)`` around SGD.
    """

    def _factors(
        self, params: list[Tensor], grads: list[Tensor], direction: list[Tensor], group: dict[str, Any]
    ) -> Tensor:
        weight_norm, grad_norm = _norms(params), _norms(grads)
        ratio = group["trust_coefficient"] * weight_norm
        ratio = ratio / (grad_norm + group["weight_decay"] * weight_norm + 1e-8)
        # p = 0 leaves d = g. g = 0 leaves d = weight_decay p, which must not act: 0.
        return torch.where(weight_norm > 0, torch.where(grad_norm > 0, ratio, 0.0), 1.0)


def _norms(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm (n,) of each of n tensors."""
    return torch.stack(torch._foreach_norm(tensors))


def _batches_of_a_kind(params: list[Tensor]) -> list[list[Tensor]]:
    """Parameters with a gradient, in lists that one fused kernel takes: sharded and whole ones do not mix."""
    batches: dict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        if p.grad is not None:
            batches[type(p), p.device, p.dtype, getattr(p, "device_mesh", None)].append(p)
    return list(batches.values())
