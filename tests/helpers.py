"""What several test modules use: genotypes by name, calibrated networks, recorded runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snnir.export.onnx import export_onnx
from snnir.genotype import Genotype, parse
from snnir.genotype.retarget import retarget
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron
from snnir.lower import SpikingModule
from snnir.lower.initialise import calibrated_weights, seeded_inputs
from snnir.lower.neurons import outputs_by_path
from snnir.lower.operations import Value
from snnir.passes import DEPLOYMENT, TRAINING, run_passes
from snnir.source import read_source
from snnir.weights import Weights

TESTS = Path(__file__).parent
GENOTYPES = TESTS / "genotypes"
EXAMPLES = ("cifar_space", "hybrid", "spikedhs_cla", "spikedhs_stereo", "stereo_space")
"""The contract: the language's example files."""


def genotype(name: str) -> Genotype:
    return parse(read_source(GENOTYPES / f"{name}.snn"))


def small(text: str) -> Genotype:
    """A genotype from a few statements, given a header and what else is missing."""
    return parse(f"snn 1\nnetwork small\n{text}")


@cache
def calibrated(
    name: str, samples: int = 3, *settings: str
) -> tuple[Graph, Weights, tuple[np.ndarray, ...]]:
    """A graph as built, float32 weights with which every layer fires, and the inputs used."""
    graph = build(retarget(genotype(name), settings))
    inputs = seeded_inputs(graph, 1, samples)
    training = run_passes(TRAINING, graph).graph
    weights = calibrated_weights(training, [torch.from_numpy(x) for x in inputs], 1)
    return graph, weights, tuple(inputs)


def as_float64(weights: Weights) -> Weights:
    return {name: array.astype(np.float64) for name, array in weights.items()}


def run_recorded(
    graph: Graph, weights: Weights, inputs: tuple[np.ndarray, ...], *, training: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The head's output and every spiking neuron's spikes, in the weights' precision."""
    dtype = next(iter(weights.values())).dtype
    module = SpikingModule(graph, weights).train(training)
    return record(module, *(torch.from_numpy(x.astype(dtype)) for x in inputs))


def record(module: SpikingModule, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The head's output and every spiking neuron's spikes [T, N, …]."""
    spikes: dict[str, Tensor] = {}

    def keep(node, value):
        if isinstance(node, Neuron) and node.spiking:
            for path, y in outputs_by_path(node, value.data).items():
                spikes[path] = Value(y, value.stepped).unfolded(module.graph.steps).detach()
        return value

    with torch.no_grad():
        output, _ = module.run(*inputs, observe=keep)
    return (output[0] if isinstance(output, tuple) else output), spikes


def whole(spikes: dict[str, Tensor], path: str) -> Tensor:
    """A neuron's spikes, put together where `sink_concats` split the neuron."""
    if path in spikes:
        return spikes[path]
    parts = (f"{path}.{number}" for number in range(len(spikes)))
    return torch.cat([spikes[part] for part in parts if part in spikes], 2)


def assert_all_fire(spikes: dict[str, Tensor], least: float = 0.005) -> None:
    """Equality means nothing between silent or saturated layers."""
    rates = {path: float(x.double().mean()) for path, x in spikes.items()}
    assert rates
    dull = {path: rate for path, rate in rates.items() if not least < rate < 0.995}
    assert not dull, f"silent or saturated: {dull}"


class GridModels:
    """A network's models in both forms, its inputs (5 samples) and torch's output for them.

    Weights and inputs are multiples of 1/64 and 1/4. With leaks and thresholds that are powers of
    two no fp32 sum rounds, so that all runtimes agree bit for bit; float64 shows it.
    """

    def __init__(self, network: Genotype, folder: Path):
        graph = build(network)
        self.inputs = [np.round(4 * x) / 4 for x in seeded_inputs(graph, 1, 5)]
        training = run_passes(TRAINING, graph).graph
        weights = calibrated_weights(training, [torch.from_numpy(x) for x in self.inputs], 1)
        deployed = run_passes(DEPLOYMENT, graph, weights)
        grid = {name: np.float32(np.round(64 * x) / 64) for name, x in deployed.weights.items()}
        output, spikes = run_recorded(deployed.graph, grid, tuple(self.inputs))
        _, exact = run_recorded(deployed.graph, as_float64(grid), tuple(self.inputs))
        assert_all_fire(spikes)
        assert all(torch.equal(spikes[path].double(), exact[path]) for path in spikes)
        self.expected = output.numpy()
        self.paths = {form: folder / f"{form}.onnx" for form in ("sequence", "step")}
        for form, path in self.paths.items():
            path.write_bytes(export_onnx(deployed.graph, grid, form=form).SerializeToString())
