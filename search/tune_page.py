"""What a search of neurons did and found, as one HTML file that opens from disk without a
network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from snnir import __version__
from snnir.analysis.chart import Chart, Series, colour
from snnir.analysis.draw import draw
from snnir.analysis.page import html_pages
from snnir.genotype import Genotype, ast, print_genotype, print_statement
from snnir.ir.build import build
from snnir.ir.nodes import Neuron
from snnir.lower.surrogates import SURROGATES
from snnir.passes.apply_annotations import owner_path
from snnir.search.neurons import KINDS, tunable
from snnir.search.tune_config import TuneConfig
from snnir.training.curves import over_epochs, scalars, training_charts
from snnir.training.record import Record
from snnir.training.run import Trained

MOVING = {"b": "temperature b", "tau": "leak factor tau", "tau_a": "threshold decay tau_a"}
"""What a record's scalars may hold by layer, and what it is called."""


@dataclass(frozen=True)
class Layer:
    """Neurons of one path in the language."""

    path: str
    before: Neuron
    after: Neuron
    colour: str
    """Of its lines; none where it is not tuned."""
    rates: tuple[float | None, float | None]
    """Firing rates in the first and the last epoch; None: nothing spikes there."""


def render_tune(
    base: Genotype,
    found: Genotype,
    config: TuneConfig,
    history: Sequence[Record],
    *,
    data: str,
    trained: Trained | None = None,
) -> str:
    """Fill tune.html.j2: of a search of `base`'s neurons with at least one epoch.

    `found` is what the last epoch has come to, `trained` the run that trains it.
    """
    pages = html_pages("snnir.search")
    pages.filters["to"] = _change
    layers = _layers(base, found, history)
    tuned = [layer for layer in layers if layer.colour]
    warmup = config.warmup_epochs if config.method in ("tps", "hns") else 0
    return pages.get_template("tune.html.j2").render(
        version=__version__,
        found=found,
        annotations="".join(print_statement(block) for block in found.all(ast.Annotate)),
        text=print_genotype(found),
        drawing=draw(found),
        config=config,
        data=data,
        history=history,
        trained=trained,
        warmup=warmup,
        layers=layers,
        tuned=tuned,
        curves=_curves(history, warmup),
        moving=list(_moving(history, config, tuned, warmup)),
        firing=_firing(history, layers),
        shapes=list(_shapes(tuned)) if config.method == "dgs" else [],
        gradients=_gradients(history, tuned[0]) if config.method == "dgs" else None,
        snapshots=_snapshots(history),
    )


def _change(before: float | str, after: float | str) -> str:
    """`0.2 → 0.3`, or `0.2` where it stays."""
    old, new = (x if isinstance(x, str) else f"{x:g}" for x in (before, after))
    return new if old == new else f"{old} → {new}"


# --- layers -------------------------------------------------------------------------------------


def _layers(base: Genotype, found: Genotype, history: Sequence[Record]) -> list[Layer]:
    before, after = (tunable(build(genotype), (), KINDS) for genotype in (base, found))
    recorded = history[0].scalars
    tuned = [p for p in before if any(f"{name}/{p}" in recorded for name in (*MOVING, *KINDS))]
    colours = {path: colour(number, len(tuned)) for number, path in enumerate(tuned)}
    return [
        Layer(
            path=path,
            before=neurons[0],
            after=after[path][0],
            colour=colours.get(path, ""),
            rates=(_rate(history[0], neurons), _rate(history[-1], neurons)),
        )
        for path, neurons in before.items()
    ]


def _rate(record: Record, neurons: Sequence[Neuron]) -> float | None:
    """Spikes per value of a layer, of its candidates as they are mixed; those that do not spike
    left out."""
    total = weight = 0.0
    for neuron in neurons:
        for path, rate in record.firing_rates.items():
            own, _, number = path.rpartition(".")
            if path == neuron.path:
                share = 1.0
            elif own == neuron.path:
                share = record.scalars[f"weight/{owner_path(own)}/{number}"]
            else:
                continue
            total, weight = total + share * rate, weight + share
    return total / weight if weight else None


# --- charts -------------------------------------------------------------------------------------


def _curves(history: Sequence[Record], warmup: int) -> list[Chart]:
    """The network over the epochs."""
    energies = over_epochs(history, "all layers", scalars(history, "energy_loss"))
    relus = over_epochs(history, "tuned", scalars(history, "share/relu"), ".1%")
    charts = training_charts(history, warmup=warmup)
    if energies.points:
        charts.append(Chart("energy loss", [energies], "epoch", warmup=warmup))
    if relus.points:
        title = "neurons that are a relu"
        charts.append(Chart(title, [relus], "epoch", 0, percent=True, warmup=warmup))
    return charts


def _moving(
    history: Sequence[Record], config: TuneConfig, tuned: Sequence[Layer], warmup: int
) -> Iterator[Chart]:
    """What the search moves over the epochs, a line per layer (paper Figures 6c, 7a)."""
    kinds = {kind: f"weight of {kind}" for kind in config.candidates[1:]}
    low, high = (0, 1) if config.method == "hns" else (None, None)
    for name, title in (kinds if config.method == "hns" else MOVING).items():
        lines = []
        for layer in tuned:
            values = scalars(history, f"{name}/{layer.path}")
            lines.append(over_epochs(history, layer.path, values, colour=layer.colour))
        drawn = [line for line in lines if line.points]
        if drawn:
            yield Chart(title, drawn, "epoch", low, high, warmup=warmup)


def _firing(history: Sequence[Record], layers: Sequence[Layer]) -> Chart:
    """Rates by layer in the first and the last epoch (paper Figure 6b)."""
    lines = []
    for which, epoch in enumerate(dict.fromkeys((history[0].epoch, history[-1].epoch))):
        rates = [(number, layer.rates[which]) for number, layer in enumerate(layers, 1)]
        points = [(number, rate) for number, rate in rates if rate is not None]
        lines.append(Series(f"epoch {epoch}", points))
    return Chart("firing rate by layer", lines, "layer", 0, percent=True)


def _shapes(tuned: Sequence[Layer]) -> Iterator[Chart]:
    """The surrogates with every b that a layer had at first or has now (paper Figure 8)."""
    distance = torch.linspace(-1.5, 1.5, 241, dtype=torch.float64)
    for kind in dict.fromkeys(layer.before.surrogate for layer in tuned):
        own = [layer for layer in tuned if layer.before.surrogate == kind]
        first = {layer.before.b for layer in own}
        now = {layer.after.b for layer in own} - first
        lines = []
        for b in (*sorted(first), *sorted(now)):
            slope = SURROGATES[kind](distance.clone(), b)
            points = list(zip(distance.tolist(), slope.tolist(), strict=True))
            lines.append(Series(f"b = {b:g}", points, "at first" if b in first else ""))
        yield Chart(kind, lines, "membrane - threshold", 0, counted=False)


def _gradients(history: Sequence[Record], layer: Layer) -> Chart:
    """Those of a layer's weights (paper Figure 7b)."""
    lines = [
        over_epochs(history, name, scalars(history, f"{kind}/{layer.path}"), ".2e")
        for name, kind in (("b at first", "gradient_at_first_b"), ("b as found", "gradient"))
    ]
    return Chart(f"mean |gradient|, {layer.path}", lines, "epoch", 0)


def _snapshots(history: Sequence[Record]) -> list[Chart]:
    """What the genotypes of some epochs come to when trained (paper Figures 5, 6a)."""
    accuracy = over_epochs(history, "test", scalars(history, "snapshot/accuracy"), ".2%")
    rate = over_epochs(history, "all layers", scalars(history, "snapshot/firing_rate"), ".1%")
    if not accuracy.points:
        return []
    return [
        Chart("accuracy once trained", [accuracy], "epoch of the search", percent=True),
        Chart("mean firing rate once trained", [rate], "epoch of the search", percent=True),
    ]
