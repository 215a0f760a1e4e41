"""Surrogate gradients: what stands for the derivative of the spike in training (method §2).

All are functions of d = u - threshold, the membrane's distance, and a temperature b; the paper
writes x = d + 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor


def dspike(d: Tensor, b: float) -> Tensor:
    """b (1 - tanh²(b d)) / (2 tanh(b/2)) for |d| ≤ 1/2, else 0 (paper eq. 31)."""
    slope = 1 - torch.tanh(b * d).square_()
    return slope.mul_(b / (2 * math.tanh(b / 2))).mul_(d.abs() <= 0.5)


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
    s = torch.sigmoid(b * d)
    return (1 - s).mul_(s).mul_(b)


SURROGATES: Final[dict[str, Callable[[Tensor, float], Tensor]]] = {
    "dspike": dspike,
    "triangle": triangle,
    "superspike": superspike,
    "arctan": arctan,
    "rectangular": rectangular,
    "sigmoid": sigmoid,
}
