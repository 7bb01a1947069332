"""Optimisers by name."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.optim import Optimizer

OptimizerName = Literal["adam", "adamw", "sgd"]


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
    name : {"adam", "adamw", "sgd"}
        ``"adam"`` adds weight decay to the gradient (the official AVID setting), ``"adamw"`` decouples it.
    param_groups : list of dict
        As `Objective.param_groups` returns them.
    lr : float > 0
        Base learning rate of groups that do not set their own.
    weight_decay : float >= 0
        Weight decay, likewise.
    momentum : float in [0, 1)
        Of SGD (the betas of Adam are torch's defaults).
    """
    optimizer: Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(param_groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    else:
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        optimizer = kind(param_groups, lr=lr, weight_decay=weight_decay)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the rate of every group to its base times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
