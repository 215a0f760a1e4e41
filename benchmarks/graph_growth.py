"""Cost against graph size: parse, build, passes, JSON, report at about 10^2, 10^3, 10^4 nodes.

    python benchmarks/graph_growth.py

Prints seconds and microseconds per node (the best of five runs each, garbage collection off, as its
cost is that of everything else in the process); exits 1 when the cost per node at 10^4 is more than
LIMIT times that at 10^2.
"""

from __future__ import annotations

import gc
import sys
import time

import numpy as np

from snnir.analysis.energy import cost_models
from snnir.analysis.firing import SpikeCounts, is_counted
from snnir.analysis.report import full_report
from snnir.genotype import parse, print_genotype
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.ir.serialize import graph_from_json, graph_to_json
from snnir.passes import DEPLOYMENT, FOLDING, TRAINING, run_passes

LIMIT = 1.5
CELLS = {100: 4, 1_000: 46, 10_000: 476}
"""Cells that give about so many nodes."""


def text(cells: int) -> str:
    """A chain of the paper's cells that goes up and down two levels."""
    levels = [0, 1, 1, 0]
    placed = " ".join(f"normal@{levels[i % 4]}" for i in range(cells))
    return f"""snn 1
network chain
input image: frame[3, 8, 8]
steps 2
cell normal(prev_prev, prev) {{
  n0 = conv3x3(prev_prev) + conv3x3(prev)
  n1 = conv3x3(prev_prev) + skip(prev)
  n2 = conv3x3(n0) + conv3x3(n1)
}}
backbone trunk(image) {{ stem conv3x3(6) layers channels=2 {{ {placed} }} }}
head classify(trunk, classes=10)
"""


def stages(source: str) -> dict[str, float]:
    """Seconds of every stage, and the number of nodes."""
    seconds, clock = {}, time.perf_counter

    def timed(name, work):
        start = clock()
        result = work()
        seconds[name] = clock() - start
        return result

    genotype = timed("parse", lambda: parse(source))
    timed("print", lambda: print_genotype(genotype))
    graph = timed("build", lambda: build(genotype))
    timed("training passes", lambda: run_passes(TRAINING, graph))
    deployed = timed("deployment passes", lambda: run_passes(DEPLOYMENT, graph))
    timed("json out and in", lambda: graph_from_json(graph_to_json(deployed.graph)))
    folded, counts = run_passes(FOLDING, graph).graph, invented_counts(deployed.graph)
    timed("report", lambda: full_report(graph, folded, counts, cost_models()))
    seconds["nodes"] = len(graph)
    return seconds


def invented_counts(graph: Graph) -> SpikeCounts:
    """Of every neuron, without running the network."""
    rng, counts = np.random.default_rng(0), SpikeCounts(samples=8)
    for node in graph.nodes():
        if is_counted(graph, node):
            shape = (graph.steps, *graph.shape(node.path))
            counts.add({node.path: rng.integers(0, 8, shape)})
    return counts


def main() -> int:
    found = {}
    gc.disable()
    for size, cells in CELLS.items():
        runs = [stages(text(cells)) for _ in range(5)]
        found[size] = {name: min(run[name] for run in runs) for name in runs[0]}
    names = [name for name in found[100] if name != "nodes"]
    print("nodes".ljust(20), *(f"{int(f['nodes']):>18,}" for f in found.values()))
    for name in names:
        cells = (f"{f[name]:8.3f} s {1e6 * f[name] / f['nodes']:5.0f} µs" for f in found.values())
        print(name.ljust(20), *(cell.rjust(18) for cell in cells))
    per_node = [sum(f[name] for name in names) / f["nodes"] for f in found.values()]
    print("all, µs per node".ljust(20), *(f"{1e6 * cost:18.0f}" for cost in per_node))
    growth = per_node[-1] / per_node[0]
    print(f"cost per node at 10^4 over 10^2: {growth:.2f} (limit {LIMIT})")
    return int(growth > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
