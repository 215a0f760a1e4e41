"""Stack convolutions that read the same value: one larger convolution and slices of it.

    a = bn_a(conv_a(x)); b = bn_b(conv_b(x))
-->
    m = bn_ab(conv_ab(x)); a = slice(m, 0, A); b = slice(m, A, A + B)

Exact, with batch norm in training too, since its statistics are per channel. The parameters keep
their names: the merged node lists their owners.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from snnir.ir.graph import Graph
from snnir.ir.nodes import BatchNorm, Conv, Slice
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


def merge_shared_input(graph: Graph, weights: Weights) -> bool:
    groups: dict[tuple, list[Unit]] = defaultdict(list)
    for conv in graph.of_type(Conv):
        if conv.groups == 1:
            readers = graph.consumers(conv.path)
            reader = graph[readers[0]] if len(readers) == 1 else None
            bn = reader if isinstance(reader, BatchNorm) else None
            geometry = (conv.in_channels, conv.kernel, conv.stride, conv.padding, conv.bias)
            groups[graph.inputs(conv.path), geometry, bn and bn.eps].append(Unit(conv, bn))
    for (inputs, _, _), units in groups.items():
        if len(units) > 1:
            _merge(graph, inputs, units)
    return any(len(units) > 1 for units in groups.values())


def _merge(graph: Graph, inputs: tuple[str, ...], units: list[Unit]) -> None:
    convs = [unit.conv for unit in units]
    channels = sum(conv.out_channels for conv in convs)
    merged = convs[0].model_copy(
        update={
            "path": merged_path([conv.path for conv in convs]),
            "out_channels": channels,
            "owners": tuple(owner for conv in convs for owner in conv.owners),
        }
    )
    last = graph.add(merged, inputs)
    norms = [unit.bn for unit in units if unit.bn]
    if norms:
        norm = norms[0].model_copy(
            update={
                "path": merged_path([bn.path for bn in norms]),
                "out_channels": channels,
                "owners": tuple(owner for bn in norms for owner in bn.owners),
            }
        )
        last = graph.add(norm, [last])
    start = 0
    for unit in units:
        stop = start + unit.conv.out_channels
        graph.replace(Slice(path=unit.result, start=start, stop=stop, span=unit.conv.span))
        graph.set_inputs(unit.result, [last])
        if unit.bn:
            graph.remove(unit.conv.path)
        start = stop


MERGE_SHARED_INPUT = Pass("merge_shared_input", merge_shared_input)
