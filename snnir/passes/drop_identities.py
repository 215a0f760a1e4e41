"""Remove nodes that return their input.

s = add(a); r = resize(s) to its own size; k = identity(r); y = conv(k)      -->      y = conv(a)
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, Concat, Identity, Node, Resize, Slice
from snnir.passes.base import Pass
from snnir.weights import Weights


def drop_identities(graph: Graph, weights: Weights) -> bool:
    useless = [node.path for node in graph.nodes() if _is_identity(graph, node)]
    for path in useless:
        graph.bypass(path)
    return bool(useless)


def _is_identity(graph: Graph, node: Node) -> bool:
    inputs = graph.inputs(node.path)
    if isinstance(node, Add | Concat):
        return len(inputs) == 1
    if isinstance(node, Resize | Slice):
        return graph.shape(node.path) == graph.shape(inputs[0])
    return isinstance(node, Identity)


DROP_IDENTITIES = Pass("drop_identities", drop_identities)
