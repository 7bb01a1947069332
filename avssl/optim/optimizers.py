"""Optimisers by name, and the rates of their groups."""

from __future__ import annotations

from typing import Any, Literal

import torch
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
    optimizer: Optimizer
    if name in ("adam", "adamw"):
        adam = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        optimizer = adam(groups, lr=lr, weight_decay=weight_decay)
    else:
        sgd = {"sgd": torch.optim.SGD, "lars": LARS, "larc": LARC}[name]
        optimizer = sgd(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the rate of every group to its base times a factor, but for groups with ``"fixed_lr": True``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * (1.0 if group.get("fixed_lr", False) else factor)
