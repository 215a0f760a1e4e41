"""Commands that read networks of other code bases: import spikedhs, import nir."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from snnir.cli.app import app
from snnir.cli.options import Json, Settings, print_json, say
from snnir.errors import SnnirError

importing = typer.Typer(no_args_is_help=True, help="Read a network of another code base.")
app.add_typer(importing, name="import")


@importing.command()
def spikedhs(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A state_dict: .npz, .pth or .pt.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT.snn", help="The genotype.")
    ] = Path("spikedhs.snn"),
    weights: Annotated[
        Path | None,
        typer.Option(metavar="OUT.safetensors", help="The weights. Default: beside OUT.snn."),
    ] = None,
    cell: Annotated[
        Path | None,
        typer.Option(
            metavar="CELL.npy", help="The authors' cell, rows (edge, operation). Default: theirs."
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(metavar="PATH.npy", help="The cells' levels. Default: as the weights say."),
    ] = None,
    conventions: Annotated[
        Literal["paper", "authors"],
        typer.Option(help="Read CELL.npy row by row, or with each column sorted as their code."),
    ] = "paper",
    tau: Annotated[
        float | None,
        typer.Option(metavar="X", help="The leak factor. Default: the code base's (0.2 or 0.8)."),
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Read a trained SpikeDHS classifier: of its authors' public code or of SpikingJelly.

    Which of them trained it is told by the arrays' names. Steps and the input's size, which no
    checkpoint has, are 6 and 32x32 unless --set says otherwise: --set steps=4 --set input=3x48x48.
    """
    weights = weights or out.with_suffix(".safetensors")
    for file, suffix in ((out, ".snn"), (weights, ".safetensors")):
        if file.suffix != suffix or file.is_dir():
            raise SnnirError(f"{file}: expected a file whose name ends in {suffix}")
    from snnir.analysis.counts import parameter_count
    from snnir.files import writable_folder, write_whole
    from snnir.genotype import print_genotype, retarget
    from snnir.importers.spikedhs import read_spikedhs
    from snnir.ir import build
    from snnir.weights import check_weights, weights_bytes

    genotype, arrays = read_spikedhs(
        checkpoint, cell, path, conventions=conventions, tau=tau, say=say
    )
    genotype = retarget(genotype, settings or [])
    graph = build(genotype)
    check_weights(graph, arrays, name=str(checkpoint))
    for file in (out, weights):
        writable_folder(file.parent)
    write_whole(weights, weights_bytes(arrays))
    write_whole(out, print_genotype(genotype))
    if as_json:
        parameters = parameter_count(graph)
        print_json({"genotype": str(out), "weights": str(weights), "parameters": parameters})
    else:
        print(out)
        print(weights)


@importing.command()
def nir(
    file: Annotated[Path, typer.Argument(metavar="FILE.nir", help="An HDF5 file of NIR.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Default: ./NAME of the file.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="How often the input is shown. Default: the file's.")
    ] = None,
    client: Annotated[
        Literal["spikingjelly", "snntorch", "norse"] | None,
        typer.Option(
            help="Who wrote it: SpikingJelly's neurons fire at the threshold, the others' above. "
            "Default: the file's."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the inputs of the proof.")] = 0,
    as_json: Json = False,
) -> None:
    """Read a NIR file, export it to ONNX and prove that the export computes what was read.

    Writes network.onnx, graph.json, graph.safetensors and report.json. Steps and client are in
    files that snnir wrote, and are to be said for others. Exits with 1 when the proof fails; the
    model is then network.unproven.onnx.
    """
    from snnir.importers.export import export_imported
    from snnir.importers.nir import read_nir

    graph, weights = read_nir(file, steps=steps, client=client)
    folder = out or Path(file.stem)
    report = export_imported(graph, weights, folder, seed=seed)
    parity = report["parity"]
    if as_json:
        print_json(report)
    else:
        for layer in parity["layers"]:
            print(f"{layer['path']:40} firing rate {layer['firing_rate']:.3f}")
        print(
            f"{folder}/{report['model']}: {report['parameters']:,} parameters, "
            f"{report['macs']:,} MACs a step, {report['steps']} steps; "
            f"{parity['spikes_compared']:,} spikes compared"
        )
    if not parity["passed"]:
        print("the proof failed", file=sys.stderr)
        raise typer.Exit(1)
