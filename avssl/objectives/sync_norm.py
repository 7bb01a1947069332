"""Batch statistics over all processes, with gradients through them, on any device.

A network that normalises each process's part of a batch by itself learns something else on every number of
processes. Torch's own SyncBatchNorm needs a GPU; these norms run wherever collectives do.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from avssl import dist


class _OverAllProcesses(_BatchNorm):
    """Forward pass of a batch norm whose batch is that of all processes; they may hold different numbers.

    Names and values of the state, and in one process or in eval mode every number, are those of torch's own
    modules. Under autocast the statistics are taken in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, D, ...)."""
        if not self.training or dist.world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, torch.float32))
            mean, variance, count = batch_statistics(x)
            if self.running_mean is not None and self.running_var is not None:
                self._remember(self.running_mean, self.running_var, mean.detach(), variance.detach(), count)
            along = (1, -1, *[1] * (x.ndim - 2))
            normalised = (x - mean.view(along)) * (variance + self.eps).rsqrt().view(along)
            if self.affine:
                normalised = normalised * self.weight.view(along) + self.bias.view(along)
            return normalised.to(input.dtype)

    def _remember(
        self, running_mean: Tensor, running_var: Tensor, mean: Tensor, variance: Tensor, count: Tensor
    ) -> None:
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = share if share is not None else 1 / float(self.num_batches_tracked)
        assert share is not None
        running_mean.lerp_(mean.to(running_mean.dtype), share)
        running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), share)


class BatchNorm1d(_OverAllProcesses, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over the samples of all processes together, for heads.

    Parameters
    ----------
    num_features : int >= 1
        Length D of the embeddings.
    affine : bool
        Whether a learned scale and shift follow.

    Notes
    -----
    Epsilon is 1e-5 and the running statistics move by a tenth (BYOL's decay of .9), as in the releases of
    BYOL, SimSiam and Barlow Twins.
    """

    def __init__(self, num_features: int, affine: bool = True) -> None:
        super().__init__(num_features, affine=affine)


class BatchNorm2d(_OverAllProcesses, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the images of all processes together."""


class BatchNorm3d(_OverAllProcesses, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` over the clips of all processes together."""


_SYNCHRONISED: dict[type, type[_OverAllProcesses]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}


def synchronise(network: nn.Module, device_type: str, leave: Iterable[nn.Module] = ()) -> None:
    """Let the batch norms inside a network count the samples of all processes, in place.

    On GPUs they become torch's `SyncBatchNorm`, which does it in fewer kernels, elsewhere those of this
    file. Parameters, buffers and their names stay.

    Parameters
    ----------
    network : nn.Module
        Changed, but for the parts in `leave`.
    device_type : str
        Where the network will run, such as ``"cuda"``.
    leave : iterable of nn.Module
        Parts whose norms keep to their own process.
    """
    left = {module for part in leave for module in part.modules()}
    for parent in network.modules():
        for name, child in list(parent.named_children()):
            if not isinstance(child, _BatchNorm) or child in left:
                continue
            if device_type == "cuda":
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
            elif type(child) in _SYNCHRONISED:
                child.__class__ = _SYNCHRONISED[type(child)]  # all else, hooks included, stays as it is


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of every feature over the samples of all processes, with gradient.

    Parameters
    ----------
    x : Tensor, (B, D, ...), floating point
        Samples of this process; B may differ between processes. Further axes count as samples.

    Returns
    -------
    mean, variance : Tensor, (D,)
    count : Tensor, scalar
        Number of samples of all processes.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    along = (1, -1, *[1] * (x.ndim - 2))
    sums = all_sum(torch.cat([x.sum(dim=axes), x.new_full((1,), x.numel() // x.shape[1])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    variance = all_sum((x - mean.view(along)).square().sum(dim=axes)) / count
    return mean, variance, count


def all_sum(x: Tensor) -> Tensor:
    """Sum of `x` over processes, with gradient.

    Its gradient is the sum over processes of theirs: what each gets is the gradient of the sum of all
    losses. The mean that DistributedDataParallel then takes over W processes makes it the gradient of the
    mean loss, which is what one process computes.
    """
    if not dist.is_distributed():
        return x
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(x)
    return total
