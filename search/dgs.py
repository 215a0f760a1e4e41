"""DGS: differentiable surrogate-gradient search, while a network trains (method §4, Algorithm 2).

Before every `interval`-th epoch after the first, for `iterations` batches: from the weights w of a
node, candidates w_i each make one step of plain gradient descent with the surrogate's temperature
at b + (i - N // 2) · `b_step`; the network runs with the node's currents mixed,
I = Σ softmax(a)_i · I_i (eq. 18); a makes one step from where it is set to at every batch. Then b
moves to the candidate with the largest mean softmax(a), of equals the one in the middle. Nothing
else changes: weights, running statistics and momentum stay.

On an epoch's last batch the gradients of the nodes' convolutions are measured with b as it is and
as it began (paper Figure 7b), at the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnir.data import batches
from snnir.data.loader import Batch
from snnir.errors import SnnirError
from snnir.genotype import ast
from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, BatchNorm, Conv, Gate, Linear, Mixed, Neuron, Owner, WeightLayer
from snnir.lower import SpikingModule
from snnir.lower.initialise import INITIAL_LOGIT
from snnir.passes import ANALYSIS, Pass, run_passes
from snnir.passes.apply_annotations import language_path, owner_path
from snnir.search.neurons import Targets, to_train
from snnir.search.relaxation import logits_of
from snnir.search.tune_config import TuneConfig
from snnir.training.processes import Processes
from snnir.training.trainer import Trainer

SMALLEST_B, LARGEST_B = 1.0, 6.0
LINEAR: Final = ("triangle", "arctan")
"""Surrogates that are proportional to b."""


class SurrogateSearch:
    """The temperatures of some nodes' surrogates, and how they move."""

    keeps_best = True

    def __init__(self, network: Graph, targets: Targets, config: TuneConfig):
        self._network, self._targets, self._config = network, targets, config
        self.parameters: list[nn.Parameter] = []
        self.b: dict[str, float] = {path: neurons[0].b for path, neurons in targets.items()}
        """By path in the language."""
        self._first = dict(self.b)
        self._sizes: dict[str, float] = {}
        """Of the gradients on the epoch's last batch, as the record has them."""
        analysed = run_passes(ANALYSIS, network).graph
        self._names = {path: _names(analysed, own) for path, own in targets.items()}
        middle = config.surrogates // 2
        self._offsets = [(i - middle) * config.b_step for i in range(config.surrogates)]

    @property
    def graph(self) -> Graph:
        """The network that trains, its temperatures as they are now."""
        return with_temperatures(self._network, self.b)

    def start(self, module: SpikingModule, processes: Processes) -> None:
        """Begin with a module of `graph`."""
        self._module, self._processes = module, processes
        graph = relaxed_weights(self._network, self._targets, self._config.surrogates)
        self._mixed = SpikingModule(graph).to(processes.device, next(module.parameters()).dtype)
        self._mixed.requires_grad_(False)
        self._mixed.share(module)
        self._mixed.batch_norm_momentum = 0.0
        self._mixed.synchronised = processes.count > 1
        self._logits = logits_of(self._mixed)
        self._adam = torch.optim.Adam(self._logits.values(), lr=self._config.logits_learning_rate)
        self._saved = copy.deepcopy(self._adam.state_dict())

    def begin_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch and trainer.epoch % self._config.interval == 0 and trainer.step == 0:
            self._search(trainer)

    def after_step(self, trainer: Trainer, *batch: Tensor) -> None:
        if trainer.step + 1 == trainer.steps_per_epoch:
            self._measure_gradients(trainer, batch)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Whatever runs in the module meanwhile, it goes on as it was, with b as it is at the end
        of the block."""
        module = self._module
        momentum, module.batch_norm_momentum = module.batch_norm_momentum, 0.0
        required = [(p, p.requires_grad) for p in module.parameters()]
        try:
            yield
        finally:
            module.batch_norm_momentum = momentum
            for parameter, was in required:
                parameter.requires_grad_(was)
            module.follow(self.graph)

    def _measure_gradients(self, trainer: Trainer, batch: Batch) -> None:
        """The mean |dL/dw| of each node's convolutions, with b as it is and as it began."""
        parameters = {
            name: self._module.parameter(name) for names in self._names.values() for name in names
        }
        convolved = {name: weight for name, weight in parameters.items() if weight.dim() > 1}
        with self._undisturbed():
            for kind, b in (("gradient", self.b), ("gradient_at_first_b", self._first)):
                found = self._gradient(trainer, batch, b, list(convolved.values()))
                by_name = dict(zip(convolved, found, strict=True))
                for path, names in self._names.items():
                    own = [by_name[name].abs().flatten() for name in names if name in by_name]
                    self._sizes[f"{kind}/{path}"] = float(torch.cat(own).mean())

    # --- one search -------------------------------------------------------------------------

    def _search(self, trainer: Trainer) -> None:
        """Move b."""
        means = {path: torch.zeros(self._config.surrogates) for path in self.b}
        with self._undisturbed():
            for batch in self._batches(trainer):
                self._place_candidates(trainer, batch)
                for path, weights in self._weighed(trainer, batch).items():
                    means[path] += weights
                trainer.stop_if_interrupted()
            for path, mean in means.items():
                best = max(range(len(mean)), key=lambda i: (float(mean[i]), i == len(mean) // 2))
                self.b[path] = self._candidates(path)[best]
        self._saved = copy.deepcopy(self._adam.state_dict())

    def _batches(self, trainer: Trainer) -> Iterator[Batch]:
        """As many batches of the training set as are asked for, from its start again if need be."""
        left, round_ = self._config.iterations, 0
        while left:
            epoch = batches(
                trainer.splits.train, self._config.batch_size, seed=self._config.seed + 1 + round_,
                epoch=trainer.epoch, shuffle=True, drop_last=True, rank=self._processes.rank,
                world_size=self._processes.count, workers=trainer.workers,
            )  # fmt: skip
            for batch in epoch:
                yield batch
                left -= 1
                if not left:
                    return
            round_ += 1

    def _place_candidates(self, trainer: Trainer, batch: Batch) -> None:
        """Give the mixed network the candidates: w - rate · dL/dw with the surrogate g_i."""
        rate = trainer.config.learning_rate_at(trainer.epoch)
        for path in self.b:
            names = self._names[path]
            weights = [self._module.parameter(name) for name in names]
            for number, gradients in enumerate(self._gradients(trainer, batch, path, weights)):
                with torch.no_grad():
                    for name, weight, gradient in zip(names, weights, gradients, strict=True):
                        stepped = weight - rate * gradient
                        self._mixed.parameter(_candidate_name(name, number)).copy_(stepped)

    def _gradients(
        self, trainer: Trainer, batch: Batch, path: str, weights: list[Tensor]
    ) -> Iterator[list[Tensor]]:
        """The weights' gradients with each candidate surrogate in the node."""
        surrogate = self._targets[path][0].surrogate
        if self._config.linear_estimate and surrogate in LINEAR:
            found = self._gradient(trainer, batch, self.b, weights)
            for b in self._candidates(path):
                yield [gradient * (b / self.b[path]) for gradient in found]
            return
        for b in self._candidates(path):
            yield self._gradient(trainer, batch, {**self.b, path: b}, weights)

    def _gradient(
        self,
        trainer: Trainer,
        batch: Batch,
        temperatures: Mapping[str, float],
        weights: list[Tensor],
    ) -> list[Tensor]:
        self._module.follow(with_temperatures(self._network, temperatures))
        own = {id(weight) for weight in weights}
        for parameter in self._module.parameters():
            parameter.requires_grad_(id(parameter) in own)
        loss, _ = trainer.loss(*batch, parallel=self._module)
        return self._summed(torch.autograd.grad(loss, weights))

    def _weighed(self, trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
        """One step of a with the candidates mixed; the softmax after it, by path."""
        logits = list(self._logits.values())
        self._module.requires_grad_(False)
        with torch.no_grad():
            for parameter in logits:
                parameter.fill_(INITIAL_LOGIT)
                parameter.requires_grad_(True)
        loss, _ = trainer.loss(*batch, parallel=self._mixed)
        gradients = self._summed(torch.autograd.grad(loss, logits))
        for parameter, gradient in zip(logits, gradients, strict=True):
            parameter.grad = gradient
        self._adam.step()
        self._adam.zero_grad()
        return {
            path: F.softmax(self._logits[owner_path(neurons[0].path)].detach().cpu().float(), 0)
            for path, neurons in self._targets.items()
        }

    def _summed(self, gradients: tuple[Tensor, ...]) -> list[Tensor]:
        """Over the processes, each of which has its part of the loss."""
        if self._processes.count > 1:
            for gradient in gradients:
                torch.distributed.all_reduce(gradient)
        return list(gradients)

    def _candidates(self, path: str) -> list[float]:
        b = self.b[path]
        return [round(min(LARGEST_B, max(SMALLEST_B, b + x)), 6) for x in self._offsets]

    # --- results ----------------------------------------------------------------------------

    def annotations(self) -> list[ast.Annotation]:
        """What has been found, in the language."""
        return [
            ast.Annotation(
                path=path, surrogate=ast.Surrogate(kind=neurons[0].surrogate, b=self.b[path])
            )
            for path, neurons in self._targets.items()
        ]

    def end_epoch(self) -> dict[str, float]:
        return {f"b/{path}": b for path, b in self.b.items()} | self._sizes

    def state(self) -> dict[str, Any]:
        return {"b": self.b, "adam": self._saved, "gradients": self._sizes}

    def restore(self, state: dict[str, Any]) -> None:
        self.b, self._sizes = dict(state["b"]), dict(state["gradients"])
        self._adam.load_state_dict(state["adam"])
        self._saved = copy.deepcopy(self._adam.state_dict())
        self._module.follow(self.graph)


def learning(network: Graph, targets: Targets) -> Targets:
    """Those of the targets that read weights, which a surrogate teaches. Raises SnnirError where
    none does."""
    graph = run_passes(ANALYSIS, network).graph
    found = {path: neurons for path, neurons in targets.items() if _names(graph, neurons)}
    if not found:
        raise SnnirError(
            f"network '{network.name}': found no neuron to tune that reads a convolution, expected "
            f"one among {', '.join(targets)}"
        )
    return found


# --- graphs -------------------------------------------------------------------------------------


def with_temperatures(network: Graph, temperatures: Mapping[str, float]) -> Graph:
    """A network as built, to be trained with these b, by path in the language."""

    def heat(graph: Graph, weights: object) -> bool:
        for neuron in graph.neurons:
            b = temperatures.get(language_path(neuron.path), neuron.b)
            graph.replace(neuron.model_copy(update={"b": b}))
        return bool(temperatures)

    return to_train(network, Pass("set_temperatures", heat))


def relaxed_weights(network: Graph, targets: Targets, count: int) -> Graph:
    """A network as built whose target nodes have `count` candidates of every weight.

        n = neuron(add(bn(conv(x)), y))
    -->
        n = neuron(add(mixed(bn.i(conv.i(x)) * p_i, …), y))
    """

    def relax(graph: Graph, weights: object) -> bool:
        for neurons in targets.values():
            for neuron in neurons:
                _relax_weights(graph, neuron, count)
        return True

    return to_train(network, Pass("relax_weights", relax))


def _relax_weights(graph: Graph, neuron: Neuron, count: int) -> None:
    owner = owner_path(neuron.path)
    gates = tuple(Gate(owner, number, count) for number in range(count))
    for chain in _chains(graph, neuron):
        last = chain[-1].path
        ends = []
        for number in range(count):
            sources = graph.inputs(chain[0].path)
            for layer in chain:
                twin = layer.model_copy(
                    update={
                        "path": f"{layer.path}.{number}",
                        "owners": tuple(
                            Owner(_candidate_owner(own.path, number), own.channels)
                            for own in layer.owners
                        ),
                    }
                )
                sources = (graph.add(twin, sources),)
            ends.append(sources[0])
        mixed = graph.add(Mixed(path=f"{last}.mixed", gates=gates, span=neuron.span), ends)
        for reader in set(graph.consumers(last)) - {mixed}:
            inputs = [mixed if path == last else path for path in graph.inputs(reader)]
            graph.set_inputs(reader, inputs)
        graph.remove(*(layer.path for layer in reversed(chain)))


def _chains(graph: Graph, neuron: Neuron) -> list[list[WeightLayer]]:
    """The convolutions (with their batch norms) whose sum the neuron reads."""
    (source,) = graph.inputs(neuron.path)
    terms = graph.inputs(source) if isinstance(graph[source], Add) else (source,)
    chains = []
    for term in terms:
        chain: list[WeightLayer] = []
        path = term
        while isinstance(node := graph[path], BatchNorm | Conv | Linear):
            chain.insert(0, node)
            if not isinstance(node, BatchNorm):
                break
            (path,) = graph.inputs(path)
        if chain:
            chains.append(chain)
    return chains


def _names(graph: Graph, neurons: Sequence[Neuron]) -> list[str]:
    """The parameters that a node's candidates have of their own."""
    layers = (layer for n in neurons for chain in _chains(graph, n) for layer in chain)
    return list(dict.fromkeys(name for layer in layers for name in layer.parameter_shapes()))


def _candidate_owner(owner: str, number: int) -> str:
    return f"{owner}.candidate{number}"


def _candidate_name(name: str, number: int) -> str:
    """`conv.weight` -> `conv.candidate0.weight`."""
    owner, _, leaf = name.rpartition(".")
    return f"{_candidate_owner(owner, number)}.{leaf}"
