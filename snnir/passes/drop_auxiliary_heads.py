"""Remove the outputs that only training reads; dead-node removal takes what fed them.

auxiliary.0.logits = output(m) role=auxiliary      -->      (nothing)
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.passes.base import Pass
from snnir.passes.drop_dead_nodes import drop_dead_nodes
from snnir.weights import Weights


def drop_auxiliary_heads(graph: Graph, weights: Weights) -> bool:
    auxiliary = [output.path for output in graph.outputs if output.role == "auxiliary"]
    graph.remove(*auxiliary)
    return drop_dead_nodes(graph, weights) or bool(auxiliary)


DROP_AUXILIARY_HEADS = Pass("drop_auxiliary_heads", drop_auxiliary_heads)
