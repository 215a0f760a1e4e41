"""Checks of a genotype that need no shapes: names, cycles, duplicates, levels."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx

from snnir.errors import Diagnostic, did_you_mean
from snnir.genotype import ast
from snnir.genotype.vocabulary import candidate_label, operation_rank


def check(genotype: ast.Genotype) -> list[Diagnostic]:
    """Everything wrong with the names and the order of things in `genotype`."""
    return [
        *_statements(genotype),
        *(d for cell in genotype.all(ast.Cell) for d in _cell(cell)),
        *(d for cell in genotype.all(ast.SearchCell) for d in _search_cell(cell)),
        *(d for backbone in genotype.all(ast.Backbone) for d in _backbone(backbone, genotype)),
        *_values(genotype),
    ]


def _statements(genotype: ast.Genotype) -> Iterator[Diagnostic]:
    if not genotype.inputs:
        yield Diagnostic("found no input, expected `input NAME: frame[C, H, W]`")
    if not genotype.all(ast.Head):
        yield Diagnostic("found no head, expected `head classify(…)` or `head disparity(…)`")
    for kind, what in ((ast.Steps, "steps"), (ast.DefaultNeuron, "neuron"), (ast.Head, "head")):
        first, *others = genotype.all(kind) or [None]
        for other in others:
            line = f" (line {first.span.line})" if first and first.span else ""
            contradicts = kind is ast.Steps and first.count != other.count
            wrong = (
                f"`steps {other.count}` after `steps {first.count}`"
                if contradicts
                else f"a second `{what}`"
            )
            yield Diagnostic(f"found {wrong}, expected one{line}", other.span)
    values = (*genotype.inputs, *genotype.all(ast.Backbone), *genotype.all(ast.Definition))
    yield from _unique(values, "name")
    yield from _unique(genotype.all(ast.Cell, ast.SearchCell), "cell")


def _unique(named: list | tuple, what: str) -> Iterator[Diagnostic]:
    seen = set()
    for element in sorted(named, key=lambda e: (e.span is not None, e.span)):
        if element.name in seen:
            yield Diagnostic(f"found {what} '{element.name}' twice, expected it once", element.span)
        seen.add(element.name)


def _cell(cell: ast.Cell) -> Iterator[Diagnostic]:
    nodes = [node.name for node in cell.nodes]
    yield from _unique([*cell.nodes], "node")
    if cell.states[0] == cell.states[1]:
        yield Diagnostic(f"found state '{cell.states[0]}' twice, expected two names", cell.span)
    known = list(cell.states)
    for node in cell.nodes:
        if node.name in cell.states:
            yield Diagnostic(f"found node '{node.name}', a state of the cell", node.span)
        read = set()
        for operation in node.operations:
            state = operation.state
            if state in nodes and state not in known:
                what = "itself" if state == node.name else f"'{state}', which is defined later"
                yield Diagnostic(
                    f"found '{node.name}' reading {what} (a cycle), "
                    f"expected one of {', '.join(known)}",
                    operation.span,
                )
            elif state not in known:
                yield Diagnostic(
                    f"found unknown state '{state}', expected one of {', '.join(known)}",
                    operation.span,
                    did_you_mean(state, known),
                )
            elif state in read:
                yield Diagnostic(
                    f"found '{node.name}' reading '{state}' twice, "
                    "expected each state at most once",
                    operation.span,
                )
            read.add(state)
        known.append(node.name)


def _search_cell(cell: ast.SearchCell) -> Iterator[Diagnostic]:
    if cell.states[0] == cell.states[1]:
        yield Diagnostic(f"found state '{cell.states[0]}' twice, expected two names", cell.span)
    for state in {*cell.states} & {f"n{number}" for number in range(cell.nodes)}:
        yield Diagnostic(
            f"found state '{state}', expected another name: the nodes found will be n0, n1, …",
            cell.span,
        )
    if cell.keep > 2:
        yield Diagnostic(
            f"found keep={cell.keep}, expected at most 2: the first node has two states to read",
            cell.span,
        )
    labels = [candidate_label(c.operation, c.b) for c in cell.candidates]
    for candidate, label in zip(cell.candidates, labels, strict=True):
        if labels.count(label) > 1:
            yield Diagnostic("found the same candidate twice, expected it once", candidate.span)


def _backbone(backbone: ast.Backbone, genotype: ast.Genotype) -> Iterator[Diagnostic]:
    layers = backbone.layers
    rank = operation_rank(backbone.stem[0].operation) if backbone.stem else None
    for op in (*backbone.stem, *backbone.out):
        if isinstance(op, ast.LayerOperation) and operation_rank(op.operation) != rank:
            yield Diagnostic(
                f"found {op.operation} in a {rank}-D backbone, expected a {rank}-D operation",
                op.span,
            )
    if layers is None:
        return
    if isinstance(layers, ast.Trellis):
        uses = [(layers.cell, layers.span)]
    else:
        uses = [(placed.cell, placed.span) for placed in layers.cells]
        yield from _levels(layers)
    for name, span in uses:
        if name not in genotype.cells:
            hint = did_you_mean(name, genotype.cells)
            yield Diagnostic(
                f"found unknown cell '{name}', expected one of {_names(genotype.cells)}", span, hint
            )
            continue
        used = genotype.cells[name]
        operations = (
            used.candidates
            if isinstance(used, ast.SearchCell)
            else [operation for node in used.nodes for operation in node.operations]
        )
        for operation in operations:
            if operation_rank(operation.operation) not in (None, rank):
                yield Diagnostic(
                    f"found {operation.operation} in cell '{name}' of the {rank}-D backbone "
                    f"'{backbone.name}', expected a {rank}-D operation",
                    operation.span,
                )


def _levels(layers: ast.Layers) -> Iterator[Diagnostic]:
    before = 0
    for index, placed in enumerate(layers.cells):
        if abs(placed.level - before) > 1:
            after = f"level {before}" if index else "the stem (level 0)"
            yield Diagnostic(
                f"found level {placed.level} after {after}, "
                "expected levels that differ by at most 1",
                placed.span,
            )
        before = placed.level


def _values(genotype: ast.Genotype) -> Iterator[Diagnostic]:
    inputs = {i.name for i in genotype.inputs}
    known = {*inputs, *genotype.backbones, *genotype.definitions}
    applied: dict[str, set[ast.Expression]] = {name: set() for name in genotype.backbones}
    for backbone in genotype.backbones.values():
        if backbone.parameter in inputs:
            applied[backbone.name].add(ast.Reference(name=backbone.parameter))
    roots = [
        *(d.value for d in genotype.definitions.values()),
        *(h.task.value for h in genotype.all(ast.Head, ast.Auxiliary)),
    ]
    expressions = [e for root in roots for e in ast.walk(root)]
    for e in expressions:
        if isinstance(e, ast.Application):
            if e.backbone in applied:
                applied[e.backbone].add(e.argument)
            else:
                yield Diagnostic(
                    f"found unknown backbone '{e.backbone}', expected one of {_names(applied)}",
                    e.span,
                    did_you_mean(e.backbone, applied),
                )
    for e in expressions:
        if isinstance(e, ast.Reference):
            if e.name not in known:
                yield Diagnostic(
                    f"found unknown name '{e.name}', expected one of {_names(known)}",
                    e.span,
                    did_you_mean(e.name, known),
                )
            elif e.layer is not None:
                yield from _layer_reference(e, genotype, applied)
            elif e.name in applied and genotype.backbones[e.name].parameter not in inputs:
                yield Diagnostic(
                    f"found backbone '{e.name}' as a value, expected it applied: {e.name}(…)",
                    e.span,
                )
    for name, arguments in applied.items():
        if not arguments:
            yield Diagnostic(
                f"found backbone '{name}' applied to nothing; its parameter names no input",
                genotype.backbones[name].span,
            )
    yield from _definition_cycles(genotype)


def _layer_reference(
    reference: ast.Reference, genotype: ast.Genotype, applied: dict[str, set[ast.Expression]]
) -> Iterator[Diagnostic]:
    name = reference.name
    layers = genotype.backbones[name].layers if name in applied else None
    count = len(layers.cells) if isinstance(layers, ast.Layers) else 0
    if isinstance(layers, ast.Trellis):
        yield Diagnostic(
            f"found a layer of '{name}', whose layers are to be searched: which will be there is "
            "not known yet",
            reference.span,
        )
    elif name not in applied:
        yield Diagnostic(f"found layers of '{name}', expected a backbone", reference.span)
    elif len(applied[name]) > 1:
        yield Diagnostic(
            f"found layers of '{name}', which is applied {len(applied[name])} times: "
            "which one is meant?",
            reference.span,
        )
    elif reference.layer >= count:  # type: ignore[operator]
        yield Diagnostic(
            f"found layer {reference.layer} of '{name}', expected an index below {count}",
            reference.span,
        )


def _definition_cycles(genotype: ast.Genotype) -> Iterator[Diagnostic]:
    uses = nx.DiGraph()
    for definition in genotype.definitions.values():
        read = [e.name for e in ast.walk(definition.value) if isinstance(e, ast.Reference)]
        uses.add_edges_from((definition.name, name) for name in read)
    for group in nx.strongly_connected_components(uses):
        cycle = sorted(group)
        if len(cycle) > 1 or uses.has_edge(cycle[0], cycle[0]):
            first = min((genotype.definitions[name] for name in cycle), key=lambda d: d.span or 0)
            yield Diagnostic(f"found definitions in a cycle: {', '.join(cycle)}", first.span)


def _names(names: object) -> str:
    return ", ".join(sorted(names)) or "none"  # type: ignore[call-overload]
