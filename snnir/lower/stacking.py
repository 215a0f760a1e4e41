"""The parameters of merged layers side by side in one piece of memory.

Stacking them then copies nothing, and an optimiser that steps each under its own name steps the
stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Stacks:
    """Stacks of tensors along their first dimension, by key, made when first asked for."""

    def __init__(self) -> None:
        self._stacks: dict[str, Tensor] = {}

    def get(self, key: str, parts: Sequence[Tensor]) -> Tensor:
        """The parts as one tensor that shares their memory, gradients going back to each."""
        return _Join.apply(self.hold(key, parts), *parts)

    def hold(self, key: str, parts: Sequence[Tensor]) -> Tensor:
        """The parts as one tensor that shares their memory, which has no gradient.

        Where a part lies elsewhere (the module moved, or a part has new data), all are moved to a
        new stack; they stay the same tensors.
        """
        stack = self._stacks.get(key)
        if stack is None or not _holds(stack, parts):
            stack = self._stacks[key] = _joined(parts)
        return stack


def _joined(parts: Sequence[Tensor]) -> Tensor:
    stack = torch.cat([part.detach() for part in parts])
    for part, place in zip(parts, stack.split([len(part) for part in parts]), strict=True):
        part.data = place
    return stack


def _holds(stack: Tensor, parts: Sequence[Tensor]) -> bool:
    address = stack.data_ptr()
    for part in parts:
        if part.data_ptr() != address:
            return False
        address += part.numel() * part.element_size()
    return True


class _Join(torch.autograd.Function):
    """(stack, *parts) -> stack, as if the parts had been concatenated."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return stack.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors  # torch's error where one was written to since
        return None, *gradient.split([len(part) for part in parts])
