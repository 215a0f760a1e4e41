"""Commands about networks: check, fmt, draw, compile, models."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from snnir.cli.app import app
from snnir.cli.options import (
    Genotype,
    Json,
    Settings,
    Weights,
    known_weights,
    parsed_genotype,
    print_json,
    say,
)
from snnir.errors import SnnirError

if TYPE_CHECKING:
    from snnir.compiler import Compiled


@app.command()
def check(genotype: Genotype, settings: Settings = None, as_json: Json = False) -> None:
    """Parse a genotype, build its graph and verify it; says what it costs and whether it is purely
    spiking once folded. Never loads torch."""
    from snnir.analysis.structure import structure_report
    from snnir.ir import build
    from snnir.passes import ANALYSIS, FOLDING, run_passes

    parsed = parsed_genotype(genotype, settings)
    graph = build(parsed)
    pipeline = ANALYSIS if parsed.searchable else FOLDING
    report = structure_report(graph, run_passes(pipeline, graph).graph)
    report |= {"nodes": len(graph), "searchable": parsed.searchable}
    if as_json:
        print_json(report)
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
    from snnir.files import write_whole
    from snnir.genotype import format_source
    from snnir.source import read_source

    sources = [(path, read_source(path)) for path in genotype]
    formatted = [(path, source, format_source(source)) for path, source in sources]
    changed = [(path, text) for path, source, text in formatted if text != source.text]
    for path, text in changed:
        if check_only:
            print(f"{path}: not formatted")
        else:
            write_whole(path, text)
            print(f"{path}: formatted")
    if check_only and changed:
        raise typer.Exit(1)


@app.command()
def draw(
    genotype: Genotype,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE.svg", help="Default: ./NAME.svg.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Draw the network and its cells as an SVG picture."""
    from snnir.analysis.draw import draw as drawing
    from snnir.files import write_whole

    parsed = parsed_genotype(genotype, settings)
    path = out or Path(f"{parsed.name}.svg")
    if path.suffix != ".svg":
        raise SnnirError(f"{path}: found suffix '{path.suffix}', expected .svg")
    write_whole(path, drawing(parsed))
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
    weights: Weights = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of weights and inputs that are not given.")
    ] = 0,
    target: Annotated[
        Literal["onnx", "nir"],
        typer.Option(help="onnx; nir: for SpikingJelly, snnTorch, Norse (docs/nir.md)."),
    ] = "onnx",
    form: Annotated[
        Literal["sequence", "step"],
        typer.Option(help="ONNX: all T steps at once, or one step, the state going in and out."),
    ] = "sequence",
    precision: Annotated[
        Literal["fp32", "exact", "int8"],
        typer.Option(
            help="exact: every sum exact, so every spike is the same in any runtime. int8: "
            "convolutions of spikes in 8 bits, calibrated on --data or --inputs."
        ),
    ] = "fp32",
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="X.npz",
            help="Arrays by input name to calibrate and prove on: frames [N, C, H, W], "
            "events [T, N, C, H, W].",
        ),
    ] = None,
    web: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a page, too, that classifies images in a browser."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:PATH]",
            help="In the place of --inputs: 64 training samples of a data set, as `train` names "
            "them.",
        ),
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Compile a genotype to ONNX or NIR and prove that it computes what the torch network computes.

    Writes network.onnx (or .nir), graph.json, graph.safetensors, weights.safetensors, report.json
    and report.html. Exits with 1 when the proof fails; the model is then network.unproven.onnx.
    Without weights, a model of the box has its own; others get seeded ones, batch norm calibrated.
    """
    parsed = parsed_genotype(genotype, settings)
    weights = weights or known_weights(genotype, settings)
    from snnir.compiler import compile_network
    from snnir.export.web import refuse_pageless
    from snnir.files import refuse_unwritable

    out = out or Path(parsed.name)
    refuse_unwritable(out, *([] if web is None else [web]))
    if web is not None:
        refuse_pageless(parsed, target, form)
    if inputs is not None and data is not None:
        raise SnnirError("found --inputs and --data, expected one of them")
    arrays = None
    if inputs is not None:
        arrays = _read_inputs(inputs, [i.name for i in parsed.inputs])
    elif data is not None:
        from snnir.reports import some_samples

        arrays = some_samples(parsed, data, seed=seed)
    compiled = compile_network(
        parsed,
        weights=weights,
        seed=seed,
        target=target,
        form=form,
        precision=precision,
        inputs=arrays,
        inputs_from="given" if data is None else f"{data}, training samples",
        say=say,
    )
    folder = compiled.write(out, command=shlex.join(["snnir", *sys.argv[1:]]))
    if web is not None and compiled.passed:
        _write_page(web, compiled, arrays, weights)
    report = json.loads((folder / "report.json").read_text())
    if as_json:
        print_json(report)
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
                "trained": box.trained_weights(name) is not None,
                "about": first.lstrip("# "),
            }
        )
    if as_json:
        print_json({"models": found})
        return
    for model in found:
        trained = "  trained" if model["trained"] else ""
        size = f"{model['parameters']:>11,} parameters  T = {model['steps']}"
        print(f"{model['name']:20} {size}{trained}")
        print(f"{'':20} {model['about']}")


def _write_page(
    folder: Path, compiled: Compiled, inputs: list[Any] | None, weights: Path | None
) -> None:
    """The web page, with examples and names of classes where they are known."""
    import numpy as np

    from snnir import models as box
    from snnir.data.images import FASHION_MNIST_CLASSES
    from snnir.export.web import NPM_INSTALL, write_web_page

    examples = inputs[0] if inputs else None
    classes: Sequence[str] = ()
    if weights is not None and weights == box.trained_weights("fashion_small"):
        images, labels = box.fashion_mnist_sample()
        examples = images[np.unique(labels, return_index=True)[1]]
        classes = FASHION_MNIST_CLASSES
    write_web_page(folder, compiled, examples=examples, classes=classes)
    say(f"a page: cd {folder}; {NPM_INSTALL}; python -m http.server")


def _read_inputs(path: Path, names: list[str]) -> list[Any]:
    """Arrays of an .npz file, in the network's order of inputs. Raises SnnirError."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise SnnirError(f"{path}: found no readable .npz file: {error}") from None
    missing = [name for name in names if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise SnnirError(f"{path}: found arrays {found}, expected {', '.join(names)}")
    return [arrays[name] for name in names]
