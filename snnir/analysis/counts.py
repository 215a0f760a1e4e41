"""What a network consists of: parameters, layers, dense multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

from snnir.ir.graph import Graph
from snnir.ir.nodes import Input, Output
from snnir.ir.types import Domain, Shape, Time, volume


@dataclass(frozen=True)
class Layer:
    """One node of a folded graph."""

    path: str
    op: str
    shape: Shape
    """Of the output, without steps and batch."""
    macs: int
    """Dense multiply-accumulates of one step, padding taps included."""
    domain: Domain
    """Of the output."""
    reads: Domain
    time: Time
    """A static layer runs once per sample, one that reads or gives stepped values T times."""


def parameter_count(graph: Graph) -> int:
    """Learned parameters that the head depends on, auxiliary heads excluded, before folding."""
    needed = graph.reachable([graph.outputs[0].path])
    shapes = {
        name: shape for path in needed for name, shape in graph[path].parameter_shapes().items()
    }
    return sum(volume(shape) for shape in shapes.values())


def layers(graph: Graph) -> list[Layer]:
    """The nodes between input and output, in order; types must have been inferred."""
    found = []
    for node in graph.nodes():
        if isinstance(node, Input | Output):
            continue
        read = graph.type(graph.inputs(node.path)[0])
        made = graph.type(node.path)
        assert made.shape is not None
        assert made.domain is not None
        assert read.domain is not None
        found.append(
            Layer(
                path=node.path,
                op=node.op,
                shape=made.shape,
                macs=node.macs(graph.input_shapes(node.path), made.shape),
                domain=made.domain,
                reads=read.domain,
                time=Time.STEPPED if Time.STEPPED in (read.time, made.time) else Time.STATIC,
            )
        )
    return found
