"""Let batch norm weigh what a mixed edge mixes: a gate on its weight and bias costs nothing.

    m = mixed(bn_a(u) * alpha_0, bn_b(v) * alpha_1, x * alpha_2)
-->
    r = mixed(x * alpha_2); m = add(bn_a[alpha_0](u), bn_b[alpha_1](v), r)

The gradient of a gate then comes from the sums that batch norm's own gradient makes, and the
candidates need not be kept for it.
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, BatchNorm, Mixed
from snnir.passes.base import Pass
from snnir.weights import Weights


def gate_batch_norm(graph: Graph, weights: Weights) -> bool:
    changed = False
    for mixed in graph.of_type(Mixed):
        terms, others = [], []
        for source, gate in zip(graph.inputs(mixed.path), mixed.gates, strict=True):
            norm = graph[source]
            if isinstance(norm, BatchNorm) and graph.consumers(source) == [mixed.path]:
                graph.replace(norm.model_copy(update={"gates": (gate,)}))
                terms.append(source)
            else:
                others.append((source, gate))
        if not terms:
            continue
        changed = True
        if others:
            sources, gates = zip(*others, strict=True)
            rest = mixed.model_copy(update={"path": f"{mixed.path}.rest", "gates": gates})
            terms.append(graph.add(rest, sources))
        graph.replace(Add(path=mixed.path, span=mixed.span))
        graph.set_inputs(mixed.path, terms)
    return changed


GATE_BATCH_NORM = Pass("gate_batch_norm", gate_batch_norm)
