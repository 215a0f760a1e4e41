"""Inference of edge types: what the passes attach and the verifier compares with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from snnir.ir.graph import Graph
from snnir.ir.nodes import Node
from snnir.ir.types import ShapeError, TensorType


def infer_shapes(graph: Graph) -> None:
    """Attach the shape of every edge. Raises InferenceError at the first node that cannot be."""

    def shape(node: Node, inputs: list[TensorType]) -> TensorType:
        return replace(graph.type(node.path), shape=node.output_shape([i.shape for i in inputs]))  # type: ignore[misc]

    _infer(graph, shape)


def infer_domains(graph: Graph) -> None:
    """Attach the domain and the time of every edge. Raises InferenceError."""

    def domain(node: Node, inputs: list[TensorType]) -> TensorType:
        times = [i.time for i in inputs]
        if len(set(times)) > 1:
            raise ShapeError("found static and stepped inputs, expected all of one kind")
        return replace(
            graph.type(node.path),
            domain=node.output_domain([i.domain for i in inputs]),  # type: ignore[misc]
            time=node.output_time(times),  # type: ignore[arg-type]
        )

    _infer(graph, domain)


class InferenceError(Exception):
    """A node whose inputs do not fit; `node` is where."""

    def __init__(self, node: Node, message: str):
        self.node = node
        super().__init__(message)


def _infer(graph: Graph, rule: Callable[[Node, list[TensorType]], TensorType]) -> None:
    for node in graph.nodes():
        inputs = [graph.type(source) for source in graph.inputs(node.path)]
        low, high = node.arity
        if len(inputs) < low or (high is not None and len(inputs) > high):
            expected = f"{low}" if low == high else f"at least {low}"
            raise InferenceError(node, f"found {len(inputs)} inputs, expected {expected}")
        try:
            graph.set_type(node.path, rule(node, inputs))
        except ShapeError as error:
            raise InferenceError(node, str(error)) from None
