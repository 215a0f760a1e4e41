"""How an exporter says what its target cannot express."""

from __future__ import annotations

from collections.abc import Sequence

from snnir.errors import SnnirError
from snnir.ir.graph import Graph
from snnir.ir.nodes import Node


class ExportError(SnnirError):
    """A node that the target cannot express, named before anything is written."""


def refuse(graph: Graph, target: str, reasons: Sequence[tuple[Node, str]]) -> None:
    """Raise ExportError when there are reasons, naming each node and its place in the genotype."""
    refused = []
    for node, reason in reasons:
        place = f"{graph.source.locate(node.span)}: " if graph.source else ""
        refused.append(f"{place}{node.path} ({node.op}) cannot be exported to {target}: {reason}")
    if refused:
        more = [f"… and {len(refused) - 5} more"] if len(refused) > 5 else []
        raise ExportError("\n".join(refused[:5] + more))
