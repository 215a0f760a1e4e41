"""The command that finds genotypes: search."""

from __future__ import annotations

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
    from snnir.search import SearchConfig, Searched


@app.command()
def search(
    space: Genotype,
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
        Literal["paper", "authors"],
        typer.Option(help="How the result is decoded: as in the paper or in its authors' code."),
    ] = "paper",
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = 0,
    download: Download = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Search a space for a genotype.

    SPACE.snn has a cell with `search` or layers with `search depth=L levels=K`. Writes
    genotype.snn, which check, draw, train and compile take, and search.html; space.snn,
    config.toml, log.jsonl, cells/ (a picture per epoch), curve.svg, tensorboard/ and checkpoint.pt.
    Ctrl-C saves; --resume goes on to the same genotype. `torchrun --nproc-per-node N -m snnir
    search …` searches in N processes.
    """
    parsed = parsed_genotype(space, settings)
    from snnir.search import Search
    from snnir.training import configured

    recipe = configured(
        _recipe(preset, config),
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
            "seed": seed,
        },
    )
    folder = out or Path(parsed.name)
    job = Search(parsed, data, recipe, folder, conventions=conventions, channels=channels)
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


def _recipe(preset: str | None, config: Path | None) -> SearchConfig:
    from snnir import search as package
    from snnir.training import config as training

    if preset is not None and config is not None:
        raise SnnirError("found --preset and --config, expected one of them")
    if config is not None:
        return training.read_config(config, package.SearchConfig())
    if preset is not None:
        return training.preset(preset, package.PRESETS)
    return package.SearchConfig()


def _summary(found: Searched) -> dict[str, Any]:
    last = found.history[-1].scalars if found.history else {}
    return {
        "folder": str(found.folder),
        "genotype": str(found.folder / "genotype.snn"),
        "seconds": found.seconds,
        "trials": len(found.trials),
        **{name.replace("/", "_"): x for name, x in last.items() if name.startswith("entropy/")},
    }
