"""That an int8 model computes its own arithmetic (export/int8.py): layer by layer, from the same
spikes, against whole numbers in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from snnir.export.int8 import Quantised
from snnir.export.onnx import Form
from snnir.export.parity import UNIT_ROUNDOFF, Parity, Proof
from snnir.ir.nodes import Neuron, Node, WeightLayer
from snnir.lower.operations import Value

TIE = 8 * UNIT_ROUNDOFF
"""Relative error of Σ W·x·s / step in fp32, within which a half may be rounded either way."""


def check_int8(
    model: onnx.ModelProto, quantised: Quantised, inputs: Sequence[np.ndarray], *, form: Form
) -> Parity:
    """Every current must be the step that the formula gives, either neighbour where the formula is
    at a half within rounding, and every spike what the neuron makes of it, bit for bit."""
    with torch.no_grad():
        return _Int8Proof(model, quantised, inputs, form).run()


class _Int8Proof(Proof):
    def __init__(
        self, model: onnx.ModelProto, quantised: Quantised, inputs: Sequence[np.ndarray], form: Form
    ):
        fp32 = {name: array.astype(np.float32) for name, array in quantised.weights.items()}
        super().__init__(model, quantised.graph, fp32, inputs, form)
        self.quantised = quantised
        self.ties: dict[str, Tensor] = {}

    def exact(self, recorded: dict[str, Tensor]) -> dict[str, Tensor]:
        def quantise(node: Node, value: Value) -> Value:
            bits = self.quantised.layers.get(node.path)
            if bits is None:
                return value
            share = value.data / bits.step
            at_half = ((share - share.floor() - 0.5).abs() <= TIE * (1 + share.abs())).double()
            self.ties[node.path] = at_half * bits.step
            return Value(bits.currents(value.data), value.stepped)

        return self.forced(recorded, self.quantised.weights, torch.float64, change=quantise)

    def bounds(self, recorded: dict[str, Tensor]) -> dict[str, Tensor]:
        def ties_alone(node: Node, value: Value) -> Value:
            if node.path in self.ties:
                return Value(self.ties[node.path], value.stepped)
            if isinstance(node, WeightLayer):
                return Value(torch.zeros_like(value.data), value.stepped)
            return value

        nothing = {path: torch.zeros_like(x) for path, x in recorded.items()}
        ties = self.forced(nothing, self.quantised.weights, torch.float64, change=ties_alone)
        rounding = super().bounds(recorded)
        return {path: rounding[path].double() + ties[path].abs() for path in self.watched}

    def expected(
        self, neuron: Neuron, recorded: dict[str, Tensor], exact: dict[str, Tensor]
    ) -> Tensor:
        current = self.by_step(exact[self.currents_of[neuron.path]], neuron)
        return self.neuron_alone(neuron, current.float())
