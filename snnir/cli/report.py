"""The command that measures networks: report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from snnir.cli.app import app
from snnir.cli.options import (
    Device,
    Download,
    Json,
    LimitTest,
    Settings,
    Workers,
    known_weights,
    parsed_genotype,
    print_json,
    say,
)
from snnir.errors import CheckFailed, SnnirError


@app.command()
def report(
    genotypes: Annotated[
        list[str],
        typer.Argument(
            metavar="F.snn...",
            help="Genotype files, folders of runs, or models of the box; several are compared.",
        ),
    ],
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            help="Trained weights (safetensors), once per network. Default: the run's or the "
            "box's, where there are any."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:PATH]",
            help="The test samples to measure on, as `eval` takes them. Default: seeded random "
            "inputs.",
        ),
    ] = None,
    cost_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="What prices the operations: 45nm, memory, loihi, truenorth, or your own file. "
            "May be repeated. Default: those of the box.",
        ),
    ] = None,
    runtime: Annotated[
        Literal["torch", "onnx"],
        typer.Option(help="What runs and counts: the module, or the exported model."),
    ] = "torch",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="Default: the run's folder, or ./NAME of the network; of several, ./report.",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Also write a line per network and layer."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    limit_test: LimitTest = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of weights and inputs not given, and of --limit-test.")
    ] = 0,
    device: Device = "auto",
    workers: Workers = 0,
    download: Download = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """What networks cost and how they fire: parameters, MACs, SynOps, energy, firing rates.

    Writes report.json and report.html; of several networks compare.json and compare.html, and the
    report of each in a folder of its own. Counts are of every spike of every sample.
    """
    from snnir.analysis.energy import cost_model as find_model

    models = [find_model(name) for name in cost_model or ()]
    if len({model.name for model in models}) < len(models):
        raise SnnirError("--cost-model: found two models of one name, expected different names")
    if csv is not None and csv.suffix != ".csv":
        raise SnnirError(f"--csv: found {csv}, expected a name that ends in .csv")
    if data is None:
        measuring = {
            "--runtime": runtime != "torch", "--batch-size": batch_size, "--limit-test": limit_test,
            "--device": device != "auto", "--workers": workers, "--download": download,
        }  # fmt: skip
        for option in (name for name, given in measuring.items() if given):
            raise SnnirError(f"{option}: found no --data, expected test samples to measure on")
    if weights and len(weights) != len(genotypes):
        raise SnnirError(
            f"--weights: found {len(weights)}, expected one for each of {len(genotypes)} networks"
        )
    networks = [parsed_genotype(genotype, settings) for genotype in genotypes]
    from snnir.analysis.summary import print_comparison, print_report
    from snnir.files import refuse_unwritable
    from snnir.models import run_folder
    from snnir.reports import report_network, run_history, write_comparison, write_csv

    own = not weights and not settings  # else a run's folder keeps the report of its own weights
    if len(networks) > 1:
        folder = out or Path("report")
    else:
        folder = out or (run_folder(genotypes[0]) if own else None) or Path(networks[0].name)
    refuse_unwritable(folder, *([] if csv is None else [csv.parent]))
    found = [
        report_network(
            network,
            weights=weights[number] if weights else known_weights(genotypes[number], settings),
            data=data, models=models, runtime=runtime, batch_size=batch_size,
            limit_test=limit_test, seed=seed, device=device, workers=workers, download=download,
            history=run_history(genotypes[number]) if own else [], say=say,
        )
        for number, network in enumerate(networks)
    ]  # fmt: skip
    command = shlex.join(["snnir", *sys.argv[1:]])
    result: dict[str, Any]
    if len(found) == 1:
        found[0].write(folder, command=command)
        result = found[0].report
    else:
        result = write_comparison(found, folder, command=command)
        for name, one in zip(result["networks"], found, strict=True):
            one.write(folder / name, command=command)
        result = result | {"reports": [one.report for one in found]}
    if csv is not None:
        write_csv(found, csv)
    if as_json:
        print_json(result)
    elif len(found) == 1:
        print_report(result, folder)
    else:
        print_comparison(result, folder)
    if not all(one.report["parity"]["passed"] for one in found):
        raise CheckFailed("the proof failed")
