"""Text to genotype: `parse` reads a source into the typed tree and checks its names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from lark import Token, Tree

from snnir.errors import Diagnostic, GenotypeError, did_you_mean
from snnir.genotype import ast
from snnir.genotype import vocabulary as words
from snnir.genotype.check import check
from snnir.genotype.syntax import Comment, parse_tree
from snnir.source import Source, Span

T = TypeVar("T")
Branch = Tree | Token
Reader = Callable[[Branch], Any]


def parse(text: str | Source, name: str = "<text>") -> ast.Genotype:
    """Read genotype text.

    Raises:
        GenotypeError: with everything that is wrong in the text; `name` stands for the file.
    """
    return parse_with_comments(text if isinstance(text, Source) else Source(name, text))[0]


def parse_with_comments(source: Source) -> tuple[ast.Genotype, list[Comment]]:
    """As `parse`, with the comments, which the formatter keeps."""
    tree, comments = parse_tree(source)
    reader = _TreeReader()
    try:
        genotype = reader.genotype(tree, source)
    except RecursionError:
        raise GenotypeError(source, [Diagnostic("found brackets nested too deeply")]) from None
    diagnostics = reader.diagnostics or check(genotype)
    if diagnostics:
        raise GenotypeError(source, diagnostics)
    return genotype, comments


def parse_neuron(text: str) -> ast.Neuron:
    """Read what stands behind `neuron`: `lif(tau=0.25)`.

    Raises:
        GenotypeError: with what is wrong, in a text that begins with a header.
    """
    source = Source("<neuron>", f"snn 1 network one neuron {text}")
    reader = _TreeReader()
    found = reader.genotype(parse_tree(source)[0], source)
    if len(found.statements) != 1 and not reader.diagnostics:
        reader.diagnostics.append(Diagnostic("found more than one statement, expected a neuron"))
    if reader.diagnostics:
        raise GenotypeError(source, reader.diagnostics)
    return found.default_neuron


class _Unreadable(Exception):
    """A branch whose error has been recorded."""


class _TreeReader:
    """Raw tree to typed tree; records every error instead of stopping at the first."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []

    # --- statements -------------------------------------------------------------------------

    def genotype(self, tree: Tree, source: Source) -> ast.Genotype:
        version, name, *statements = tree.children
        if str(version) != "1":
            self._record(f"found language version {version}, expected 1", version)
        read = self._each(statements, lambda s: getattr(self, s.data)(s))
        return ast.Genotype(name=str(name), statements=read, source=source, span=_span(tree))

    def input(self, tree: Tree) -> ast.Input:
        name, kind, *sizes = tree.children
        assert isinstance(kind, Token)
        self._one_of(kind, words.INPUT_KINDS, "input kind")
        if len(sizes) != 3:
            self._fail(f"found {len(sizes)} sizes, expected 3: [channels, height, width]", kind)
        limits = (words.MAX_CHANNELS, words.MAX_SIDE, words.MAX_SIDE)
        shape = tuple(
            self.integer(1, limit)(size) for size, limit in zip(sizes, limits, strict=True)
        )
        return ast.Input(name=str(name), kind=str(kind), shape=shape, span=_span(tree))  # type: ignore[arg-type]

    def steps(self, tree: Tree) -> ast.Steps:
        return ast.Steps(count=self.integer(1, words.MAX_STEPS)(tree.children[0]), span=_span(tree))

    def neuron(self, tree: Tree) -> ast.DefaultNeuron:
        return ast.DefaultNeuron(neuron=self.neuron_call(tree.children[0]), span=_span(tree))

    def cell(self, tree: Tree) -> ast.Cell | ast.SearchCell:
        name, first, second, settings, *body = tree.children
        common: dict[str, Any] = {
            "name": str(name),
            "states": (str(first), str(second)),
            "span": _span(tree),
        }
        given = self.bind(name, settings.children, {"mix": self.word(words.MIXES, "mix")})
        if body and body[0].data == "search":
            if given:
                self._fail("found mix on the cell, expected it on its `search`", name)
            return ast.SearchCell(**common, **self.search(body[0]))
        nodes = self._each(body, self.node)
        if not body:
            self._fail(f"found no nodes in cell '{name}', expected at least one", name)
        return ast.Cell(**common, nodes=nodes, mix=given.get("mix"))

    def search(self, tree: Tree) -> dict[str, Any]:
        settings, *candidates = tree.children
        schema: dict[str, Reader] = {
            "nodes": self.integer(1, 64),
            "keep": self.integer(1, 64),
            "mix": self.word(words.MIXES, "mix"),
        }
        read = self._each(candidates, self.candidate)
        given = self.bind(tree, settings.children, schema, required=("nodes", "keep"))
        return {**given, "candidates": read}

    def candidate(self, item: Branch) -> ast.Candidate:
        name, arguments = self.call_parts(item)
        self._one_of(name, words.CELL_OPERATIONS, "operation")
        given = self.bind(name, arguments, {"b": self.temperature})
        return ast.Candidate(operation=str(name), span=_span(item), **given)

    def node(self, tree: Tree) -> ast.CellNode:
        name, operations, *neuron = tree.children
        return ast.CellNode(
            name=str(name),
            operations=self._each(operations.children, self.cell_operation),
            neuron=self.neuron_call(neuron[0]) if neuron else None,
            span=_span(tree),
        )

    def cell_operation(self, call: Tree) -> ast.CellOperation:
        name, arguments = self.call_parts(call)
        self._one_of(name, words.CELL_OPERATIONS, "operation")
        given = self.bind(
            name,
            arguments,
            {"state": self.name, "b": self.temperature},
            positional=("state",),
            required=("state",),
        )
        return ast.CellOperation(operation=str(name), span=_span(call), **given)

    def backbone(self, tree: Tree) -> ast.Backbone:
        name, parameter, *sections = tree.children
        stem: tuple[ast.LayerOperation, ...] = ()
        layers: ast.Layers | ast.Trellis | None = None
        out: tuple[Any, ...] = ()
        for section in sections:
            if section.data == "stem":
                stem = self._each(section.children, self.layer_operation)
            elif section.data == "layers":
                layers = self.layers(section)
            else:
                out = self._each(section.children, self.out_operation)
        return ast.Backbone(
            name=str(name),
            parameter=str(parameter),
            stem=stem,
            layers=layers,
            out=out,
            span=_span(tree),
        )

    def layer_operation(self, item: Branch) -> ast.LayerOperation:
        name, arguments = self.call_parts(item)
        self._one_of(name, words.LAYER_OPERATIONS, "operation")
        schema: dict[str, Reader] = {
            "channels": self.integer(1, words.MAX_CHANNELS),
            "stride": self.integer(1, 64),
            "bn": self.truth,
            "bias": self.truth,
            "spike": self.truth,
        }
        given = self.bind(name, arguments, schema, positional=("channels",), required=("channels",))
        return ast.LayerOperation(operation=str(name), span=_span(item), **given)

    def out_operation(self, item: Branch) -> ast.LayerOperation | ast.ResizeToStem:
        name, arguments = self.call_parts(item)
        if name != "resize":
            self._one_of(name, (*words.LAYER_OPERATIONS, "resize"), "operation")
            return self.layer_operation(item)
        self.bind(
            name,
            arguments,
            {"to": self.word(("stem",), "size")},
            positional=("to",),
            required=("to",),
        )
        return ast.ResizeToStem(span=_span(item))

    def layers(self, tree: Tree) -> ast.Layers | ast.Trellis:
        settings, *rest = tree.children
        channels = {"channels": self.integer(1, words.MAX_CHANNELS)}
        given = self.bind(tree, settings.children, channels, required=("channels",))
        if not rest or rest[0].data != "trellis":
            if not rest:
                self._fail("found no cells in `layers`, expected at least one", tree)
            return ast.Layers(**given, cells=self._each(rest, self.placed_cell), span=_span(tree))
        trellis, *cells = rest
        sizes: dict[str, Reader] = {
            "depth": self.integer(1, words.MAX_LAYERS),
            "levels": self.integer(1, words.MAX_LEVEL),
        }
        given |= self.bind(
            trellis, trellis.children[0].children, sizes, required=("depth", "levels")
        )
        if len(cells) != 1 or len(cells[0].children) != 1:
            self._fail("found a list of cells, expected the one cell to search: { NAME }", tree)
        return ast.Trellis(**given, cell=str(cells[0].children[0]), span=_span(tree))

    def placed_cell(self, tree: Tree) -> ast.PlacedCell:
        if len(tree.children) == 1:
            self._fail("found a cell without a level, expected NAME@LEVEL", tree)
        name, level = tree.children
        return ast.PlacedCell(
            cell=str(name), level=self.integer(0, words.MAX_LEVEL)(level), span=_span(tree)
        )

    def definition(self, tree: Tree) -> ast.Definition:
        name, value = tree.children
        return ast.Definition(name=str(name), value=self.expression(value), span=_span(tree))

    def head(self, tree: Tree) -> ast.Head:
        call = tree.children[0]
        name, arguments = self.call_parts(call)
        self._one_of(name, ("classify", "disparity"), "head")
        task = self.classify(call)[0] if name == "classify" else self.disparity(name, arguments)
        return ast.Head(task=task, span=_span(tree))

    def auxiliary(self, tree: Tree) -> ast.Auxiliary:
        call = tree.children[0]
        self._one_of(self.call_parts(call)[0], ("classify",), "auxiliary head")
        task, given = self.classify(call, {"weight": self.number(0, 1e6)})
        return ast.Auxiliary(task=task, span=_span(tree), **given)

    def classify(
        self, call: Branch, more: dict[str, Reader] | None = None
    ) -> tuple[ast.Classify, dict[str, Any]]:
        name, arguments = self.call_parts(call)
        schema: dict[str, Reader] = {
            "value": self.expression,
            "classes": self.integer(1, words.MAX_CLASSES),
            **(more or {}),
        }
        given = self.bind(
            name, arguments, schema, positional=("value",), required=("value", "classes")
        )
        task = ast.Classify(
            value=given.pop("value"), classes=given.pop("classes"), span=_span(call)
        )
        return task, given

    def disparity(self, name: Token, arguments: list[Branch]) -> ast.Disparity:
        schema: dict[str, Reader] = {
            "value": self.expression,
            "max_disparity": self.integer(1, words.MAX_SIDE),
            "support": self.integer(0, 1024),
        }
        given = self.bind(
            name, arguments, schema, positional=("value",), required=("value", "max_disparity")
        )
        return ast.Disparity(span=_span(name), **given)

    def annotate(self, tree: Tree) -> ast.Annotate:
        return ast.Annotate(
            annotations=self._each(tree.children, self.annotation), span=_span(tree)
        )

    def annotation(self, tree: Tree) -> ast.Annotation:
        path, *settings = tree.children
        schema: dict[str, Reader] = {
            "surrogate": self.surrogate,
            "tau": self.leak,
            "tau_a": self.leak,
            "neuron": self.neuron_call,
        }
        given = self.bind(path, settings, schema)
        return ast.Annotation(path=path_text(path), span=_span(path), **given)

    # --- values -----------------------------------------------------------------------------

    def expression(self, branch: Branch) -> ast.Expression:
        if isinstance(branch, Token):
            self._fail(f"found '{branch}', expected a value such as a backbone or an input", branch)
        if branch.data == "path":
            return self.reference(branch)
        name, arguments = self.call_parts(branch)
        span = _span(branch)
        if name != "cost_volume":
            given = self.bind(
                name,
                arguments,
                {"input": self.expression},
                positional=("input",),
                required=("input",),
            )
            return ast.Application(backbone=str(name), argument=given["input"], span=span)
        schema: dict[str, Reader] = {
            "left": self.expression,
            "right": self.expression,
            "max_disparity": self.integer(1, words.MAX_SIDE),
        }
        given = self.bind(
            name, arguments, schema, positional=("left", "right"), required=tuple(schema)
        )
        return ast.CostVolume(span=span, **given)

    def reference(self, path: Tree) -> ast.Reference:
        name, *steps = path.children
        if not steps:
            return ast.Reference(name=str(name), span=_span(path))
        field = steps[0].children[0]
        if len(steps) != 2 or field != "layers" or steps[1].data != "index":
            self._fail(f"found '{path_text(path)}', expected NAME or NAME.layers[i]", path)
        layer = self.integer(0, words.MAX_LAYERS)(steps[1].children[0])
        return ast.Reference(name=str(name), layer=layer, span=_span(path))

    def neuron_call(self, item: Branch) -> ast.Neuron:
        name, arguments = self.call_parts(item)
        kind = self._one_of(name, tuple(words.NEURON_ARGUMENTS), "neuron")
        readers: dict[str, Reader] = {
            "tau": self.leak,
            "v_threshold": self.number(0, 1e6, above=True),
            "tau_a": self.leak,
            "beta": self.number(0, 1e6),
            "surrogate": self.surrogate,
            "detach_reset": self.truth,
        }
        schema = {key: readers[key] for key in words.NEURON_ARGUMENTS[kind]}
        given = self.bind(name, arguments, schema)
        return ast.Neuron(kind=kind, span=_span(item), **given)  # type: ignore[arg-type]

    def surrogate(self, item: Branch) -> ast.Surrogate:
        name, arguments = self.call_parts(item)
        kind = self._one_of(name, words.SURROGATES, "surrogate")
        given = self.bind(name, arguments, {"b": self.temperature})
        return ast.Surrogate(kind=kind, span=_span(item), **given)  # type: ignore[arg-type]

    def leak(self, branch: Branch) -> float:
        value = float(branch) if isinstance(branch, Token) else math.nan
        if not 0 <= value < 1:
            hint = "without leak the neuron is `if`" if value == 1 else ""
            self._fail(f"found {_text(branch)}, expected a leak factor in [0, 1)", branch, hint)
        return value

    def temperature(self, branch: Branch) -> float:
        return self.number(0, 1e6, above=True)(branch)

    def truth(self, branch: Branch) -> bool:
        return self.word(("true", "false"), "truth value")(branch) == "true"

    def name(self, branch: Branch) -> str:
        if isinstance(branch, Token) or branch.data != "path" or len(branch.children) != 1:
            self._fail(f"found '{_text(branch)}', expected a name", branch)
        return str(branch.children[0])

    def word(self, known: tuple[str, ...], what: str) -> Reader:
        def read(branch: Branch) -> str:
            name = self.name(branch)
            return self._one_of(
                Token.new_borrow_pos("NAME", name, _first_token(branch)), known, what
            )

        return read

    def number(self, low: float, high: float, *, above: bool = False) -> Reader:
        expected = f"a number {'above' if above else 'of at least'} {low:g} and at most {high:g}"

        def read(branch: Branch) -> float:
            if not isinstance(branch, Token):
                self._fail(f"found '{_text(branch)}', expected {expected}", branch)
            value = float(branch)
            if not math.isfinite(value) or not low <= value <= high or (above and value == low):
                self._fail(f"found {_shortened(branch)}, expected {expected}", branch)
            return value

        return read

    def integer(self, low: int, high: int) -> Reader:
        expected = f"a whole number from {low} to {high}"

        def read(branch: Branch) -> int:
            text = _text(branch)
            if not text.isdecimal() or len(text) > 18 or not low <= int(text) <= high:
                self._fail(f"found {_shortened(text)}, expected {expected}", branch)
            return int(text)

        return read

    # --- calls ------------------------------------------------------------------------------

    def call_parts(self, item: Branch) -> tuple[Token, list[Branch]]:
        """The name and arguments of `name(…)`; a bare `name` has none."""
        if isinstance(item, Token):
            self._fail(f"found '{item}', expected a name", item)
        name = item.children[0]
        assert isinstance(name, Token)
        if item.data == "path" and len(item.children) > 1:
            self._fail(f"found '{path_text(item)}', expected a name", item)
        return name, list(item.children[1:]) if item.data == "call" else []

    def bind(
        self,
        owner: Branch,
        arguments: Iterable[Branch],
        schema: dict[str, Reader],
        *,
        positional: tuple[str, ...] = (),
        required: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Match arguments to `schema` (name to reader), recording what does not fit."""
        bound: dict[str, Any] = {}
        broken = False
        free = list(positional)
        for argument in arguments:
            if isinstance(argument, Tree) and argument.data == "setting":
                key, value = argument.children[0].children[0], argument.children[1]
            elif free:
                key, value = free.pop(0), argument
            else:
                expected = ", ".join(f"{key}=" for key in schema) or "none"
                self._record(f"found '{_text(argument)}', expected only {expected} here", argument)
                broken = True
                continue
            if str(key) in free:
                free.remove(str(key))
            if str(key) not in schema:
                expected = ", ".join(schema) or "no arguments"
                hint = did_you_mean(str(key), schema)
                self._record(f"found unknown argument '{key}', expected {expected}", key, hint)
                broken = True
            elif str(key) in bound:
                self._record(f"found '{key}' twice, expected it once", argument)
                broken = True
            else:
                try:
                    bound[str(key)] = schema[str(key)](value)
                except _Unreadable:
                    bound[str(key)] = None
                    broken = True
        for key in required:
            if key not in bound:
                what = _shortened(_text(owner)) if isinstance(owner, Token) else str(owner.data)
                self._record(f"found no '{key}' in '{what}', expected one", owner)
                broken = True
        if broken:
            raise _Unreadable
        return bound

    def _each(self, branches: Iterable[Branch], read: Callable[[Any], T]) -> tuple[T, ...]:
        result = []
        for branch in branches:
            try:
                result.append(read(branch))
            except _Unreadable:
                continue
        return tuple(result)

    def _one_of(self, name: Token, known: tuple[str, ...], what: str) -> str:
        if str(name) not in known:
            expected = known[0] if len(known) == 1 else f"one of {', '.join(known)}"
            self._fail(
                f"found unknown {what} '{name}', expected {expected}",
                name,
                did_you_mean(name, known),
            )
        return str(name)

    def _record(self, message: str, at: Branch, hint: str = "") -> None:
        self.diagnostics.append(Diagnostic(message, _span(at), hint))

    def _fail(self, message: str, at: Branch, hint: str = "") -> NoReturn:
        self._record(message, at, hint)
        raise _Unreadable


def path_text(path: Tree) -> str:
    """`trunk.layers[*].n0` as written, without spaces."""
    head, *steps = path.children
    text = str(head)
    for step in steps:
        key = step.children[0]
        text += f".{key}" if step.data == "field" else f"[{key}]"
    return text


def _span(branch: Branch) -> Span:
    place = branch if isinstance(branch, Token) else branch.meta
    return Span(place.line, place.column, place.end_line, place.end_column)  # type: ignore[arg-type]


def _first_token(branch: Branch) -> Token:
    while isinstance(branch, Tree):
        branch = branch.children[0]
    return branch


def _text(branch: Branch) -> str:
    if isinstance(branch, Token):
        return str(branch)
    if branch.data == "path":
        return path_text(branch)
    return f"{_first_token(branch)}(…)"


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:12]}… ({len(text)} digits)"
