"""Surrogate gradients: what stands for the derivative of the spike in training (method §2).

All are functions g of d = u - threshold, the membrane's distance, and a temperature b; the paper
writes x = d + 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from torch import Tensor


def dspike(d: Tensor, b: float) -> Tensor:
    """b (1 - tanh²(b d)) / (2 tanh(b/2)) for |d| ≤ 1/2, else 0 (paper eq. 31).

    1 - tanh²(x) is 4 σ(2x) (1 - σ(2x)), and torch's sigmoid is six times as fast as its tanh.
    """
    s = d.mul(2 * b).sigmoid_()
    slope = torch.addcmul(s, s, s, value=-1, out=s).mul_(2 * b / math.tanh(b / 2))
    return where_in(slope, d, -0.5, 0.5, out=slope)


def triangle(d: Tensor, b: float) -> Tensor:
    """b max(0, 1 - |d|) (paper eq. 32)."""
    return d.abs().neg_().add_(1).clamp_(min=0).mul_(b)


def superspike(d: Tensor, b: float) -> Tensor:
    """1 / (b |d| + 1)² (paper eq. 33)."""
    return d.abs().mul_(b).add_(1).square_().reciprocal_()


def arctan(d: Tensor, b: float) -> Tensor:
    """(b/3) / (1 + (π d)²) (paper eq. 34)."""
    return d.mul(math.pi).square_().add_(1).reciprocal_().mul_(b / 3)


def rectangular(d: Tensor, b: float) -> Tensor:
    """b for |d| ≤ 1/(2b), else 0: a box of unit area (STBP, Wu et al. 2018)."""
    return (d.abs() <= 1 / (2 * b)).to(d.dtype).mul_(b)


def sigmoid(d: Tensor, b: float) -> Tensor:
    """b σ(b d) (1 - σ(b d)): the derivative of a sigmoid of slope b."""
    s = d.mul(b).sigmoid_()
    return torch.addcmul(s, s, s, value=-1, out=s).mul_(b)


def where_in(x: Tensor, d: Tensor, low: float, high: float, *, out: Tensor) -> Tensor:
    """x where low ≤ d ≤ high, else 0, in one pass, into `out`.

    It is the backward of hardtanh, which leaves its bounds out: they move outward by one number.
    """
    low, high = _below(low, d.dtype), -_below(-high, d.dtype)
    return torch.ops.aten.hardtanh_backward.grad_input(x, d, low, high, grad_input=out)


@cache
def _below(bound: float, dtype: torch.dtype) -> float:
    """The largest number of a type that is less than `bound`."""
    least = torch.tensor(-torch.inf, dtype=dtype)
    nearest = torch.tensor(bound, dtype=dtype)
    return float(nearest if float(nearest) < bound else torch.nextafter(nearest, least))


SURROGATES: Final[dict[str, Callable[[Tensor, float], Tensor]]] = {
    "dspike": dspike,
    "triangle": triangle,
    "superspike": superspike,
    "arctan": arctan,
    "rectangular": rectangular,
    "sigmoid": sigmoid,
}
