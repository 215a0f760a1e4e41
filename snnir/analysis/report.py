"""`report.json`: what was compiled, what it costs, and the proof, as one plain dictionary."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from snnir import __version__
from snnir.analysis.counts import layers, parameter_count
from snnir.analysis.energy import COST_MODELS, count_operations, energy_mj
from snnir.analysis.firing import FiringRates
from snnir.analysis.purity import violations
from snnir.ir.graph import Graph
from snnir.ir.types import Time


def structure_report(graph: Graph, folded: Graph) -> dict[str, Any]:
    """What needs no weights: parameters, layers, MACs and purity.

    `graph` is the network as built, `folded` after the FOLDING pipeline.
    """
    found = layers(folded)
    broken = violations(folded)
    return {
        "network": graph.name,
        "snnir_version": __version__,
        "steps": graph.steps,
        "parameters": parameter_count(graph),
        "macs": sum(layer.macs for layer in found),
        "spike_pure": not broken,
        "violations": [asdict(violation) for violation in broken],
        "layers": [
            {
                "path": layer.path,
                "op": layer.op,
                "shape": list(layer.shape),
                "macs": layer.macs,
                "domain": str(layer.domain),
                "reads": str(layer.reads),
                "runs_per_sample": graph.steps if layer.time == Time.STEPPED else 1,
            }
            for layer in found
        ],
    }


def full_report(graph: Graph, folded: Graph, firing: FiringRates) -> dict[str, Any]:
    """The structure with measured firing rates and the energy that follows from them."""
    report = structure_report(graph, folded)
    found = layers(folded)
    for entry, layer in zip(report["layers"], found, strict=True):
        if layer.path in firing.neurons:
            entry["firing_rate"] = firing.neurons[layer.path]
        elif layer.path in firing.read and not layer.reads.multiplies:
            entry["input_rate"] = firing.read[layer.path]
    operations = count_operations(found, firing.read, graph.steps)
    spiking = [firing.neurons[n.path] for n in folded.neurons if n.spiking]
    return report | {
        "firing_rate": sum(spiking) / len(spiking) if spiking else 0.0,
        "silent": [n.path for n in folded.neurons if n.spiking and firing.neurons[n.path] == 0],
        "operations": asdict(operations),
        "energy": {model.name: energy_mj(operations, model) for model in COST_MODELS},
        "cost_models": [asdict(model) for model in COST_MODELS],
    }
