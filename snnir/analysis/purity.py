"""Whether a folded network is purely spiking: no weight layer but a frame encoder multiplies."""

from __future__ import annotations

from dataclasses import dataclass

from snnir.ir.graph import Graph
from snnir.ir.nodes import Input, Neuron, WeightLayer


@dataclass(frozen=True)
class Violation:
    """A weight layer that has to multiply, and what it reads."""

    path: str
    reason: str


def violations(graph: Graph) -> list[Violation]:
    """Every weight layer that reads neither spikes nor signed spikes, frame encoders excepted.

    An encoder reads a frame with no neuron in between: it is where images become spikes.
    """
    found = []
    for node in graph.nodes():
        if not isinstance(node, WeightLayer):
            continue
        source = graph.inputs(node.path)[0]
        read = graph.type(source)
        assert read.domain is not None
        if node.op == "batch_norm":
            found.append(Violation(node.path, "a batch norm that could not be folded"))
        elif read.domain.multiplies and not _is_encoder(graph, source):
            origin = _origin(graph, source)
            found.append(Violation(node.path, f"reads {read.domain} values from {origin}"))
    return found


def _is_encoder(graph: Graph, source: str) -> bool:
    """Whether `source` is a frame, however reshaped, with no neuron or weight layer in between."""
    node = graph[source]
    if isinstance(node, Input):
        return node.kind == "frame"
    if isinstance(node, Neuron | WeightLayer):
        return False
    return all(_is_encoder(graph, path) for path in graph.inputs(source))


def _origin(graph: Graph, source: str) -> str:
    """The nearest node upstream that makes values a weight layer has to multiply."""
    for path in graph.inputs(source):
        domain = graph.type(path).domain
        if domain is not None and domain.multiplies and not isinstance(graph[source], Neuron):
            return _origin(graph, path)
    return source
