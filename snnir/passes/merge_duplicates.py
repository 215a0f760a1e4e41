"""Compute equal values once: parameter-free nodes with the same fields and inputs.

a = resize(x) size=8x8; b = resize(x) size=8x8      -->      a = resize(x) size=8x8, read twice
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import AdaptiveAveragePool, Concat, Flatten, Node, Pool, Repeat, Resize, Slice
from snnir.passes.base import Pass
from snnir.weights import Weights

_PURE = (AdaptiveAveragePool, Concat, Flatten, Pool, Repeat, Resize, Slice)


def merge_duplicates(graph: Graph, weights: Weights) -> bool:
    first: dict[tuple[Node, tuple[str, ...]], str] = {}
    modified = False
    for node in graph.nodes():
        if not isinstance(node, _PURE):
            continue
        anonymous = node.model_copy(update={"path": "", "span": None})
        kept = first.setdefault((anonymous, graph.inputs(node.path)), node.path)
        if kept != node.path:
            graph.redirect(node.path, kept)
            graph.remove(node.path)
            modified = True
    return modified


MERGE_DUPLICATES = Pass("merge_duplicates", merge_duplicates)
