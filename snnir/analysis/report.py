"""`report.json`: what a network is, what it costs and how it fires, as one plain dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from snnir.analysis.energy import CostModel, energy
from snnir.analysis.firing import SpikeCounts
from snnir.analysis.operations import LayerOperations, count_operations, total
from snnir.analysis.structure import structure_report
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron


def full_report(
    graph: Graph, folded: Graph, counts: SpikeCounts, models: Sequence[CostModel]
) -> dict[str, Any]:
    """The structure with what was measured: firing, operations, and what they cost by `models`."""
    report = structure_report(graph, folded)
    found = count_operations(folded, counts)
    for entry, one in zip(report["layers"], found, strict=True):
        entry |= _measured(folded, one, counts, models)
    spiking = [n.path for n in folded.neurons if n.spiking]
    costs = {model.name: energy(found, model) for model in models}
    return report | {
        "measured_samples": counts.samples,
        "measured_steps": counts.steps,
        "firing_rate": sum(map(counts.rate, spiking)) / len(spiking) if spiking else 0.0,
        "silent": [path for path in spiking if not counts.rate(path)],
        "operations": asdict(total(found)),
        "energy": {name: cost.total_mj for name, cost in costs.items()},
        "energy_parts": {
            name: {
                "arithmetic": cost.arithmetic_mj,
                "memory": cost.memory_mj,
                "unpriced_macs": cost.unpriced_macs,
            }
            for name, cost in costs.items()
        },
        "cost_models": [model.model_dump(exclude_none=True) for model in models],
    }


def _measured(
    graph: Graph, one: LayerOperations, counts: SpikeCounts, models: Sequence[CostModel]
) -> dict[str, Any]:
    """Of one layer: its operations and energy, and of neurons their firing."""
    path = one.layer.path
    did = {name: value for name, value in asdict(one.operations).items() if value}
    entry: dict[str, Any] = {"operations": did, "runs_per_sample": one.runs}
    if did:
        entry["energy"] = {model.name: energy([one], model).total_mj for model in models}
    neuron = graph[path]
    if isinstance(neuron, Neuron):
        entry["firing_rate"] = counts.rate(path)
        if neuron.spiking:
            entry |= {
                "firing_rate_by_step": counts.by_step(path),
                "silent_neurons": counts.silent(path),
                "saturated_neurons": counts.saturated(path),
            }
    elif one.layer.macs and not one.layer.reads.multiplies:
        entry["input_rate"] = one.events / (one.inputs * one.runs)
    return entry
