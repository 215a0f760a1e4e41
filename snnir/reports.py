"""What `snnir report` does, as functions: networks measured on data, alone or side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from snnir.analysis.chart import Chart
from snnir.analysis.compare import compare, render_comparison, to_csv
from snnir.analysis.draw import draw
from snnir.analysis.energy import CostModel, cost_models
from snnir.analysis.page import render_page
from snnir.analysis.report import full_report
from snnir.compiler import compile_network
from snnir.data import batches
from snnir.files import writable_folder, write_whole
from snnir.genotype import Genotype, parse
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.models import run_folder
from snnir.passes import FOLDING, run_passes
from snnir.source import read_source
from snnir.training.config import TrainingConfig, configured
from snnir.training.curves import training_charts
from snnir.training.evaluate import Deployed, DeployedModel, DeployedModule
from snnir.training.processes import usable_device
from snnir.training.record import Record, read_log
from snnir.training.run import Trained, evaluation_batch, open_splits
from snnir.training.tasks import Disparity, task_of

PROVED_SAMPLES = 64
"""Samples of a data set that the proof, and a calibration, may take."""

RUN_SAMPLES = 1000
"""Test samples at most that the page of a training run is measured on."""

Say = Callable[[str], None]
Runtime = Literal["torch", "onnx"]


@dataclass(frozen=True)
class NetworkReport:
    """A network and its report."""

    genotype: Genotype
    report: dict[str, Any]
    """What report.json holds."""
    history: Sequence[Record] = ()
    """Of its training, where that is known."""

    def write(self, folder: str | Path, *, command: str = "") -> Path:
        """report.json and report.html. Raises SnnirError."""
        folder, report = writable_folder(folder), self.report | {"command": command}
        charts: Sequence[Chart] = training_charts(self.history)
        write_whole(folder / "report.json", json.dumps(report, indent=1) + "\n")
        page = render_page(report, draw(self.genotype), charts=charts)
        write_whole(folder / "report.html", page)
        return folder


def report_network(
    genotype: Genotype,
    *,
    weights: str | Path | None = None,
    data: str | None = None,
    models: Sequence[CostModel] = (),
    runtime: Runtime = "torch",
    batch_size: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    download: bool = False,
    history: Sequence[Record] = (),
    say: Say = lambda line: None,
) -> NetworkReport:
    """Compile and prove a network, and measure it on a data set's test samples; without `data`, on
    seeded random inputs. `models` price its operations: those in the box when empty.

    Raises:
        SnnirError: a genotype, weights or data that do not fit.
    """
    if data is None:
        compiled = compile_network(genotype, weights=weights, seed=seed, models=models, say=say)
        return NetworkReport(genotype, compiled.report, history)
    network = build(genotype)
    config = configured(TrainingConfig(), {"limit_test": limit_test, "seed": seed})
    test = open_splits(network, data, config, download=download).test
    inputs = some_samples(genotype, data, seed=seed)
    task = task_of(network, diversity=config.diversity)
    sequences = isinstance(task, Disparity)  # of as many steps as the data set says
    compiled = compile_network(
        genotype, weights=weights, seed=seed, inputs=inputs, models=models, say=say,
        form="step" if sequences else "sequence",
    )  # fmt: skip
    say(f"measuring on {len(test):,} samples of {data}")
    deployed: Deployed
    if runtime == "onnx":
        deployed = DeployedModel(compiled.model, compiled.graph)
    else:
        chosen = usable_device(device)
        module = SpikingModule(compiled.graph, compiled.folded_weights).eval()
        deployed = DeployedModule(module, chosen)
    size = batch_size or evaluation_batch(task)
    found = deployed.evaluate(batches(test, size, seed=seed, workers=workers), task)
    folded = run_passes(FOLDING, network).graph
    measured = full_report(network, folded, deployed.counts, models or cost_models())
    report = compiled.report | measured
    report["inputs"] = {"source": f"{data}, test samples", "seed": seed, "samples": found.samples}
    report |= {"accuracy": found.accuracy, "measures": found.measures, "runtime": runtime}
    return NetworkReport(genotype, report, history)


def some_samples(genotype: Genotype, data: str, *, seed: int = 0) -> list[np.ndarray]:
    """At most PROVED_SAMPLES training samples, drawn at random, for the network's inputs: frames
    [N, C, H, W], events [T, N, C, H, W], a sequence shorter than the network's T steps beginning
    anew. Raises SnnirError."""
    network = build(genotype)
    config = configured(TrainingConfig(), {"limit_train": PROVED_SAMPLES, "seed": seed})
    train = open_splits(network, data, config).train
    wanted = PROVED_SAMPLES if len(network.network_inputs) == 1 else 8  # two views are large
    *inputs, _ = train.batch(range(min(wanted, len(train))))
    steps = np.arange(network.steps)
    return [x.numpy() if x.dim() == 4 else x.numpy()[steps % len(x)] for x in inputs]


def run_history(path_or_name: str | Path) -> list[Record]:
    """The epochs of a run's folder; none of anything else. Raises SnnirError."""
    run = run_folder(path_or_name)
    return read_log(run / "log.jsonl") if run and (run / "log.jsonl").exists() else []


def report_run(
    trained: Trained,
    data: str,
    config: TrainingConfig,
    *,
    device: str = "auto",
    workers: int = 0,
    say: Say = lambda line: None,
) -> NetworkReport:
    """Measure the best weights of a training run on at most RUN_SAMPLES test samples, and leave
    report.json and report.html in its folder. Raises SnnirError."""
    folder = trained.folder
    found = report_network(
        parse(read_source(folder / "genotype.snn")),
        weights=folder / "best.safetensors", data=data, history=trained.history,
        limit_test=min(RUN_SAMPLES, config.limit_test or RUN_SAMPLES), seed=config.seed,
        device=device, workers=workers, say=say,
    )  # fmt: skip
    found.write(folder)
    return found


def write_comparison(
    reports: Sequence[NetworkReport], folder: str | Path, *, command: str = ""
) -> dict[str, Any]:
    """compare.json and compare.html of several networks; returns the former. Raises SnnirError."""
    folder = writable_folder(folder)
    found = compare([one.report for one in reports]) | {"command": command}
    write_whole(folder / "compare.json", json.dumps(found, indent=1) + "\n")
    write_whole(folder / "compare.html", render_comparison(found))
    return found


def write_csv(reports: Sequence[NetworkReport], path: str | Path) -> None:
    """A line per network and layer. Raises SnnirError."""
    path = Path(path)
    writable_folder(path.parent)
    write_whole(path, to_csv([one.report for one in reports]))
