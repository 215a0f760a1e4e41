"""Layers whose gradients keep and copy less than torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Sizes = tuple[int, ...]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    groups: int,
    *,
    dilation: int = 1,
    spikes: bool = False,
) -> Tensor:
    """A convolution over the last two or three dimensions; with `spikes`, x must be 0 or 1."""
    if torch.is_grad_enabled() and (spikes or not weight.requires_grad):
        tensors = _as_autocast(x, weight, bias)
        return _LeanConvolution.apply(*tensors, stride, padding, groups, dilation)
    function: Callable[..., Tensor] = F.conv2d if len(stride) == 2 else F.conv3d
    return function(x, weight, bias, stride, padding, dilation, groups)


def _as_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """What autocast, if on, would make of a convolution's tensors: done where autograd sees it."""
    device = next(x.device.type for x in tensors if x is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors]


class _LeanConvolution(torch.autograd.Function):
    """A convolution of spikes, kept as bytes, a quarter of the memory until the gradient; or one
    with frozen weights, of whose input nothing is kept (torch's own keeps it)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sizes,
        padding: Sizes,
        groups: int,
        dilation: int,
    ) -> Tensor:
        ctx.save_for_backward(weight, *([x.to(torch.int8)] if ctx.needs_input_grad[1] else []))
        ctx.like = torch.empty_like(x, device="meta")
        ctx.bias = None if bias is None else [len(weight)]
        rank = len(stride)
        ctx.geometry = stride, padding, [dilation] * rank, False, [0] * rank, groups
        return convolve(x, weight, bias, stride, padding, groups, dilation=dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        # frozen weights need no more than its shape
        x = kept[0].to(weight.dtype) if kept else torch.empty_like(ctx.like, device=weight.device)
        wanted = ctx.needs_input_grad[:3]
        gradients = torch.ops.aten.convolution_backward(
            gradient, x, weight, ctx.bias, *ctx.geometry, wanted
        )
        return *gradients, None, None, None, None


def every(x: Tensor, strides: Sizes) -> Tensor:
    """Every so many values along the last dimensions, from the first; one copy each way."""
    return _Every.apply(x, strides)


class _Every(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strides: Sizes) -> Tensor:
        ctx.like, ctx.strides = torch.empty_like(x, device="meta"), strides
        ctx.places = [slice(None, None, stride) for stride in strides]
        return x[..., *ctx.places].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        whole = torch.empty_like(ctx.like, device=gradient.device)
        whole[..., *ctx.places] = gradient
        # the rest is 0: along each axis what is left out where those before it are not
        for axis, stride in enumerate(ctx.strides):
            later = [slice(None)] * (len(ctx.strides) - axis - 1)
            for start in range(1, stride):
                whole[..., *ctx.places[:axis], slice(start, None, stride), *later] = 0
        return whole, None
