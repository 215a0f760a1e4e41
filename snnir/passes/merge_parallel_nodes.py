"""Run cell nodes side by side: neurons alike whose sums read the same values become one wide neuron.

    a = neuron(add(bn_pa(conv_pa(p)), bn_qa(conv_qa(q))))
    b = neuron(add(bn_pb(conv_pb(p)), bn_qb(conv_qb(q))))
-->
    m = neuron(add(bn_pab(conv_pab(p)), bn_qab(conv_qab(q))))
    a = slice(m, 0, A); b = slice(m, A, A + B)

Exact, in training too: batch norm and neurons work per channel. Parameters keep their names, and
the wide neuron lists the neurons it stands for.
"""

from __future__ import annotations

from collections import defaultdict

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, Neuron, Owner, Slice
from snnir.passes.base import Pass
from snnir.passes.merge_shared_input import Unit, merge_units, unit_of
from snnir.passes.naming import merged_path
from snnir.weights import Weights


def merge_parallel_nodes(graph: Graph, weights: Weights) -> bool:
    groups: dict[tuple, list[tuple[Neuron, list[Unit]]]] = defaultdict(list)
    for neuron in graph.neurons:
        units = _summands(graph, neuron)
        if units:
            alike = neuron.model_copy(update={"path": "", "span": None})
            reads = tuple(unit.key(graph) for unit in units)
            groups[alike, reads].append((neuron, units))
    for members in groups.values():
        if len(members) > 1:
            _merge(graph, members)
    return any(len(members) > 1 for members in groups.values())


def _summands(graph: Graph, neuron: Neuron) -> list[Unit]:
    """The convolutions whose sum the neuron alone reads, in a fixed order; none if it reads
    anything else."""
    (source,) = graph.inputs(neuron.path)
    results = graph.inputs(source) if isinstance(graph[source], Add) else (source,)
    units = [unit_of(graph, path) for path in results]
    alone = graph.consumers(source) == [neuron.path]
    found = [u for u in units if u is not None and len(graph.consumers(u.result)) == 1]
    return (
        sorted(found, key=lambda u: graph.inputs(u.conv.path))
        if alone and len(found) == len(units)
        else []
    )


def _merge(graph: Graph, members: list[tuple[Neuron, list[Unit]]]) -> None:
    neurons = [neuron for neuron, _ in members]
    sums = [graph.inputs(neuron.path)[0] for neuron in neurons]
    columns = list(zip(*(units for _, units in members), strict=True))
    total = [merge_units(graph, list(column)) for column in columns]
    last = total[0]
    if len(total) > 1:
        add = graph[sums[0]].model_copy(update={"path": merged_path(sums)})
        last = graph.add(add, total)
    widths = [units[0].conv.out_channels for _, units in members]
    parts = tuple(Owner(n.path, w) for n, w in zip(neurons, widths, strict=True))
    path = merged_path([neuron.path for neuron in neurons])
    graph.add(neurons[0].model_copy(update={"path": path, "parts": parts}), [last])
    start = 0
    for neuron, width in zip(neurons, widths, strict=True):
        graph.replace(Slice(path=neuron.path, start=start, stop=start + width, span=neuron.span))
        graph.set_inputs(neuron.path, [path])
        start += width
    removed = {unit.conv.path for column in columns for unit in column}
    removed |= {unit.result for column in columns for unit in column}
    graph.remove(*removed, *(sums if len(total) > 1 else []))


MERGE_PARALLEL_NODES = Pass("merge_parallel_nodes", merge_parallel_nodes)
