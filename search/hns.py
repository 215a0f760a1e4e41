"""HNS: hybrid network search (method §6, paper §4.4).

Each neuron becomes one candidate of every kind, LIF and ReLU say, whose outputs are mixed. Every
iteration steps the weights and, after the warm-up epochs, the logits on the same batch, against the
loss L_task + lambda · L_eg (eq. 28). At the end each neuron is its heaviest candidate.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from snnir.genotype import ast
from snnir.genotype.ast import NeuronKind
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron, WeightLayer
from snnir.lower import SpikingModule
from snnir.passes import ANALYSIS, run_passes
from snnir.passes.apply_annotations import owner_path
from snnir.search.neurons import Targets
from snnir.search.relax_neurons import relaxed
from snnir.search.relaxation import Relaxation
from snnir.search.tune_config import TuneConfig
from snnir.training.processes import Processes
from snnir.training.trainer import Trainer

SPIKING_FACTOR: Final = 1.0
RELU_FACTOR: Final = 4.26
"""Energy of what reads a neuron, as the paper has it: 4.6 pJ · A for a ReLU over
0.2 · 6 · 0.9 pJ · A for a neuron that fires at 0.2 in 6 steps."""


class HybridSearch:
    """The kinds of a network's neurons, chosen by logits."""

    keeps_best = False

    def __init__(self, network: Graph, targets: Targets, config: TuneConfig):
        self._network, self._targets, self._config = network, targets, config
        self._kinds: tuple[NeuronKind, ...] = config.candidates
        self._weights = layer_weights(network, targets, by_operations=config.energy_by_operations)

    @property
    def graph(self) -> Graph:
        """The network with its neurons' candidates."""
        return relaxed(
            self._network,
            {
                neuron.path: [neuron.model_copy(update={"kind": kind}) for kind in self._kinds]
                for neurons in self._targets.values()
                for neuron in neurons
            },
        )

    def start(self, module: SpikingModule, processes: Processes) -> None:
        """Begin with a module of `graph`."""
        rate = self._config.logits_learning_rate
        self._relaxation = Relaxation(module, processes, learning_rate=rate)
        self.parameters = self._relaxation.parameters

    def begin_epoch(self, trainer: Trainer) -> None:
        pass

    def after_step(self, trainer: Trainer, *batch: Tensor) -> None:
        if trainer.epoch >= self._config.warmup_epochs:
            penalty = self._penalty if self._config.energy_weight else None
            self._relaxation.step(trainer, *batch, penalty=penalty)

    def _penalty(self) -> Tensor:
        return self._config.energy_weight * self.energy()

    def energy(self) -> Tensor:
        """L_eg = Σ_layers w_layer Σ_k softmax(a)_k · p_k (eq. 28): p is 1 for a spiking candidate
        and 4.26 for a ReLU; w is 1, or the layer's operations over the mean of all layers'."""
        factors = [RELU_FACTOR if kind == "relu" else SPIKING_FACTOR for kind in self._kinds]
        terms = []
        for path, logits in self._logits().items():
            p = torch.softmax(logits, 0)
            terms.append(self._weights[path] * (p * p.new_tensor(factors)).sum())
        return torch.stack(terms).sum()

    def _logits(self) -> dict[str, Tensor]:
        logits = self._relaxation.logits
        return {path: logits[owner_path(n[0].path)] for path, n in self._targets.items()}

    # --- results ----------------------------------------------------------------------------

    def kinds(self) -> dict[str, NeuronKind]:
        """The heaviest candidate of each neuron, by path in the language; of equals the first."""
        return {path: self._kinds[int(a.argmax())] for path, a in self._logits().items()}

    def annotations(self) -> list[ast.Annotation]:
        """The neurons whose kind changes, in the language."""
        return [
            ast.Annotation(path=path, neuron=ast.Neuron(kind=kind))
            for path, kind in self.kinds().items()
            if kind != self._targets[path][0].kind
        ]

    def end_epoch(self) -> dict[str, float]:
        with torch.no_grad():
            energy = float(self.energy())
        relu = sum(kind == "relu" for kind in self.kinds().values()) / len(self._targets)
        scalars = {"energy_loss": energy, "share/relu": relu}
        for path, a in self._logits().items():
            weights = torch.softmax(a.detach(), 0).tolist()
            scalars |= {f"{kind}/{path}": x for kind, x in zip(self._kinds, weights, strict=True)}
        return scalars | self._relaxation.scalars()

    def state(self) -> dict[str, Any]:
        return self._relaxation.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._relaxation.restore(state)


def layer_weights(network: Graph, targets: Targets, *, by_operations: bool) -> dict[str, float]:
    """How much each neuron counts in the energy loss, 1 on average: all alike, or by the dense MACs
    of the layers that read it (through pooling, resizing and the like)."""
    if not by_operations:
        return dict.fromkeys(targets, 1.0)
    graph = run_passes(ANALYSIS, network).graph
    macs = {path: sum(_read_macs(graph, n) for n in own) for path, own in targets.items()}
    mean = sum(macs.values()) / len(macs)
    return {path: value / mean for path, value in macs.items()}


def _read_macs(graph: Graph, neuron: Neuron) -> float:
    """Dense MACs on the neuron's own channels in the weight layers that its output reaches before
    another neuron."""
    channels = graph.shape(neuron.path)[0]
    total, seen = 0.0, set[str]()
    stack = graph.consumers(neuron.path)
    while stack:
        path = stack.pop()
        if path in seen:
            continue
        seen.add(path)
        node = graph[path]
        if isinstance(node, WeightLayer):
            (read,) = graph.input_shapes(path)
            total += node.macs([read], graph.shape(path)) * channels / read[0]
        elif not isinstance(node, Neuron):
            stack += graph.consumers(path)
    return total
