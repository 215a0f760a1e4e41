"""Inference of edge types: what the passes attach and the verifier compares with."""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import Node
from snnir.ir.types import ShapeError, TensorType


class InferenceError(Exception):
    """A node whose inputs do not fit; `node` is where."""

    def __init__(self, node: Node, message: str):
        self.node = node
        super().__init__(message)


def infer_types(graph: Graph) -> dict[str, TensorType]:
    """Shape, domain and time of every value, by path, whatever is attached already.

    Raises InferenceError at the first node whose inputs do not fit.
    """
    return graph.inferred(_infer)


def _infer(graph: Graph) -> dict[str, TensorType]:
    types: dict[str, TensorType] = {}
    for node in graph.nodes():
        inputs = [types[source] for source in graph.inputs(node.path)]
        low, high = node.arity
        if len(inputs) < low or (high is not None and len(inputs) > high):
            expected = f"{low}" if low == high else f"at least {low}"
            raise InferenceError(node, f"found {len(inputs)} inputs, expected {expected}")
        times = [i.time for i in inputs]
        if len(set(times)) > 1:
            raise InferenceError(node, "found static and stepped inputs, expected all of one kind")
        try:
            types[node.path] = TensorType(
                shape=node.output_shape([i.shape for i in inputs]),  # type: ignore[misc]
                domain=node.output_domain([i.domain for i in inputs]),  # type: ignore[misc]
                time=node.output_time(times),  # type: ignore[arg-type]
            )
        except ShapeError as error:
            raise InferenceError(node, str(error)) from None
    return types
