"""Remove nodes that no output depends on. Network inputs stay: they are the interface.

y = conv(x), unread      -->      (nothing)
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import Input
from snnir.passes.base import Pass
from snnir.weights import Weights


def drop_dead_nodes(graph: Graph, weights: Weights) -> bool:
    alive = graph.reachable([output.path for output in graph.outputs])
    dead = [n.path for n in graph.nodes() if n.path not in alive and not isinstance(n, Input)]
    graph.remove(*dead)
    return bool(dead)


DROP_DEAD_NODES = Pass("drop_dead_nodes", drop_dead_nodes)
