"""How well a network does on labelled samples: through torch, or an exported file through
onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from snnir.errors import SnnirError
from snnir.export.parity import session
from snnir.genotype import Genotype, parse
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron, Node
from snnir.lower import SpikingModule, Value
from snnir.lower.neurons import outputs_by_path

Batch = tuple[Tensor, Tensor]
Predict = Callable[[Tensor], tuple[Tensor, dict[str, float]]]
"""Samples to logits [N, classes] and, by neuron path, the share of values that are spikes."""


@dataclass(frozen=True)
class Evaluation:
    """Of a network on a set of samples."""

    accuracy: float
    """In 0..1."""
    firing_rates: dict[str, float]
    """Mean spikes per value, by neuron path."""
    samples: int
    loss: float
    """Mean cross-entropy."""
    seconds: float

    @property
    def firing_rate(self) -> float:
        """Mean over the layers."""
        rates = self.firing_rates.values()
        return sum(rates) / len(rates) if rates else 0.0


def evaluate(
    predict: Predict,
    batches: Iterable[Batch],
    *,
    total: Callable[..., list[float]] = lambda *values: list(values),
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run all batches. With several processes each has its part of every batch, and `total` adds
    up over them. `after_batch` may raise to stop.

    Raises:
        SnnirError: there is nothing to evaluate.
    """
    correct = samples = 0
    loss = 0.0
    spikes: dict[str, float] = {}
    start = time.perf_counter()
    for x, target in batches:
        logits, rates = predict(x)
        logits = logits.float().cpu()
        loss += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        correct += int((logits.argmax(1) == target).sum())
        samples += len(target)
        for path, rate in rates.items():
            spikes[path] = spikes.get(path, 0.0) + rate * len(target)
        after_batch()
    count, right, lost, *fired = total(samples, correct, loss, *spikes.values())
    if not count:
        raise SnnirError("found no samples to evaluate, expected at least 1")
    return Evaluation(
        accuracy=right / count,
        firing_rates={path: fired[n] / count for n, path in enumerate(spikes)},
        samples=int(count),
        loss=lost / count,
        seconds=time.perf_counter() - start,
    )


def torch_predictor(module: SpikingModule, device: torch.device, *, bf16: bool = False) -> Predict:
    """The module's own logits, evaluating and without gradients."""
    dtype = next(module.parameters()).dtype

    def predict(x: Tensor) -> tuple[Tensor, dict[str, float]]:
        rates: dict[str, float] = {}

        def count(node: Node, value: Value) -> Value:
            if isinstance(node, Neuron) and node.spiking:
                for path, y in outputs_by_path(node, value.data).items():
                    rates[path] = float(torch.count_nonzero(y)) / max(1, y.numel())
            return value

        training = module.training
        module.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits, _ = module.run(x.to(device, dtype), observe=count)
        module.train(training)
        return logits, rates

    return predict


def onnx_predictor(path: str | Path, graph: Graph, genotype: Genotype) -> Predict:
    """The logits of an exported model in sequence form, its spikes counted inside the model.

    `graph` is the deployed network that the model should be: its input and its neurons.

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
    neurons = _count_spikes(model, graph)
    run = session(model)
    (x_name, logits) = (graph.network_inputs[0].path, graph.outputs[0].path)

    def predict(x: Tensor) -> tuple[Tensor, dict[str, float]]:
        found = run.run([logits, *(f"{n}.rate" for n in neurons)], {x_name: x.numpy()})
        rates = {name: float(rate) for name, rate in zip(neurons, found[1:], strict=True)}
        return torch.from_numpy(np.asarray(found[0])), rates

    return predict


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


def _count_spikes(model: onnx.ModelProto, graph: Graph) -> list[str]:
    """Add an output `PATH.rate` for each spiking neuron that the model names; returns the paths."""
    made = {name for node in model.graph.node for name in node.output}
    paths = [n.path for n in graph.neurons if n.spiking and n.path in made]
    for path in paths:
        rate = f"{path}.rate"
        model.graph.node.append(helper.make_node("ReduceMean", [path], [rate], rate, keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(rate, TensorProto.FLOAT, []))
    return paths
