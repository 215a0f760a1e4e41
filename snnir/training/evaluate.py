"""How well a network does on samples: through torch, or an exported file through onnxruntime."""

from __future__ import annotations

import time
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
from snnir.export.parity import session
from snnir.genotype import Genotype, parse
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron, Node
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
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output, rates, _ = run_counted(module, inputs, device)
        return output, rates

    return predict


def run_counted(
    module: SpikingModule,
    inputs: Sequence[Tensor],
    device: torch.device,
    state: State | None = None,
) -> tuple[Tensor, dict[str, float], State]:
    """The module's output from `state` (None: at rest), evaluating and without gradients; by neuron
    path, the share of values that are spikes; and the state after it."""
    dtype = next(module.parameters()).dtype
    rates: dict[str, float] = {}

    def count(node: Node, value: Value) -> Value:
        if isinstance(node, Neuron) and node.spiking:
            for path, y in outputs_by_path(node, value.data).items():
                rates[path] = float(torch.count_nonzero(y)) / max(1, y.numel())
        return value

    training = module.training
    module.eval()
    with torch.no_grad():
        given = (x.to(device, dtype) for x in inputs)
        output, state = module.run(*given, state=state, observe=count)
    module.train(training)
    return output, rates, state


@dataclass(frozen=True)
class Deployed:
    """A deployed network that predicts, its spikes counted."""

    graph: Graph
    counts: SpikeCounts
    run: Callable[..., Tensor]
    """A network's inputs to its output."""

    def evaluate(self, batches: Iterable[Batch], task: Task = CLASSIFICATION) -> Evaluation:
        """Run all batches; rates and counts are of these and all before."""
        found = evaluate(lambda *inputs: (self.run(*inputs), {}), batches, task)
        neurons = [n.path for n in self.graph.neurons if n.spiking]
        rates = {path: self.counts.rate(path) for path in neurons}
        return replace(found, firing_rates=rates, counts=self.counts)


def deployed_module(module: SpikingModule, device: torch.device) -> Deployed:
    """A module of a deployed network, evaluating, through torch."""
    counter = SpikeCounter(module.graph)

    def run(*inputs: Tensor) -> Tensor:
        counter.expect(inputs)
        with torch.no_grad():
            return module.run(*(x.to(device) for x in inputs), observe=counter)[0]

    return Deployed(module.graph, counter.counts, run)


def deployed_model(model: onnx.ModelProto, graph: Graph) -> Deployed:
    """An exported model in sequence form through onnxruntime, its spikes counted inside a copy of
    it; `graph` is the deployed network that it was made of."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    counted, counts = add_counters(model, graph), SpikeCounts()
    running = session(model)
    names = [node.path for node in graph.network_inputs]
    wanted = [graph.outputs[0].path, *(f"{path}{COUNTS}" for path in counted)]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        found = [np.asarray(value) for value in running.run(wanted, feed)]
        counts.samples += inputs[0].shape[-4]
        counts.add(dict(zip(counted, found[1:], strict=True)))
        return torch.from_numpy(found[0])

    return Deployed(graph, counts, run)


def read_model(path: str | Path, genotype: Genotype) -> onnx.ModelProto:
    """A model that snnir exported of this genotype in sequence form.

    Raises:
        SnnirError: an unreadable model, or one of another network or form.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise SnnirError(f"{path}: found no such file, expected an ONNX model") from None
    except Exception as error:  # protobuf and onnx raise many kinds for a file that is not a model
        raise SnnirError(f"{path}: found no readable ONNX model: {error}") from None
    _refuse_other_model(model, path, genotype)
    return model


def _refuse_other_model(model: onnx.ModelProto, path: str | Path, genotype: Genotype) -> None:
    """Raises SnnirError unless snnir exported the model of this genotype in sequence form."""
    expected = f"expected a model that snnir compiled of network '{genotype.name}' in sequence form"
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "genotype" not in metadata:
        raise SnnirError(f"{path}: found a model of another program, {expected}")
    if metadata.get("form") != "sequence":
        raise SnnirError(f"{path}: found {metadata.get('form')} form, {expected}")
    try:
        same = parse(metadata["genotype"], str(path)) == genotype
    except SnnirError:
        same = False
    if not same:
        raise SnnirError(f"{path}: found a model of another genotype, {expected}")
