"""Runs of `snnir` as evidence: resumed when stopped, skipped when done, put into a table.

A run is one command with one thread; what it prints is kept in a file beside its folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from snnir.analysis.counts import parameter_count
from snnir.analysis.energy import cost_model, energy
from snnir.analysis.operations import count_operations
from snnir.data import Request, open_data
from snnir.genotype import parse
from snnir.ir import build
from snnir.lower.counting import count_spikes
from snnir.passes import FOLDING, run_passes
from snnir.source import read_source
from snnir.training.run import deploy

MEASURED_SAMPLES = 500
"""Test images that firing rates, and the energy from them, are measured on."""


@dataclass(frozen=True)
class Run:
    """One command and the folder it fills; `group` is the row of the table it belongs to."""

    group: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def result(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    def finish(self) -> dict[str, Any]:
        """Run it, or what is left of it, unless it is done; returns what it printed."""
        if not self.result.exists():
            started = (self.folder / "checkpoint.pt").exists()
            resume = ("--resume",) if started else ()
            command = [sys.executable, "-m", "snnir", *self.arguments, "-o", str(self.folder)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            begun = time.perf_counter()
            done = subprocess.run(
                [*command, "--json", *resume],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr}")
            shown = shlex.join(["snnir", *self.arguments, "-o", str(self.folder)])
            found = json.loads(done.stdout) | {"command": shown, "group": self.group}
            self.result.write_text(json.dumps(found, indent=1))
            print(f"{self.folder.name}: {time.perf_counter() - begun:.0f} s", flush=True)
        return json.loads(self.result.read_text())


def cost(genotype: Path, weights: Path, data: str) -> dict[str, float]:
    """Parameters, mean firing rate and energy of a trained network, rates measured on test images,
    batch norm folded."""
    graph = build(parse(read_source(genotype)))
    node = graph.network_inputs[0]
    request = Request(
        kind=node.kind, shape=node.shape, steps=graph.steps, classes=10,
        limit_test=MEASURED_SAMPLES,
    )  # fmt: skip
    test = open_data(data, request).test
    x, _ = test.batch(range(len(test)))
    module = deploy(graph, weights)
    counts = count_spikes(module.graph, module.weights(), [x.numpy()])
    rates = [counts.rate(n.path) for n in module.graph.neurons]
    folded = run_passes(FOLDING, graph).graph
    return {
        "parameters": parameter_count(graph),
        "firing_rate": sum(rates) / len(rates),
        "energy_mj": energy(count_operations(folded, counts), cost_model("45nm")).total_mj,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row per group: mean and spread (standard deviation) over its networks."""
    lines = [
        "| | networks | test accuracy | parameters | firing rate | energy, 45 nm |",
        "|---|---|---|---|---|---|",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        accuracies = [100 * row["accuracy"] for row in own]
        parameters, rate, energy = (
            mean(row[key] for row in own) for key in ("parameters", "firing_rate", "energy_mj")
        )
        spread = f" ± {stdev(accuracies):.2f}" if len(own) > 1 else ""
        span = f"({min(accuracies):.2f} to {max(accuracies):.2f})"
        lines.append(
            f"| {group} | {len(own)} | {mean(accuracies):.2f}{spread} % {span} "
            f"| {parameters:,.0f} | {rate:.3f} | {1000 * energy:.2f} µJ |"
        )
    return "\n".join(lines)


def parser(doc: str, studies: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every evidence has."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("study", choices=studies)
    options.add_argument("--data", default="fashion-mnist", metavar="NAME[:PATH]")
    options.add_argument("-o", "--out", type=Path, default=Path("evidence"))
    options.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    return options


def report(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Keep all numbers in a file, and print the table."""
    path.write_text(json.dumps(rows, indent=1))
    print(table(rows))
