"""What counting spikes costs, and whether SpikingJelly counts the same.

    pip install spikingjelly==2.0.0
    python benchmarks/counting.py [--rounds 12] [--threads 2]

Interleaved in one process, medians of the ratios within each round: an evaluation through torch and
through onnxruntime, without and with our counting, and with SpikingJelly's counters around the same
module. Then the counts of both, and the energy after Lemaire et al. of a plain chain, where each
difference is named and, once it is taken out, the two must agree; exit code 1 if they do not.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import onnx
import torch
from spikingjelly.activation_based import neuron as their_neuron
from spikingjelly.activation_based.op_counter import (
    DispatchCounterMode,
    LemaireEnergyProfiler,
    MACCounter,
    SynOpCounter,
)
from torch import nn

from snnir import models
from snnir.analysis.energy import cost_model, energy
from snnir.analysis.operations import count_operations, total
from snnir.export.counting import COUNTS, add_counters
from snnir.export.onnx import export_onnx
from snnir.export.parity import session
from snnir.genotype import parse, retarget
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.ir.nodes import Conv
from snnir.lower import SpikingModule
from snnir.lower.counting import SpikeCounter, count_spikes
from snnir.lower.initialise import calibrated_weights, initial_weights, seeded_inputs
from snnir.passes import DEPLOYMENT, FOLDING, TRAINING, run_passes
from snnir.weights import Weights, read_weights

CASES = (("fashion_small", (), 100), ("spikedhs_cla", ("channels=16",), 8))
"""Model, settings, batch."""


def network(name: str, settings: Sequence[str]) -> tuple[Graph, Weights]:
    """A model of the box with its trained weights, or seeded ones that fire."""
    graph = build(retarget(models.load(name), list(settings)))
    trained = None if settings else models.trained_weights(name)
    if trained is not None:
        return graph, initial_weights(graph, 0) | read_weights(trained, graph)
    training = run_passes(TRAINING, graph).graph
    inputs = [torch.from_numpy(x) for x in seeded_inputs(graph, 0, 16)]
    return graph, initial_weights(graph, 0) | calibrated_weights(training, inputs, 0)


def times(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds per side, one per round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            begun = time.perf_counter()
            run()
            if number:  # the first warms up
                found[name].append(time.perf_counter() - begun)
    return found


def ratio(found: dict[str, list[float]], side: str, base: str) -> float:
    return median(a / b for a, b in zip(found[side], found[base], strict=True))


def compare(name: str, settings: Sequence[str], batch: int, rounds: int) -> bool:
    """Print what counting costs, and both counts; whether these agree."""
    graph, weights = network(name, settings)
    deployed, folded = run_passes(DEPLOYMENT, graph, weights), run_passes(FOLDING, graph, weights)
    module = SpikingModule(deployed.graph, deployed.weights).eval()
    x = seeded_inputs(graph, 1, batch)[0]
    images, counter = torch.from_numpy(x), SpikeCounter(deployed.graph)
    model = export_onnx(deployed.graph, deployed.weights)
    counting = onnx.ModelProto.FromString(model.SerializeToString())
    counted = [f"{path}{COUNTS}" for path in add_counters(counting, deployed.graph)]
    plain, instrumented = session(model), session(counting)
    (given,), out = graph.network_inputs, deployed.graph.outputs[0].path

    def ours_too() -> None:
        counter.expect([images])
        module.run(images, observe=counter)

    def theirs() -> None:
        with DispatchCounterMode([SynOpCounter(), MACCounter()]):
            module.run(images)

    with torch.no_grad():
        found = times(
            {
                "torch": lambda: module.run(images),
                "torch, counted": ours_too,
                "torch, SpikingJelly's counters": theirs,
                "onnxruntime": lambda: plain.run([out], {given.path: x}),
                "onnxruntime, counted": lambda: instrumented.run([out, *counted], {given.path: x}),
            },
            rounds,
        )
    print(f"{' '.join((name, *settings))}, batch {batch}, {rounds} rounds")
    for side, base in (
        ("torch, counted", "torch"),
        ("torch, SpikingJelly's counters", "torch"),
        ("onnxruntime, counted", "onnxruntime"),
    ):
        print(f"  {side:34} {ratio(found, side, base):.3f} of {base}")
    ours = total(count_operations(folded.graph, count_spikes(folded.graph, folded.weights, [x])))
    synops, macs = SynOpCounter(), MACCounter()
    with torch.no_grad(), DispatchCounterMode([synops, macs]):
        SpikingModule(folded.graph, folded.weights).eval().run(images)
    print(f"  SynOps per sample: ours {ours.synops:,.2f}, theirs {synops.get_total() / batch:,.2f}")
    print(f"  MACs per sample: ours {ours.macs:,.0f}, theirs {macs.get_total() / batch:,.0f}")
    return math.isclose(ours.synops, synops.get_total() / batch, rel_tol=1e-9) and math.isclose(
        ours.macs, macs.get_total() / batch
    )


CHAIN = """snn 1
network chain
input image: frame[3, 12, 12]
steps 4
neuron if(v_threshold=0.5)
backbone trunk(image) {
  stem conv3x3(8, bn=false, bias=false), conv3x3(8, bn=false, bias=false), conv3x3(8, bn=false, bias=false)
}
head classify(trunk, classes=2)
"""  # noqa: E501


def compare_memory() -> bool:
    """The energy with memory traffic of a chain, layers that read spikes alone."""
    graph = build(parse(CHAIN))
    weights = initial_weights(graph, 0)
    for key in weights:
        if "stem" in key:
            weights[key] = weights[key] * 3
    folded = run_passes(FOLDING, graph, weights)
    x = seeded_inputs(graph, 0, 1)[0]
    counts = count_spikes(folded.graph, folded.weights, [x])
    chain: list[nn.Module] = []
    convolutions = folded.graph.of_type(Conv)
    for node in convolutions:
        layer = nn.Conv2d(node.in_channels, node.out_channels, 3, padding=1, bias=False)
        layer.weight.data = torch.from_numpy(folded.weights[f"{node.path}.weight"])
        chain += [layer, their_neuron.IFNode(v_threshold=0.5, v_reset=0.0, step_mode="s")]
    net, profiler = nn.Sequential(*chain), LemaireEnergyProfiler()
    profiler.bind_model(net)
    with torch.no_grad(), profiler:
        for _ in range(graph.steps):
            net(torch.from_numpy(x))
    theirs = profiler.get_report()
    stem = [
        one for one in count_operations(folded.graph, counts) if one.layer.path.startswith("trunk")
    ]
    model = cost_model("memory")
    assert model.memory
    ours_pj = energy(stem, model).total_mj * 1e9
    print("\nchain of 3 convolutions, integrate-and-fire, energy after Lemaire et al., one sample")
    print(f"  ours {ours_pj:,.0f} pJ, SpikingJelly's {theirs.total_pj:,.0f} pJ; the difference:")
    # 1. they ignore borders, in what a spike reads and adds
    border = 0.0
    for one in stem:
        if one.events:
            missed = one.events * one.values / one.layer.shape[1] / one.layer.shape[2] * 9
            missed -= one.operations.synops
            access = model.memory.access(one.parameters) + 2 * model.memory.access(one.values)
            border += missed * (access + 2 * 0.1)
    # 2. the first layer reads a frame: they run it at every step, with padding and addressing
    first, values = stem[0], np.prod(stem[0].layer.shape)
    access = model.memory.access(first.inputs) + model.memory.access(first.parameters)
    dense = 4 * first.layer.macs * (access + 3.2)
    dense += 4 * 0.1 * (first.inputs + float(values) + 8 * 9)
    ours_first = energy([first], model).total_mj * 1e9
    # 3. integrate-and-fire does not multiply its membrane: they price no update
    updates = sum(one.operations.updates for one in stem) * 3.2
    print(f"    spikes at borders have fewer synapses than they count: {border:,.0f}")
    print(f"    a frame is read once, without padding: {dense - ours_first:,.0f}")
    print(f"    a membrane update is priced whatever the neuron: {-updates:,.0f}")
    rest = theirs.total_pj - ours_pj - border - (dense - ours_first) + updates
    print(f"  left unexplained: {rest:,.2f} pJ")
    return abs(rest) < 1e-6 * theirs.total_pj


def main() -> None:
    options = ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    agreed = [compare(*case, given.rounds) for case in CASES]
    agreed.append(compare_memory())
    sys.exit(0 if all(agreed) else 1)


if __name__ == "__main__":
    main()
