"""Does the search find something? Searched genotypes beside random ones, at a small scale.

    python benchmarks/search_evidence.py search --data fashion-mnist -o evidence
    python benchmarks/search_evidence.py mixing --data fashion-mnist -o evidence    # paper Table 9
    python benchmarks/search_evidence.py nodes --data fashion-mnist -o evidence     # paper Table 10

`search`: one search of `fashion_space`, its genotype trained with three seeds, and six random
genotypes of the same space trained alike, a seed each. `mixing`: the same space mixing at the
membrane, at the spike, and with binary neurons, each searched, and trained with three seeds.
`nodes`: the space with 4 nodes a cell and with 3, widths as in the paper's ratio (36 to 48).

A run is one `snnir` command with one thread, of at most five minutes on a core of the machine that
the documentation names; `--jobs` of them run side by side. What is finished stays: started again,
the script resumes the runs that were stopped and skips those that are done. It prints a table and
writes it, with every run's numbers and command, to OUT/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from snnir import models
from snnir.analysis.counts import layers, parameter_count
from snnir.analysis.energy import COST_MODELS, count_operations, energy_mj
from snnir.analysis.firing import measure_firing
from snnir.data import Request, open_data
from snnir.genotype import parse, print_genotype, retarget
from snnir.ir import build
from snnir.lower.initialise import initial_weights
from snnir.passes import FOLDING, run_passes
from snnir.search import genotype_of
from snnir.search.sampling import random_architecture
from snnir.source import Source, read_source
from snnir.weights import read_weights

SEARCH = (
    "--preset", "small", "--epochs", "5", "--warmup-epochs", "1", "--batch-size", "50",
    "--limit-train", "4000",
)  # fmt: skip
TRAIN = (
    "--preset", "small", "--epochs", "5", "--batch-size", "50", "--precision", "bf16",
    "--limit-train", "6000", "--validation", "500",
)  # fmt: skip
SEEDS = (0, 1, 2)
RANDOM_GENOTYPES = 6
MEASURED_SAMPLES = 500
"""Test images that firing rates, and the energy from them, are measured on."""


@dataclass(frozen=True)
class Space:
    """A space to search, and the C that its genotypes are trained with."""

    name: str
    change: Callable[[str], str]
    """Of the text of `fashion_space`."""
    channels: int = 6

    def text(self) -> str:
        return self.change(models.source("fashion_space").text)


def _same(text: str) -> str:
    return text


MEMBRANE = Space("membrane", _same)
SPIKE = Space("spike", lambda text: text.replace("mix=membrane", "mix=spike"))
BINARY = Space(
    "binary",
    lambda text: text.replace("neuron lif(tau=0.2, ", "neuron binary("),
)
THREE_NODES = Space("3-nodes", lambda text: text.replace("nodes=4", "nodes=3"), channels=8)

STUDIES: dict[str, tuple[Space, ...]] = {
    "search": (MEMBRANE,),
    "mixing": (MEMBRANE, SPIKE, BINARY),
    "nodes": (MEMBRANE, THREE_NODES),
}


@dataclass(frozen=True)
class Run:
    """One command and the folder it fills; `group` is the row of the table it belongs to."""

    group: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def result(self) -> Path:
        return self.folder.with_suffix(".json")

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


def searched(space: Space, out: Path, data: str) -> Run:
    path = out / f"{space.name}.snn"
    path.write_text(space.text())
    wide = ("--channels", str(space.channels), "--seed", "0")
    return Run(
        space.name,
        out / f"search-{space.name}",
        ("search", str(path), "--data", data, *SEARCH, *wide),
    )


def trained(group: str, genotype: Path, out: Path, data: str, seed: int) -> Run:
    arguments = ("train", str(genotype), "--data", data, *TRAIN, "--seed", str(seed))
    return Run(group, out / f"train-{genotype.stem}-{seed}", arguments)


def random_genotypes(space: Space, out: Path) -> list[Path]:
    """Distinct genotypes of a space, drawn with seed 0, with the channels that it trains with."""
    parsed = parse(Source(space.name, space.text()))
    rng = np.random.default_rng(0)
    texts: list[str] = []
    while len(texts) < RANDOM_GENOTYPES:
        found = genotype_of(parsed, random_architecture(parsed, rng))
        text = print_genotype(retarget(found, [f"channels={space.channels}"]))
        if text not in texts:
            texts.append(text)
    paths = [out / f"random{number}.snn" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def cost(genotype: Path, weights: Path, data: str) -> dict[str, float]:
    """Parameters, mean firing rate and energy of a trained network, rates measured on test images,
    batch norm folded."""
    graph = build(parse(read_source(genotype)))
    given = initial_weights(graph, 0) | read_weights(weights, graph)
    folded = run_passes(FOLDING, graph, given)
    node = graph.network_inputs[0]
    request = Request(
        kind=node.kind, shape=node.shape, steps=graph.steps, classes=10,
        limit_test=MEASURED_SAMPLES,
    )  # fmt: skip
    test = open_data(data, request).test
    x, _ = test.batch(range(len(test)))
    firing = measure_firing(folded.graph, folded.weights, [x.numpy()])
    operations = count_operations(layers(folded.graph), firing.read, graph.steps)
    rates = list(firing.neurons.values())
    return {
        "parameters": parameter_count(graph),
        "firing_rate": sum(rates) / len(rates),
        "energy_mj": energy_mj(operations, COST_MODELS[0]),
    }


def study(name: str, out: Path, data: str, jobs: int) -> list[dict[str, Any]]:
    """All runs of a study and their numbers, one dictionary per trained network."""
    spaces = STUDIES[name]
    with ThreadPoolExecutor(jobs) as pool:
        searches = [searched(space, out, data) for space in spaces]
        random = random_genotypes(spaces[0], out) if name == "search" else []
        early = [pool.submit(run.finish) for run in searches]
        trainings = [trained("random", path, out, data, 0) for path in random]
        early += [pool.submit(run.finish) for run in trainings]
        for space, run in zip(spaces, searches, strict=True):
            early[searches.index(run)].result()
            genotype = out / f"{space.name}-found.snn"
            genotype.write_text((run.folder / "genotype.snn").read_text())
            found = [trained(space.name, genotype, out, data, seed) for seed in SEEDS]
            early += [pool.submit(run.finish) for run in found]
            trainings += found
        for job in early:
            job.result()
    rows = []
    for run in trainings:
        numbers = cost(Path(run.arguments[1]), run.folder / "best.safetensors", data)
        rows.append({**run.finish(), **numbers})
    return rows


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", default="fashion-mnist", metavar="NAME[:PATH]")
    parser.add_argument("-o", "--out", type=Path, default=Path("evidence"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = study(options.study, options.out, options.data, options.jobs)
    (options.out / f"{options.study}.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
