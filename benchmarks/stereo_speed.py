"""Frames per second of the stereo network as a stream, beside a dense network of DDES's size.

    python benchmarks/stereo_speed.py --rounds 10

Step models in onnxruntime, one frame of 346x260 after another, state kept, all cores. DDES needs
37,917 million multiply-accumulates a frame (paper, Table 8); the dense network has our layers with
ReLU neurons, wider, and as many. Models take turns, a frame each, and a ratio is that of the
medians of one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

import snnir
from snnir import models
from snnir.data import Request, open_data
from snnir.data.stereo import Sequences
from snnir.genotype import Genotype, parse, retarget

NETWORK: Final = "spikedhs_stereo"
DENSE: Final = ("neuron=relu", "matching.channels=12")
DDES_MACS: Final = 37_917e6
CLOSE: Final = 0.02
"""How far from DDES's the dense network's work may be."""


def stepped(genotype: Genotype, precision: str) -> tuple[snnir.Runtime, dict[str, Any]]:
    """A step model with seeded weights, proved, and what was counted of it."""
    compiled = snnir.compile(genotype, form="step", precision=precision)
    assert compiled.passed
    return snnir.Runtime(compiled.model.SerializeToString()), compiled.report


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--out", type=Path, metavar="F.json")
    given = options.parse_args()
    genotype = parse(models.source(NETWORK))
    wanted = {
        "spiking, fp32": (genotype, "fp32"),
        "spiking, exact": (genotype, "exact"),
        "spiking, int8": (genotype, "int8"),
        "dense, fp32": (retarget(genotype, DENSE), "fp32"),
    }
    made = {name: stepped(*what) for name, what in wanted.items()}
    dense_macs = made["dense, fp32"][1]["macs"]
    assert abs(dense_macs / DDES_MACS - 1) < CLOSE

    data = open_data("synthetic-stereo,stacks=1", Request("stereo", (5, 260, 346), None))
    source = data.test.source
    assert isinstance(source, Sequences)
    views = source.frames(0, range(source.recordings[0].frames))[:2]
    left, right = (view[:, None].astype(np.float32) for view in views)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(given.rounds + 2):
        frame = number % len(left)
        for name, (runtime, _) in made.items():
            start = time.perf_counter()
            runtime.step(left[frame], right[frame])
            if number >= 2:  # the first ones allocate
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    found = {
        name: {
            "parameters": report["parameters"],
            "macs": report["macs"],
            "firing_rate": report["firing_rate"],
            "frames_per_second": 1 / medians[name],
            "speed_beside_dense": medians["dense, fp32"] / medians[name],
        }
        for name, (_, report) in made.items()
    }
    for name, row in found.items():
        print(name, ", ".join(f"{key} {value:,.3g}" for key, value in row.items()))
    if given.out:
        given.out.write_text(json.dumps({"rounds": given.rounds, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
