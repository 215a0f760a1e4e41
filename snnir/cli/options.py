"""What several commands share: options, the genotype that is meant, ways to print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from snnir.genotype import ast
    from snnir.training import Progress

Genotype = Annotated[
    str,
    typer.Argument(
        metavar="F.snn", help="A genotype file, the folder of a run, or a model of the box."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Trained weights (safetensors). Default: the run's or the box's, where there are any."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the genotype: classes=100, steps=4, channels=36, input=1x28x28, "
        "neuron=lif(tau=0.25).",
    ),
]


Data = Annotated[
    str,
    typer.Option(
        metavar="NAME[:PATH]",
        help="cifar10, cifar100, imagenet, fashion-mnist, digits, folder:PATH, n-mnist, "
        "dvs-gesture, cifar10-dvs, mvsec or synthetic-stereo, and where it lies.",
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read and augment samples.")]
LimitTest = Annotated[
    int | None, typer.Option(metavar="N", help="At most N test samples, drawn at random.")
]
Seed = Annotated[int | None, typer.Option(help="Of weights, order and augmentation (0).")]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", metavar="DIR", help="Default: ./NAME of the network."),
]
Config = Annotated[
    Path | None, typer.Option(metavar="C.toml", help="A recipe as config.toml of a run holds it.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in DIR, to the same result.")
]
Epochs = Annotated[int | None, typer.Option(metavar="N")]
BatchSize = Annotated[int | None, typer.Option(metavar="N", help="Of all processes together.")]
LearningRate = Annotated[float | None, typer.Option(metavar="X")]
Precision = Annotated[Literal["fp32", "bf16"] | None, typer.Option()]
LimitTrain = Annotated[
    int | None, typer.Option(metavar="N", help="At most N training samples, drawn at random.")
]


def parsed_genotype(genotype: str, settings: list[str] | None) -> ast.Genotype:
    """The genotype that a file or a name stands for, retargeted. Raises SnnirError."""
    from snnir.genotype import parse, retarget
    from snnir.models import resolve

    return retarget(parse(resolve(genotype)), settings or [])


def known_weights(genotype: str, settings: list[str] | None) -> Path | None:
    """The trained weights of a run's folder or a model of the box, unless settings make it another
    network."""
    from snnir.models import trained_weights

    return None if settings else trained_weights(genotype)


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))


def say(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A line that follows the training, on a terminal; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    from snnir.training.record import speed

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[numbers]}"),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0",
    )
    with bar:
        task = bar.add_task("reading data", total=None, numbers="")

        def show(now: Progress) -> None:
            minutes, seconds = divmod(int(now.seconds_left), 60)
            hours, minutes = divmod(minutes, 60)
            numbers = (
                f"loss {now.loss:.3f} accuracy {now.accuracy:.1%} firing {now.firing_rate:.3f} "
                f"{speed(now.samples_per_second)}/s {hours}:{minutes:02}:{seconds:02} left"
            )
            bar.update(
                task, total=now.steps, completed=now.step, numbers=numbers,
                description=f"epoch {now.epoch}",
            )  # fmt: skip

        yield show
