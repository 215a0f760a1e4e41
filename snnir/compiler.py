"""Genotype to deployable network: `compile_network` is the whole way, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from snnir.analysis.draw import draw
from snnir.analysis.energy import CostModel, cost_models
from snnir.analysis.page import render_page
from snnir.analysis.report import full_report
from snnir.deployment import Precision, Say, Target, deploy, refuse
from snnir.errors import SnnirError
from snnir.export.folding import check_folding
from snnir.export.nir import nir_bytes
from snnir.export.onnx import Form
from snnir.files import write_together
from snnir.genotype import Genotype
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.ir.serialize import graph_to_json
from snnir.ir.types import volume
from snnir.lower.behaviour import observe_behaviour
from snnir.lower.counting import count_spikes
from snnir.lower.initialise import calibrated_weights, initial_weights, seeded_inputs
from snnir.passes import FOLDING, TRAINING, run_passes
from snnir.weights import Weights, read_weights, weights_bytes, weights_hash

if TYPE_CHECKING:
    import nir
    import onnx

PROOF_MACS = 24e9
"""Work of one run of the proof, which sets its number of samples (at most 8)."""
CALIBRATION_MACS = 96e9
"""Work of one calibration run, which sets its number of samples (2 to 64)."""
MAX_WEIGHT_BYTES = 2**31 - 2**20
MAX_VALUE_BYTES = 2**32


@dataclass(frozen=True)
class Compiled:
    """A compiled network: what `write` puts into a folder."""

    genotype: Genotype
    graph: Graph
    """Folded, as exported."""
    folded_weights: Weights
    weights: Weights
    """Not folded: what `snnir.load` takes."""
    model: onnx.ModelProto | nir.NIRGraph
    report: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether the proof holds, and in exact mode the certificate."""
        certificate = self.report["certificate"]
        return bool(self.report["parity"]["passed"] and (not certificate or certificate["holds"]))

    @property
    def model_name(self) -> str:
        """`network.onnx` or `network.nir`, but only with a proof."""
        return self._named(self.passed)

    def _named(self, proven: bool) -> str:
        return f"network.{'' if proven else 'unproven.'}{self.report['target']}"

    def _model_bytes(self) -> bytes:
        is_nir = self.report["target"] == "nir"
        return nir_bytes(self.model) if is_nir else self.model.SerializeToString()

    def write(self, folder: str | Path, *, command: str = "") -> Path:
        """Write the model, graph, weights and report; each file appears whole or not at all.

        Raises:
            SnnirError: when the folder cannot be written to.
        """
        report = self.report | {"command": command, "model": self.model_name}
        contents: dict[str, bytes] = {
            self.model_name: self._model_bytes(),
            "graph.json": graph_to_json(self.graph).encode(),
            "graph.safetensors": weights_bytes(self.folded_weights),
            "weights.safetensors": weights_bytes(self.weights),
            "report.json": (json.dumps(report, indent=1) + "\n").encode(),
            "report.html": render_page(report, draw(self.genotype)).encode(),
        }
        folder = write_together(folder, contents)
        (folder / self._named(not self.passed)).unlink(missing_ok=True)
        return folder


def compile_network(
    genotype: Genotype,
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    target: Target = "onnx",
    form: Form = "sequence",
    precision: Precision = "fp32",
    inputs: Sequence[np.ndarray] | None = None,
    inputs_from: str = "given",
    models: Sequence[CostModel] = (),
    say: Say = lambda line: None,
) -> Compiled:
    """Fold, export and prove (export/parity.py, export/nir_parity.py, export/folding.py). NIR has
    one form only, whose steps the client runs.

    Without `weights`, seeded initial ones are used, batch norm calibrated on `inputs` so that every
    layer fires. `inputs`: one array per network input, frames [N, C, H, W] in fp32, events
    [T, N, C, H, W]; seeded random ones when None; `inputs_from` says in the report what they are.
    `precision` "exact": every sum exact, every spike the same in any runtime (docs/exact.md);
    "int8": convolutions of spikes in 8 bits, calibrated on `inputs` (docs/int8.md). `models` price
    the operations: those in the box when empty.

    Raises:
        GenotypeError, ExportError, SnnirError: before anything is written.
    """
    network = build(genotype)
    folding_only = run_passes(FOLDING, network).graph
    refuse(folding_only, target=target, precision=precision, form=form)
    refuse_too_large(folding_only)
    work = network.steps * sum(_macs(folding_only))
    given = None if weights is None else read_weights(weights, network)
    calibration = _samples(network, inputs, seed, CALIBRATION_MACS / work, low=2, high=64)
    if given is None:
        say(
            f"no weights given: seeded ones (seed {seed}), "
            "batch norm calibrated so that every layer fires"
        )
        training = run_passes(TRAINING, network).graph
        given = calibrated_weights(training, list(map(torch.from_numpy, calibration)), seed)
    complete = initial_weights(network, seed) | given  # weights of auxiliary heads may be missing
    folded = run_passes(FOLDING, network, complete)
    proof_inputs = _samples(network, inputs, seed, PROOF_MACS / work, low=1, high=8)
    deployed = deploy(
        folded, calibration, proof_inputs, target=target, precision=precision, form=form, say=say
    )
    running, change = deployed.running, deployed.change
    counts = count_spikes(running.graph, running.weights, calibration, change=change)
    behaviour = observe_behaviour(running.graph, running.weights, proof_inputs, change=change)
    folding = check_folding(network, complete, [_first(x) for x in proof_inputs])
    report = full_report(network, folded.graph, counts, models or cost_models())
    report |= deployed.report(folding) | {
        "target": target,
        "precision": precision,
        "behaviour": {name: asdict(seen) for name, seen in behaviour.items()},
        "behaviour_samples": int(proof_inputs[0].shape[-4]),
        "weights": {
            "source": "seeded, calibrated" if weights is None else Path(weights).name,
            "seed": seed if weights is None else None,
            "sha256": weights_hash(deployed.weights),
        },
        "inputs": {
            "source": "seeded random" if inputs is None else inputs_from,
            "seed": seed if inputs is None else None,
            "samples": int(calibration[0].shape[-4]),
        },
    }
    return Compiled(genotype, deployed.graph, deployed.weights, given, deployed.model, report)


def refuse_too_large(graph: Graph) -> None:
    """Raise SnnirError for a network that neither an ONNX file nor memory can hold."""
    weight_bytes = 4 * sum(map(volume, graph.parameter_shapes().values()))
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise SnnirError(
            f"network '{graph.name}': found {weight_bytes / 2**30:.1f} GiB of weights, "
            f"expected at most {MAX_WEIGHT_BYTES / 2**30:.1f} GiB, what an ONNX file holds"
        )
    largest = max(graph.nodes(), key=lambda node: volume(graph.shape(node.path)))
    value_bytes = 4 * graph.steps * volume(graph.shape(largest.path))
    if value_bytes > MAX_VALUE_BYTES:
        place = f"{graph.source.locate(largest.span)}: " if graph.source else ""
        raise SnnirError(
            f"{place}{largest.path}: found {value_bytes / 2**30:.1f} GiB for one sample, "
            f"expected at most {MAX_VALUE_BYTES / 2**30:.1f} GiB"
        )


def _macs(graph: Graph) -> list[int]:
    return [n.macs(graph.input_shapes(n.path), graph.shape(n.path)) for n in graph.nodes()]


def _samples(
    graph: Graph,
    inputs: Sequence[np.ndarray] | None,
    seed: int,
    wanted: float,
    *,
    low: int,
    high: int,
) -> list[np.ndarray]:
    """As many samples as `wanted` allows, of the given inputs or of seeded random ones."""
    count = int(min(high, max(low, wanted)))
    if inputs is None:
        return seeded_inputs(graph, seed, count)
    if len(inputs) != len(graph.network_inputs):
        names = ", ".join(node.path for node in graph.network_inputs)
        raise SnnirError(
            f"found {len(inputs)} input arrays, expected {len(graph.network_inputs)}: {names}"
        )
    chosen = []
    for node, x in zip(graph.network_inputs, inputs, strict=True):
        dims = 4 if node.kind == "frame" else 5
        fits = x.ndim == dims and x.shape[-3:] == node.shape and x.shape[-4] > 0
        if not fits or (dims == 5 and len(x) != graph.steps):
            form = "[N, C, H, W]" if dims == 4 else f"[T = {graph.steps}, N, C, H, W]"
            raise SnnirError(
                f"input '{node.path}': found shape {list(x.shape)}, expected {form} "
                f"with [C, H, W] = {list(node.shape)}"
            )
        if x.dtype.kind not in "fiub" or not np.isfinite(x).all():
            found = f"values of {x.dtype}" if x.dtype.kind not in "fiub" else "NaN or infinity"
            raise SnnirError(f"input '{node.path}': found {found}, expected finite numbers")
        chosen.append(np.asarray(x[:count] if dims == 4 else x[:, :count], np.float32))
    return chosen


def _first(x: np.ndarray) -> np.ndarray:
    """The first sample alone: float64 runs are slow."""
    return x[..., :1, :, :, :]
