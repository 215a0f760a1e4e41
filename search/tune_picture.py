"""What a search of neurons did over its epochs, as a picture (the paper's Figures 6 and 7a)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from snnir.training.record import Record, write_figure

MOVING = {
    "b/": "temperature b",
    "tau/": "leak factor tau",
    "tau_a/": "threshold decay tau_a",
    "relu/": "weight of relu",
}
"""What a record's scalars may hold by layer, and what it is called."""


def write_tune_picture(path: Path, history: Sequence[Record], *, title: str) -> None:
    """b, tau, tau_a or the weight of relu over the epochs, a line per layer, from blue in the first
    layer to yellow in the last; firing rates in the first and the last epoch. Raises
    SnnirError."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    moving = {name: _by_layer(history, name) for name in MOVING}
    moving = {name: layers for name, layers in moving.items() if layers}
    figure = Figure(figsize=(5.5 * (len(moving) + 1), 4.4), layout="tight")
    *panels, firing = figure.subplots(1, len(moving) + 1, squeeze=False)[0]
    epochs = [record.epoch for record in history]
    for axes, (name, layers) in zip(panels, moving.items(), strict=True):
        for number, (layer, values) in enumerate(layers.items()):
            colour = matplotlib.colormaps["viridis"](number / max(1, len(layers) - 1))
            axes.plot(epochs, values, color=colour, label=layer, marker=".", linewidth=1.2)
        axes.set(xlabel="epoch", title=MOVING[name])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(layers) <= 24:
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
            axes.legend(frameon=False, fontsize=6, ncols=4, **place)
    _firing_rates(firing, history)
    write_figure(path, figure, title=title)


def _by_layer(history: Sequence[Record], prefix: str) -> Mapping[str, list[float]]:
    names = [name for name in history[0].scalars if name.startswith(prefix)]
    return {
        name.removeprefix(prefix): [record.scalars[name] for record in history] for name in names
    }


def _firing_rates(axes, history: Sequence[Record]) -> None:  # type: ignore[no-untyped-def]
    """Those of the neurons that both epochs have."""
    first, last = history[0].firing_rates, history[-1].firing_rates
    layers = [layer for layer in first if layer in last]
    for record, rates in ((history[0], first), (history[-1], last)):
        label = f"epoch {record.epoch}"
        axes.plot(range(len(layers)), [rates[x] for x in layers], marker="o", label=label)
    axes.set(xlabel="neuron, candidates side by side", title="firing rate", ylim=(0, 1))
    axes.legend(frameon=False)
