"""What several commands share: options, the genotype that is meant, ways to print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from snnir.genotype import ast

Genotype = Annotated[
    str, typer.Argument(metavar="F.snn", help="A genotype file, or the name of a model in the box.")
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Trained weights (safetensors). Default: the box's, where it has any."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the genotype: classes=100, steps=4, channels=36, input=1x28x28.",
    ),
]


def parsed_genotype(genotype: str, settings: list[str] | None) -> ast.Genotype:
    """The genotype that a file or a name stands for, retargeted. Raises SnnirError."""
    from snnir.genotype import parse, retarget
    from snnir.models import resolve

    return retarget(parse(resolve(genotype)), settings or [])


def box_weights(genotype: str, settings: list[str] | None) -> Path | None:
    """The trained weights of a model of the box, unless settings make it another network."""
    from snnir.models import trained_weights

    return None if settings else trained_weights(genotype)


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))


def say(line: str) -> None:
    print(line, file=sys.stderr)
