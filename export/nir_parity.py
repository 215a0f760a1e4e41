"""Proof that a NIR file is the folded network: read back, run by snnir, end to end, in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from snnir.export.nir import nir_bytes
from snnir.export.parity import LayerParity, Parity
from snnir.importers.nir import read_nir
from snnir.ir.graph import Graph
from snnir.ir.nodes import MeanOverTime, Neuron, Node, Quantise
from snnir.lower.module import SpikingModule
from snnir.lower.operations import Value
from snnir.passes.quantise_images import LEVELS
from snnir.weights import Weights

if TYPE_CHECKING:
    from nir import NIRGraph

TOLERANCE = 1e-9
"""How far currents and outputs may differ: float64 rounds them by some 1e-14."""


def check_nir(
    model: NIRGraph,
    graph: Graph,
    weights: Weights,
    inputs: Sequence[np.ndarray],
    *,
    dtype: torch.dtype = torch.float64,
) -> Parity:
    """Write a NIR graph to a file, read it, and compare it with the folded graph (`FOLDING`) it was
    made of: every neuron, and on `inputs` (frames [N, C, H, W], events [T, N, C, H, W]) every
    current, every spike and the output. All spikes must be equal, and all neurons alike: of a
    neuron whose currents are small or large, spikes say little. The file runs in float64, ours in
    `dtype`: in exact mode it may be float32.

    The concatenations that NIR lacks had neurons behind them split: `head.neuron` is then
    `head.neuron.0`, `head.neuron.1`, … of the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.nir")
        file.write_bytes(nir_bytes(model))
        read_graph, read_weights = read_nir(file, steps=graph.steps)
    graph = _with_fp32_thresholds(graph)
    expected, output = _record(graph, weights, inputs, dtype)
    pixels = _shown(graph, inputs)
    found, found_output = _record(read_graph, read_weights, pixels, torch.float64)
    layers = []
    for path, (current, spikes) in expected.items():
        split = takewhile(lambda part: part in found, (f"{path}.{n}" for n in count()))
        parts = [path] if path in found else list(split)
        pieces = zip(*(found[part] for part in parts), strict=True)
        found_current, found_spikes = (torch.cat(values, 2) for values in pieces)
        alike = all(_alike(graph[path], read_graph[part]) for part in parts)
        diff = float((current - found_current).abs().max())
        mismatches = int((spikes != found_spikes).sum())
        layers.append(
            LayerParity(
                path=path,
                values=spikes.numel(),
                firing_rate=float(spikes.mean()),
                max_abs_diff=diff,
                rounding_used=diff / TOLERANCE,
                spike_mismatches=mismatches,
                neuron_errors=mismatches if alike else spikes.numel(),
            )
        )
    diff = float((output - found_output).abs().max())
    readout = LayerParity(
        path=_readout(graph),
        values=output.numel(),
        firing_rate=0.0,
        max_abs_diff=diff,
        rounding_used=diff / TOLERANCE,
    )
    return Parity(
        form="NIR",
        samples=int(inputs[0].shape[-4]),
        layers=tuple(layers),
        readout=readout,
        end_to_end_max_abs_diff=diff,
    )


def _alike(neuron: Node, other: Node) -> bool:
    assert isinstance(neuron, Neuron)
    assert isinstance(other, Neuron)
    leaks = abs(neuron.leak - other.leak)
    return neuron.v_threshold == other.v_threshold and leaks < TOLERANCE


def _with_fp32_thresholds(graph: Graph) -> Graph:
    """Thresholds as an fp32 network, and so the file, has them."""
    graph = graph.copy()
    for neuron in graph.neurons:
        threshold = float(np.float32(neuron.v_threshold))
        graph.replace(neuron.model_copy(update={"v_threshold": threshold}))
    return graph


@torch.no_grad()
def _record(
    graph: Graph, weights: Weights, inputs: Sequence[np.ndarray], dtype: torch.dtype
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """By neuron its currents and spikes, and the network's output at every step: [T, N, …] in
    float64."""
    module = SpikingModule(graph, weights).to(dtype).eval()
    steps = next((len(x) for x in inputs if x.ndim == 5), graph.steps)
    sources = {graph.inputs(neuron.path)[0] for neuron in graph.neurons} | {_readout(graph)}
    seen: dict[str, Tensor] = {}

    def keep(node: Node, value: Value) -> Value:
        if isinstance(node, Neuron) or node.path in sources:
            seen[node.path] = value.unfolded(steps).double()
        return value

    module.run(*(torch.from_numpy(x).to(dtype) for x in inputs), observe=keep)
    recorded = {n.path: (seen[graph.inputs(n.path)[0]], seen[n.path]) for n in graph.neurons}
    return recorded, seen[_readout(graph)]


def _readout(graph: Graph) -> str:
    """What the network takes the mean of over the steps, or gives as it is."""
    path = graph.inputs(graph.outputs[0].path)[0]
    return graph.inputs(path)[0] if isinstance(graph[path], MeanOverTime) else path


def _shown(graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the file is shown: of images that the network takes as whole numbers, those."""
    found = []
    for node, x in zip(graph.network_inputs, inputs, strict=True):
        quantised = any(isinstance(graph[p], Quantise) for p in graph.consumers(node.path))
        found.append(np.rint(x * LEVELS).clip(0, LEVELS) if quantised else x)
    return found
