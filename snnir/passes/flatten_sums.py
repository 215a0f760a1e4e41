"""Make a sum of sums one sum.

    s = add(a, b); t = add(s, c)    with s read by t alone
-->
    t = add(a, b, c)
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add
from snnir.passes.base import Pass
from snnir.weights import Weights


def flatten_sums(graph: Graph, weights: Weights) -> bool:
    changed = False
    for outer in graph.of_type(Add):
        inner = {
            source
            for source in graph.inputs(outer.path)
            if isinstance(graph[source], Add) and graph.consumers(source) == [outer.path]
        }
        if inner:
            terms = [
                term
                for source in graph.inputs(outer.path)
                for term in (graph.inputs(source) if source in inner else (source,))
            ]
            graph.set_inputs(outer.path, terms)
            graph.remove(*inner)
            changed = True
    return changed


FLATTEN_SUMS = Pass("flatten_sums", flatten_sums)
