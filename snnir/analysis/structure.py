"""What a network is, without weights: the part of `report.json` that loads neither torch nor
numpy."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from snnir import __version__
from snnir.analysis.counts import Layer, layers, parameter_count
from snnir.analysis.purity import violations
from snnir.ir.graph import Graph


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
        "macs_exact": sum(layer.macs_exact for layer in found),
        "spike_pure": not broken,
        "violations": [asdict(violation) for violation in broken],
        "layers": [_structure(layer, graph.steps) for layer in found],
    }


def _structure(layer: Layer, steps: int) -> dict[str, Any]:
    return {
        "path": layer.path,
        "op": layer.op,
        "shape": list(layer.shape),
        "macs": layer.macs,
        "macs_exact": layer.macs_exact,
        "domain": str(layer.domain),
        "reads": str(layer.reads),
        "runs_per_sample": layer.runs(steps),
    }
