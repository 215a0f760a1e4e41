"""Commands that write genotypes: search, tune."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from snnir.cli.app import app
from snnir.cli.options import (
    BatchSize,
    Config,
    Data,
    Device,
    Download,
    Epochs,
    Genotype,
    Json,
    LearningRate,
    LimitTest,
    LimitTrain,
    Out,
    Precision,
    Resume,
    Seed,
    Settings,
    Workers,
    parsed_genotype,
    print_json,
    progress_bar,
    say,
)
from snnir.errors import SnnirError

if TYPE_CHECKING:
    from snnir.search import Searched
    from snnir.search.tune import Tuned
    from snnir.training.config import D


@app.command()
def search(
    space: Annotated[
        str,
        typer.Argument(metavar="SPACE.snn", help="A space, or the name of one in the box."),
    ],
    data: Data,
    out: Out = None,
    method: Annotated[
        Literal["spikedhs", "random", "evolution"] | None,
        typer.Option(help="spikedhs: by gradient (default). The others train whole networks."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="P", help="cifar, stereo: as the paper; small: quick."),
    ] = None,
    config: Config = None,
    resume: Resume = False,
    epochs: Epochs = None,
    warmup_epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="In which the architecture does not move yet."),
    ] = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    architecture_learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Of Adam on alpha and beta.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of a baseline. Default: what spikedhs would cost."),
    ] = None,
    trial_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="For which a baseline trains each network.")
    ] = None,
    precision: Precision = None,
    limit_train: LimitTrain = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, metavar="C", help="Of the genotype that is written. Default: SPACE's."),
    ] = None,
    conventions: Annotated[
        Literal["paper", "authors"] | None,
        typer.Option(help="How the result is decoded: as in the paper or in its authors' code."),
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = 0,
    download: Download = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Search a space for a genotype.

    SPACE.snn has a cell with `search` or layers with `search depth=L levels=K`. Writes
    genotype.snn, which check, draw, train and compile take, and search.html; space.snn and
    config.toml; spikedhs also log.jsonl, cells/ (a picture per epoch), curve.svg, tensorboard/ and
    checkpoint.pt, the others trials.jsonl and trials/. Ctrl-C saves; --resume goes on to the same
    genotype. `torchrun --nproc-per-node N -m snnir
    search …` searches in N processes.
    """
    parsed = parsed_genotype(space, settings)
    from snnir.search import PRESETS, Search, SearchConfig
    from snnir.training import configured

    recipe = configured(
        _recipe(preset, config, SearchConfig(), PRESETS),
        {
            "method": method,
            "epochs": epochs,
            "warmup_epochs": warmup_epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "architecture_learning_rate": architecture_learning_rate,
            "trials": trials,
            "trial_epochs": trial_epochs,
            "precision": precision,
            "limit_train": limit_train,
            "channels": channels,
            "conventions": conventions,
            "seed": seed,
        },
    )
    folder = out or Path(parsed.name)
    job = Search(parsed, data, recipe, folder)
    with progress_bar() as show:
        found = job.run(
            resume=resume, device=device, workers=workers, download=download, show=show, say=say
        )
    if not found.first:
        return
    if as_json:
        print_json(_summary(found))
    else:
        print(f"{folder}/genotype.snn: {found.genotype.name}; {folder}/search.html shows it")


@app.command()
def tune(
    genotype: Genotype,
    data: Data,
    out: Out = None,
    method: Annotated[
        Literal["dgs", "tps", "hns", "tau", "plif", "random", "if", "alif", "relu"] | None,
        typer.Option(
            help="dgs: surrogate temperatures; tps: time constants (default); hns: spiking or not. "
            "tau, plif: time constants by gradient; random: drawn evenly; if, alif, relu: neurons "
            "of that kind."
        ),
    ] = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="As in annotate: 'trunk.stem[0]', 'trunk.layers[*].n0'. Default: all.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="P", help="cifar, stereo: as the paper; small: quick.")
    ] = None,
    config: Config = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to start from. Default: seeded initial ones.")
    ] = None,
    resume: Resume = False,
    epochs: Epochs = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="tps, hns: before the search begins.")
    ] = None,
    retrain_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Of training the result; 0: none.")
    ] = None,
    snapshots: Annotated[
        int | None,
        typer.Option(metavar="N", help="Train what was found after every N epochs too; not dgs."),
    ] = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    iterations: Annotated[
        int | None,
        typer.Option(metavar="N", help="tps: until tau moves; dgs: batches of one search."),
    ] = None,
    tau_step: Annotated[
        float | None, typer.Option(metavar="X", help="tps: from one candidate to the next.")
    ] = None,
    interval: Annotated[
        int | None, typer.Option(metavar="N", help="dgs: epochs from one search to the next.")
    ] = None,
    surrogates: Annotated[
        int | None, typer.Option(metavar="N", help="dgs: candidates of a surrogate.")
    ] = None,
    b_step: Annotated[
        float | None, typer.Option(metavar="X", help="dgs: from one candidate to the next.")
    ] = None,
    linear_estimate: Annotated[
        bool | None,
        typer.Option("--linear-estimate", help="dgs: one gradient for all triangles or arctans."),
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(metavar="A,B", help="hns: the kinds to choose from (lif,relu).")
    ] = None,
    energy_weight: Annotated[
        float | None, typer.Option(metavar="X", help="hns: lambda of the energy loss (0).")
    ] = None,
    energy_by_operations: Annotated[
        bool | None,
        typer.Option("--energy-by-operations", help="hns: layers count by their operations."),
    ] = None,
    precision: Precision = None,
    validation: Annotated[
        int | None,
        typer.Option(metavar="N", help="Training samples held out, to choose the best weights on."),
    ] = None,
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = 0,
    download: Download = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Tune a network's neurons: DGS, TPS, HNS, and what they are compared with.

    Writes genotype.snn, the same genotype with what was found in its `annotate` block, and in
    retrain/ the run that trains it; dgs searches while it trains and leaves best.safetensors. A
    search also leaves tune.html, which shows it, from its first epoch on.
    Methods compose: the result can be tuned again. Ctrl-C saves; --resume goes on.
    """
    parsed = parsed_genotype(genotype, settings)
    from snnir.search.tune import Tune
    from snnir.search.tune_config import PRESETS, TuneConfig
    from snnir.training import configured

    recipe = configured(
        _recipe(preset, config, TuneConfig(), PRESETS),
        {
            "method": method,
            "nodes": nodes or None,
            "epochs": epochs,
            "warmup_epochs": warmup_epochs,
            "retrain_epochs": retrain_epochs,
            "snapshots": snapshots,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "iterations": iterations,
            "tau_step": tau_step,
            "interval": interval,
            "surrogates": surrogates,
            "b_step": b_step,
            "linear_estimate": linear_estimate,
            "candidates": None if candidates is None else candidates.split(","),
            "energy_weight": energy_weight,
            "energy_by_operations": energy_by_operations,
            "precision": precision,
            "validation": validation,
            "limit_train": limit_train,
            "limit_test": limit_test,
            "seed": seed,
        },
    )
    folder = out or Path(parsed.name)
    with progress_bar() as show:
        found = Tune(parsed, data, recipe, folder).run(
            weights=weights, resume=resume, device=device, workers=workers, download=download,
            show=show, say=say,
        )  # fmt: skip
    if not found.first:
        return
    if found.trained is not None:
        from snnir.reports import report_run

        retraining = recipe.retraining()
        report_run(found.trained, data, retraining, device=device, workers=workers, say=say)
    summary = _tuned_summary(found)
    if as_json:
        print_json(summary)
    else:
        print(f"{summary['genotype']}: accuracy {summary['accuracy']:.2%}, {summary['weights']}")


def _recipe(preset: str | None, config: Path | None, default: D, presets: Mapping[str, D]) -> D:
    from snnir.training import config as training

    if preset is not None and config is not None:
        raise SnnirError("found --preset and --config, expected one of them")
    if config is not None:
        return training.read_config(config, default)
    return default if preset is None else training.preset(preset, presets)


def _tuned_summary(found: Tuned) -> dict[str, Any]:
    """Accuracy is the trained network's on the test set; without retraining, that of the last epoch
    with all candidates."""
    trained = found.trained
    folder = found.folder if trained is None else trained.folder
    weights = folder / ("last.safetensors" if trained is None else "best.safetensors")
    last = found.history[-1].accuracy if found.history else None
    return {
        "folder": str(found.folder),
        "genotype": str(found.folder / "genotype.snn"),
        "weights": str(weights),
        "accuracy": last if trained is None else trained.tested.accuracy,
    }


def _summary(found: Searched) -> dict[str, Any]:
    last = found.history[-1].scalars if found.history else {}
    return {
        "folder": str(found.folder),
        "genotype": str(found.folder / "genotype.snn"),
        "seconds": found.seconds,
        "trials": len(found.trials),
        **{name.replace("/", "_"): x for name, x in last.items() if name.startswith("entropy/")},
    }
