"""Compute once what is the same at every step: move `repeat` behind the nodes that ignore time.

    u = conv(repeat(image)); y = neuron(u)      -->      u = conv(image); y = neuron(u)

A neuron with state takes a static current as it is. In training the statistics of a batch norm
over T equal frames are those over one.
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import MeanOverTime, Neuron, Node, Output, Repeat
from snnir.passes.base import Pass
from snnir.weights import Weights


def hoist_static(graph: Graph, weights: Weights) -> bool:
    modified = False
    for node in graph.nodes():
        sources = graph.inputs(node.path)
        repeats = [source for source in sources if isinstance(graph[source], Repeat)]
        if not sources or len(repeats) < len(sources) or isinstance(node, Output | Repeat):
            continue
        graph.set_inputs(node.path, [graph.inputs(repeat)[0] for repeat in repeats])
        if not _absorbs(node):
            later = Repeat(path=f"{node.path}.repeat", span=node.span)
            graph.add(later)
            graph.redirect(node.path, later.path)
            graph.set_inputs(later.path, [node.path])
        modified = True
    unread = [node.path for node in graph.of_type(Repeat) if not graph.consumers(node.path)]
    graph.remove(*unread)
    return modified


def _absorbs(node: Node) -> bool:
    """Whether the node turns a static value into what its readers expect."""
    return isinstance(node, MeanOverTime) or (isinstance(node, Neuron) and bool(node.states))


HOIST_STATIC = Pass("hoist_static", hoist_static)
