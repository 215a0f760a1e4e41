"""What single neurons do: membranes against threshold, and the spikes of one sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron, Node
from snnir.lower.module import Observer, SpikingModule
from snnir.lower.operations import Value
from snnir.weights import Weights

BINS: Final = 50
OUTLIERS: Final = 0.01
"""Share of the membranes, at either end, that a histogram may leave to its outermost bins."""
SAMPLED: Final = 2**20
"""Membranes of a layer, at most, that the range is read from."""
ROWS: Final = 48
"""Neurons of a layer that the raster shows, spread evenly over it."""


@dataclass(frozen=True)
class Behaviour:
    """Of the neurons of one layer."""

    membranes: list[float]
    """Shares of the membranes, at all steps, by u / threshold, in bins from `low` to `high`; from 1
    on they fire."""
    low: float
    high: float
    raster: list[list[int]]
    """Of the first sample: for each neuron shown, the steps at which it fired."""


def observe_behaviour(
    graph: Graph,
    weights: Weights,
    inputs: Sequence[np.ndarray],
    *,
    change: Observer = lambda node, value: value,
) -> dict[str, Behaviour]:
    """Run a deployed network on `inputs` (frames [N, C, H, W], events [T, N, C, H, W]) and look at
    its spiking neurons, by path; `change` is applied to every value."""
    found: dict[str, Behaviour] = {}
    currents: dict[str, torch.Tensor] = {}
    steps = next((len(x) for x in inputs if x.ndim == 5), graph.steps)
    sources = {graph.inputs(n.path)[0] for n in graph.neurons}

    def look(node: Node, value: Value) -> Value:
        value = change(node, value)
        if node.path in sources:
            currents[node.path] = value.unfolded(steps)
        if isinstance(node, Neuron) and node.spiking:
            current = currents[graph.inputs(node.path)[0]]
            spikes = value.unfolded(steps)
            relative = _membranes(node, current, spikes)
            found[node.path] = Behaviour(*_histogram(relative), _raster(spikes[:, 0]))
        return value

    with torch.no_grad():
        module = SpikingModule(graph, weights).eval()
        module.run(*map(torch.from_numpy, inputs), observe=look)
    return found


def _membranes(neuron: Neuron, current: torch.Tensor, spikes: torch.Tensor) -> torch.Tensor:
    """u / threshold at every step, which follow from the currents and the spikes (method §1)."""
    found = []
    v, a = torch.zeros_like(current[0]), torch.zeros_like(current[0])
    for t, y in enumerate(spikes):
        u = neuron.leak * v + current[t]
        found.append(u / (neuron.v_threshold + (neuron.beta * a if neuron.kind == "alif" else 0.0)))
        v, a = u * (1 - y), neuron.tau_a * a + y
    return torch.stack(found).flatten()


def _histogram(relative: torch.Tensor) -> tuple[list[float], float, float]:
    """Shares by bin, and the range, which holds 0 and 2."""
    some = relative[:: 1 + len(relative) // SAMPLED]
    low, high = torch.quantile(some, torch.tensor([OUTLIERS, 1 - OUTLIERS])).tolist()
    low, high = min(0.0, float(math.floor(low))), max(2.0, float(math.ceil(high)))
    counts = torch.histc(relative.clamp(low, high), BINS, low, high)
    return (counts / counts.sum()).tolist(), low, high


def _raster(spikes: torch.Tensor) -> list[list[int]]:
    """Of spikes [T, …] of one sample."""
    flat = spikes.flatten(1)
    shown = torch.linspace(0, flat.shape[1] - 1, min(ROWS, flat.shape[1])).long()
    return [column.nonzero().flatten().tolist() for column in flat[:, shown].T]
