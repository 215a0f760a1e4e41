"""Proof that the folded graph is the trained network: end to end, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron, Node
from snnir.lower.module import SpikingModule
from snnir.lower.neurons import outputs_by_path
from snnir.lower.operations import Value
from snnir.passes import DEPLOYMENT, TRAINING, run_passes
from snnir.weights import Weights


@dataclass(frozen=True)
class Folding:
    """The unfolded network against the folded one, nothing forced."""

    samples: int
    spikes_compared: int
    spike_mismatches: int
    max_abs_diff: float
    """Of the network's output."""

    @property
    def passed(self) -> bool:
        return self.spike_mismatches == 0 and self.max_abs_diff < 1e-6


def check_folding(graph: Graph, weights: Weights, inputs: Sequence[np.ndarray]) -> Folding:
    """Fold in float64 and compare every spike; there, unlike in fp32, equality does hold."""
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    trained = run_passes(TRAINING, graph)
    folded = run_passes(DEPLOYMENT, graph, wide)
    expected, output = _run(trained.graph, wide, inputs)
    found, folded_output = _run(folded.graph, folded.weights, inputs)
    return Folding(
        samples=int(inputs[0].shape[-4]),
        spikes_compared=sum(spikes.numel() for spikes in found.values()),
        spike_mismatches=sum(
            int((spikes != expected[path]).sum()) for path, spikes in found.items()
        ),
        max_abs_diff=float((output - folded_output).abs().max()),
    )


@torch.no_grad()
def _run(
    graph: Graph, weights: Weights, inputs: Sequence[np.ndarray]
) -> tuple[dict[str, Tensor], Tensor]:
    module = SpikingModule(graph, weights).double().eval()
    spikes: dict[str, Tensor] = {}

    def keep(node: Node, value: Value) -> Value:
        if isinstance(node, Neuron) and node.spiking:
            outputs = outputs_by_path(node, value.data)
            spikes.update({path: y.bool() for path, y in outputs.items()})
        return value

    output, _ = module.run(*(torch.from_numpy(x).double() for x in inputs), observe=keep)
    return spikes, output
