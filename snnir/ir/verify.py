"""The verifier: what every graph must satisfy, before and after each pass."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx

from snnir.errors import SnnirError
from snnir.ir.graph import Graph
from snnir.ir.infer import InferenceError, infer_types
from snnir.ir.nodes import BatchNorm, Conv, Linear, Node, Output
from snnir.ir.types import TensorType


class VerifyError(SnnirError):
    """A graph that breaks the rules; names the pass, the node's path and its source line."""


def verify(graph: Graph, *, when: str) -> dict[str, TensorType]:
    """Check structure, arity, shapes, domains, times and shared parameters; return the edge types.

    `when` names the moment ("after fold_batch_norm") in the error. Types already attached must be
    what inference gives.

    Raises:
        VerifyError: at the first violation.
    """
    try:
        nodes = graph.nodes()
    except nx.NetworkXUnfeasible:
        path = nx.find_cycle(graph._nx)[0][0]
        raise _error(graph, when, graph[path], "found a cycle, expected an acyclic graph") from None
    for node, message in _violations(graph, nodes):
        raise _error(graph, when, node, message)
    try:
        types = infer_types(graph)
    except InferenceError as error:
        raise _error(graph, when, error.node, str(error)) from None
    for node in nodes:
        known, inferred = graph.type(node.path), types[node.path]
        for aspect in ("shape", "domain", "time"):
            found, expected = getattr(known, aspect), getattr(inferred, aspect)
            if found is not None and found != expected:
                raise _error(graph, when, node, f"found {aspect} {found}, expected {expected}")
    return types


def _violations(graph: Graph, nodes: list[Node]) -> Iterator[tuple[Node | None, str]]:
    heads = [o for o in nodes if isinstance(o, Output) and o.role == "head"]
    if len(heads) != 1:
        yield None, f"found {len(heads)} outputs of the head, expected 1"
    known: dict[str, tuple[int, ...]] = {}
    for node in nodes:
        missing = [source for source in graph.inputs(node.path) if source not in graph]
        if missing:
            yield node, f"found input '{missing[0]}', which is not in the graph"
        if isinstance(node, Output) and graph.consumers(node.path):
            yield node, "found readers of an output, expected none"
        if isinstance(node, Conv | Linear | BatchNorm):
            width = node.out_features if isinstance(node, Linear) else node.out_channels
            if sum(owner.channels for owner in node.owners) != width:
                yield node, f"found owners {node.owners}, expected {width} channels in all"
        for name, shape in node.parameter_shapes().items():
            if known.setdefault(name, shape) != shape:
                yield (
                    node,
                    f"found '{name}' as {shape}, expected {known[name]} as its other readers",
                )


def _error(graph: Graph, when: str, node: Node | None, message: str) -> VerifyError:
    if node is None:
        return VerifyError(f"{graph.name}: {when}: {message}")
    place = f"{graph.source.locate(node.span)}: " if graph.source else ""
    return VerifyError(f"{place}{node.path} ({node.op}): {when}: {message}")
