"""Layers that never fire and weights that never learn: what stays unsaid elsewhere."""

from __future__ import annotations

from typing import Any

import torch

from snnir.ir.nodes import Neuron, Node
from snnir.lower import SpikingModule, Value
from snnir.lower.neurons import outputs_by_path
from snnir.passes.apply_annotations import language_path

PROBES_PER_EPOCH = 20


class Watch:
    """Firing rates and gradients on some steps of an epoch, and warnings that follow from them."""

    def __init__(self, module: SpikingModule):
        self.module = module
        self.rates: dict[str, float] = {}
        """Sum over the probed steps of the mean spikes per value, by neuron path."""
        self.learning: set[str] = set()
        """Names of the weights that have had a gradient other than 0."""
        self.probes = 0
        self.warned: set[str] = set()
        self._weights = {
            f"{owner.path}.weight"
            for node in module.graph.nodes()
            for owner in getattr(node, "owners", ())
        }

    @staticmethod
    def due(step: int, steps: int) -> bool:
        """Whether step number `step` of `steps` is probed."""
        return step % max(1, steps // PROBES_PER_EPOCH) == 0

    def observe(self, node: Node, value: Value) -> Value:
        """To be the module's observer in the forward pass of a probed step."""
        if isinstance(node, Neuron) and node.spiking:
            for path, output in outputs_by_path(node, value.data.detach()).items():
                rate = float(torch.count_nonzero(output)) / max(1, output.numel())
                self.rates[path] = self.rates.get(path, 0.0) + rate
        return value

    def after_backward(self) -> None:
        """To be called when the gradients of a probed step are there."""
        self.probes += 1
        for name in self._weights - self.learning:
            gradient = self.module.parameter(name).grad
            if gradient is not None and bool(gradient.any()):
                self.learning.add(name)

    def firing_rates(self) -> dict[str, float]:
        """Mean spikes per neuron and step over the epoch so far, by neuron path."""
        return {path: total / max(1, self.probes) for path, total in self.rates.items()}

    def warnings(self) -> list[str]:
        """New findings of the epoch, each said once in a run."""
        silent = [
            f"{language_path(path)} ({path}) has not fired in this epoch: its input never exceeds "
            "v_threshold, and nothing after it learns from it"
            for path, rate in self.rates.items()
            if rate == 0
        ]
        frozen = [
            f"{name} has received no gradient in this epoch: no membrane after it comes near its "
            "threshold; a wider surrogate (smaller b) helps"
            for name in sorted(self._weights - self.learning)
        ]
        new = [line for line in silent + frozen if self.probes and line not in self.warned]
        self.warned.update(new)
        return new

    def start_epoch(self) -> None:
        self.rates, self.learning, self.probes = {}, set(), 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "rates": self.rates,
            "learning": sorted(self.learning),
            "probes": self.probes,
            "warned": sorted(self.warned),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave."""
        if state:
            self.rates, self.probes = dict(state["rates"]), state["probes"]
            self.learning, self.warned = set(state["learning"]), set(state["warned"])
