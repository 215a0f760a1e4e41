"""Stack convolutions that read the same value: one larger convolution and slices of it.

    a = bn_a(conv_a(x)); b = bn_b(conv_b(x))
-->
    m = bn_ab(conv_ab(x)); a = slice(m, 0, A); b = slice(m, A, A + B)

Exact, with batch norm in training too, since its statistics are per channel. The parameters keep
their names: the merged node lists their owners.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from snnir.ir.graph import Graph
from snnir.ir.nodes import BatchNorm, Conv, Gate, Slice
from snnir.passes.base import Pass
from snnir.passes.naming import merged_path
from snnir.weights import Weights


class Unit(NamedTuple):
    """A convolution and the batch norm that alone reads it, if any."""

    conv: Conv
    bn: BatchNorm | None

    @property
    def result(self) -> str:
        return self.bn.path if self.bn else self.conv.path

    def key(self, graph: Graph) -> tuple:
        """What units that can be stacked have in common."""
        conv = self.conv
        geometry = (conv.in_channels, conv.kernel, conv.stride, conv.padding, conv.dilation)
        return graph.inputs(conv.path), geometry, conv.bias, self.bn and self.bn.eps


def unit_of(graph: Graph, result: str) -> Unit | None:
    """The unit that makes the value `result`, if it is one that can be stacked."""
    node = graph[result]
    bn = node if isinstance(node, BatchNorm) else None
    if bn is not None:
        node = graph[graph.inputs(result)[0]]
        if len(graph.consumers(node.path)) > 1:
            return None
    return Unit(node, bn) if isinstance(node, Conv) and node.groups == 1 else None


def merge_shared_input(graph: Graph, weights: Weights) -> bool:
    groups: dict[tuple, list[Unit]] = defaultdict(list)
    for conv in graph.of_type(Conv):
        readers = graph.consumers(conv.path)
        normed = len(readers) == 1 and isinstance(graph[readers[0]], BatchNorm)
        unit = unit_of(graph, readers[0] if normed else conv.path)
        if unit is not None:
            groups[unit.key(graph)].append(unit)
    for units in groups.values():
        if len(units) > 1:
            _merge(graph, units)
    return any(len(units) > 1 for units in groups.values())


def _gates(norm: BatchNorm) -> tuple[Gate | None, ...]:
    """One per owner."""
    return norm.gates or (None,) * len(norm.owners)


def merge_units(graph: Graph, units: list[Unit]) -> str:
    """Add the stacked convolution and batch norm of `units`; returns the path of their result."""
    convs = [unit.conv for unit in units]
    norms = [unit.bn for unit in units if unit.bn]
    channels = sum(conv.out_channels for conv in convs)
    last = ""
    for parts, inputs in ((convs, graph.inputs(convs[0].path)), (norms, None)):
        if parts:
            update: dict[str, Any] = {
                "path": merged_path([part.path for part in parts]),
                "out_channels": channels,
                "owners": tuple(owner for part in parts for owner in part.owners),
            }
            gates = tuple(g for p in parts if isinstance(p, BatchNorm) for g in _gates(p))
            if any(gates):
                update["gates"] = gates
            merged = parts[0].model_copy(update=update)
            last = graph.add(merged, [last] if inputs is None else inputs)
    return last


def _merge(graph: Graph, units: list[Unit]) -> None:
    merged = merge_units(graph, units)
    start = 0
    for unit in units:
        stop = start + unit.conv.out_channels
        graph.replace(Slice(path=unit.result, start=start, stop=stop, span=unit.conv.span))
        graph.set_inputs(unit.result, [merged])
        if unit.bn:
            graph.remove(unit.conv.path)
        start = stop


MERGE_SHARED_INPUT = Pass("merge_shared_input", merge_shared_input)
