"""Time constants learned by gradient, to compare TPS with: LIF(tau) and PLIF (paper §4.3, Table 7).

Every neuron's leak factor is a parameter that trains with the weights; at the end it is written as
the neuron's tau.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from snnir.genotype import ast
from snnir.ir.graph import Graph
from snnir.ir.nodes import LearnedLeak, Neuron
from snnir.lower import SpikingModule
from snnir.lower.operations import LARGEST_LEAK, learned_leak
from snnir.passes import Pass
from snnir.passes.apply_annotations import owner_path
from snnir.search.neurons import Targets, to_train
from snnir.training.processes import Processes
from snnir.training.trainer import Trainer


class LearnedTau:
    """Leak factors among the weights."""

    keeps_best = False

    def __init__(self, network: Graph, targets: Targets, form: Literal["tau", "plif"]):
        self._network, self._targets, self._form = network, targets, form
        self.parameters: list[nn.Parameter] = []

    @property
    def graph(self) -> Graph:
        """The network with leak factors that are learned."""
        paths = {neuron.path for neurons in self._targets.values() for neuron in neurons}

        def learn(graph: Graph, weights: object) -> bool:
            for path in paths:
                node = graph[path]
                assert isinstance(node, Neuron)
                leak = LearnedLeak(f"{owner_path(path)}.leak", self._form)
                graph.replace(node.model_copy(update={"learned": leak}))
            return bool(paths)

        return to_train(self._network, Pass("learn_leaks", learn))

    def start(self, module: SpikingModule, processes: Processes) -> None:
        """Begin with a module of `graph`."""
        self._module = module

    def begin_epoch(self, trainer: Trainer) -> None:
        pass

    def after_step(self, trainer: Trainer, *batch: Tensor) -> None:
        pass

    def taus(self) -> dict[str, float]:
        """The leak factors now, by path in the language."""
        found = {}
        for path, neurons in self._targets.items():
            leak = LearnedLeak(f"{owner_path(neurons[0].path)}.leak", self._form)
            value = learned_leak(neurons[0].model_copy(update={"learned": leak}), self._module)
            assert value is not None
            found[path] = round(min(float(value.detach()), LARGEST_LEAK), 6)
        return found

    def annotations(self) -> list[ast.Annotation]:
        """What has been found, in the language."""
        return [ast.Annotation(path=path, tau=tau) for path, tau in self.taus().items()]

    def end_epoch(self) -> dict[str, float]:
        return {f"tau/{path}": tau for path, tau in self.taus().items()}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass
