"""The `snnir` command. Thin: each command reads its input, calls one function and prints.

Exit codes: 0 done, 1 a check failed, 2 the input is wrong, 130 interrupted. Imports are inside the
commands, so that `check` and `fmt` answer without loading torch.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from snnir import __version__
from snnir.errors import SnnirError

app = typer.Typer(
    name="snnir",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compile genotypes of spiking networks to PyTorch and ONNX, with proofs.",
)

Genotype = Annotated[
    str, typer.Argument(metavar="F.snn", help="A genotype file, or the name of a model in the box.")
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")
]


def main() -> None:
    """Run the command line; turns errors into exit codes."""
    try:
        app(prog_name="snnir")
    except SnnirError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


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


@app.command()
def check(genotype: Genotype, as_json: Json = False) -> None:
    """Parse a genotype, build its graph and verify it; says what it costs and whether it is purely
    spiking once folded. Never loads torch."""
    from snnir.analysis.report import structure_report
    from snnir.genotype import parse
    from snnir.ir import build
    from snnir.models import resolve
    from snnir.passes import ANALYSIS, FOLDING, run_passes

    parsed = parse(resolve(genotype))
    graph = build(parsed)
    pipeline = ANALYSIS if parsed.searchable else FOLDING
    report = structure_report(graph, run_passes(pipeline, graph).graph)
    report |= {"nodes": len(graph), "searchable": parsed.searchable}
    if as_json:
        _print_json(report)
        return
    purity = "purely spiking after folding" if report["spike_pure"] else "not purely spiking:"
    if parsed.searchable:
        purity = "a search space: nothing to fold yet"
    print(
        f"{report['network']}: {report['nodes']} nodes, {report['parameters']:,} parameters, "
        f"{report['macs']:,} MACs a step, {report['steps']} steps; {purity}"
    )
    if not parsed.searchable:
        for violation in report["violations"]:
            print(f"  {violation['path']} {violation['reason']}")


@app.command()
def fmt(
    genotype: Annotated[list[Path], typer.Argument(metavar="F.snn...", help="Genotype files.")],
    check_only: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a file would change.")
    ] = False,
) -> None:
    """Format genotype files in place, comments kept."""
    from snnir.genotype import format_source
    from snnir.source import read_source

    sources = [(path, read_source(path)) for path in genotype]
    formatted = [(path, source, format_source(source)) for path, source in sources]
    changed = [(path, text) for path, source, text in formatted if text != source.text]
    for path, text in changed:
        if check_only:
            print(f"{path}: not formatted")
        else:
            _write_whole(path, text)
            print(f"{path}: formatted")
    if check_only and changed:
        raise typer.Exit(1)


@app.command()
def draw(
    genotype: Genotype,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE.svg", help="Default: ./NAME.svg.")
    ] = None,
) -> None:
    """Draw the network and its cells as an SVG picture."""
    from snnir.analysis.draw import draw as drawing
    from snnir.genotype import parse
    from snnir.models import resolve

    parsed = parse(resolve(genotype))
    path = out or Path(f"{parsed.name}.svg")
    if path.suffix != ".svg":
        raise SnnirError(f"{path}: found suffix '{path.suffix}', expected .svg")
    _write_whole(path, drawing(parsed))
    print(path)


@app.command("compile")
def compile_(
    genotype: Genotype,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Output folder; default ./NAME of the network."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Trained weights (safetensors); without, seeded ones, batch norm calibrated."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of weights and inputs that are not given.")
    ] = 0,
    form: Annotated[
        Literal["sequence", "step"],
        typer.Option(help="All T steps at once, or one step with the state going in and out."),
    ] = "sequence",
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="X.npz",
            help="Arrays by input name to calibrate and prove on: frames [N, C, H, W], "
            "events [T, N, C, H, W].",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile a genotype to ONNX and prove that it computes what the torch network computes.

    Writes network.onnx, graph.json, graph.safetensors, weights.safetensors, report.json and
    report.html. Exits with 1 when the proof fails; the model is then named network.unproven.onnx.
    """
    from snnir.genotype import parse
    from snnir.models import resolve

    parsed = parse(resolve(genotype))
    from snnir.compiler import compile_network

    arrays = None if inputs is None else _read_inputs(inputs, [i.name for i in parsed.inputs])
    compiled = compile_network(
        parsed, weights=weights, seed=seed, form=form, inputs=arrays, say=_say
    )
    folder = compiled.write(out or Path(parsed.name), command=shlex.join(["snnir", *sys.argv[1:]]))
    report = json.loads((folder / "report.json").read_text())
    if as_json:
        _print_json(report)
    else:
        from snnir.analysis.summary import print_summary

        print_summary(report, folder)
    if not compiled.passed:
        print("the proof failed", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def models(as_json: Json = False) -> None:
    """What is in the box."""
    from snnir import models as box
    from snnir.analysis.counts import parameter_count
    from snnir.ir import build

    found = []
    for name in box.names():
        parsed = box.load(name)
        first = next(line for line in box.source(name).text.splitlines() if line.startswith("#"))
        found.append(
            {
                "name": name,
                "parameters": parameter_count(build(parsed)),
                "steps": parsed.steps,
                "searchable": parsed.searchable,
                "about": first.lstrip("# "),
            }
        )
    if as_json:
        _print_json({"models": found})
        return
    for model in found:
        print(f"{model['name']:20} {model['parameters']:>11,} parameters  T = {model['steps']}")
        print(f"{'':20} {model['about']}")


def _read_inputs(path: Path, names: list[str]) -> list[Any]:
    """Arrays of an .npz file, in the network's order of inputs. Raises SnnirError."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise SnnirError(f"{path}: found no readable .npz file: {error}") from None
    missing = [name for name in names if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise SnnirError(f"{path}: found arrays {found}, expected {', '.join(names)}")
    return [arrays[name] for name in names]


def _write_whole(path: Path, text: str) -> None:
    """Write under a temporary name and rename. Raises SnnirError."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, delete=False
        ) as file:
            file.write(text)
        if path.exists():
            os.chmod(file.name, path.stat().st_mode)
        else:
            os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise SnnirError(f"{path}: cannot be written: {error.strerror}") from None


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))


def _say(line: str) -> None:
    print(line, file=sys.stderr)
