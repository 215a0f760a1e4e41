"""Do the searches of neurons find something? Beside what they are compared with, at a small scale.

    python benchmarks/tune_evidence.py neurons --data fashion-mnist -o evidence     # Tables 6, 7
    python benchmarks/tune_evidence.py surrogates --data fashion-mnist -o evidence  # Table 11

The tables are the paper's. `fashion_small` at C = 4, three seeds each. `neurons`: trained as it is,
with random time constants, with those learned by gradient, with TPS's, with ReLUs everywhere, with
HNS's neurons, and with those that its energy loss leaves. `surrogates`: four surrogates in all
neurons, trained without and with DGS on the first stem layer.

A run is one `snnir` command with one thread, of at most five minutes; see `evidence.py`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import evidence
from evidence import Run, cost

from snnir import models

COMMON = (
    "--preset", "small", "--batch-size", "50", "--precision", "bf16", "--limit-train", "4000",
    "--validation", "500",
)  # fmt: skip
SEARCH = ("--epochs", "4", "--warmup-epochs", "1", "--retrain-epochs", "5")
SEEDS = (0, 1, 2)
SURROGATES = ("dspike", "triangle", "superspike", "arctan")
NEURONS: dict[str, tuple[str, ...]] = {
    "handcrafted": ("train", "--epochs", "5"),
    "random tau": ("tune", "--method", "random", *SEARCH),
    "LIF(tau) by gradient": ("tune", "--method", "tau", *SEARCH),
    "PLIF": ("tune", "--method", "plif", *SEARCH),
    "TPS": ("tune", "--method", "tps", *SEARCH),
    "ReLU": ("tune", "--method", "relu", *SEARCH),
    "HNS": ("tune", "--method", "hns", *SEARCH),
    "HNS, energy loss 0.01": ("tune", "--method", "hns", "--energy-weight", "0.01", *SEARCH),
}
DGS = ("tune", "--method", "dgs", "--nodes", "trunk.stem[0]", "--interval", "1", "--epochs", "5")


def runs(study: str, out: Path, data: str) -> list[Run]:
    """Group by group, a run per seed."""
    found = []
    base = models.source("fashion_small").text
    if study == "neurons":
        text = {"dspike": base}
        cases = [(group, "dspike", command) for group, command in NEURONS.items()]
    else:
        text = {name: base.replace("dspike(b=3)", f"{name}(b=3)") for name in SURROGATES}
        plain = NEURONS["handcrafted"]
        methods = (("without DGS", plain), ("with DGS", DGS))
        cases = [(f"{n} {how}", n, command) for n in SURROGATES for how, command in methods]
    for group, surrogate, command in cases:
        path = out / f"{surrogate}.snn"
        path.write_text(text[surrogate])
        for seed in SEEDS:
            verb, *options = command
            folder = out / f"{study}-{group.replace(' ', '-').replace(',', '')}-{seed}"
            arguments = (
                verb, str(path), "--set", "channels=4", "--data", data, *options, *COMMON,
                "--seed", str(seed),
            )  # fmt: skip
            found.append(Run(group, folder, arguments))
    return found


def result(run: Run, data: str) -> dict[str, Any]:
    """What a run printed, and what its network costs."""
    retrained = run.folder / "retrain"
    folder = retrained if retrained.exists() else run.folder
    weights = folder / "best.safetensors"
    return {**run.finish(), **cost(folder / "genotype.snn", weights, data)}


def main() -> None:
    given = evidence.parser(__doc__, ["neurons", "surrogates"]).parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    everything = runs(given.study, given.out, given.data)
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(Run.finish, everything))
    rows = [result(run, given.data) for run in everything]
    evidence.report(rows, given.out / f"{given.study}.json")


if __name__ == "__main__":
    main()
