"""Run cell nodes side by side: neurons alike, whose sums read the same values, become one.

    a = neuron(add(bn_pa(conv_pa(p)), bn_qa(conv_qa(q))))
    b = neuron(add(bn_pb(conv_pb(p)), bn_qb(conv_qb(q))))
-->
    m = neuron(add(bn_pab(conv_pab(p)), bn_qab(conv_qab(q))))
    a = slice(m, 0, A); b = slice(m, A, A + B)        concat(a, b, x) --> concat(m, x)

Exact, in training too: batch norm and neurons work per channel. Parameters keep their names, and
the wide neuron lists the neurons it stands for.
"""

from __future__ import annotations

from collections import defaultdict

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, Concat, Neuron, Owner, Slice
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
    found = [u for u in units if u is not None and len(graph.consumers(u.result)) == 1]
    if len(found) < len(units) or graph.consumers(source) != [neuron.path]:
        return []
    return sorted(found, key=lambda unit: str(unit.key(graph)))


def _merge(graph: Graph, members: list[tuple[Neuron, list[Unit]]]) -> None:
    neurons = [neuron for neuron, _ in members]
    sums = [graph.inputs(neuron.path)[0] for neuron in neurons]
    columns = [list(column) for column in zip(*(units for _, units in members), strict=True)]
    currents = [merge_units(graph, column) for column in columns]
    current = currents[0]
    if len(currents) > 1:
        current = graph.add(graph[sums[0]].model_copy(update={"path": merged_path(sums)}), currents)
    parts = tuple(Owner(n.path, units[0].conv.out_channels) for n, units in members)
    path = merged_path([neuron.path for neuron in neurons])
    graph.add(neurons[0].model_copy(update={"path": path, "parts": parts}), [current])
    _read_whole(graph, [neuron.path for neuron in neurons], path)
    start = 0
    for neuron, part in zip(neurons, parts, strict=True):
        stop = start + part.channels
        graph.replace(Slice(path=neuron.path, start=start, stop=stop, span=neuron.span))
        graph.set_inputs(neuron.path, [path])
        start = stop
    gone = {path for column in columns for u in column for path in (u.conv.path, u.result)}
    gone.update(sums if len(currents) > 1 else [])
    gone.update(n.path for n in neurons if not graph.consumers(n.path))
    graph.remove(*gone)


def _read_whole(graph: Graph, parts: list[str], whole: str) -> None:
    """Make a concatenation of all the parts, in order, read the whole instead."""
    for reader in set(graph.consumers(parts[0])):
        inputs = list(graph.inputs(reader))
        first = inputs.index(parts[0])
        if isinstance(graph[reader], Concat) and inputs[first : first + len(parts)] == parts:
            graph.set_inputs(reader, [*inputs[:first], whole, *inputs[first + len(parts) :]])


MERGE_PARALLEL_NODES = Pass("merge_parallel_nodes", merge_parallel_nodes)
