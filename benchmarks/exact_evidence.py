"""Exact mode on 10,000 real images: every spike of the trained fashion_small in every runtime.

    OMP_NUM_THREADS=1 python benchmarks/exact_evidence.py --out docs/runs/exact_evidence.json

torch (channels_last, NCHW, two threads, channels in a shuffled order), onnxruntime (sequence and
step form, one and two threads) and NumPy are compared with torch in channels_last on one thread.
The same comparison of the fp32 network, on the first 1,000 images, shows that it can fail.

    python benchmarks/exact_evidence.py --target nir --network RUN --limit 1000

the same of exact mode for NIR, of the network that a run trained; accuracies are always of all
images.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnir import models
from snnir.analysis.certificate import certify
from snnir.data.idx import read_idx
from snnir.data.images import DEBIAN
from snnir.export.exactness import mismatches, run_numpy, run_torch
from snnir.export.onnx import Form, export_onnx
from snnir.export.parity import cut_open, run_exported, session
from snnir.files import write_whole
from snnir.genotype import parse
from snnir.ir import build
from snnir.ir import nodes as ir
from snnir.ir.graph import Graph
from snnir.lower import SpikingModule
from snnir.lower.initialise import initial_weights
from snnir.passes import (
    FOLDING,
    MERGING,
    ROUNDING,
    ROUNDING_WITH_LEAKS,
    WHOLE_NUMBERS,
    run_passes,
)
from snnir.weights import Weights, read_weights

BATCH = 100
FP32_IMAGES = 1000

Outputs = dict[str, np.ndarray]
"""By path, of every neuron and of the network, [T, N, …] or [N, …]."""

Runtime = Callable[[np.ndarray], Outputs]


class Planar(SpikingModule):
    """Everything in NCHW, where the module itself prefers channels_last."""

    def __init__(self, graph: Graph, weights: Weights):
        super().__init__(graph, weights)
        self.to(memory_format=torch.contiguous_format)

    def run(self, *inputs: Any, observe: Any, **rest: Any) -> Any:
        def planar(node: ir.Node, value: Any) -> Any:
            made = value.data
            assert isinstance(node, ir.Input | ir.Resize | ir.Slice) or made.is_contiguous()
            return observe(node, replace(value, data=made.contiguous()))

        return super().run(*inputs, observe=planar, **rest)


def shuffled(graph: Graph, weights: Weights, seed: int) -> tuple[Weights, dict[str, np.ndarray]]:
    """The weights of the network whose layers have their channels in a drawn order, and which
    channel of each node stands at each place."""
    rng = np.random.default_rng(seed)
    moved = dict(weights)
    order: dict[str, np.ndarray] = {}
    for node in graph.nodes():
        read = [order[source] for source in graph.inputs(node.path)]
        channels = graph.shape(node.path)[0]
        if isinstance(node, ir.Input):
            order[node.path] = np.arange(channels)
        elif isinstance(node, ir.Conv) and node.groups > 1:
            order[node.path] = read[0]
            moved[f"{node.path}.weight"] = weights[f"{node.path}.weight"][read[0]]
        elif isinstance(node, ir.Conv | ir.Linear):
            parts = []
            for owner in node.owners:
                own = rng.permutation(owner.channels)
                moved[f"{owner.path}.weight"] = weights[f"{owner.path}.weight"][own][:, read[0]]
                if node.bias:
                    moved[f"{owner.path}.bias"] = weights[f"{owner.path}.bias"][own]
                parts.append(own)
            order[node.path] = side_by_side(parts)
        elif isinstance(node, ir.Concat):
            order[node.path] = side_by_side(read)
        elif isinstance(node, ir.Slice):
            order[node.path] = read[0][node.start : node.stop] - node.start
        else:
            assert len(read) == 1, f"{node.path}: {node.op}"
            order[node.path] = read[0]
    return moved, order


def side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    starts = np.cumsum([0, *map(len, parts)])
    return np.concatenate([part + start for part, start in zip(parts, starts, strict=False)])


def torch_runtime(
    graph: Graph,
    weights: Weights,
    *,
    kind: type[SpikingModule] = SpikingModule,
    threads: int = 1,
) -> Runtime:
    module = kind(graph, weights).eval()

    def run(images: np.ndarray) -> Outputs:
        torch.set_num_threads(threads)
        outputs = run_torch(module, [images])
        torch.set_num_threads(1)
        return outputs

    return run


def shuffled_runtime(graph: Graph, weights: Weights) -> Runtime:
    """The shuffled network, its outputs put back into the given order."""
    moved, order = shuffled(graph, weights, seed=0)
    run = torch_runtime(graph, moved)

    def back(path: str, y: np.ndarray) -> np.ndarray:
        axis = y.ndim - len(graph.shape(path))
        return np.take(y, np.argsort(order[path]), axis)

    return lambda images: {path: back(path, y) for path, y in run(images).items()}


def onnx_runtime(graph: Graph, weights: Weights, form: Form, threads: int) -> Runtime:
    paths = [*(n.path for n in graph.neurons), graph.outputs[0].path]
    model = export_onnx(graph, weights, form=form)
    run = session(cut_open(model, {}, set(paths)), threads)

    def outputs(images: np.ndarray) -> Outputs:
        found = run_exported(run, graph, [torch.from_numpy(images)], form, paths)
        return {path: x.numpy() for path, x in found.items()}

    return outputs


def compare(graph: Graph, weights: Weights, images: np.ndarray) -> dict[str, Any]:
    """Every runtime against torch in channels_last on one thread."""
    reference = torch_runtime(graph, weights)
    runtimes: dict[str, Runtime] = {
        "torch, NCHW": torch_runtime(graph, weights, kind=Planar),
        "torch, 2 threads": torch_runtime(graph, weights, threads=2),
        "torch, channels shuffled": shuffled_runtime(graph, weights),
        "onnxruntime, sequence": onnx_runtime(graph, weights, "sequence", 1),
        "onnxruntime, sequence, 2 threads": onnx_runtime(graph, weights, "sequence", 2),
        "onnxruntime, step": onnx_runtime(graph, weights, "step", 1),
        "onnxruntime, step, 2 threads": onnx_runtime(graph, weights, "step", 2),
        "NumPy": lambda x: run_numpy(graph, weights, [x]),
    }
    head = graph.outputs[0].path
    fired: Counter[str] = Counter()
    values: Counter[str] = Counter()
    spikes_off: Counter[str] = Counter()
    outputs_off: Counter[str] = Counter()
    begun = time.perf_counter()
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        expected = reference(batch)
        for path in expected.keys() - {head}:
            fired[path] += int(np.count_nonzero(expected[path]))
            values[path] += expected[path].size
        for name, run in runtimes.items():
            found = run(batch)
            outputs_off[name] += mismatches(found[head], expected[head])
            spikes_off[name] += sum(mismatches(found[p], expected[p]) for p in values)
        done = start + len(batch)
        left = (time.perf_counter() - begun) / done * (len(images) - done)
        print(
            f"{done} images, {sum(spikes_off.values())} mismatches, {left:.0f} s left", flush=True
        )
    return {
        "images": len(images),
        "spikes_per_runtime": sum(values.values()),
        "spikes_compared": sum(values.values()) * len(runtimes),
        "firing_rates": {n.path: fired[n.path] / values[n.path] for n in graph.neurons},
        "spike_mismatches": {name: spikes_off[name] for name in runtimes},
        "logit_mismatches": {name: outputs_off[name] for name in runtimes},
    }


def accuracy(graph: Graph, weights: Weights, images: np.ndarray, labels: np.ndarray) -> float:
    module = SpikingModule(graph, weights).eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            logits = module(torch.from_numpy(images[start : start + BATCH]))
            right += int((logits.argmax(1).numpy() == labels[start : start + BATCH]).sum())
    return right / len(images)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEBIAN, help="Fashion-MNIST's idx files")
    parser.add_argument("--limit", type=int, default=10_000, metavar="N", help="first N images")
    parser.add_argument("--network", metavar="F.snn|RUN", default="fashion_small")
    parser.add_argument("--target", choices=("onnx", "nir"), default="onnx")
    parser.add_argument("--out", type=Path, metavar="F.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    labels = read_idx(arguments.data, "t10k-labels-idx1-ubyte")
    images = read_idx(arguments.data, "t10k-images-idx3-ubyte")[:, None].astype(np.float32) / 255

    network = build(parse(models.resolve(arguments.network)))
    path = models.trained_weights(arguments.network)
    assert path is not None, f"{arguments.network} was not trained"
    trained = initial_weights(network, 0) | read_weights(path, network)
    folded = run_passes(FOLDING, network, trained)
    fp32 = run_passes(MERGING, folded.graph, folded.weights)
    nir = arguments.target == "nir"
    rounding = ROUNDING_WITH_LEAKS if nir else ROUNDING
    exact = run_passes((*WHOLE_NUMBERS, *rounding, *MERGING), folded.graph, folded.weights)
    certificate = certify(exact.graph, exact.weights, for_others=nir)
    assert certificate.holds

    found = {
        "certificate": {
            "steps": certificate.steps,
            "least_headroom_bits": min(layer.headroom_bits for layer in certificate.layers),
        },
        "exact": compare(exact.graph, exact.weights, images[: arguments.limit]),
        "fp32": compare(fp32.graph, fp32.weights, images[:FP32_IMAGES]),
    }
    for name, made in (("exact", exact), ("fp32", fp32)):
        result = found[name]
        result["accuracy"] = accuracy(made.graph, made.weights, images, labels)
        print(f"\n{name}: {100 * result['accuracy']:.2f} % of {len(images)} images right;")
        print(f"{result['spikes_per_runtime']:,} spikes of {result['images']} images each against:")
        for runtime, wrong in result["spike_mismatches"].items():
            logits = result["logit_mismatches"][runtime]
            print(f"  {runtime:34} {wrong:>12,} spikes differ, {logits:>8,} logits")
        for layer, rate in result["firing_rates"].items():
            print(f"  {layer:34} {rate:12.3f} firing rate")
    if arguments.out:
        write_whole(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
