"""snnir: genotypes of spiking networks compiled to PyTorch and ONNX, with proofs.

module = snnir.load("spikedhs_cla")                       # an nn.Module
trained = snnir.train("genotype.snn", "cifar10:PATH", "run", epochs=100)
compiled = snnir.compile("genotype.snn", out="network")   # network/network.onnx, report.html, …
logits = snnir.Runtime("network/network.onnx").run(frames)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

__version__ = "0.1.0"

if TYPE_CHECKING:
    import numpy as np

    from snnir.compiler import Compiled
    from snnir.export.runtime import Runtime
    from snnir.genotype import Genotype
    from snnir.lower import SpikingModule
    from snnir.training import Trained, TrainingConfig

__all__ = ["Runtime", "__version__", "compile", "load", "parse", "train"]


def __getattr__(name: str) -> Any:
    """`Runtime`, which loads onnxruntime once it is asked for."""
    if name == "Runtime":
        from snnir.export.runtime import Runtime

        return Runtime
    raise AttributeError(f"module 'snnir' has no attribute '{name}'")


def parse(text: str, name: str = "<text>") -> Genotype:
    """Read genotype text; `name` stands for the file in errors.

    Raises:
        GenotypeError: with everything that is wrong in it.
    """
    from snnir.genotype import parse

    return parse(text, name)


def load(
    genotype: str | Path | Genotype, weights: str | Path | None = None, *, seed: int = 0
) -> SpikingModule:
    """The network as an `nn.Module`, in training mode as torch modules start.

    Args:
        genotype: a `.snn` file, the name of a model in the box, or a parsed genotype.
        weights: a safetensors file keyed by node path; without one, a model named in the box has
            its trained weights where it has any, and others seeded initial ones.

    The module takes [N, C, H, W] (shown at every step) or [T, N, C, H, W] and returns logits
    [N, classes]; see `snnir.lower.SpikingModule`.

    Raises:
        SnnirError: unreadable or wrong genotype, weights of another network.
    """
    from snnir.ir import build
    from snnir.lower import SpikingModule
    from snnir.passes import TRAINING, run_passes
    from snnir.weights import read_weights

    graph = build(_genotype(genotype))
    weights = weights or _known_weights(genotype)
    arrays = None if weights is None else read_weights(weights, graph)
    return SpikingModule(run_passes(TRAINING, graph).graph, arrays, seed=seed)


def compile(
    genotype: str | Path | Genotype,
    out: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    target: Literal["onnx", "nir"] = "onnx",
    form: Literal["sequence", "step"] = "sequence",
    precision: Literal["fp32", "exact", "int8"] = "fp32",
    inputs: Sequence[np.ndarray] | None = None,
) -> Compiled:
    """Fold, export to ONNX or NIR and prove; with `out`, write the folder that `snnir compile`
    writes.

    `inputs` (one array per network input, frames [N, C, H, W] or events [T, N, C, H, W], fp32) are
    what batch norm is calibrated on and the proof runs on; seeded random ones when None. With
    `precision="exact"` every spike is the same in any runtime (docs/exact.md), with "int8"
    convolutions of spikes are calibrated on `inputs` and run in 8 bits (docs/int8.md).

    Of the result, `passed` says whether the proof holds and `report` is `report.json`.

    Raises:
        SnnirError: wrong genotype, weights or inputs; nothing is written.
    """
    from snnir.compiler import compile_network

    compiled = compile_network(
        _genotype(genotype),
        weights=weights or _known_weights(genotype),
        seed=seed,
        target=target,
        form=form,
        precision=precision,
        inputs=inputs,
    )
    if out is not None:
        compiled.write(out)
    return compiled


def train(
    genotype: str | Path | Genotype,
    data: str,
    out: str | Path,
    *,
    config: TrainingConfig | None = None,
    weights: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    download: bool = False,
    **settings: Any,
) -> Trained:
    """Train a network on a data set (`NAME` or `NAME:PATH`) and fill the folder `out` as
    `snnir train` does.

    `settings` are fields of `TrainingConfig` (epochs=3, batch_size=100, …) that replace those of
    `config`. Training starts from `weights`, or else from seeded initial ones. Progress is logged
    to nobody; the result's `history` has a record per epoch.

    Raises:
        SnnirError: wrong genotype, data or settings; Diverged (of the same kind): the loss is not
            finite.
    """
    from snnir.reports import report_run
    from snnir.training import configured, default_recipe, train_network

    network = _genotype(genotype)
    recipe = configured(config or default_recipe(network), settings)
    trained = train_network(
        network,
        data,
        out,
        recipe,
        weights=weights,
        resume=resume,
        device=device,
        workers=workers,
        download=download,
    )
    if trained.first:
        report_run(trained, data, recipe, device=device, workers=workers)
    return trained


def _known_weights(genotype: str | Path | Genotype) -> Path | None:
    from snnir.models import trained_weights

    return trained_weights(genotype) if isinstance(genotype, str) else None


def _genotype(genotype: str | Path | Genotype) -> Genotype:
    from snnir.genotype import Genotype, parse
    from snnir.models import resolve

    return genotype if isinstance(genotype, Genotype) else parse(resolve(genotype))
