"""The application that commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

from snnir import __version__

app = typer.Typer(
    name="snnir",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compile genotypes of spiking networks to PyTorch and ONNX, with proofs.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"snnir {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass
