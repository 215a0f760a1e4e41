"""A graph as text, one line per node: what golden tests compare and people read."""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import Node, Owner


def graph_text(graph: Graph) -> str:
    """Lines `path = op(inputs) field=value … : type`, fields at their default left out."""
    return "".join(f"{node_text(graph, node)}\n" for node in graph.nodes())


def node_text(graph: Graph, node: Node) -> str:
    """One line of `graph_text`."""
    own = (Owner(node.path, getattr(node, "out_channels", getattr(node, "out_features", 0))),)
    fields = []
    for name, info in type(node).model_fields.items():
        value = getattr(node, name)
        if name in ("path", "span") or value == info.default or (name == "owners" and value == own):
            continue
        fields.append(f"{name}={_value(value)}")
    head = f"{node.path} = {node.op}({', '.join(graph.inputs(node.path))})"
    return " ".join([head, *fields, ":", str(graph.type(node.path))])


def _value(value: object) -> str:
    if isinstance(value, tuple):
        if value and isinstance(value[0], tuple):
            return "+".join(":".join(map(str, part)) for part in value)
        return "x".join(map(str, value))
    return str(value)
