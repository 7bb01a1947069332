"""Optimisers by name, and the rates of their groups."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from avssl.optim.layerwise import LARC, LARS

OptimizerName = Literal["adam", "adamw", "sgd", "lars", "larc"]


def make_optimizer(
    name: OptimizerName,
    param_groups: list[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> Optimizer:
    """Build an optimiser; every group remembers its `base_lr`, which schedules multiply.

    All step many tensors at a time, see `kernels`; a state to load may be of any device, layout or kernel.

    Parameters
    ----------
    name : {"adam", "adamw", "sgd", "lars", "larc"}
        ``"adam"`` adds weight decay to the gradient (the official AVID setting), ``"adamw"`` decouples it;
        ``"sgd"`` is SimSiam's, `LARS` BYOL's and Barlow Twins', `LARC` SwAV's and SEER's.
    param_groups : list of dict
        As `Objective.param_groups` returns them. Besides ``"params"`` a group may hold

        - ``"lr"``, ``"weight_decay"``, ``"momentum"``: its own instead of the arguments below;
        - ``"lr_scale"`` (float > 0): factor on its base rate (.024 for the biases of Barlow Twins);
        - ``"fixed_lr"`` (bool): keeps its base rate whatever the schedule (the predictor of SimSiam);
        - ``"adapt"`` (bool): False leaves it out of the layer-wise scaling of LARS and LARC.
    lr : float > 0
        Base learning rate of groups that do not set their own.
    weight_decay : float >= 0
        Weight decay, likewise.
    momentum : float in [0, 1)
        Of SGD, LARS and LARC (the betas of Adam are torch's defaults).
    """
    groups = [{**g, "lr": g.get("lr", lr) * g.get("lr_scale", 1.0)} for g in param_groups]
    chosen = kernels(name, [p for group in groups for p in group["params"]])
    optimizer: Optimizer
    if name in ("adam", "adamw"):
        adam = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        optimizer = adam(groups, lr=lr, weight_decay=weight_decay, **chosen)
    else:
        sgd = {"sgd": torch.optim.SGD, "lars": LARS, "larc": LARC}[name]
        optimizer = sgd(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, **chosen)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    optimizer.register_load_state_dict_pre_hook(_with_own_kernels)
    optimizer.register_load_state_dict_post_hook(_laid_out_as_parameters)
    return optimizer


def kernels(name: OptimizerName, params: list[torch.Tensor]) -> dict[str, Any]:
    """Arguments that choose the kernels of an optimiser.

    Adam on GPUs takes one fused kernel, which also asks the scaler of gradients without waiting for the GPU.
    On the CPU that kernel rounds in another order, and saves but a few milliseconds a step.
    SGD is never fused: the kernel of torch 2.11 fails once a parameter gets its first gradient later than the
    others, and leaves momenta that were never set behind when float16 overflows in the first step. LARS and
    LARC have kernels of their own.
    """
    if name in ("lars", "larc"):
        return {}
    fused = name in ("adam", "adamw") and all(p.is_cuda and p.is_floating_point() for p in params)
    return {"fused": True} if fused else {"foreach": True}


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the rate of every group to its base times a factor, but for groups with ``"fixed_lr": True``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * (1.0 if group.get("fixed_lr", False) else factor)


def _with_own_kernels(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state to load, with this optimiser's choice of kernels in the place of the saved one."""
    saved, own = state["param_groups"], optimizer.param_groups
    if len(saved) != len(own):  # torch refuses it next
        return state
    chosen = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in own]
    return {**state, "param_groups": [there | here for there, here in zip(saved, chosen, strict=True)]}


def _laid_out_as_parameters(optimizer: Optimizer) -> None:
    """Give moments the strides of their parameter: fused kernels go through both side by side in memory."""
    for p, values in optimizer.state.items():
        for key, value in values.items():
            whole = isinstance(value, torch.Tensor) and not isinstance(value, DTensor)
            if whole and value.shape == p.shape and value.stride() != p.stride():
                values[key] = torch.empty_like(p, dtype=value.dtype).copy_(value)
