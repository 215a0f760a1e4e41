"""A genotype as a picture: the network over its resolution levels, and each cell as arcs.

The SVG stands alone and follows the reader's light or dark colour scheme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from snnir.genotype import ast
from snnir.genotype.printer import print_expression
from snnir.ir.build import build
from snnir.ir.graph import Graph
from snnir.passes import ANALYSIS, run_passes

BOX_WIDTH, BOX_HEIGHT = 104, 46
COLUMN, ROW = 128, 72
STATE_GAP = 132
MARGIN = 24

STYLE = """
.snnir { font: 13px system-ui, sans-serif; --ink: #1b2430; --soft: #64748b; --page: #ffffff;
  --box: #eef2f8; --line: #8494ab; --node: #e7f0ea;
  --conv: #2563a8; --skip: #b45309; --pool: #4d7c0f; }
@media (prefers-color-scheme: dark) { .snnir { --ink: #e5eaf1; --soft: #9aa8bb; --page: #12161c;
  --box: #1f2732; --line: #5d6c82; --node: #1d2f27;
  --conv: #7fb2ee; --skip: #f0b26b; --pool: #a9cf6a; } }
.snnir .page { fill: var(--page); } .snnir text { fill: var(--ink); }
.snnir .soft { fill: var(--soft); font-size: 11px; }
.snnir .title { font-weight: 600; font-size: 15px; }
.snnir .box { fill: var(--box); stroke: var(--line); }
.snnir .node { fill: var(--node); stroke: var(--line); }
.snnir path { fill: none; stroke: var(--line); stroke-width: 1.5; }
.snnir .back { stroke-dasharray: 4 4; } .snnir .conv { stroke: var(--conv); }
.snnir .skip { stroke: var(--skip); } .snnir .pool { stroke: var(--pool); }
.snnir .plate { fill: var(--page); opacity: .85; }
.snnir text.conv { fill: var(--conv); stroke: none; }
.snnir text.skip { fill: var(--skip); stroke: none; }
.snnir text.pool { fill: var(--pool); stroke: none; }
"""


@dataclass
class Canvas:
    """SVG elements and the room they take."""

    elements: list[str] = field(default_factory=list)
    width: float = 0
    height: float = 0

    def box(self, x: float, y: float, lines: Sequence[str], *, kind: str = "box") -> None:
        """A box with its upper left corner at (x, y)."""
        size = f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
        self.elements.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" {size} rx="6"/>')
        middle, first = x + BOX_WIDTH / 2, y + BOX_HEIGHT / 2 + (4 if len(lines) == 1 else -3)
        for number, line in enumerate(lines):
            self.text(
                middle, first + 15 * number, line, kind="soft" if number else "", anchor="middle"
            )
        self.grow(x + BOX_WIDTH, y + BOX_HEIGHT)

    def text(self, x: float, y: float, text: str, *, kind: str = "", anchor: str = "start") -> None:
        self.elements.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        )
        self.grow(x + (7.2 * len(text) if anchor == "start" else 0), y + 6)

    def path(self, d: str, kind: str = "") -> None:
        self.elements.append(f'<path class="{kind}" d="{d}"/>')

    def grow(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)


def draw(genotype: ast.Genotype) -> str:
    """The network and its cells as one SVG document. Raises GenotypeError as `build` does."""
    graph = run_passes(ANALYSIS, build(genotype)).graph
    canvas = Canvas()
    canvas.text(MARGIN, MARGIN + 10, f"network {genotype.name}", kind="title")
    top = float(MARGIN + 34)
    for backbone in genotype.all(ast.Backbone):
        top = _backbone(canvas, genotype, graph, backbone, top)
    top = _heads(canvas, genotype, top)
    for cell in genotype.cells.values():
        top = _cell(canvas, cell, genotype.default_neuron.kind, top)
    width, height = canvas.width + MARGIN, canvas.height + MARGIN
    size = f'width="{width:g}" height="{height:g}"'
    body = "\n".join(canvas.elements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="snnir" {size} '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(genotype.name)}">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="page" {size}/>\n{body}\n</svg>\n'
    )


# --- the network --------------------------------------------------------------------------------


def _backbone(
    canvas: Canvas, genotype: ast.Genotype, graph: Graph, backbone: ast.Backbone, top: float
) -> float:
    prefix = next(
        path.split(".stem.")[0]
        for path in (node.path for node in graph.nodes())
        if path.startswith((f"{backbone.name}.stem.", f"{backbone.name}("))
    )
    canvas.text(MARGIN, top + 8, f"backbone {backbone.name}({backbone.parameter})")
    top += 40
    x = float(MARGIN)
    stem = [
        (_operation_name(op), _size(graph, f"{prefix}.stem.{i}"))
        for i, op in enumerate(backbone.stem)
    ]
    cells = backbone.layers.cells if isinstance(backbone.layers, ast.Layers) else ()
    places: list[tuple[float, float]] = []
    for lines in stem:
        canvas.box(x, top, lines)
        places.append((x, top))
        x += COLUMN
    first = len(places) - 1
    for index, placed in enumerate(cells):
        y = top + placed.level * ROW
        shape = graph.shape(f"{prefix}.layers.{index}.concat")
        canvas.box(x, y, (f"{placed.cell} {index}", _shape(shape)), kind="node")
        places.append((x, y))
        x += COLUMN
    if isinstance(backbone.layers, ast.Trellis):
        x = _trellis(canvas, backbone.layers, x, top)
    levels = max((placed.level for placed in cells), default=0)
    bottom = top + levels * ROW
    for index, op in enumerate(backbone.out):
        name = "resize(stem)" if isinstance(op, ast.ResizeToStem) else _operation_name(op)
        y = places[-1][1] if places else top
        canvas.box(x, y, (name, _size(graph, f"{prefix}.out.{index}")))
        places.append((x, y))
        x += COLUMN
    for index, (here, after) in enumerate(pairwise(places)):
        if after[0] - here[0] <= COLUMN:
            canvas.path(_link(here, after))
        cell_number = index - first
        if 0 <= cell_number < len(cells):
            source = places[max(first, index - 1)] if cell_number else places[first]
            if cell_number:
                canvas.path(_leap(source, after), "back")
    if isinstance(backbone.layers, ast.Trellis):
        levels = min(backbone.layers.levels, backbone.layers.depth + 1)
        bottom = top + (levels - 1) * 34
    canvas.grow(0, bottom + BOX_HEIGHT)
    return max(canvas.height, bottom + BOX_HEIGHT) + 28


def _trellis(canvas: Canvas, trellis: ast.Trellis, x: float, top: float) -> float:
    """Dots for (layer, level), lines for the transitions to be weighed."""
    spots = {(-1, 0): (x - COLUMN + BOX_WIDTH, top + BOX_HEIGHT / 2)}
    for layer in range(trellis.depth):
        for level in range(min(layer + 2, trellis.levels)):
            spots[layer, level] = (x + 40 + 76 * layer, top + BOX_HEIGHT / 2 + 34 * level)
    for (layer, level), (cx, cy) in spots.items():
        for source in (level - 1, level, level + 1):
            if (layer - 1, source) in spots:
                sx, sy = spots[layer - 1, source]
                canvas.path(f"M {sx:g} {sy:g} L {cx:g} {cy:g}", "back")
    for (layer, _), (cx, cy) in spots.items():
        if layer >= 0:
            canvas.elements.append(f'<circle class="node" cx="{cx:g}" cy="{cy:g}" r="9"/>')
            canvas.grow(cx + 9, cy + 9)
        if layer == trellis.depth - 1:
            end = x + 40 + 76 * trellis.depth
            canvas.path(f"M {cx + 9:g} {cy:g} L {end:g} {top + BOX_HEIGHT / 2:g}", "back")
    caption = f"{trellis.depth} layers of {trellis.cell}, {trellis.levels} levels, to be searched"
    canvas.text(x, top - 10, caption, kind="soft")
    return x + 40 + 76 * trellis.depth


def _heads(canvas: Canvas, genotype: ast.Genotype, top: float) -> float:
    lines = [f"{d.name} = {print_expression(d.value)}" for d in genotype.definitions.values()]
    task = genotype.head.task
    kind = "classify" if isinstance(task, ast.Classify) else "disparity"
    lines.append(f"head {kind}({print_expression(task.value)})")
    lines += [f"auxiliary classify({print_expression(a.task.value)})" for a in genotype.auxiliaries]
    for number, line in enumerate(lines):
        canvas.text(MARGIN, top + 18 * number, line)
    return top + 18 * len(lines) + 16


def _link(here: tuple[float, float], after: tuple[float, float]) -> str:
    x0, y0 = here[0] + BOX_WIDTH, here[1] + BOX_HEIGHT / 2
    x1, y1 = after[0], after[1] + BOX_HEIGHT / 2
    bend = (x0 + x1) / 2
    return f"M {x0:g} {y0:g} C {bend:g} {y0:g} {bend:g} {y1:g} {x1:g} {y1:g}"


def _leap(here: tuple[float, float], after: tuple[float, float]) -> str:
    """From the cell before the last, over the one in between."""
    x0, x1 = here[0] + BOX_WIDTH * 0.7, after[0] + BOX_WIDTH * 0.3
    peak = min(here[1], after[1]) - 30
    return f"M {x0:g} {here[1]:g} C {x0:g} {peak:g} {x1:g} {peak:g} {x1:g} {after[1]:g}"


def _operation_name(op: ast.LayerOperation | ast.ResizeToStem) -> str:
    if isinstance(op, ast.ResizeToStem):
        return "resize(stem)"
    return op.operation + (f" /{op.stride}" if op.stride and op.stride > 1 else "")


def _size(graph: Graph, prefix: str) -> str:
    for suffix in ("neuron", "bn", "conv", "resize"):
        if f"{prefix}.{suffix}" in graph:
            return _shape(graph.shape(f"{prefix}.{suffix}"))
    return ""


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} · {'×'.join(map(str, shape[1:]))}"


# --- cells --------------------------------------------------------------------------------------


def _cell(canvas: Canvas, cell: ast.Cell | ast.SearchCell, default: str, top: float) -> float:
    """States and nodes in a row; what a node reads comes in as an arc above."""
    names = [*cell.states]
    if isinstance(cell, ast.Cell):
        names += [node.name for node in cell.nodes]
    else:
        names += [f"n{number}" for number in range(cell.nodes)]
    arcs = list(_arcs(cell, names))
    longest = max((target - source for source, target, _, _ in arcs), default=1)
    canvas.text(MARGIN, top + 10, f"cell {cell.name}({', '.join(cell.states)})", kind="title")
    if isinstance(cell, ast.SearchCell):
        choices = " | ".join(c.operation + (f" b{c.b:g}" if c.b else "") for c in cell.candidates)
        canvas.text(
            MARGIN, top + 30, f"every edge one of {choices}; {cell.keep} kept per node", kind="soft"
        )
        top += 20
    base = top + 40 + 24 * longest + 12
    place = {name: MARGIN + index * STATE_GAP for index, name in enumerate([*names, "concat"])}
    for source, target, label, kind in arcs:
        x0 = place[names[source]] + BOX_WIDTH * 0.62
        x1 = place[names[target]] + BOX_WIDTH * (0.2 + 0.3 * source / max(1, target))
        height = 32 * (target - source) + 8
        peak = base - height
        canvas.path(f"M {x0:g} {base:g} C {x0:g} {peak:g} {x1:g} {peak:g} {x1:g} {base:g}", kind)
        if label:
            middle, line = (x0 + x1) / 2, base - 0.75 * height
            width = 6.6 * len(label)
            corner = f'x="{middle - width / 2:g}" y="{line - 8:g}"'
            canvas.elements.append(f'<rect class="plate" {corner} width="{width:g}" height="15"/>')
            canvas.text(middle, line + 4, label, kind=kind, anchor="middle")
    below = base + BOX_HEIGHT
    for name in names[2:]:
        x0, x1 = place[name] + BOX_WIDTH / 2, place["concat"] + BOX_WIDTH / 2
        depth = below + 26
        canvas.path(
            f"M {x0:g} {below:g} C {x0:g} {depth:g} {x1:g} {depth:g} {x1:g} {below:g}", "back"
        )
    for name in names:
        neuron = _node_neuron(cell, name, default)
        canvas.box(
            place[name],
            base,
            (name, neuron) if neuron else (name,),
            kind="node" if neuron else "box",
        )
    canvas.box(place["concat"], base, ("concat",))
    return below + 48


def _arcs(cell: ast.Cell | ast.SearchCell, names: list[str]) -> Iterator[tuple[int, int, str, str]]:
    if isinstance(cell, ast.SearchCell):
        for target in range(2, len(names)):
            yield from ((source, target, "", "back") for source in range(target))
        return
    for node in cell.nodes:
        for op in node.operations:
            kind = next((k for k in ("conv", "skip", "pool") if k in op.operation), "conv")
            label = op.operation + (f" b{op.b:g}" if op.b is not None else "")
            yield names.index(op.state), names.index(node.name), label, kind


def _node_neuron(cell: ast.Cell | ast.SearchCell, name: str, default: str) -> str:
    if name in cell.states:
        return ""
    if isinstance(cell, ast.SearchCell):
        return default
    node = next(node for node in cell.nodes if node.name == name)
    return node.neuron.kind if node.neuron else default
