"""Batch inference of SpikeDHS-CLA in onnxruntime: our int8 export beside our fp32 one.

    python benchmarks/int8_speed.py [--channels 48] [--batch 8] [--rounds 5] [--threads 2]

Interleaved in one process; prints the median of the ratios within each round. Weights are seeded
ones whose batch norm is calibrated, and every layer fires: the rates are printed.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from statistics import median

import torch

from snnir import models
from snnir.export.int8 import export_int8, quantise
from snnir.export.onnx import export_onnx
from snnir.export.parity import session
from snnir.genotype import retarget
from snnir.ir import build
from snnir.lower.counting import count_spikes
from snnir.lower.initialise import calibrated_weights, initial_weights, seeded_inputs
from snnir.passes import DEPLOYMENT, TRAINING, run_passes


def main() -> None:
    options = ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--channels", type=int, default=48)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    graph = build(retarget(models.load("spikedhs_cla"), [f"channels={given.channels}"]))
    few = seeded_inputs(graph, 0, 4)
    training = run_passes(TRAINING, graph).graph
    weights = calibrated_weights(training, list(map(torch.from_numpy, few)), 0)
    network = run_passes(DEPLOYMENT, graph, initial_weights(graph, 0) | weights)
    counts = count_spikes(network.graph, network.weights, few)
    rates = [counts.rate(neuron.path) for neuron in network.graph.neurons]
    print(f"C = {given.channels}, firing rates {min(rates):.3f} to {max(rates):.3f}")
    quantised = quantise(network.graph, network.weights, few)
    sides = {
        "fp32": session(export_onnx(network.graph, network.weights), given.threads),
        "int8": session(export_int8(quantised), given.threads),
    }
    feed = {graph.network_inputs[0].path: seeded_inputs(graph, 1, given.batch)[0]}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(given.rounds + 1):
        for name, run in sides.items():
            begun = time.perf_counter()
            run.run(None, feed)
            if number:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
    for name, found in seconds.items():
        print(f"{name}: {median(found):.2f} s for {given.batch} images")
    ratios = [a / b for a, b in zip(seconds["fp32"], seconds["int8"], strict=True)]
    print(f"int8 is {median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
