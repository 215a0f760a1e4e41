"""Batch norm whose statistics are those of all processes' batches together.

torch.nn.SyncBatchNorm does the same, but refuses to run on CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def synchronised_batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """Normalise x [N, C, …] in training by the mean and variance over the N of every process.

    The running statistics are updated in place, the variance's by its unbiased estimate. Every
    process must call this for the same layers in the same order.
    """
    dims = [dim for dim in range(x.dim()) if dim != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    values = x if x.dtype == torch.float64 else x.float()
    own = torch.tensor(float(x.numel() // max(1, x.shape[1])), dtype=values.dtype, device=x.device)
    count = _AllReduce.apply(own)
    mean = _AllReduce.apply(values.sum(dims)) / count
    centred = values - mean.view(shape)
    var = _AllReduce.apply(centred.square().sum(dims)) / count
    with torch.no_grad():
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
    scale = weight * torch.rsqrt(var + eps)
    return (centred * scale.view(shape) + bias.view(shape)).to(x.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
