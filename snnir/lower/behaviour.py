"""What single neurons do: membranes against threshold, and the spikes of one sample."""

from __future__ import annotations

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

LOWEST, HIGHEST, BINS = -2.0, 3.0, 50
"""Of the histogram, in units of the threshold; what lies outside is in the outermost bins."""
ROWS: Final = 48
"""Neurons of a layer that the raster shows, spread evenly over it."""


@dataclass(frozen=True)
class Behaviour:
    """Of the neurons of one layer."""

    membranes: list[float]
    """Shares of the membranes, at all steps, by u / threshold in BINS bins from LOWEST to HIGHEST;
    from 1 on they fire."""
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
            found[node.path] = Behaviour(_histogram(node, current, spikes), _raster(spikes[:, 0]))
        return value

    with torch.no_grad():
        module = SpikingModule(graph, weights).eval()
        module.run(*map(torch.from_numpy, inputs), observe=look)
    return found


def _histogram(neuron: Neuron, current: torch.Tensor, spikes: torch.Tensor) -> list[float]:
    """The membranes follow from the currents and the spikes (method §1)."""
    counts = torch.zeros(BINS)
    v, a = torch.zeros_like(current[0]), torch.zeros_like(current[0])
    for t, y in enumerate(spikes):
        u = neuron.leak * v + current[t]
        threshold = neuron.v_threshold + (neuron.beta * a if neuron.kind == "alif" else 0.0)
        relative = (u / threshold).clamp(LOWEST, HIGHEST)
        counts += torch.histc(relative, BINS, LOWEST, HIGHEST)
        v, a = u * (1 - y), neuron.tau_a * a + y
    return [float(x) for x in counts / counts.sum()]


def _raster(spikes: torch.Tensor) -> list[list[int]]:
    """Of spikes [T, …] of one sample."""
    flat = spikes.flatten(1)
    shown = torch.linspace(0, flat.shape[1] - 1, min(ROWS, flat.shape[1])).long()
    return [column.nonzero().flatten().tolist() for column in flat[:, shown].T]
