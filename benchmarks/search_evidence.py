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

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evidence
import numpy as np
from evidence import Run, cost

from snnir import models
from snnir.genotype import parse, print_genotype, retarget
from snnir.search import genotype_of
from snnir.search.sampling import random_architecture
from snnir.source import Source

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


def main() -> None:
    options = evidence.parser(__doc__, list(STUDIES))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = study(given.study, given.out, given.data, given.jobs)
    evidence.report(rows, given.out / f"{given.study}.json")


if __name__ == "__main__":
    main()
