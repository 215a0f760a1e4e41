"""An imported network as files: graph, weights, and an ONNX model with its proof."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from snnir.analysis.structure import structure_report
from snnir.export.onnx import export_onnx
from snnir.export.parity import check_parity
from snnir.files import write_together
from snnir.ir.graph import Graph
from snnir.ir.serialize import graph_to_json
from snnir.lower.initialise import seeded_inputs
from snnir.passes import DEPLOYMENT, run_passes
from snnir.weights import Weights, weights_bytes

SAMPLES = 4
"""That the proof runs on."""


def export_imported(
    graph: Graph, weights: Weights, folder: str | Path, *, seed: int = 0
) -> dict[str, Any]:
    """Write network.onnx (network.unproven.onnx if the proof fails), graph.json, graph.safetensors
    and report.json, all in fp32, and return the report. The proof runs on seeded random inputs.

    Raises:
        ExportError, SnnirError: before anything is written.
    """
    fp32 = {name: array.astype(np.float32) for name, array in weights.items()}
    deployed = run_passes(DEPLOYMENT, graph, fp32)
    model = export_onnx(deployed.graph, deployed.weights)
    inputs = seeded_inputs(graph, seed, SAMPLES)
    parity = check_parity(model, deployed.graph, deployed.weights, inputs, form="sequence")
    names = ("network.onnx", "network.unproven.onnx")
    name, stale = names if parity.passed else names[::-1]
    report = structure_report(graph, graph) | {
        "model": name,
        "parity": asdict(parity)
        | {
            "passed": parity.passed,
            "max_abs_diff": parity.max_abs_diff,
            "spike_mismatch_rate": parity.spike_mismatch_rate,
            "spikes_compared": parity.spikes_compared,
        },
    }
    folder = write_together(
        folder,
        {
            name: model.SerializeToString(),
            "graph.json": graph_to_json(deployed.graph).encode(),
            "graph.safetensors": weights_bytes(deployed.weights),
            "report.json": (json.dumps(report, indent=1) + "\n").encode(),
        },
    )
    (folder / stale).unlink(missing_ok=True)
    return report
