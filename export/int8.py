"""Convolutions of spikes in 8 bits: QLinearConv, spikes u8, weights s8 per channel, currents u8.

Of a layer that reads spikes x, with weights w and bias b per output channel c,

    s[c] = max(max |w[c]| / 127, |b[c]| / 2^24),  W = round(w / s),  B = round(b / s)
    q = clip(round((Σ W·x + B)·s / step) + zero, 0, 255),  current = (q - zero)·step

`step` and `zero` are a layer's own, from the range of its currents on calibration samples. A spike
needs no scale. Neurons, and layers that read a frame or a ReLU, stay in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto

from snnir.errors import SnnirError
from snnir.export.onnx import Form, OnnxExporter, checked, refuse_inexpressible
from snnir.ir import nodes as ir
from snnir.ir.graph import Graph
from snnir.ir.types import Domain
from snnir.lower import SpikingModule
from snnir.lower.operations import Value
from snnir.weights import Weights

CLIPPED: Final = 0.001
"""Share of the calibration currents that may lie outside of a layer's range, at either end."""
LARGEST_BIAS: Final = 2**24
"""Of a bias's whole number, so that 32 bits hold it with every sum of weights."""
SAMPLED: Final = 2**20
"""Currents of a layer that its range is read from, spread evenly over all."""


@dataclass(frozen=True)
class EightBits:
    """How one layer is quantised."""

    scales: np.ndarray
    """[channels], fp32: a weight or bias is its whole number times this."""
    step: float
    """Of the currents, an fp32 number."""
    zero: int
    """The whole number, 0 to 255, that stands for a current of 0."""

    def currents(self, exact: torch.Tensor) -> torch.Tensor:
        """What the layer gives for its exact currents."""
        whole = (exact / self.step).round().clamp(-self.zero, 255 - self.zero)
        return whole * self.step


@dataclass(frozen=True)
class Quantised:
    """A deployed network whose spike-reading convolutions are quantised."""

    graph: Graph
    weights: Weights
    """Of quantised layers, fp64 arrays: whole numbers times scales, exactly."""
    layers: Mapping[str, EightBits]
    """By path."""

    def currents(self, node: ir.Node, value: Value) -> Value:
        """An observer with which a module of the graph computes what the exported model does."""
        bits = self.layers.get(node.path)
        return value if bits is None else Value(bits.currents(value.data), value.stepped)


def quantise(graph: Graph, weights: Weights, inputs: Sequence[np.ndarray]) -> Quantised:
    """Quantise a deployed graph; `inputs` (frames [N, C, H, W], events [T, N, C, H, W]) are what
    the ranges are calibrated on.

    Raises:
        SnnirError: no layer reads spikes.
    """
    convolutions = convolutions_of_spikes(graph)
    ranges = _ranges(graph, weights, inputs, {node.path for node in convolutions})
    layers, rounded = {}, dict(weights)
    for node in convolutions:
        names = [owner.path for owner in node.owners]
        weight = np.concatenate([weights[f"{name}.weight"] for name in names])
        scales = np.abs(weight).reshape(len(weight), -1).max(1) / 127
        if node.bias:  # a channel without weights has its bias still
            bias = np.concatenate([weights[f"{name}.bias"] for name in names])
            scales = np.maximum(scales, np.abs(bias) / LARGEST_BIAS)
        scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
        low, high = ranges[node.path]
        step = float(np.float32((high - low) / 255)) or 1.0
        layers[node.path] = EightBits(scales, step, int(np.clip(round(-low / step), 0, 255)))
        start = 0
        for owner in node.owners:
            own = scales[start : start + owner.channels].astype(np.float64)
            for leaf in ("weight", "bias") if node.bias else ("weight",):
                given = weights[f"{owner.path}.{leaf}"].astype(np.float64)
                per_channel = own.reshape(-1, *[1] * (given.ndim - 1))
                rounded[f"{owner.path}.{leaf}"] = np.round(given / per_channel) * per_channel
            start += owner.channels
    return Quantised(graph, rounded, layers)


def convolutions_of_spikes(graph: Graph) -> list[ir.Conv]:
    """What there is to quantise. Raises SnnirError: nothing."""
    found = [node for node in graph.of_type(ir.Conv) if reads_spikes(graph, node)]
    if not found:
        raise SnnirError(f"network '{graph.name}': found no convolution of spikes, expected one")
    return found


def reads_spikes(graph: Graph, node: ir.Node) -> bool:
    return graph.type(graph.inputs(node.path)[0]).domain == Domain.SPIKE


def _ranges(
    graph: Graph, weights: Weights, inputs: Sequence[np.ndarray], paths: set[str]
) -> dict[str, tuple[float, float]]:
    """The smallest and largest current of each layer, outliers left out; 0 is within."""
    found: dict[str, tuple[float, float]] = {}

    def look(node: ir.Node, value: Value) -> Value:
        if node.path in paths:
            flat = value.data.flatten()
            some = flat[:: max(1, flat.numel() // SAMPLED)].float()
            low, high = torch.quantile(some[:SAMPLED], torch.tensor([CLIPPED, 1 - CLIPPED]))
            found[node.path] = min(0.0, float(low)), max(0.0, float(high))
        return value

    with torch.no_grad():
        module = SpikingModule(graph, weights).eval()
        module.run(*map(torch.from_numpy, inputs), observe=look)
    return found


def export_int8(quantised: Quantised, *, form: Form = "sequence") -> onnx.ModelProto:
    """Build a checked model; inputs and outputs as those of `export_onnx`.

    Raises:
        ExportError: naming every node without an ONNX form.
    """
    refuse_inexpressible(quantised.graph)
    return checked(_Int8Exporter(quantised, form).model())


class _Int8Exporter(OnnxExporter):
    """Spikes are u8 wherever a value carries spikes and nothing else."""

    def __init__(self, quantised: Quantised, form: Form):
        super().__init__(quantised.graph, quantised.weights, form)
        self.layers = quantised.layers

    def emit_node(self, node: ir.Node, inputs: list[str]) -> None:
        sources = self.graph.inputs(node.path)
        if node.path in self.layers:
            assert isinstance(node, ir.Conv)
            self._quantised(node, self.layers[node.path], inputs[0])
            return
        if isinstance(node, ir.Neuron) or not self._is_u8(node.path):
            inputs = [
                self.op("Cast", [x], f"{node.path}.read{number}", to=TensorProto.FLOAT)
                if self._is_u8(source)
                else x
                for number, (x, source) in enumerate(zip(inputs, sources, strict=True))
            ]
        super().emit_node(node, inputs)

    def _is_u8(self, path: str) -> bool:
        return self.graph.type(path).domain == Domain.SPIKE

    def _quantised(self, node: ir.Conv, bits: EightBits, x: str) -> None:
        path, scales = node.path, bits.scales.astype(np.float64)
        whole = self.stacked_array(node.owners, "weight")
        whole = np.round(whole / scales.reshape(-1, *[1] * (whole.ndim - 1)))
        step = self.constant(np.array(bits.step, np.float32), f"{path}.step")
        zero = self.constant(np.array(bits.zero, np.uint8))
        one, nothing = self.scalar(1.0), self.constant(np.array(0, np.uint8))
        arguments = [
            x, one, nothing,
            self.constant(whole.astype(np.int8), f"{path}.weight"),
            self.constant(bits.scales, f"{path}.scale"),
            self.constant(np.zeros(len(whole), np.int8), f"{path}.weight_zero"),
            step, zero,
        ]  # fmt: skip
        if node.bias:
            bias = np.round(self.stacked_array(node.owners, "bias") / scales)
            arguments.append(self.constant(bias.astype(np.int32), f"{path}.bias"))
        q = self.op("QLinearConv", arguments, f"{path}.q", **self.window(node))
        self.op("DequantizeLinear", [q, step, zero], path)

    def spikes(self, fired: str, out: str) -> str:
        return self.op("Cast", [fired], out, to=TensorProto.UINT8)

    def silent(self, fired: str, y: str, out: str) -> str:
        still = self.op("Not", [fired], f"{out}.bool")
        return self.op("Cast", [still], out, to=TensorProto.FLOAT)

    def as_float(self, y: str, out: str) -> str:
        return self.op("Cast", [y], out, to=TensorProto.FLOAT)


def quantisation_report(quantised: Quantised, given: Weights) -> dict[str, Any]:
    """What was quantised, and how much that changed; `given`: the weights before."""
    layers = []
    for node in quantised.graph.of_type(ir.Conv):
        bits = quantised.layers.get(node.path)
        if bits is None:
            continue
        names = [f"{owner.path}.weight" for owner in node.owners]
        before = np.concatenate([given[name].ravel() for name in names])
        after = np.concatenate([quantised.weights[name].ravel() for name in names])
        rms = float(np.sqrt(np.mean((after - before) ** 2) / max(np.mean(before**2), 1e-30)))
        low, high = -bits.zero * bits.step, (255 - bits.zero) * bits.step
        layers.append(
            {"path": node.path, "lowest": low, "highest": high, "step": bits.step,
             "weight_rounding": rms}
        )  # fmt: skip
    fp32 = [
        n.path
        for n in quantised.graph.nodes()
        if isinstance(n, ir.WeightLayer) and n.path not in quantised.layers
    ]
    return {"layers": layers, "fp32": fp32}
