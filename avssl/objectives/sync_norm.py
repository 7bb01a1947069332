"""Batch statistics over all processes, with gradients through them, on any device.

A head that normalises each process's part of a batch by itself learns something else on every number of
processes. Torch's own SyncBatchNorm needs a GPU; this one runs wherever collectives do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avssl import dist


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over the samples of all processes together.

    Names and values of the state, and in one process or in eval mode every number, are those of torch's own
    module. The processes may hold different numbers of samples. Being a kind of torch's module it is turned
    into its SyncBatchNorm by ``convert_sync_batchnorm``, which on a GPU computes the same in fewer kernels.

    Parameters
    ----------
    num_features : int >= 1
        Length D of the embeddings.
    affine : bool
        Whether a learned scale and shift follow.

    Notes
    -----
    Epsilon is 1e-5 and the running statistics move by a tenth (BYOL's decay of .9), as in the releases of
    BYOL, SimSiam and Barlow Twins. Under autocast the statistics are taken in float32.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int, affine: bool = True) -> None:
        super().__init__(num_features, affine=affine)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise embeddings (B, D)."""
        if not self.training or dist.world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, self.running_mean.dtype))
            mean, variance, count = batch_statistics(x)
            self._remember(mean.detach(), variance.detach(), count)
            normalised = (x - mean) * (variance + self.eps).rsqrt()
            if self.affine:
                normalised = normalised * self.weight + self.bias
            return normalised.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of every feature over the samples of all processes, with gradient.

    Parameters
    ----------
    x : Tensor, (B, D), floating point
        Samples of this process; B may differ between processes.

    Returns
    -------
    mean, variance : Tensor, (D,)
    count : Tensor, scalar
        Number of samples of all processes.
    """
    sums = all_sum(torch.cat([x.sum(dim=0), x.new_tensor([len(x)])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    variance = all_sum((x - mean).square().sum(dim=0)) / count
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
