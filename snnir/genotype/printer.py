"""Genotype to text: `print_genotype` (canonical) and `format_source` (comments kept)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from snnir.genotype import ast
from snnir.genotype.parser import parse_with_comments
from snnir.genotype.syntax import Comment
from snnir.source import Source

WIDTH = 88


@dataclass
class Line:
    """One output line and the source line of what it begins with (0: unknown)."""

    indent: int
    text: str
    origin: int = 0
    comment: str = ""
    blank_before: bool = False
    own_comments: list[str] = field(default_factory=list)


def print_genotype(genotype: ast.Genotype) -> str:
    """Canonical text: `parse(print_genotype(g)) == g` for every genotype."""
    return _join(_lines(genotype))


def print_statement(statement: ast.Statement) -> str:
    """One statement's canonical text."""
    return _join(list(_statement(statement, 0)))


def format_source(source: Source) -> str:
    """The text formatted: comments kept, line breaks in `layers` and `search` kept.

    Raises GenotypeError when the text does not parse.
    """
    genotype, comments = parse_with_comments(source)
    lines = _lines(genotype)
    trailing = _place_comments(lines, comments, source)
    _keep_blank_lines(lines, source)
    return _join(lines) + "".join(f"{comment}\n" for comment in trailing)


def _join(lines: Sequence[Line]) -> str:
    out: list[str] = []
    for line in lines:
        margin = " " * line.indent
        if line.blank_before and out:
            out.append("")
        inside = margin + "  " * (line.text == "}")
        out += [(inside + comment) if comment else "" for comment in line.own_comments]
        out.append(f"{margin}{line.text}{line.comment}")
    return "\n".join(out) + "\n"


# --- comments and blank lines -------------------------------------------------------------------


def _place_comments(lines: list[Line], comments: list[Comment], source: Source) -> list[str]:
    """Attach each comment to a line; those after the last line are returned."""
    after: list[str] = []
    for comment in comments:
        own_line = not source.line(comment.line)[: comment.column - 1].strip()
        if own_line:
            target = next((line for line in lines if line.origin > comment.line), None)
            place = target.own_comments if target else after
            if source.line(comment.line - 1).strip() == "" and place:
                place.append("")
            place.append(comment.text)
            continue
        line = [line for line in lines if 0 < line.origin <= comment.line][-1]
        if line.comment:
            line.comment += " " + comment.text
        else:
            code = source.line(comment.line)[: comment.column - 1]
            unchanged = code.rstrip() == " " * line.indent + line.text
            gap = len(code) - len(code.rstrip()) if unchanged else 0
            line.comment = " " * max(2, gap) + comment.text
    return after


def _keep_blank_lines(lines: list[Line], source: Source) -> None:
    for line in lines[1:]:
        first = line.origin - 1
        while first > 0 and source.line(first).lstrip().startswith("#"):
            first -= 1
        line.blank_before = first > 0 and not source.line(first).strip()


# --- statements ---------------------------------------------------------------------------------


def _lines(genotype: ast.Genotype) -> list[Line]:
    begin = _origin(genotype)
    lines = [
        Line(0, "snn 1", begin),
        Line(0, f"network {genotype.name}", begin + 1 if begin else 0),
    ]
    source = genotype.source
    if source:
        header = (
            n for n, text in enumerate(source.text.split("\n"), 1) if text.startswith("network")
        )
        lines[1].origin = next(header, begin)
    width = max((len(i.name) for i in genotype.inputs), default=0)
    previous: object = None
    for statement in genotype.statements:
        new = list(_statement(statement, width))
        grouped = isinstance(statement, ast.Input) and isinstance(previous, ast.Input | ast.Steps)
        grouped |= isinstance(statement, ast.Steps) and isinstance(previous, ast.Input)
        grouped |= isinstance(statement, ast.Head | ast.Auxiliary | ast.Definition) and isinstance(
            previous, ast.Head | ast.Auxiliary | ast.Definition
        )
        new[0].blank_before = not grouped
        lines += new
        previous = statement
    return lines


def _statement(statement: ast.Statement, width: int) -> Iterator[Line]:
    origin = _origin(statement)
    match statement:
        case ast.Input(name=name, kind=kind, shape=shape):
            yield Line(
                0, f"input {name + ':':{width + 1}} {kind}[{', '.join(map(str, shape))}]", origin
            )
        case ast.Steps(count=count):
            yield Line(0, f"steps {count}", origin)
        case ast.DefaultNeuron(neuron=neuron):
            yield Line(0, f"neuron {_neuron(neuron)}", origin)
        case ast.Cell():
            yield from _cell(statement)
        case ast.SearchCell():
            yield from _search_cell(statement)
        case ast.Backbone():
            yield from _backbone(statement)
        case ast.Definition(name=name, value=value):
            yield Line(0, f"{name} = {print_expression(value)}", origin)
        case ast.Head(task=task):
            yield Line(0, f"head {_task(task)}", origin)
        case ast.Auxiliary(task=task, weight=weight):
            yield Line(0, f"auxiliary {_task(task, weight=weight)}", origin)
        case ast.Annotate(annotations=annotations):
            width = max((len(a.path) for a in annotations), default=0)
            yield Line(0, "annotate {", origin)
            for a in annotations:
                settings = _settings(
                    surrogate=a.surrogate, tau=a.tau, tau_a=a.tau_a, neuron=a.neuron
                )
                yield Line(2, f"{a.path:{width}}  {settings}", _origin(a))
            yield Line(0, "}", _end(statement))


def _cell(cell: ast.Cell) -> Iterator[Line]:
    mix = f" mix={cell.mix}" if cell.mix else ""
    yield Line(0, f"cell {cell.name}({', '.join(cell.states)}){mix} {{", _origin(cell))
    for node in cell.nodes:
        operations = " + ".join(_call(op.operation, op.state, b=op.b) for op in node.operations)
        neuron = f" : {_neuron(node.neuron)}" if node.neuron else ""
        yield Line(2, f"{node.name} = {operations}{neuron}", _origin(node))
    yield Line(0, "}", _end(cell))


def _search_cell(cell: ast.SearchCell) -> Iterator[Line]:
    yield Line(0, f"cell {cell.name}({', '.join(cell.states)}) {{", _origin(cell))
    opening = f"search {_settings(' ', nodes=cell.nodes, keep=cell.keep, mix=cell.mix)}"
    rows = _rows(cell.candidates, [_call(c.operation, b=c.b) for c in cell.candidates], " | ")
    broken = len(rows) > 1 or _broken_before(cell.candidates[0], cell, skip=1)
    if not broken and len(one := f"{opening} {{ {rows[0][1]} }}") + 2 <= WIDTH:
        yield Line(2, one, rows[0][0])
    else:
        first = rows[0][0]
        yield Line(2, f"{opening} {{", first - 1 if first else 0)
        for number, (origin, text) in enumerate(rows):
            yield Line(4, ("| " if number else "") + text, origin)
        yield Line(2, "}", rows[-1][0] + 1 if first else 0)
    yield Line(0, "}", _end(cell))


def _backbone(backbone: ast.Backbone) -> Iterator[Line]:
    yield Line(0, f"backbone {backbone.name}({backbone.parameter}) {{", _origin(backbone))
    stem = ", ".join(map(_layer_operation, backbone.stem))
    yield Line(2, f"stem {stem}", _origin(backbone.stem[0]))
    layers = backbone.layers
    if isinstance(layers, ast.Trellis):
        sizes = f"channels={layers.channels} search depth={layers.depth} levels={layers.levels}"
        yield Line(2, f"layers {sizes} {{ {layers.cell} }}", _origin(layers))
    elif layers is not None:
        opening = f"layers channels={layers.channels} {{"
        rows = _rows(layers.cells, [f"{p.cell}@{p.level}" for p in layers.cells], " ")
        one = f"{opening} {rows[0][1]} }}"
        if len(rows) == 1 and len(one) + 2 <= WIDTH and not _broken_before(layers.cells[0], layers):
            yield Line(2, one, _origin(layers))
        else:
            yield Line(2, opening, _origin(layers))
            yield from (Line(4, text, origin) for origin, text in rows)
            yield Line(2, "}", _end(layers))
    if backbone.out:
        out = ", ".join(map(_layer_operation, backbone.out))
        yield Line(2, f"out {out}", _origin(backbone.out[0]))
    yield Line(0, "}", _end(backbone))


def _rows(elements: Sequence[ast.Element], texts: list[str], glue: str) -> list[tuple[int, str]]:
    """Join texts into rows, broken where the source broke or where a row would be too long."""
    rows: list[tuple[int, str]] = []
    before = 0
    for element, text in zip(elements, texts, strict=True):
        origin = _origin(element)
        if rows and origin == before and len(rows[-1][1]) + len(glue) + len(text) + 4 <= WIDTH:
            rows[-1] = (rows[-1][0], rows[-1][1] + glue + text)
        else:
            rows.append((origin, text))
        before = origin
    return rows


def _broken_before(element: ast.Element, block: ast.Element, skip: int = 0) -> bool:
    return _origin(element) > _origin(block) + skip


# --- expressions --------------------------------------------------------------------------------


def print_expression(expression: ast.Expression) -> str:
    """The text of a value: `matching(volume)`."""
    match expression:
        case ast.Reference(name=name, layer=None):
            return name
        case ast.Reference(name=name, layer=layer):
            return f"{name}.layers[{layer}]"
        case ast.Application(backbone=backbone, argument=argument):
            return f"{backbone}({print_expression(argument)})"
        case ast.CostVolume(left=left, right=right, max_disparity=limit):
            return _call(
                "cost_volume", print_expression(left), print_expression(right), max_disparity=limit
            )


def _task(task: ast.Classify | ast.Disparity, **more: object) -> str:
    value = print_expression(task.value)
    if isinstance(task, ast.Classify):
        return _call("classify", value, classes=task.classes, **more)
    return _call("disparity", value, max_disparity=task.max_disparity, support=task.support, **more)


def _layer_operation(op: ast.LayerOperation | ast.ResizeToStem) -> str:
    if isinstance(op, ast.ResizeToStem):
        return "resize(stem)"
    return _call(
        op.operation, op.channels, stride=op.stride, bn=op.bn, bias=op.bias, spike=op.spike
    )


def _neuron(neuron: ast.Neuron) -> str:
    given = {key: value for key, value in neuron.__dict__.items() if key not in ("kind", "span")}
    return _call(neuron.kind, **given)


def _call(name: str, *positional: object, **settings: object) -> str:
    given = ", ".join([*map(_value, positional), *filter(None, [_settings(**settings)])])
    return f"{name}({given})" if given else name


def _settings(glue: str = ", ", /, **settings: object) -> str:
    return glue.join(
        f"{key}={_value(value)}" for key, value in settings.items() if value is not None
    )


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case ast.Surrogate(kind=kind, b=b):
            return _call(kind, b=b)
        case ast.Neuron():
            return _neuron(value)
    return str(value)


def _origin(element: ast.Element) -> int:
    return element.span.line if element.span else 0


def _end(element: ast.Element) -> int:
    return element.span.end_line if element.span else 0
