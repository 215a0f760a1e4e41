"""Firing rates, measured by running the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron, Node, WeightLayer
from snnir.weights import Weights

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class FiringRates:
    """Mean share of non-zero values, over steps, samples and neurons."""

    neurons: dict[str, float]
    """By neuron path, of its output."""
    read: dict[str, float]
    """By weight layer path, of the tensor it reads."""


def measure_firing(graph: Graph, weights: Weights, inputs: Sequence[np.ndarray]) -> FiringRates:
    """Run `graph` on `inputs` (frames [N, C, H, W], events [T, N, C, H, W]) and count."""
    import torch

    from snnir.lower.module import SpikingModule
    from snnir.lower.operations import Value

    rates: dict[str, float] = {}
    wanted = {n.path for n in graph.neurons}
    sources = {n.path: graph.inputs(n.path)[0] for n in graph.nodes() if isinstance(n, WeightLayer)}
    wanted |= set(sources.values())

    def count(node: Node, value: Value) -> Value:
        if node.path in wanted:
            rates[node.path] = float(torch.count_nonzero(value.data)) / value.data.numel()
        return value

    with torch.no_grad():
        module = SpikingModule(graph, weights).eval()
        module.run(*(torch.from_numpy(x) for x in inputs), observe=count)
    return FiringRates(
        neurons={n.path: rates[n.path] for n in graph.of_type(Neuron)},
        read={path: rates[source] for path, source in sources.items()},
    )
