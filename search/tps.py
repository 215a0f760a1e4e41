"""TPS: temporal parameter search (method §5, paper Algorithm 3).

Each neuron becomes three with leak factors {tau - d, tau, tau + d} whose outputs are mixed. Every
iteration steps the weights and, after the warm-up epochs, the logits a on the same batch. Every
`iterations` of these tau moves to the candidate with the largest a, and a starts again. An ALIF's
tau moves on odd search steps, its tau_a on even ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnir.genotype import ast
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron
from snnir.lower import SpikingModule
from snnir.lower.initialise import INITIAL_LOGIT
from snnir.lower.operations import LARGEST_LEAK
from snnir.passes.apply_annotations import owner_path
from snnir.search.neurons import Targets
from snnir.search.relax_neurons import Candidates, relaxed
from snnir.search.relaxation import Relaxation
from snnir.search.tune_config import TuneConfig
from snnir.training.processes import Processes
from snnir.training.trainer import Trainer

DROPPED = -1e9
"""Of a candidate that clamping made equal to another: its softmax weight is exactly 0."""


class TemporalParameterSearch:
    """The time constants of a network's neurons, and the logits that choose where they move."""

    keeps_best = False

    def __init__(self, network: Graph, targets: Targets, config: TuneConfig):
        self._network, self._targets, self._config = network, targets, config
        self.taus: dict[str, dict[str, float]] = {
            path: {"tau": neurons[0].tau}
            | ({"tau_a": neurons[0].tau_a} if neurons[0].kind == "alif" else {})
            for path, neurons in targets.items()
        }
        """By path in the language: `tau`, of an ALIF also `tau_a`."""
        self.iterations = 0
        """Steps of the logits so far."""

    @property
    def graph(self) -> Graph:
        """The network with its neurons' candidates as they are now."""
        return relaxed(self._network, self._candidates())

    def start(self, module: SpikingModule, processes: Processes) -> None:
        """Begin with a module of `graph`."""
        self._module = module
        rate = self._config.logits_learning_rate
        self._relaxation = Relaxation(module, processes, learning_rate=rate)
        self.parameters = self._relaxation.parameters
        self._reset()

    def begin_epoch(self, trainer: Trainer) -> None:
        pass

    def after_step(self, trainer: Trainer, *batch: Tensor) -> None:
        if trainer.epoch < self._config.warmup_epochs:
            return
        self._relaxation.step(trainer, *batch)
        self.iterations += 1
        if self.iterations % self._config.iterations == 0:
            self._move()

    def _move(self) -> None:
        """tau to the candidate with the largest a; of equals the one in the middle."""
        logits = self._relaxation.arrays()
        for path, neurons in self._targets.items():
            a = logits[owner_path(neurons[0].path)]
            best = max(range(3), key=lambda k: (a[k], k == 1))
            name = self._moving(path, self.iterations - 1)
            self.taus[path][name] = self._values(path, name)[best]
        self._module.follow(self.graph)
        self._relaxation.restart()
        self._reset()

    def _reset(self) -> None:
        with torch.no_grad():
            for path, neurons in self._targets.items():
                values = self._values(path, self._moving(path, self.iterations))
                logits = self._relaxation.logits[owner_path(neurons[0].path)]
                for k, value in enumerate(values):
                    logits[k] = DROPPED if value in values[:k] else INITIAL_LOGIT

    def _moving(self, path: str, iteration: int) -> str:
        """Which of a neuron's parameters moves in the search step of an iteration."""
        step = iteration // self._config.iterations
        return "tau_a" if "tau_a" in self.taus[path] and step % 2 else "tau"

    def _values(self, path: str, name: str) -> list[float]:
        """The candidates of a parameter, clamped."""
        middle, d = self.taus[path][name], self._config.tau_step
        return [round(min(LARGEST_LEAK, max(0.0, middle + k * d)), 6) for k in (-1, 0, 1)]

    def _candidates(self) -> Candidates:
        found: dict[str, list[Neuron]] = {}
        for path, neurons in self._targets.items():
            name = self._moving(path, self.iterations)
            for neuron in neurons:
                at = neuron.model_copy(update=self.taus[path])
                values = self._values(path, name)
                found[neuron.path] = [at.model_copy(update={name: value}) for value in values]
        return found

    # --- results ----------------------------------------------------------------------------

    def annotations(self) -> list[ast.Annotation]:
        """What has been found, in the language."""
        return [
            ast.Annotation(path=path, tau=taus["tau"], tau_a=taus.get("tau_a"))
            for path, taus in self.taus.items()
        ]

    def end_epoch(self) -> dict[str, float]:
        scalars = {f"{name}/{path}": x for path, t in self.taus.items() for name, x in t.items()}
        return scalars | self._relaxation.scalars()

    def state(self) -> dict[str, Any]:
        own = {"taus": self.taus, "iterations": self.iterations}
        return own | {"relaxation": self._relaxation.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.taus = {path: dict(taus) for path, taus in state["taus"].items()}
        self.iterations = state["iterations"]
        self._module.follow(self.graph)
        self._relaxation.restore(state["relaxation"])
