"""Initial weights, and weights with which an untrained network demonstrably fires."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from snnir.errors import SnnirError
from snnir.ir.graph import Graph
from snnir.ir.nodes import BatchNorm, Conv, LearnedLeak, Linear, Neuron, Node, WeightLayer
from snnir.weights import Weights, expected_shapes

if TYPE_CHECKING:
    from torch import Tensor

SILENT = 0.02
"""A firing rate below which calibration calls a layer silent."""

MAX_ROUNDS = 24

INITIAL_LOGIT = 1e-3
"""What a search's logits begin with (the paper's epsilon)."""


def initial_weights(graph: Graph, seed: int) -> Weights:
    """Seeded initial weights: U(±1/sqrt(fan_in)) for weights and biases (torch's default), batch
    norm at the identity, search logits at 1e-3, learned
    leak factors at the neuron's tau.

    Every array depends on the seed and its own name alone.
    """
    fan_in = {
        owner.path: node.fan_in
        for node in graph.nodes()
        if isinstance(node, Conv | Linear)
        for owner in node.owners
    }
    leaks = {n.learned: n.tau for n in graph.neurons if n.learned}
    initial_leaks = {leak.parameter: _initial_leak(leak, tau) for leak, tau in leaks.items()}
    norms = {owner.path for node in graph.of_type(BatchNorm) for owner in node.owners}
    weights: Weights = {}
    for name, shape in expected_shapes(graph).items():
        path, kind = name.rsplit(".", 1)
        if name in initial_leaks:
            value = np.array(initial_leaks[name])
        elif path in norms:
            value = np.full(shape, 1.0 if kind in ("weight", "running_var") else 0.0)
        elif kind == "logits":
            value = np.full(shape, INITIAL_LOGIT)
        else:
            bound = fan_in[path] ** -0.5
            value = _generator(seed, name).uniform(-bound, bound, shape)
        weights[name] = value.astype(np.float32)
    return weights


def _initial_leak(leak: LearnedLeak, tau: float) -> float:
    """The parameter that stands for tau; for `plif` the nearest there is."""
    inside = min(0.999, max(0.001, tau))
    return float(np.log((1 - inside) / inside)) if leak.form == "plif" else tau


def seeded_inputs(graph: Graph, seed: int, samples: int) -> list[np.ndarray]:
    """Random inputs: frames [N, C, H, W] uniform in [0, 1); events [T, N, C, H, W] of -1, 0, 1, a
    fifth of them not 0."""
    inputs = []
    for node in graph.network_inputs:
        rng = _generator(seed, node.path)
        if node.kind == "frame":
            x = rng.random((samples, *node.shape))
        else:
            x = rng.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=(graph.steps, samples, *node.shape))
        inputs.append(x.astype(np.float32))
    return inputs


def calibrated_weights(graph: Graph, inputs: Sequence[Tensor], seed: int) -> Weights:
    """Seeded weights with which every neuron layer fires on `inputs`: for compiling untrained.

    Batch norms take their statistics from `inputs`; their shifts are drawn per channel, and raised
    under layers that stay silent. `graph` is one that trains (batch norm not folded).

    Raises:
        SnnirError: when a layer cannot be made to fire.
    """
    from snnir.lower.module import SpikingModule

    weights = initial_weights(graph, seed)
    norms = [owner for node in graph.of_type(BatchNorm) for owner in node.owners]
    for owner in norms:
        name = f"{owner.path}.bias"
        weights[name] = _generator(seed, name).normal(0, 0.5, owner.channels).astype(np.float32)
    places = {part.path: n.path for n in graph.neurons for part in (n.parts or (n,))}
    for _ in range(MAX_ROUNDS):
        module = SpikingModule(graph, weights)
        rates = calibrate_batch_norm(module, inputs)
        weights = module.weights()
        silent = [path for path, rate in rates.items() if rate < SILENT]
        if not silent:
            return weights
        for node in _feeding(graph, places[silent[0]]):
            for owner in node.owners:
                if isinstance(node, BatchNorm):
                    weights[f"{owner.path}.bias"] += np.float32(0.25)
                else:
                    weights[f"{owner.path}.weight"] *= np.float32(1.5)
    raise SnnirError(
        f"{silent[0]}: found a layer that seeded weights cannot make fire on these inputs, "
        "expected trained weights (--weights) or other inputs (--inputs)"
    )


def calibrate_batch_norm(module: object, inputs: Sequence[Tensor]) -> dict[str, float]:
    """Set every running statistic to that of `inputs`; returns firing rates by neuron path."""
    import torch

    from snnir.lower.module import SpikingModule
    from snnir.lower.neurons import outputs_by_path

    assert isinstance(module, SpikingModule)
    rates: dict[str, float] = {}

    def measure(node: Node, value):  # type: ignore[no-untyped-def]
        if isinstance(node, Neuron) and node.spiking:
            outputs = outputs_by_path(node, value.data)
            rates.update({path: float(y.mean()) for path, y in outputs.items()})
        return value

    momentum, training = module.batch_norm_momentum, module.training
    module.batch_norm_momentum = 1.0
    module.train()
    with torch.no_grad():
        module.run(*inputs, observe=measure)
    module.batch_norm_momentum = momentum
    module.train(training)
    return rates


def _feeding(graph: Graph, path: str) -> list[WeightLayer]:
    """The nearest weight layers upstream, through pooled and resized spikes where need be."""
    found: list[WeightLayer] = []
    stack = list(graph.inputs(path))
    while stack:
        node = graph[stack.pop()]
        if isinstance(node, WeightLayer):
            found.append(node)
        else:
            stack += graph.inputs(node.path)
    return found


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
