"""Exact mode's own proof: nothing forced, every spike equal, from the input to the output.

torch, the exported model in onnxruntime and the NumPy interpreter each run the whole network. One
spike that differs fails it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from snnir.export.interpreter import interpret
from snnir.export.onnx import Form
from snnir.export.parity import cut_open, run_exported, session
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron, Node, Output
from snnir.lower.module import SpikingModule
from snnir.lower.operations import Value
from snnir.weights import Weights


@dataclass(frozen=True)
class ExactLayer:
    """One neuron's output (or the network's, whose rate means nothing) in the three runtimes."""

    path: str
    values: int
    firing_rate: float
    """Share of torch's values that are not 0."""
    onnxruntime_mismatches: int
    numpy_mismatches: int
    """Values that are not torch's, bit for bit."""

    @property
    def passed(self) -> bool:
        return self.onnxruntime_mismatches == self.numpy_mismatches == 0


@dataclass(frozen=True)
class Exactness:
    """The outcome."""

    samples: int
    layers: tuple[ExactLayer, ...]
    output: ExactLayer

    @property
    def passed(self) -> bool:
        """Whether every neuron agrees, and the output."""
        return all(layer.passed for layer in (*self.layers, self.output))

    @property
    def spikes_compared(self) -> int:
        return sum(layer.values for layer in self.layers)

    @property
    def mismatches(self) -> int:
        return sum(x.onnxruntime_mismatches + x.numpy_mismatches for x in self.layers)


def check_exactness(
    model: onnx.ModelProto,
    graph: Graph,
    weights: Weights,
    inputs: Sequence[np.ndarray],
    *,
    form: Form,
) -> Exactness:
    """Run an exported model, and the graph it was made from, on `inputs` (frames [N, C, H, W],
    events [T, N, C, H, W]) and compare every neuron at every step."""
    expected = run_torch(SpikingModule(graph, weights).eval(), inputs)
    run = session(cut_open(model, {}, set(expected)))
    exported = run_exported(run, graph, [torch.from_numpy(x) for x in inputs], form, expected)
    interpreted = run_numpy(graph, weights, inputs)
    *layers, output = (
        ExactLayer(
            path=path,
            values=value.size,
            firing_rate=float(np.count_nonzero(value)) / value.size,
            onnxruntime_mismatches=mismatches(exported[path].numpy(), value),
            numpy_mismatches=mismatches(interpreted[path], value),
        )
        for path, value in expected.items()
    )
    return Exactness(int(inputs[0].shape[-4]), tuple(layers), output)


def mismatches(found: np.ndarray, expected: np.ndarray) -> int:
    """How many values differ; NaN differs from everything."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return int((found != expected).sum())


@torch.no_grad()
def run_torch(module: SpikingModule, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Every neuron's output, [T, N, …] or static [N, …], and last the network's, by path."""
    recorded: dict[str, np.ndarray] = {}
    tensors = [torch.from_numpy(x) for x in inputs]
    stepped = [x.shape[0] for x in tensors if x.dim() == 5]
    steps = stepped[0] if stepped else module.graph.steps

    def keep(node: Node, value: Value) -> Value:
        if isinstance(node, Neuron | Output):
            x: Tensor = value.unfolded(steps) if value.stepped else value.data
            recorded[node.path] = x.numpy().copy()
        return value

    module.run(*tensors, observe=keep)
    return recorded


def run_numpy(
    graph: Graph, weights: Weights, inputs: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The same by the NumPy interpreter."""
    recorded: dict[str, np.ndarray] = {}

    def keep(node: Node, value: np.ndarray) -> None:
        if isinstance(node, Neuron | Output):
            recorded[node.path] = value

    interpret(graph, weights, inputs, observe=keep)
    return recorded
