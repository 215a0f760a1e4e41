"""The operations of one sample, from counted spikes (method §7).

Spikes drive additions: a synaptic operation (SynOp) is one spike through one synapse. They are
counted twice. Exactly: the fan-out of each counted spike, which at the border is smaller. And as
the paper does: firing rate · T · A, A the dense multiply-accumulates of one step, padding included.

A weight layer that reads anything else multiplies. The terms of a sum that a weight layer makes go
into its accumulator, and are counted with it; a skip adds its spikes (or values). Pools before a
neuron add what they read. Batch norm is folded. Not counted: comparisons of max pools and neurons,
and interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce

import numpy as np

from snnir.analysis.counts import Layer, layers, taps_by_place
from snnir.analysis.firing import SpikeCounts
from snnir.ir.graph import Graph
from snnir.ir.nodes import (
    AdaptiveAveragePool,
    Add,
    Conv,
    Linear,
    MeanOverTime,
    Neuron,
    Node,
    Pool,
    WeightLayer,
)
from snnir.ir.types import Shape, volume


@dataclass(frozen=True)
class Operations:
    """Of one sample over all its steps; sums of them add up."""

    synops: float = 0.0
    """Spikes times the synapses each goes through."""
    synops_by_rate: float = 0.0
    """Firing rate · T · A (method §7)."""
    macs: float = 0.0
    """Multiply-accumulates, padding taps included."""
    macs_exact: float = 0.0
    """Those that read a value, not padding."""
    additions: float = 0.0
    """Of skips, average pools and the mean over time."""
    updates: float = 0.0
    """Membranes updated: neurons with state, times steps."""
    spikes: float = 0.0
    """Spikes fired."""

    def __add__(self, other: Operations) -> Operations:
        return Operations(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class LayerOperations:
    """Of one layer, with what memory traffic follows from."""

    layer: Layer
    operations: Operations
    events: float = 0.0
    """Spikes read, per sample."""
    parameters: int = 0
    """Weights and biases."""
    biased: bool = False
    values: int = 0
    """Outputs of one step."""
    inputs: int = 0
    """Values read in one step."""
    runs: int = 1


def count_operations(graph: Graph, counts: SpikeCounts) -> list[LayerOperations]:
    """Layer for layer of a folded graph; `counts` of it, or of the merged graph made from it."""
    return [_of_layer(graph, layer, counts) for layer in layers(graph)]


def total(found: Sequence[LayerOperations]) -> Operations:
    """Of the whole network."""
    return sum((one.operations for one in found), Operations())


def _of_layer(graph: Graph, layer: Layer, counts: SpikeCounts) -> LayerOperations:
    node, runs = graph[layer.path], layer.runs(counts.steps)
    sources = graph.inputs(layer.path)
    shape = graph.shape(sources[0])
    operations, events = Operations(), 0.0
    if isinstance(node, WeightLayer) and layer.macs:
        if layer.reads.multiplies:
            operations = Operations(macs=layer.macs * runs, macs_exact=layer.macs_exact * runs)
        else:
            places = _repeated(graph, sources[0], layer, counts)
            events = float(places.sum())
            rate = events / (volume(shape) * runs)
            operations = Operations(
                synops=float((places * fan_out(node, shape)).sum()),
                synops_by_rate=rate * layer.macs * runs,
            )
    elif isinstance(node, Neuron):
        operations = Operations(
            updates=volume(layer.shape) * runs if node.states else 0,
            spikes=counts.nonzero(graph, layer.path) if node.spiking else 0.0,
        )
    else:
        operations = Operations(additions=_additions(graph, node, layer, counts))
    return LayerOperations(
        layer=layer,
        operations=operations,
        events=events,
        parameters=sum(map(volume, node.parameter_shapes().values())),
        biased=isinstance(node, Conv | Linear) and node.bias,
        values=volume(layer.shape),
        inputs=volume(shape),
        runs=runs,
    )


def fan_out(node: Node, shape: Shape) -> np.ndarray:
    """How many products (of a pool: sums) each value of an input of this `shape` goes into, by its
    place: [H, W], or [] for a flat vector."""
    if isinstance(node, Linear):
        return np.array(node.out_features)
    assert isinstance(node, Conv | Pool)
    channels = node.out_channels // node.groups if isinstance(node, Conv) else 1
    axes = [np.array(axis) for axis in taps_by_place(node, shape)]
    return channels * reduce(np.multiply.outer, axes)


def _repeated(graph: Graph, source: str, layer: Layer, counts: SpikeCounts) -> np.ndarray:
    """Non-zero values by place that a layer reads over its runs."""
    again = counts.steps if graph.type(source).time != layer.time else 1
    return counts.places(graph, source) * again


def _additions(graph: Graph, node: Node, layer: Layer, counts: SpikeCounts) -> float:
    """Of a node without weights."""
    runs, sources = layer.runs(counts.steps), graph.inputs(node.path)
    if isinstance(node, Add):
        return sum(
            _nonzero(graph, source, layer, counts)
            for source in sources
            if not isinstance(graph[source], WeightLayer)
        )
    if isinstance(node, AdaptiveAveragePool):
        return _nonzero(graph, sources[0], layer, counts)
    if isinstance(node, Pool) and node.kind == "average":
        shape = graph.shape(sources[0])
        if graph.type(sources[0]).domain.multiplies:  # type: ignore[union-attr]
            return float(shape[0] * fan_out(node, shape).sum() * runs)
        return float((_repeated(graph, sources[0], layer, counts) * fan_out(node, shape)).sum())
    if isinstance(node, MeanOverTime):
        return float(volume(layer.shape) * runs)
    return 0.0


def _nonzero(graph: Graph, source: str, layer: Layer, counts: SpikeCounts) -> float:
    """Values to be added: the spikes, or all of those that are no spikes."""
    domain, runs = graph.type(source).domain, layer.runs(counts.steps)
    assert domain is not None
    if domain.multiplies:
        return float(volume(graph.shape(source)) * runs)
    return float(_repeated(graph, source, layer, counts).sum())
