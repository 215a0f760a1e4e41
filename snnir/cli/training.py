"""Commands that run networks on data: train, eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Weights,
    Workers,
    known_weights,
    parsed_genotype,
    print_json,
    progress_bar,
    say,
)
from snnir.errors import SnnirError

if TYPE_CHECKING:
    from snnir.genotype import ast
    from snnir.training import Evaluation, Trained, TrainingConfig
    from snnir.training.stream import Streamed


@app.command()
def train(
    genotype: Genotype,
    data: Data,
    out: Out = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="P", help="cifar, imagenet, stereo: the paper's; small: a quick one."),
    ] = None,
    config: Config = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to start from. Default: seeded initial ones.")
    ] = None,
    resume: Resume = False,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Over which the learning rate rises.")
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
    """Train a network on a data set.

    Writes genotype.snn, config.toml, best.safetensors, last.safetensors, checkpoint.pt, log.jsonl,
    curve.svg and tensorboard/, and at the end report.html and report.json. Ctrl-C saves; --resume
    goes on, bit for bit on a CPU with the same number of threads.
    `torchrun --nproc-per-node N -m snnir train …` trains in N processes.
    """
    network = parsed_genotype(genotype, settings)
    from snnir.training import configured, train_network

    recipe = configured(
        _recipe(network, preset, config),
        {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "warmup_epochs": warmup_epochs,
            "precision": precision,
            "validation": validation,
            "limit_train": limit_train,
            "limit_test": limit_test,
            "seed": seed,
        },
    )
    with progress_bar() as show:
        trained = train_network(
            network, data, out or Path(network.name), recipe,
            weights=weights, resume=resume, device=device, workers=workers, download=download,
            show=show, say=say,
        )  # fmt: skip
    if not trained.first:
        return
    from snnir.reports import report_run

    report_run(trained, data, recipe, device=device, workers=workers, say=say)
    summary = _summary(trained)
    if as_json:
        print_json(summary)
    else:
        print(
            f"{trained.folder}: best epoch {trained.best.epoch}, accuracy on the test set "
            f"{summary['accuracy']:.2%}, firing rate {summary['firing_rate']:.3f}"
        )
        if trained.chosen_on == "test":
            print("the best epoch was chosen on the test set; --validation N holds out others")


@app.command("eval")
def evaluate(
    genotype: Genotype,
    data: Data,
    weights: Weights = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="M.onnx", help="Evaluate this exported model in onnxruntime instead."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Default: 100; of stereo sequences 1.")
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Also feed stereo recordings without end, state kept."),
    ] = False,
    limit_test: LimitTest = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples that --limit-test draws.")] = 0,
    device: Device = "auto",
    workers: Workers = 0,
    download: Download = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Accuracy, or errors of disparity and depth, and firing rate on a data set's test samples,
    batch norm folded."""
    network = parsed_genotype(genotype, settings)
    if model is not None and weights is not None:
        raise SnnirError("found --weights and --model, expected one of them: a model has its own")
    weights = weights or (None if model else known_weights(genotype, settings))
    from snnir.training import open_test
    from snnir.training.record import speed

    opened = open_test(
        network, data, weights=weights, model=model, limit_test=limit_test, seed=seed,
        device=device, download=download,
    )  # fmt: skip
    streamed = opened.stream() if stream else None  # first, since it may be refused
    found = opened.evaluate(batch_size=batch_size, workers=workers)
    runtime = "torch" if model is None else "onnxruntime"
    if as_json:
        print_json(
            {
                **found.measures,
                "firing_rate": found.firing_rate,
                "samples": found.samples,
                "runtime": runtime,
                "source": str(model or weights),
                "samples_per_second": found.samples / found.seconds,
                "firing_rates": found.firing_rates,
                **({} if streamed is None else {"stream": _streamed(streamed)}),
            }
        )
        return
    print(
        f"{_told(found)} of {found.samples:,} samples, firing rate "
        f"{found.firing_rate:.3f}, {speed(found.samples / found.seconds)} samples/s ({runtime})"
    )
    if streamed is not None:
        print(
            f"stream: {_told(streamed.evaluation)} of {streamed.evaluation.samples:,} samples, "
            f"{speed(streamed.frames / streamed.seconds)} frames/s"
        )


def _streamed(streamed: Streamed) -> dict[str, Any]:
    found = streamed.evaluation
    return {
        **found.measures,
        "firing_rate": found.firing_rate,
        "samples": found.samples,
        "frames": streamed.frames,
        "frames_per_second": streamed.frames / streamed.seconds,
    }


def _told(found: Evaluation) -> str:
    """The measures in words: `one pixel accuracy 91.00%, mean depth error 15.70 cm, …`."""
    first = next(iter(found.measures)).replace("_", " ")
    errors = [f"{name.replace('_', ' ')} {value:.2f}" for name, value in found.errors.items()]
    return ", ".join([f"{first} {found.accuracy:.2%}", *errors])


def _recipe(network: ast.Genotype, preset: str | None, config: Path | None) -> TrainingConfig:
    from snnir import training

    if preset is not None and config is not None:
        raise SnnirError("found --preset and --config, expected one of them")
    default = training.default_recipe(network)
    if config is not None:
        return training.read_config(config, default)
    return default if preset is None else training.preset(preset, training.PRESETS)


def _summary(trained: Trained) -> dict[str, Any]:
    found = trained.tested
    return {
        "folder": str(trained.folder),
        "accuracy": found.accuracy,
        **found.errors,
        "firing_rate": found.firing_rate,
        "best_epoch": trained.best.epoch,
        "chosen_on": trained.chosen_on,
        "last_accuracy": trained.history[-1].accuracy,
        "epochs": len(trained.history),
        "seconds": trained.history[-1].seconds,
    }
