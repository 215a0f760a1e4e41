"""How well a network does on samples: through torch, or an exported file through onnxruntime."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from snnir.analysis.firing import SpikeCounts
from snnir.data.loader import Batch
from snnir.errors import SnnirError
from snnir.export.counting import COUNTS, add_counters
from snnir.export.runtime import FORMS, Runtime
from snnir.genotype import Genotype, parse
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron, Node
from snnir.ir.types import Time
from snnir.lower import SpikingModule, Value
from snnir.lower.counting import SpikeCounter
from snnir.lower.neurons import outputs_by_path
from snnir.lower.operations import State
from snnir.training.tasks import CLASSIFICATION, Task

Predict = Callable[..., tuple[Tensor, dict[str, float]]]
"""A network's inputs to its output and, by neuron path, the share of values that are spikes."""


@dataclass(frozen=True)
class Evaluation:
    """Of a network on a set of samples."""

    measures: dict[str, float]
    """What the task measures, means over the samples, by name."""
    firing_rates: dict[str, float]
    """Mean spikes per value, by neuron path."""
    samples: int
    seconds: float
    counts: SpikeCounts | None = None
    """What was counted, where it was."""

    @property
    def accuracy(self) -> float:
        """In 0..1: the share of samples, or of pixels, that is right; the first measure."""
        return next(iter(self.measures.values()))

    @property
    def errors(self) -> dict[str, float]:
        """The measures beside the accuracy and the loss, by name."""
        return {n: x for n, x in list(self.measures.items())[1:] if n != "loss"}

    @property
    def firing_rate(self) -> float:
        """Mean over the layers."""
        rates = self.firing_rates.values()
        return sum(rates) / len(rates) if rates else 0.0


def evaluate(
    predict: Predict,
    batches: Iterable[Batch],
    task: Task = CLASSIFICATION,
    *,
    total: Callable[..., list[float]] = lambda *values: list(values),
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run all batches. With several processes each has its part of every batch, and `total` adds
    up over them. `after_batch` may raise to stop.

    Raises:
        SnnirError: there is nothing to evaluate.
    """
    sums = torch.zeros(len(task.measures), dtype=torch.float64)
    measured = samples = 0
    spikes: dict[str, float] = {}
    start = time.perf_counter()
    for *inputs, target in batches:
        output, rates = predict(*inputs)
        found = task.measured(output.float().cpu(), target)
        sums += found.sum(1)
        measured += found.shape[1]
        size = inputs[0].shape[-4]
        samples += size
        for path, rate in rates.items():
            spikes[path] = spikes.get(path, 0.0) + rate * size
        after_batch()
    count, seen, *rest = total(measured, samples, *sums.tolist(), *spikes.values())
    if not count:
        found_none = "samples" if not seen else "ground truth"
        raise SnnirError(f"found no {found_none} to evaluate, expected some")
    means, fired = rest[: len(sums)], rest[len(sums) :]
    return Evaluation(
        measures={name: x / count for name, x in zip(task.measures, means, strict=True)},
        firing_rates={path: fired[n] / seen for n, path in enumerate(spikes)},
        samples=int(count),
        seconds=time.perf_counter() - start,
    )


def torch_predictor(module: SpikingModule, device: torch.device, *, bf16: bool = False) -> Predict:
    """The module's own output from rest, evaluating and without gradients."""

    def predict(*inputs: Tensor) -> tuple[Tensor, dict[str, float]]:
        dtype = next(module.parameters()).dtype
        rates: dict[str, float] = {}

        def count(node: Node, value: Value) -> Value:
            if isinstance(node, Neuron) and node.spiking:
                for path, y in outputs_by_path(node, value.data).items():
                    rates[path] = float(torch.count_nonzero(y)) / max(1, y.numel())
            return value

        training = module.training
        module.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output, _ = module.run(*(x.to(device, dtype) for x in inputs), observe=count)
        module.train(training)
        return output, rates

    return predict


class Deployed(ABC):
    """A deployed network that predicts, its spikes counted."""

    graph: Graph
    counts: SpikeCounts

    @abstractmethod
    def run(self, *inputs: Tensor) -> Tensor:
        """A network's inputs to its output, from rest. Raises SnnirError for shapes that do not
        fit."""

    @abstractmethod
    def step(self, *inputs: Tensor) -> Tensor:
        """One more step of a stream: inputs [N, C, H, W] to this step's output. Raises SnnirError
        where the network has no single steps."""

    @abstractmethod
    def reset(self) -> None:
        """Another stream begins."""

    def evaluate(self, batches: Iterable[Batch], task: Task = CLASSIFICATION) -> Evaluation:
        """Run all batches; rates and counts are of these and all before."""
        return self.counted(evaluate(lambda *inputs: (self.run(*inputs), {}), batches, task))

    def counted(self, found: Evaluation) -> Evaluation:
        """With the rates of all that was run so far."""
        neurons = [n.path for n in self.graph.neurons if n.spiking]
        rates = {path: self.counts.rate(path) for path in neurons}
        return replace(found, firing_rates=rates, counts=self.counts)


class DeployedModule(Deployed):
    """A module of a deployed network, evaluating, through torch."""

    def __init__(self, module: SpikingModule, device: torch.device):
        self.graph = module.graph
        self._module, self._device = module.to(device), device
        self._counter = SpikeCounter(module.graph)
        self.counts = self._counter.counts
        self._state: State | None = None

    def run(self, *inputs: Tensor) -> Tensor:
        return self._run(inputs, None)[0]

    def step(self, *inputs: Tensor) -> Tensor:
        output, self._state = self._run([x[None] for x in inputs], self._state)
        return output[0]

    def reset(self) -> None:
        self._state = None

    def _run(self, inputs: Sequence[Tensor], state: State | None) -> tuple[Tensor, State]:
        self._counter.expect(inputs)
        with torch.no_grad():
            given = (x.to(self._device) for x in inputs)
            output, state = self._module.run(*given, state=state, observe=self._counter)
        return output.cpu(), state


class DeployedModel(Deployed):
    """An exported model of either form through onnxruntime, its spikes counted inside a copy of
    it; `graph` is the deployed network that it was made of, `name` what errors call it."""

    def __init__(
        self, model: onnx.ModelProto, graph: Graph, *, threads: int = 0, name: str = "<model>"
    ):
        self.graph = graph
        self.counts = SpikeCounts()
        self._name = name
        self._runtime = _CountingRuntime(model, graph, threads, name)

    def run(self, *inputs: Tensor) -> Tensor:
        return self._counted(self._runtime.run(*(x.numpy() for x in inputs)), inputs)

    def step(self, *inputs: Tensor) -> Tensor:
        return self._counted(self._runtime.step(*(x.numpy() for x in inputs)), inputs)

    def reset(self) -> None:
        self._runtime.reset()

    def _counted(self, output: np.ndarray, inputs: Sequence[Tensor]) -> Tensor:
        shape = self.graph.shape(self.graph.outputs[0].path)
        if output.shape[output.ndim - len(shape) :] != shape or len(output) == 0:
            raise SnnirError(
                f"{self._name}: found an output of shape {list(output.shape)}, expected it to end "
                f"in {list(shape)}"
            )
        self.counts.samples += inputs[0].shape[-4]
        self.counts.add(self._runtime.take_counts())
        return torch.from_numpy(output)


class _CountingRuntime(Runtime):
    """A runtime whose model also says how many values were not 0."""

    def __init__(self, model: onnx.ModelProto, graph: Graph, threads: int, name: str):
        counting = onnx.ModelProto.FromString(model.SerializeToString())
        self._counted = add_counters(counting, graph)
        self._by_step: list[list[np.ndarray]] = []
        super().__init__(counting.SerializeToString(), threads=threads, name=name)
        self._stepped = [graph.type(path).time == Time.STEPPED for path in self._counted]

    def _compute(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        names = [*self._outputs, *(f"{path}{COUNTS}" for path in self._counted)]
        found = self._run(names, feed)
        self._by_step.append(found[len(self._outputs) :])
        return found[: len(self._outputs)]

    def take_counts(self) -> dict[str, np.ndarray]:
        """By path, [T, C, H, W], of what ran since they were last taken; T = 1 for a static
        value."""
        by_path = zip(self._counted, self._stepped, *self._by_step, strict=True)
        self._by_step = []
        return {
            path: np.concatenate(counts) if stepped else counts[0]
            for path, stepped, *counts in by_path
        }


def read_model(path: str | Path, genotype: Genotype, graph: Graph) -> onnx.ModelProto:
    """A model that snnir exported of this genotype; `graph` is its deployed one.

    Raises:
        SnnirError: an unreadable model, or one of another network.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise SnnirError(f"{path}: found no such file, expected an ONNX model") from None
    except Exception as error:  # protobuf and onnx raise many kinds for a file that is not a model
        raise SnnirError(f"{path}: found no readable ONNX model: {error}") from None
    _refuse_other_model(model, path, genotype)
    _refuse_other_interface(model, path, graph)
    return model


def _refuse_other_interface(model: onnx.ModelProto, path: str | Path, graph: Graph) -> None:
    """Raises SnnirError unless the model takes, keeps and gives what the graph does, and has its
    neurons."""
    form = {entry.key: entry.value for entry in model.metadata_props}["form"]
    steps: tuple[int, ...] = (graph.steps,) if form == "sequence" else ()
    expected = {
        node.path: (*(steps if node.kind == "events" else ()), "N", *node.shape)
        for node in graph.network_inputs
    }
    if form == "step":
        states = ((neuron, name) for neuron in graph.neurons for name in neuron.states)
        expected |= {f"{n.path}.{name}": ("N", *graph.shape(n.path)) for n, name in states}
    found = {i.name: _shape(i) for i in model.graph.input}
    made = {name for node in model.graph.node for name in node.output}
    wanted = {graph.outputs[0].path, *(neuron.path for neuron in graph.neurons)}
    for name, shape in expected.items():
        if found.get(name) != shape:
            raise SnnirError(
                f"{path}: found {found.get(name, 'nothing')} for input '{name}', expected {shape}"
            )
    if found.keys() != expected.keys() or not wanted <= made:
        names = sorted((found.keys() ^ expected.keys()) | (wanted - made))
        raise SnnirError(
            f"{path}: found other inputs or neurons than network '{graph.name}' has, expected "
            f"the same: {', '.join(names)}"
        )


def _shape(info: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    dims = info.type.tensor_type.shape.dim
    return tuple(d.dim_param or d.dim_value for d in dims)


def _refuse_other_model(model: onnx.ModelProto, path: str | Path, genotype: Genotype) -> None:
    """Raises SnnirError unless snnir exported the model of this genotype."""
    expected = f"expected a model that snnir compiled of network '{genotype.name}'"
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "genotype" not in metadata or metadata.get("form") not in FORMS:
        raise SnnirError(f"{path}: found a model of another program, {expected}")
    try:
        same = parse(metadata["genotype"], str(path)) == genotype
    except SnnirError:
        same = False
    if not same:
        raise SnnirError(f"{path}: found a model of another genotype, {expected}")
