"""The demo: a small network compiled, proved, and run on 1,000 real images through onnxruntime.

python -m snnir.demo [FOLDER]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from snnir import models
from snnir.analysis.summary import print_summary
from snnir.compiler import compile_network
from snnir.export.parity import session
from snnir.lower import SpikingModule

BATCH = 100


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    images, _ = models.fashion_mnist_sample()
    print("compiling fashion_small, batch norm calibrated on real Fashion-MNIST images …")
    compiled = compile_network(models.load("fashion_small"), inputs=[images], say=print)
    compiled.write(folder, command="python -m snnir.demo")
    print_summary(json.loads((folder / "report.json").read_text()), folder)

    exported = session(str(folder / compiled.model_name))
    module = SpikingModule(compiled.graph, compiled.folded_weights).eval()
    with torch.no_grad():
        torch_logits, torch_seconds = _run(lambda x: module(torch.from_numpy(x)).numpy(), images)
    onnx_logits, onnx_seconds = _run(lambda x: exported.run(["logits"], {"image": x})[0], images)

    table = Table(
        title=f"{len(images):,} test images of Fashion-MNIST, batches of {BATCH}", box=None
    )
    for name in ("runtime", "images/s", "same class as torch", "largest logit difference"):
        table.add_column(name, justify="right" if name != "runtime" else "left")
    for name, logits, seconds in (
        ("torch", torch_logits, torch_seconds),
        ("onnxruntime", onnx_logits, onnx_seconds),
    ):
        same = int((logits.argmax(1) == torch_logits.argmax(1)).sum())
        difference = np.abs(logits - torch_logits).max()
        table.add_row(name, f"{len(images) / seconds:,.0f}", f"{same:,}", f"{difference:.1e}")
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print(
        "\nThe weights are not trained, so the classes mean nothing yet: what counts is that both "
        "runtimes say the same. Logits differ where a membrane within rounding of its threshold "
        "flipped and the flip cascaded: so the proof above goes layer by layer."
    )
    console.print(f"Look at {(folder / 'report.html').resolve()}", soft_wrap=True)
    return 0 if compiled.passed else 1


def _run(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits of all images in batches, and the seconds they took."""
    run(images[:BATCH])
    start = time.perf_counter()
    logits = [run(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    return np.concatenate(logits), time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
