"""The demo: the trained small network compiled, proved, and run on 1,000 real images through
onnxruntime.

python -m snnir.demo [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from snnir import models
from snnir.analysis.summary import print_summary
from snnir.compiler import compile_network
from snnir.lower import SpikingModule
from snnir.training.evaluate import Deployed, DeployedModel, DeployedModule

BATCH = 100


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    images, labels = models.fashion_mnist_sample()
    print("compiling fashion_small with its trained weights …")
    compiled = compile_network(
        models.load("fashion_small"),
        weights=models.trained_weights("fashion_small"),
        inputs=[images],
        say=print,
    )
    compiled.write(folder, command="python -m snnir.demo")
    print_summary(json.loads((folder / "report.json").read_text()), folder)

    module = SpikingModule(compiled.graph, compiled.folded_weights).eval()
    runtimes = {
        "torch": DeployedModule(module, torch.device("cpu")),
        "onnxruntime": DeployedModel(compiled.model, compiled.graph),
    }
    table = Table(
        title=f"{len(images):,} test images of Fashion-MNIST, batches of {BATCH}", box=None
    )
    for name in ("runtime", "accuracy", "firing rate", "images/s"):
        table.add_column(name, justify="right" if name != "runtime" else "left")
    x, target = torch.from_numpy(images), torch.from_numpy(labels)
    for name, network in runtimes.items():
        table.add_row(name, *_measured(network, x, target))
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print(
        "\nRuntimes may differ in a few spikes: fp32 sums in another order flip a membrane that is "
        "within rounding of its threshold. The proof above goes layer by layer."
    )
    console.print(f"Look at {(folder / 'report.html').resolve()}", soft_wrap=True)
    return 0 if compiled.passed else 1


def _measured(network: Deployed, x: torch.Tensor, target: torch.Tensor) -> tuple[str, str, str]:
    """Accuracy, firing rate and images per second of one runtime."""
    found = network.evaluate(zip(x.split(BATCH), target.split(BATCH), strict=True))
    speed = f"{found.samples / found.seconds:,.0f}"
    return f"{found.accuracy:.1%}", f"{found.firing_rate:.3f}", speed


if __name__ == "__main__":
    sys.exit(main())
