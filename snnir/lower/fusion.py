"""What of a graph a training step computes with fused layers, and how."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, BatchNorm, Concat, Conv, Neuron, Node, Resize, Slice
from snnir.lower import fused
from snnir.lower.fused import Extent, Part
from snnir.lower.operations import Flow, Value, batch_norm_parameters, compute


class Pieces(NamedTuple):
    """What becomes of a batch norm."""

    paths: list[str]
    """Its slices, or it."""
    sizes: list[int]
    """How many channels each has."""
    left_out: Conv | None
    """The convolution before, if its bias is."""


class Fusion:
    """The fused layers of a graph. `siblings` has, for each of the slices that together are all of
    what they slice, these slices."""

    def __init__(self, graph: Graph, siblings: Mapping[str, Sequence[Slice]]):
        deferred = _deferrable(graph, siblings) if fused.available() else set()
        self.written, unread = _written(graph, deferred, siblings)
        """What is written of each neuron's spikes, by path."""
        self.deferred = deferred | unread
        """Nodes whose values are not written out, by path."""
        self.convolutions = {
            n.path: n.model_copy(update={"bias": False})
            for n in graph.of_type(Conv)
            if deferred.issuperset(graph.consumers(n.path))
        }
        """What is computed in the place of those before them, by path: without their bias, as batch
        norm would take it away, and keeping spikes as they are, as fused layers save more memory
        than that takes."""
        self.pieces = {
            n.path: self._pieces(graph, n, siblings)
            for n in graph.of_type(BatchNorm)
            if n.path in deferred
        }
        """Of each batch norm, by path."""

    def _pieces(
        self, graph: Graph, node: BatchNorm, siblings: Mapping[str, Sequence[Slice]]
    ) -> Pieces:
        left_out, source = None, graph[graph.inputs(node.path)[0]]
        if isinstance(source, Conv) and source.bias and source.path in self.convolutions:
            left_out = source
        slices = siblings.get(graph.consumers(node.path)[0])
        if not slices:
            return Pieces([node.path], [graph.shape(node.path)[0]], left_out)
        sizes = [part.stop - part.start for part in slices]
        return Pieces([part.path for part in slices], sizes, left_out)


class FusedStep:
    """One training step's fused layers."""

    def __init__(self, fusion: Fusion, flow: Flow):
        self._fusion, self._flow = fusion, flow
        self._normalised: dict[str, fused.Normalised] = {}
        self._joints: dict[str, fused.Joint] = {}

    def compute(
        self, node: Node, sources: Sequence[str], values: Mapping[str, Value]
    ) -> dict[str, Value] | None:
        """What is known once a node is reached, by path, perhaps nothing yet; None for a node that
        is no part of this."""
        fusion = self._fusion
        if node.path in fusion.deferred:
            self._defer(node, sources, values)
            return {}
        if node.path in fusion.convolutions:
            node = fusion.convolutions[node.path]
            return {node.path: compute(node, self._flow, [values[source] for source in sources])}
        if node.path in fusion.written:
            current, parts = self._normalised.pop(sources[0]), fusion.written[node.path]
            assert isinstance(node, Neuron)
            spikes = fused.fire(node, current, self._flow.steps, parts, self._joints)
            return {path: Value(x, True) for path, x in spikes.items()}
        if node.path in self._joints:
            return {node.path: Value(self._joints.pop(node.path).whole(), True)}
        return None

    def _defer(self, node: Node, sources: Sequence[str], values: Mapping[str, Value]) -> None:
        """Note what a batch norm, a slice of one or a sum of them stands for."""
        if isinstance(node, BatchNorm):
            module, x = self._flow.module, values[sources[0]]
            paths, sizes, left_out = self._fusion.pieces[node.path]
            terms = fused.normalise(
                x.data,
                batch_norm_parameters(node, self._flow),
                node.eps,
                sizes,
                left_out=module.side_by_side(left_out, "bias") if left_out else (),
                momentum=module.batch_norm_momentum,
                synchronised=module.synchronised,
            )
            for path, term in zip(paths, terms, strict=True):
                self._normalised[path] = fused.Normalised((term,), x.stepped)
        elif isinstance(node, Add):
            self._normalised[node.path] = fused.add(
                [self._normalised.pop(source) for source in sources]
            )


def _deferrable(graph: Graph, siblings: Container[str]) -> set[str]:
    """Batch norms, their slices and sums whose values need not be written out: each is read once,
    in the end by a leaky neuron, and so are all channels of each batch norm. `siblings` are the
    slices that together are all of what they slice."""
    chains = {
        neuron.path: chain
        for neuron in graph.of_type(Neuron)
        if neuron.states == ("v",) and neuron.grid is None and neuron.learned is None
        for chain in [_chain(graph, neuron, siblings)]
        if chain
    }
    while True:
        reached = set().union(*chains.values())
        complete = {
            neuron: chain
            for neuron, chain in chains.items()
            if all(reached.union([neuron]).issuperset(graph.consumers(path)) for path in chain)
        }
        if len(complete) == len(chains):
            return reached
        chains = complete


def _chain(graph: Graph, neuron: Neuron, siblings: Container[str]) -> set[str]:
    """What lies between convolutions and the neuron; nothing if it is not as it should be."""
    (source,) = graph.inputs(neuron.path)
    terms = graph.inputs(source) if isinstance(graph[source], Add) else (source,)
    chain = {source, *terms}
    if any(len(graph.consumers(path)) > 1 for path in chain) or len(set(terms)) < len(terms):
        return set()
    for path in terms:
        node = graph[path]
        if isinstance(node, Slice) and path in siblings:
            (whole,) = graph.inputs(path)
            chain.add(whole)
            start, stop, node = node.start, node.stop, graph[whole]
            if not isinstance(node, BatchNorm) or not {start, stop} <= _bounds(node):
                return set()
        two_dimensional = len(graph.type(path).shape or ()) == 3
        if not isinstance(node, BatchNorm) or not two_dimensional:
            return set()
    return chain if len({graph.type(path).time for path in terms}) == 1 else set()


def _written(
    graph: Graph, deferred: Container[str], siblings: Container[str]
) -> tuple[dict[str, list[Part]], set[str]]:
    """What is written of the spikes of each fused neuron, by path: its part of a concatenation with
    others, or of what samples it or that (nearest resizing), slices, and all of them, each where it
    is read. And the concatenations of which nothing is read but samples."""
    sizes = {
        node.path: graph.shape(node.path)[0]
        for node in graph.of_type(Neuron)
        if graph.inputs(node.path)[0] in deferred
    }
    parts: dict[str, list[Part]] = {path: [] for path in sizes}
    joined: set[str] = set()
    unread: set[str] = set()
    for node in graph.nodes():
        sources = graph.inputs(node.path) if isinstance(node, Concat) else (node.path,)
        if not sizes.keys() >= set(sources) or len(set(sources)) < len(sources):
            continue
        strides = {path: _sampling(graph, path) for path in graph.consumers(node.path)}
        joints = {path: stride for path, stride in strides.items() if stride}
        if isinstance(node, Concat):
            joined.add(node.path)
            if len(joints) == len(strides):
                unread.add(node.path)
            else:
                joints[node.path] = 1, 1
        joined |= joints.keys()
        at, channels = 0, sum(sizes[path] for path in sources)
        for source in sources:
            size = sizes[source]
            for path, stride in joints.items():
                parts[source].append(Part(path, Extent(0, size, *stride), at, channels))
            at += size
    for path, size in sizes.items():
        readers = [graph[reader] for reader in graph.consumers(path) if reader not in joined]
        slices = [node for node in readers if isinstance(node, Slice) and node.path in siblings]
        parts[path] += [Part(node.path, Extent(node.start, node.stop)) for node in slices]
        if len(slices) < len(readers):
            parts[path].append(Part(path, Extent(0, size)))
    return parts, unread


def _sampling(graph: Graph, path: str) -> tuple[int, ...] | None:
    """Every how many rows and columns of its input's pixels a node is, if it is."""
    node = graph[path]
    return node.strides(*graph.input_shapes(path)) if isinstance(node, Resize) else None


def _bounds(node: BatchNorm) -> set[int]:
    """The channels at which an owner's begin or end."""
    return {0, *accumulate(owner.channels for owner in node.owners)}
