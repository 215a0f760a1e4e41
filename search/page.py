"""What a search found, as one HTML file that opens from disk without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from snnir import __version__
from snnir.analysis.chart import Chart, Series, picture
from snnir.analysis.counts import parameter_count
from snnir.analysis.draw import MARGIN, Canvas, draw
from snnir.analysis.page import html_pages
from snnir.genotype import Genotype, ast, print_genotype
from snnir.ir.build import build, edge_owner
from snnir.ir.trellis import levels_after, transition_owner
from snnir.search.architecture import (
    Conventions,
    count_architectures,
    searchable_cells,
    state_names,
    trellises,
)
from snnir.search.config import SearchConfig
from snnir.training.curves import over_epochs, scalars
from snnir.training.record import Record

if TYPE_CHECKING:
    from snnir.search.baselines import Trial

Weights = Mapping[str, Sequence[float]]
"""The softmaxes of alpha and beta, by owner as in `snnir.search.decode`."""


def render_search(
    space: Genotype,
    found: Genotype,
    config: SearchConfig,
    history: Sequence[Record],
    *,
    data: str,
    conventions: Conventions,
    trials: Sequence[Trial] = (),
) -> str:
    """Fill search.html.j2: of a bi-level search with the supernet's `history` and the weights that
    its last record holds, of a baseline with its `trials`.

    `found` is an architecture of `space`, decoded by the `conventions`.
    """
    pages = html_pages("snnir.search")
    pages.filters["count"] = _count
    weights = _weights(history[-1]) if history else {}
    ranking = sorted(trials, key=lambda trial: -trial.accuracy)
    return pages.get_template("search.html.j2").render(
        version=__version__,
        space=space,
        found=found,
        text=print_genotype(found),
        drawing=draw(found),
        architectures=count_architectures(space),
        parameters=parameter_count(build(found)),
        config=config,
        data=data,
        conventions=conventions,
        history=history,
        seconds=history[-1].seconds if history else sum(trial.seconds for trial in trials),
        charts=_curves(history, config.warmup_epochs) if history else [],
        tables=list(_tables(space, found, weights, conventions)) if history else [],
        trellises=list(_pictures(space, found, weights)) if history else [],
        trials=ranking,
        progress=_progress(trials) if trials else None,
    )


def _weights(record: Record) -> Weights:
    found: dict[str, dict[int, float]] = {}
    for name, value in record.scalars.items():
        if name.startswith("weight/"):
            owner, entry = name.removeprefix("weight/").rsplit("/", 1)
            found.setdefault(owner, {})[int(entry)] = value
    return {owner: [entries[k] for k in sorted(entries)] for owner, entries in found.items()}


def _count(number: int) -> str:
    """Large numbers as 1.9e7, also those that no float holds."""
    return f"{number:,}" if number < 1e6 else f"{Decimal(number):.1e}".replace("e+", "e")


# --- curves -------------------------------------------------------------------------------------


def _curves(history: Sequence[Record], warmup: int) -> list[Chart]:
    """What the supernet's records hold, over the epochs."""
    series = partial(over_epochs, history)
    entropies = [series(name, scalars(history, f"entropy/{name}")) for name in ("alpha", "beta")]
    losses = [
        series("half A", [r.train_loss for r in history]),
        series("half B", scalars(history, "architecture/loss")),
    ]
    accuracies = [
        series("half A", [r.train_accuracy for r in history], ".1%"),
        series("half B", scalars(history, "architecture/accuracy"), ".1%"),
    ]
    rates = [series("all layers", [r.firing_rate for r in history], ".1%")]
    return [
        Chart(title, drawn, "epoch", low, high, percent, warmup=warmup)
        for title, lines, low, high, percent in (
            ("entropy", entropies, 0, 1, False),
            ("loss", losses, None, None, False),
            ("accuracy", accuracies, None, None, True),
            ("mean firing rate", rates, 0, None, True),
        )
        if (drawn := [line for line in lines if line.points])
    ]


def _progress(trials: Sequence[Trial]) -> Chart:
    """The accuracy of each trial, and of the best until then."""
    each = [(trial.number, trial.accuracy) for trial in trials]
    best = list(accumulate((accuracy for _, accuracy in each), max))
    steps: list[tuple[float, float]] = [(each[0][0], best[0])]
    for (number, _), (before, now) in zip(each[1:], pairwise(best), strict=True):
        steps += [(number, before), (number, now)]
    return Chart(
        "accuracy",
        (
            Series("best so far", steps, f"{best[-1]:.2%}"),
            Series("each trial", each, "", dots=True),
        ),
        "trial",
        percent=True,
        width=400,
    )


# --- alpha --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EdgeRow:
    """What an edge's operations weigh, and what became of it."""

    node: str
    state: str
    weights: Sequence[float]
    chosen: int | None
    """Number of the candidate with which it is kept."""
    kept: str
    """That operation as the found genotype has it."""


@dataclass(frozen=True)
class Table:
    """The alphas of a cell."""

    cell: ast.SearchCell
    candidates: Sequence[str]
    rows: Sequence[EdgeRow]


def _tables(
    space: Genotype, found: Genotype, weights: Weights, conventions: Conventions
) -> Iterator[Table]:
    for name, cell in searchable_cells(space).items():
        decoded, names, rows = found.cells[name], state_names(cell), []
        assert isinstance(decoded, ast.Cell)
        for number, node in enumerate(decoded.nodes):
            kept = {operation.state: operation for operation in node.operations}
            for state in names[: 2 + number]:
                row = weights[edge_owner(name, node.name, state)]
                operation = kept.get(state)
                chosen = None if operation is None else _chosen(cell, operation, row, conventions)
                label = "" if operation is None else _label(operation)
                rows.append(EdgeRow(node.name, state, row, chosen, label))
        yield Table(cell, [_label(candidate) for candidate in cell.candidates], rows)


def _chosen(
    cell: ast.SearchCell,
    operation: ast.CellOperation,
    weights: Sequence[float],
    conventions: Conventions,
) -> int:
    """Which candidate became this operation; of several that would be written so (the authors' skip
    is a convolution), the heaviest."""
    names = {operation.operation}
    if conventions == "authors" and operation.operation in ("conv3x3", "conv3x3x3"):
        names.add("skip")
    possible = [
        number
        for number, candidate in enumerate(cell.candidates)
        if candidate.operation in names and candidate.b == operation.b
    ]
    return max(possible, key=weights.__getitem__)


def _label(operation: ast.Candidate | ast.CellOperation) -> str:
    return operation.operation + ("" if operation.b is None else f" b{operation.b:g}")


# --- beta ---------------------------------------------------------------------------------------

COLUMN, ROW, RADIUS = 104, 60, 9


@dataclass(frozen=True)
class Picture:
    """The levels of a backbone's layers."""

    backbone: str
    cell: str
    path: Sequence[int]
    probability: float
    """Of the path."""
    svg: str


def _pictures(space: Genotype, found: Genotype, weights: Weights) -> Iterator[Picture]:
    for name, trellis in trellises(space).items():
        layers = found.backbones[name].layers
        assert isinstance(layers, ast.Layers)
        path = tuple(placed.level for placed in layers.cells)
        transitions = list(_transitions(name, trellis, weights))
        taken = set(zip(range(trellis.depth), (0, *path), path, strict=False))
        probability = math.prod(weight for step, weight in transitions if step in taken)
        svg = _picture(name, trellis, transitions, taken)
        yield Picture(name, trellis.cell, path, probability, svg)


Step = tuple[int, int, int]
"""To a layer, from a level, to a level."""


def _transitions(
    backbone: str, trellis: ast.Trellis, weights: Weights
) -> Iterator[tuple[Step, float]]:
    for layer in range(trellis.depth):
        for level in range(min(layer + 1, trellis.levels)):
            leaving = weights[transition_owner(backbone, layer, level)]
            for target, weight in zip(levels_after(level, layer, trellis), leaving, strict=True):
                yield (layer, level, target), weight


def _picture(
    name: str, trellis: ast.Trellis, transitions: list[tuple[Step, float]], taken: set[Step]
) -> str:
    """Dots for (layer, level), lines as strong as their transitions are probable."""
    canvas, labels = Canvas(), []
    left, top = MARGIN + 62, MARGIN + 30

    def place(layer: int, level: int) -> tuple[float, float]:
        return left + COLUMN * (layer + 1), top + ROW * level

    visited = {(-1, 0)} | {(layer, target) for layer, _, target in taken}
    for step, weight in sorted(transitions, key=lambda item: item[0] in taken):
        layer, level, target = step
        (x0, y0), (x1, y1) = place(layer - 1, level), place(layer, target)
        style = f"stroke-width: {1 + 5 * weight:.2f}"
        if step not in taken:
            style += f"; stroke-opacity: {0.2 + 0.8 * weight:.2f}"
        canvas.elements.append(
            f'<path class="{"taken" if step in taken else "open"}" style="{style}" '
            f'd="M {x0:g} {y0:g} L {x1:g} {y1:g}">'
            f"<title>layer {layer}, level {level} to {target}: {weight:.3f}</title></path>"
        )
        # nearer to where it comes from: lines cross in the middle
        labels.append((x0 + 0.32 * (x1 - x0), y0 + 0.32 * (y1 - y0), weight, step in taken))
    spots = [(-1, 0), *((layer, target) for (layer, _, target), _ in transitions)]
    for layer, level in dict.fromkeys(spots):
        x, y = place(layer, level)
        kind = "taken" if (layer, level) in visited else "open"
        canvas.elements.append(f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{RADIUS}"/>')
    for x, y, weight, bold in labels:
        corner = f'x="{x - 14:g}" y="{y - 7:g}"'
        canvas.elements.append(f'<rect class="plate" {corner} width="28" height="14" rx="3"/>')
        canvas.text(x, y + 4, f"{weight:.2f}", kind="taken" if bold else "", anchor="middle")
    levels = min(trellis.levels, trellis.depth + 1)
    for level in range(levels):
        canvas.text(MARGIN, top + ROW * level + 4, f"level {level}")
    for layer in range(-1, trellis.depth):
        x, _ = place(layer, 0)
        title = "stem" if layer < 0 else f"layer {layer}"
        canvas.text(x, MARGIN, title, anchor="middle")
    width, height = left + COLUMN * trellis.depth + 40, top + ROW * (levels - 1) + MARGIN
    return picture(canvas, "trellis", width, height, f"levels of {name}")
