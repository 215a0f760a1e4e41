"""Graphs as readable JSON that diffs line by node, and weights as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from snnir.errors import SnnirError
from snnir.genotype.ast import Annotation
from snnir.ir.graph import Graph
from snnir.ir.nodes import NODE_TYPES, Node
from snnir.ir.types import Domain, TensorType, Time
from snnir.ir.verify import verify
from snnir.source import Source, Span

FORMAT = "snnir-graph/1"


def graph_to_json(graph: Graph) -> str:
    """The graph as JSON, one node per line: stable, so a change of the network shows as one."""
    header = {
        "format": FORMAT,
        "name": graph.name,
        "steps": graph.steps,
        "source": [graph.source.name, graph.source.text] if graph.source else None,
        "annotations": [a.model_dump(mode="json", exclude_none=True) for a in graph.annotations],
    }
    head = json.dumps(header, indent=1)[:-2]
    lines = ",\n".join(f"  {json.dumps(_node_json(graph, node))}" for node in graph.nodes())
    return f'{head},\n "nodes": [\n{lines}\n ]\n}}\n'


def graph_from_json(text: str, *, name: str = "<json>") -> Graph:
    """Read what `graph_to_json` wrote, verified; equal to the graph that was written.

    Raises:
        SnnirError: when the text is no such JSON or the graph in it is not valid.
    """
    try:
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise SnnirError(f"{name}: found format {data.get('format')!r}, expected {FORMAT!r}")
        graph = Graph(
            data["name"],
            int(data["steps"]),
            source=Source(*data["source"]) if data["source"] else None,
            annotations=TypeAdapter(list[Annotation]).validate_python(data["annotations"]),
        )
        for entry in data["nodes"]:
            _add_node(graph, entry)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            detail = f"{type(error).__name__}: {error}"
        raise SnnirError(f"{name}: found no valid graph, expected {FORMAT}: {detail}") from None
    verify(graph, when=f"reading {name}")
    return graph


def read_graph(path: str | Path) -> Graph:
    """Read a graph file. Raises SnnirError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SnnirError(f"{path}: cannot be read: {error}") from None
    return graph_from_json(text, name=str(path))


def _node_json(graph: Graph, node: Node) -> dict[str, Any]:
    type_ = graph.type(node.path)
    fields = node.model_dump(mode="json", exclude={"path", "span"}, exclude_defaults=True)
    entry: dict[str, Any] = {
        "path": node.path,
        "op": node.op,
        "inputs": graph.inputs(node.path),
        **fields,
    }
    if type_.shape is not None:
        entry["type"] = [type_.shape, type_.domain, type_.time]
    if node.span is not None:
        entry["span"] = [node.span.line, node.span.column, node.span.end_line, node.span.end_column]
    return entry


def _add_node(graph: Graph, entry: dict[str, Any]) -> None:
    entry = dict(entry)
    op, inputs = entry.pop("op"), entry.pop("inputs")
    shape, domain, time = entry.pop("type", (None, None, None))
    span = entry.pop("span", None)
    if op not in NODE_TYPES:
        raise ValueError(f"unknown op {op!r}")
    node = NODE_TYPES[op].model_validate({**entry, "span": Span(*span) if span else None})
    graph.add(node, inputs)
    graph.set_type(
        node.path,
        TensorType(
            shape=None if shape is None else tuple(shape),
            domain=None if domain is None else Domain(domain),
            time=None if time is None else Time(time),
        ),
    )
