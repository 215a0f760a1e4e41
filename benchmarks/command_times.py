"""How long the commands take, as processes: `check` and `fmt` in under 0.7 s, `compile` of
SpikeDHS-CLA at C = 48 with its proof in under 20 s.

    python benchmarks/command_times.py

Prints the median of the runs; exits 1 when a median is over its limit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from snnir import models

ROWS = (
    (["check", "spikedhs_cla"], 9, 0.7),
    (["check", "stereo_space"], 9, 0.7),
    (["fmt", "--check", "GENOTYPE"], 9, 0.7),
    (["compile", "spikedhs_cla", "-o", "out"], 3, 20.0),
)
"""Arguments, runs, limit in seconds."""


def main() -> int:
    slow = False
    with tempfile.TemporaryDirectory() as folder:
        genotype = Path(folder, "network.snn")
        genotype.write_text(models.source("spikedhs_cla").text)
        for arguments, runs, limit in ROWS:
            given = [str(genotype) if a == "GENOTYPE" else a for a in arguments]
            seconds = []
            for _ in range(runs):
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-c", "from snnir.cli import main; main()", *given],
                    cwd=folder, check=True, capture_output=True,
                )  # fmt: skip
                seconds.append(time.perf_counter() - start)
            median = statistics.median(seconds)
            slow |= median > limit
            shown = " ".join(["snnir", *arguments]).replace("GENOTYPE", "network.snn")
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            print(f"{shown:40} {median:6.2f} s (limit {limit:g} s, {spread})")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
