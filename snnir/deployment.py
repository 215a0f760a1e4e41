"""The folded network as a target and a precision have it: lowered, exported and proved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch

from snnir.analysis.certificate import Certificate, certify
from snnir.errors import SnnirError
from snnir.export import nir as nir_export
from snnir.export.exactness import Exactness, check_exactness
from snnir.export.folding import Folding
from snnir.export.int8 import (
    convolutions_of_spikes,
    export_int8,
    quantisation_report,
    quantise,
)
from snnir.export.int8_parity import check_int8
from snnir.export.nir_parity import check_nir
from snnir.export.onnx import Form, export_onnx, refuse_inexpressible
from snnir.export.parity import Parity, check_parity
from snnir.ir.graph import Graph
from snnir.lower.module import Observer
from snnir.passes import (
    LEGALISING_FOR_NIR,
    MERGING,
    ROUNDING,
    ROUNDING_WITH_LEAKS,
    WHOLE_NUMBERS,
    PassResult,
    run_passes,
)
from snnir.passes.quantise_images import eight_bit
from snnir.weights import Weights

if TYPE_CHECKING:
    import nir
    import onnx

Target = Literal["onnx", "nir"]
Precision = Literal["fp32", "exact", "int8"]
Say = Callable[[str], None]

EXPORTED: Final = "exported; proving"


@dataclass(frozen=True)
class Deployed:
    """An exported network and its proof."""

    graph: Graph
    weights: Weights
    """As exported; of int8, whole numbers times scales."""
    model: onnx.ModelProto | nir.NIRGraph
    parity: Parity
    running: PassResult
    """What torch runs in its place, to count: neurons have the genotype's names."""
    change: Observer = lambda node, value: value
    """What is to be made of values then."""
    certificate: Certificate | None = None
    exactness: Exactness | None = None
    """Of exact mode."""
    quantisation: dict[str, Any] | None = None
    """Of int8."""

    def report(self, folding: Folding) -> dict[str, Any]:
        """What report.json has of it, together with the check of folding."""
        return {
            "parity": _parity_report(self.parity, folding, self.exactness),
            "certificate": self.certificate and _certificate_report(self.certificate),
            "quantisation": self.quantisation,
        }


def refuse(folded: Graph, *, target: Target, precision: Precision, form: Form) -> None:
    """Raise SnnirError for what cannot be exported so, before weights are read: ExportError names
    every node."""
    if target == "onnx":
        merged = run_passes(MERGING, folded).graph
        refuse_inexpressible(merged)
        if precision == "int8":
            convolutions_of_spikes(merged)
        return
    if form != "sequence":
        raise SnnirError(f"found form '{form}', expected none: the client runs a NIR file's steps")
    if precision == "int8":
        raise SnnirError("found precision 'int8' with target 'nir', expected fp32 or exact")
    whole = run_passes(WHOLE_NUMBERS, folded).graph if precision == "exact" else folded
    nir_export.refuse_inexpressible(run_passes(LEGALISING_FOR_NIR, whole).graph)


def deploy(
    folded: PassResult,
    calibration: Sequence[np.ndarray],
    inputs: Sequence[np.ndarray],
    *,
    target: Target,
    precision: Precision,
    form: Form,
    say: Say,
) -> Deployed:
    """Lower, export and prove on `inputs`. `calibration` is what int8 finds its ranges on. Raises
    SnnirError."""
    if precision == "exact":
        return _exact(folded, inputs, target, form, say)
    if target == "nir":
        return _nir(folded, inputs, say)
    merged = run_passes(MERGING, folded.graph, folded.weights)
    if precision == "int8":
        return _int8(merged, calibration, inputs, form, say)
    model = export_onnx(merged.graph, merged.weights, form=form)
    say(EXPORTED)
    parity = check_parity(model, merged.graph, merged.weights, inputs, form=form)
    return Deployed(merged.graph, merged.weights, model, parity, merged)


def _nir(folded: PassResult, inputs: Sequence[np.ndarray], say: Say) -> Deployed:
    """The folded graph runs to count: NIR's splits neurons."""
    legal = run_passes(LEGALISING_FOR_NIR, folded.graph, folded.weights)
    model = nir_export.export_nir(legal.graph, legal.weights)
    say(EXPORTED)
    parity = check_nir(model, folded.graph, folded.weights, inputs)
    return Deployed(legal.graph, legal.weights, model, parity, folded)


def _exact(
    folded: PassResult, inputs: Sequence[np.ndarray], target: Target, form: Form, say: Say
) -> Deployed:
    whole = run_passes(WHOLE_NUMBERS, folded.graph, folded.weights)
    rounding = ROUNDING_WITH_LEAKS if target == "nir" else ROUNDING
    rounded = run_passes(rounding, whole.graph, whole.weights)
    merged = run_passes(MERGING, rounded.graph, rounded.weights)
    model = export_onnx(merged.graph, merged.weights, form=form)
    inputs = [eight_bit(x) if x.ndim == 4 else x for x in inputs]
    for node, x in zip(whole.graph.network_inputs, inputs, strict=True):
        if node.kind == "events" and not np.isin(x, (-1, 0, 1)).all():
            raise SnnirError(
                f"input '{node.path}': found other values than -1, 0 and 1, expected signs of "
                "events (exact mode)"
            )
    proved = (model, merged.graph, merged.weights, inputs)
    if target == "nir":
        return _exact_nir(whole, rounded, inputs, check_exactness(*proved, form=form), say)
    say(EXPORTED)
    given = run_passes(MERGING, whole.graph, whole.weights).weights
    return Deployed(
        merged.graph,
        merged.weights,
        model,
        check_parity(*proved, form=form),
        merged,
        certificate=certify(merged.graph, merged.weights, given),
        exactness=check_exactness(*proved, form=form),
    )


def _exact_nir(
    whole: PassResult,
    rounded: PassResult,
    inputs: Sequence[np.ndarray],
    exactness: Exactness,
    say: Say,
) -> Deployed:
    for leak, now in _changed_leaks(whole.graph, rounded.graph).items():
        say(f"leak factor {leak:g} is now {now:g}, which makes another network: train with that")
    legal = run_passes(LEGALISING_FOR_NIR, rounded.graph, rounded.weights)
    given = run_passes(LEGALISING_FOR_NIR, whole.graph, whole.weights).weights
    model = nir_export.export_nir(legal.graph, legal.weights, client="any")
    say(EXPORTED)
    return Deployed(
        legal.graph,
        legal.weights,
        model,
        check_nir(model, rounded.graph, rounded.weights, inputs, dtype=torch.float32),
        rounded,
        certificate=certify(legal.graph, legal.weights, given, for_others=True),
        exactness=exactness,
    )


def _changed_leaks(before: Graph, after: Graph) -> dict[float, float]:
    """Of neurons to which it matters."""
    pairs = zip(before.neurons, after.neurons, strict=True)
    return {old.leak: new.leak for old, new in pairs if old.leak != new.leak and before.steps > 1}


def _int8(
    merged: PassResult,
    calibration: Sequence[np.ndarray],
    inputs: Sequence[np.ndarray],
    form: Form,
    say: Say,
) -> Deployed:
    quantised = quantise(merged.graph, merged.weights, calibration)
    model = export_int8(quantised, form=form)
    say(EXPORTED)
    fp32 = {name: array.astype(np.float32) for name, array in quantised.weights.items()}
    return Deployed(
        merged.graph,
        fp32,
        model,
        check_int8(model, quantised, inputs, form=form),
        replace(merged, weights=fp32),
        change=quantised.currents,
        quantisation=quantisation_report(quantised, merged.weights),
    )


def _certificate_report(certificate: Certificate) -> dict[str, Any]:
    layers = [asdict(layer) | {"holds": layer.holds} for layer in certificate.layers]
    return asdict(certificate) | {"holds": certificate.holds, "layers": layers}


def _parity_report(parity: Parity, folding: Folding, exactness: Exactness | None) -> dict[str, Any]:
    end_to_end = exactness and {
        "passed": exactness.passed,
        "samples": exactness.samples,
        "spikes_compared": exactness.spikes_compared,
        "mismatches": exactness.mismatches,
        "layers": [asdict(layer) for layer in exactness.layers],
        "output": asdict(exactness.output),
    }
    return {
        "passed": parity.passed and folding.passed and (exactness is None or exactness.passed),
        "end_to_end": end_to_end,
        "form": parity.form,
        "samples": parity.samples,
        "max_abs_diff": parity.max_abs_diff,
        "spike_mismatch_rate": parity.spike_mismatch_rate,
        "spikes_compared": parity.spikes_compared,
        "end_to_end_max_abs_diff": parity.end_to_end_max_abs_diff,
        "layers": [asdict(layer) | {"passed": layer.passed} for layer in parity.layers],
        "readout": asdict(parity.readout) | {"passed": parity.readout.passed},
        "folding": asdict(folding) | {"passed": folding.passed},
    }
