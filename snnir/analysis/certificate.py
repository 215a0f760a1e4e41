"""The certificate of exact mode: no sum of the network leaves fp32's exact range (docs/exact.md).

It is drawn from the graph and weights that are exported and from nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from snnir.ir.graph import Graph
from snnir.ir.nodes import Input, Neuron, Node, Output, WeightLayer
from snnir.passes.intervals import EXACT_BITS, Bounds, bound_graph, bound_membrane
from snnir.passes.round_to_grid import rounding_error
from snnir.weights import Weights

FINEST_NORMAL: Final = -126
"""Below 2^-126 fp32 numbers are subnormal, and processors may flush them to zero."""


LEAST_MARGIN: Final = 2.0**-10
"""Steps of its grid that a membrane keeps from its threshold, where other programs are to decide as
ours. The pass that moves thresholds makes it a half."""


@dataclass(frozen=True)
class CertifiedLayer:
    """A node that sums: a weight layer, a sum, a membrane."""

    path: str
    op: str
    grid: int
    """Its terms are multiples of 2^grid (of all channels, the finest)."""
    worst_case_sum: float
    """No partial sum is larger, whatever the input, in whatever order it is added up."""
    headroom_bits: float
    """How often the worst case could be doubled within 2^24 steps of the grid."""
    weight_rounding: float | None = None
    """What rounding changed, root mean square, as a share of the weights."""
    neuron: str = ""
    """Its kind, leak and threshold, for neurons."""

    @property
    def holds(self) -> bool:
        return self.headroom_bits >= 0 and self.grid >= FINEST_NORMAL


@dataclass(frozen=True)
class Certificate:
    """Whether every sum that a spike depends on is exact in fp32, and by how much."""

    layers: tuple[CertifiedLayer, ...]
    outside: tuple[str, ...]
    """Nodes on no grid, such as a division: exact up to what they read, no further."""
    neurons_outside: tuple[str, ...]
    """Neurons whose current lies on no grid; there must be none."""
    steps: int | None
    """For how many steps from rest; None: for any number."""
    ties: tuple[str, ...] | None = None
    """For other programs (NIR): neurons whose membrane may come nearer to threshold than
    `LEAST_MARGIN` steps of its grid; there must be none. Float64 rounds 2^-29 of a step."""

    @property
    def holds(self) -> bool:
        broken = self.neurons_outside or self.ties
        return not broken and all(layer.holds for layer in self.layers)


def certify(
    graph: Graph, weights: Weights, given: Weights | None = None, *, for_others: bool = False
) -> Certificate:
    """Bound every sum of a folded graph; `given`: its weights before rounding, to compare;
    `for_others`: also look for ties."""
    bounds = bound_graph(graph, weights)
    layers = []
    for node in graph.nodes():
        found = bounds[node.path]
        if found.sums:
            layers.append(_layer(node, found, weights, given or {}))
    loose = [n for n in graph.nodes() if bounds[n.path].value is None]
    counted = [n for n in graph.neurons if n.states and (n.grid is None or n.leak == 1)]
    return Certificate(
        layers=tuple(layers),
        outside=tuple(n.path for n in loose if not isinstance(n, Input | Output | Neuron)),
        neurons_outside=tuple(n.path for n in loose if isinstance(n, Neuron)),
        steps=graph.steps if counted else None,
        ties=_ties(graph, bounds) if for_others else None,
    )


def _ties(graph: Graph, bounds: Mapping[str, Bounds]) -> tuple[str, ...]:
    found = []
    for neuron in graph.neurons:
        current = bounds[graph.inputs(neuron.path)[0]].value
        if neuron.spiking and current is not None:
            membrane = bound_membrane(neuron, current, graph.steps)
            steps = float(np.ldexp(np.float64(np.float32(neuron.v_threshold)), -membrane.finest))
            highest = float(np.ldexp(membrane.high.max(), -membrane.finest))
            near = min(steps % 1, 1 - steps % 1) < LEAST_MARGIN
            if steps < highest + 1 and near:
                found.append(neuron.path)
    return tuple(found)


def _layer(node: Node, bounds: Bounds, weights: Weights, given: Weights) -> CertifiedLayer:
    names = (
        [f"{owner.path}.weight" for owner in node.owners] if isinstance(node, WeightLayer) else []
    )
    lost = [rounding_error(given[name], weights[name]) for name in names if name in given]
    return CertifiedLayer(
        path=node.path,
        op=node.op,
        grid=min(x.finest for x in bounds.sums),
        worst_case_sum=max(x.magnitude for x in bounds.sums),
        headroom_bits=EXACT_BITS - bounds.bits,
        weight_rounding=max(lost) if lost else None,
        neuron=f"{node.kind}, leak {node.leak:g}, v_threshold {node.v_threshold:g}"
        if isinstance(node, Neuron)
        else "",
    )
