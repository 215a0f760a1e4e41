"""Give neurons candidates that take part by the softmax of learned logits (paper eq. 21).

    n = neuron(u)
-->
    n.0 = neuron[first](u); n.1 = neuron[second](u); n = mixed(n.0 * p_0, n.1 * p_1)

Every candidate has a membrane of its own. The logits are stored under the neuron's path; where a
backbone is applied twice, both neurons have the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from snnir.ir.graph import Graph
from snnir.ir.nodes import Gate, Mixed, Neuron
from snnir.passes import Pass
from snnir.passes.apply_annotations import owner_path
from snnir.search.neurons import to_train
from snnir.weights import Weights

Candidates = Mapping[str, Sequence[Neuron]]
"""By path of the neuron."""


def relaxed(network: Graph, candidates: Candidates) -> Graph:
    """A network as built, to be trained with these candidates."""
    relax = Pass("relax_neurons", lambda graph, weights: relax_neurons(graph, weights, candidates))
    return to_train(network, relax)


def relax_neurons(graph: Graph, weights: Weights, candidates: Candidates) -> bool:
    for path, neurons in candidates.items():
        inputs = graph.inputs(path)
        parts = [
            graph.add(neuron.model_copy(update={"path": f"{path}.{number}"}), inputs)
            for number, neuron in enumerate(neurons)
        ]
        owner = owner_path(path)
        gates = tuple(Gate(owner, number, len(parts)) for number in range(len(parts)))
        graph.replace(Mixed(path=path, gates=gates, span=graph[path].span))
        graph.set_inputs(path, parts)
    return bool(candidates)
