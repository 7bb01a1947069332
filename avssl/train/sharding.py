"""Parameters, gradients and optimiser spread over the processes (FSDP), for networks that do not fit.

Each block of a trunk is gathered when it runs and let go afterwards. Checkpoints hold whole tensors, the same
as without sharding, so a run may go on with other numbers of processes, or unsharded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from avssl import dist
from avssl.models.image import ImageEncoder
from avssl.objectives import Objective


def shard(objective: Objective, device: torch.device, precision: torch.dtype) -> Objective:
    """Spread the parameters over all processes, in place; units move to the device one by one.

    Blocks of image networks are units of their own, which are gathered and computed in `precision` and whose
    gradients are averaged in float32. All else, prototypes and heads included, is gathered in float32.

    Parameters
    ----------
    objective : Objective
        On the CPU; the same on all processes.
    device : torch.device
        Of this process.
    precision : torch.dtype
        float32 or bfloat16.
    """
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    for trunk in [module for module in objective.modules() if isinstance(module, ImageEncoder)]:
        for block in trunk.blocks():
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh)
    register_fsdp_forward_method(objective, "fill_memory")
    return objective.to(device)


def whole(state: Any) -> Any:
    """A state with its sharded tensors gathered on the CPU; all processes must call it.

    The first process gets the numbers; on the others, which do not write, they are dropped at once.
    """
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    if not isinstance(state, DTensor):
        return state
    full = state.full_tensor()
    return full.cpu() if dist.rank() == 0 else full.new_empty(0)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state into an optimiser, whose parameters may be sharded; its rates and the like stay."""
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    params: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {
        index: {name: _like(value, params[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread})
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)


def _like(value: Any, parameter: Tensor) -> Any:
    """A tensor of the shape of a sharded parameter, sharded like it; anything else as it is."""
    fits = isinstance(value, Tensor) and value.shape == parameter.shape
    if not fits or not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device).contiguous(), mesh, placements, src_data_rank=None)
