"""Genotype to graph. The graph is naive: single-input sums, resizes to the same size and identity
skips are left for the passes to drop.

Paths: `trunk.layers.3.n1.prev.conv` is the convolution with which node n1 of cell 3 reads prev. A
backbone applied more than once gets one set of nodes per application, `feature(left).stem.0.conv`,
whose parameters have one owner, `feature.stem.0.conv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from snnir.errors import Diagnostic, GenotypeError
from snnir.genotype import ast
from snnir.genotype.printer import print_expression
from snnir.genotype.vocabulary import CONVOLUTIONS, candidate_label
from snnir.ir import nodes as ir
from snnir.ir.graph import Graph
from snnir.ir.trellis import build_trellis
from snnir.ir.types import Shape, ShapeError
from snnir.source import Source, Span

AUXILIARY_WIDTHS = (128, 768)
"""Channels of the auxiliary head's two convolutions (method §3)."""


def build(genotype: ast.Genotype) -> Graph:
    """Build the graph of a genotype, searchable ones with `mixed` nodes.

    Raises:
        GenotypeError: where sizes do not fit (a level that halves a side of one pixel, say).
    """
    return _Builder(genotype).build()


class Scope(NamedTuple):
    """Where nodes are being added: their path, and the path that owns their parameters."""

    path: str
    owner: str

    def __truediv__(self, name: object) -> Scope:
        return Scope(f"{self.path}.{name}", f"{self.owner}.{name}")


@dataclass(frozen=True)
class Features:
    """What a backbone gives: its final maps (one per final level of a trellis) and its cells'."""

    finals: tuple[str, ...]
    layers: tuple[str, ...] = ()
    size: Shape = ()


class _Builder:
    def __init__(self, genotype: ast.Genotype):
        self.genotype = genotype
        self.source = genotype.source or Source("<text>", "")
        self.graph = Graph(
            genotype.name,
            genotype.steps,
            source=genotype.source,
            annotations=genotype.annotations,
        )
        self.shapes: dict[str, Shape] = {}
        self.features: dict[tuple[str, str], Features] = {}
        self.default_neuron = neuron_fields(genotype.default_neuron)

    def build(self) -> Graph:
        for i in self.genotype.inputs:
            self.add(ir.Input(path=i.name, kind=i.kind, shape=i.shape, span=i.span))
            if i.kind == "frame":
                self.add(ir.Repeat(path=f"{i.name}.repeat", span=i.span), i.name)
        head = self.genotype.head
        if isinstance(head.task, ast.Classify):
            self.classifier(head.task, head.span)
        else:
            self.disparity(head.task, head.span)
        for index, auxiliary in enumerate(self.genotype.auxiliaries):
            self.auxiliary(index, auxiliary)
        self.refuse_unread()
        return self.graph

    def refuse_unread(self) -> None:
        """An input or a backbone that no head depends on is a mistake, not a dead node."""
        used = {name for name, _ in self.features}
        unread: list[ast.Input | ast.Backbone] = [
            i for i in self.genotype.inputs if not self.is_read(i.name)
        ]
        unread += [b for b in self.genotype.all(ast.Backbone) if b.name not in used]
        if unread:
            what = {ast.Input: "input", ast.Backbone: "backbone"}
            raise GenotypeError(
                self.source,
                [
                    Diagnostic(f"found {what[type(e)]} '{e.name}', which no head reads", e.span)
                    for e in unread
                ],
            )

    def is_read(self, name: str) -> bool:
        readers = self.graph.consumers(name)
        return bool(readers) and (
            readers != [f"{name}.repeat"] or bool(self.graph.consumers(readers[0]))
        )

    # --- nodes ------------------------------------------------------------------------------

    def add(self, node: ir.Node, *inputs: str) -> str:
        """Add a node, its shape checked at once so that the error has its place in the text."""
        try:
            self.shapes[node.path] = node.output_shape([self.shapes[i] for i in inputs])
        except ShapeError as error:
            self.fail(f"{node.path}: {error}", node.span)
        return self.graph.add(node, inputs)

    def fail(self, message: str, span: Span | None) -> NoReturn:
        raise GenotypeError(self.source, [Diagnostic(message, span)])

    def conv(
        self,
        scope: Scope,
        x: str,
        channels: int,
        kernel: Sequence[int],
        span: Span | None,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding: Sequence[int] | None = None,
    ) -> str:
        node = ir.Conv(
            path=scope.path,
            owners=(ir.Owner(scope.owner, channels),),
            in_channels=self.shapes[x][0],
            out_channels=channels,
            kernel=tuple(kernel),
            stride=(stride,) * len(kernel),
            padding=tuple(k // 2 for k in kernel) if padding is None else tuple(padding),
            groups=groups,
            bias=bias,
            span=span,
        )
        return self.add(node, x)

    def batch_norm(self, scope: Scope, x: str, span: Span | None) -> str:
        channels = self.shapes[x][0]
        owners = (ir.Owner(scope.owner, channels),)
        return self.add(
            ir.BatchNorm(path=scope.path, owners=owners, out_channels=channels, span=span), x
        )

    def neuron(
        self,
        path: str,
        x: str,
        span: Span | None,
        given: ast.Neuron | None = None,
        b: float | None = None,
    ) -> str:
        """A neuron; what `given` leaves out comes from the network's default neuron."""
        fields = {**self.default_neuron, **(neuron_fields(given) if given else {})}
        if b is not None:
            fields["b"] = b
        return self.add(ir.Neuron(path=path, span=span, **fields), x)

    def resize(self, path: str, x: str, size: Shape, span: Span | None) -> str:
        return self.add(ir.Resize(path=path, size=size, span=span), x)

    def operation(
        self,
        scope: Scope,
        operation: str,
        x: str,
        channels: int,
        span: Span | None,
        *,
        stride: int = 1,
        bn: bool = True,
        bias: bool = True,
    ) -> str:
        """An operation of the language without its node's neuron (method §3, candidates)."""
        rank = len(self.shapes[x]) - 1
        if operation == "skip":
            if self.shapes[x][0] == channels:
                return self.add(ir.Identity(path=f"{scope.path}.skip", span=span), x)
            operation = "conv3x3" if rank == 2 else "conv3x3x3"
        if operation == "sepconv3x3":
            depthwise = scope / "depthwise"
            x = self.conv(
                depthwise / "conv", x, self.shapes[x][0], (3, 3), span,
                stride=stride, groups=self.shapes[x][0], bias=bias,
            )  # fmt: skip
            if bn:
                x = self.batch_norm(depthwise / "bn", x, span)
            x = self.neuron(f"{depthwise.path}.neuron", x, span)
            x = self.conv(scope / "conv", x, channels, (1, 1), span, bias=bias)
        elif operation in CONVOLUTIONS:
            x = self.conv(
                scope / "conv", x, channels, CONVOLUTIONS[operation], span, stride=stride, bias=bias
            )
        else:
            x = self.pooling(scope, operation, x, channels, span)
        return self.batch_norm(scope / "bn", x, span) if bn else x

    def pooling(
        self, scope: Scope, operation: str, x: str, channels: int, span: Span | None
    ) -> str:
        """Pooling; where channels differ a conv1x1 joins on the side where it reads spikes.

        Before an average pool it has no bias: batch norm follows, and the padding then stays zero.
        """
        average = operation == "avgpool3x3"
        join = self.shapes[x][0] != channels
        if join and average:
            x = self.conv(scope / "conv", x, channels, (1, 1), span, bias=False)
        pool = ir.Pool(
            path=f"{scope.path}.pool",
            kind="average" if average else "max",
            kernel=(3, 3),
            stride=(1, 1),
            padding=(1, 1),
            span=span,
        )
        x = self.add(pool, x)
        if join and not average:
            x = self.conv(scope / "conv", x, channels, (1, 1), span)
        return x

    # --- values -----------------------------------------------------------------------------

    def value(self, expression: ast.Expression) -> Features:
        match expression:
            case ast.Reference(name=name, layer=int(layer)):
                return Features((self.applied(name).layers[layer],))
            case ast.Reference(name=name):
                if name in self.genotype.backbones:
                    return self.applied(name)
                if name in self.genotype.definitions:
                    return self.value(self.genotype.definitions[name].value)
                path = f"{name}.repeat"
                return Features((path if path in self.graph else name,))
            case ast.Application(backbone=name, argument=argument):
                return self.backbone(self.genotype.backbones[name], argument)
            case ast.CostVolume():
                return Features((self.cost_volume(expression),))
        raise AssertionError(expression)

    def single(self, expression: ast.Expression) -> str:
        """The one path of a value."""
        finals = self.value(expression).finals
        if len(finals) > 1:
            self.fail(
                f"found the {len(finals)} final levels of a trellis, expected one map: "
                "give the backbone an `out`",
                expression.span,
            )
        return finals[0]

    def applied(self, name: str) -> Features:
        """The backbone's features where only one argument is meant."""
        backbone = self.genotype.backbones[name]
        if backbone.parameter in {i.name for i in self.genotype.inputs}:
            return self.backbone(backbone, ast.Reference(name=backbone.parameter))
        (argument,) = self.arguments(name)
        return self.backbone(backbone, argument)

    def arguments(self, name: str) -> set[ast.Expression]:
        """The distinct values a backbone is applied to, over the whole genotype."""
        backbone = self.genotype.backbones[name]
        inputs = {i.name for i in self.genotype.inputs}
        found: set[ast.Expression] = set()
        if backbone.parameter in inputs:
            found.add(ast.Reference(name=backbone.parameter))
        roots: list[ast.Expression] = [d.value for d in self.genotype.definitions.values()]
        roots.append(self.genotype.head.task.value)
        roots += [a.task.value for a in self.genotype.auxiliaries]
        for root in roots:
            found |= {
                e.argument
                for e in ast.walk(root)
                if isinstance(e, ast.Application) and e.backbone == name
            }
        return found

    def cost_volume(self, expression: ast.CostVolume) -> str:
        path = next(
            (d.name for d in self.genotype.definitions.values() if d.value is expression),
            print_expression(expression),
        )
        if path in self.graph:
            return path
        left, right = self.single(expression.left), self.single(expression.right)
        width = self.genotype.inputs[0].shape[2]
        slices = expression.max_disparity // max(1, round(width / self.shapes[left][-1]))
        if slices < 1:
            self.fail(
                f"found max_disparity={expression.max_disparity}, "
                "expected at least one pixel of the maps",
                expression.span,
            )
        return self.add(ir.CostVolume(path=path, slices=slices, span=expression.span), left, right)

    # --- backbones --------------------------------------------------------------------------

    def backbone(self, backbone: ast.Backbone, argument: ast.Expression) -> Features:
        text = print_expression(argument)
        key = (backbone.name, text)
        if key not in self.features:
            several = len(self.arguments(backbone.name)) > 1
            path = f"{backbone.name}({text})" if several else backbone.name
            scope = Scope(path, backbone.name)
            self.features[key] = self.expand(backbone, scope, self.single(argument))
        return self.features[key]

    def expand(self, backbone: ast.Backbone, scope: Scope, x: str) -> Features:
        for index, op in enumerate(backbone.stem):
            x = self.layer_operation(scope / "stem" / index, op, x)
        stem_size = self.shapes[x][1:]
        layers: tuple[str, ...] = ()
        finals: tuple[str, ...] = (x,)
        if isinstance(backbone.layers, ast.Layers):
            layers = self.cells(backbone.layers, scope, x)
            finals = layers[-1:]
        elif isinstance(backbone.layers, ast.Trellis):
            finals = build_trellis(self, backbone.layers, scope, x)
        for index, last in enumerate(backbone.out):
            here = scope / "out" / index
            if isinstance(last, ast.ResizeToStem):
                finals = (self.resize(f"{here.path}.resize", finals[0], stem_size, last.span),)
            else:
                finals = (self.layer_operation(here, last, *finals, size=stem_size),)
        return Features(finals, layers, stem_size)

    def layer_operation(
        self, scope: Scope, op: ast.LayerOperation, *inputs: str, size: Shape | None = None
    ) -> str:
        """conv + BN + neuron of `stem` and `out`. Several inputs are a trellis's final levels: each
        has its own copy, and the currents, resized to the stem's size, are summed (method §3)."""
        bn, bias = op.bn is not False, op.bias is not False
        currents = []
        for number, x in enumerate(inputs):
            own = scope / f"level{number}" if len(inputs) > 1 else scope
            x = self.operation(
                own, op.operation, x, op.channels, op.span, stride=op.stride or 1, bn=bn, bias=bias
            )
            if len(inputs) > 1:
                x = self.resize(f"{own.path}.resize", x, size or self.shapes[x][1:], op.span)
            currents.append(x)
        x = currents[0]
        if len(currents) > 1:
            x = self.add(ir.Add(path=f"{scope.path}.sum", span=op.span), *currents)
        return x if op.spike is False else self.neuron(f"{scope.path}.neuron", x, op.span)

    def cells(self, layers: ast.Layers, scope: Scope, stem: str) -> tuple[str, ...]:
        """The cells in order; each reads the two before it, the stem standing in at the start."""
        size = self.shapes[stem][1:]
        history = [stem, stem]
        for index, placed in enumerate(layers.cells):
            here = scope / "layers" / index
            channels = layers.channels * 2**placed.level
            at = self.level_size(size, placed.level, placed.span)
            cell = self.genotype.cells[placed.cell]
            history.append(self.cell(cell, here, history[-2:], channels, at, placed.span))
        return tuple(history[2:])

    def level_size(self, size: Shape, level: int, span: Span | None) -> Shape:
        """The stem's size halved `level` times, rounded up."""
        for _ in range(level):
            if min(size) == 1:
                self.fail(f"found level {level}, which halves a side of one pixel", span)
            size = tuple((side + 1) // 2 for side in size)
        return size

    def cell(
        self,
        cell: ast.Cell | ast.SearchCell,
        scope: Scope,
        inputs: Sequence[str | None],
        channels: int,
        size: Shape,
        span: Span | None,
    ) -> str:
        """One cell: inputs resized to `size`, nodes of `channels` channels, outputs concatenated.

        An input that is None (no such cell in a trellis) is left out with its edges.
        """
        states: dict[str, str] = {}
        for name, x in zip(cell.states, inputs, strict=True):
            if x is not None:
                states[name] = self.resize(f"{scope.path}.{name}.resize", x, size, span)
        if isinstance(cell, ast.Cell):
            outputs = [self.cell_node(cell, node, scope, states, channels) for node in cell.nodes]
        else:
            outputs = self.mixed_nodes(cell, scope, states, channels)
        return self.add(ir.Concat(path=f"{scope.path}.concat", span=span), *outputs)

    def cell_node(
        self,
        cell: ast.Cell,
        node: ast.CellNode,
        scope: Scope,
        states: dict[str, str],
        channels: int,
    ) -> str:
        here = scope / node.name
        currents = []
        operations = [op for op in node.operations if op.state in states]
        if not operations:
            self.fail(
                f"{here.path}: found only states that a trellis does not have there, "
                f"expected another one beside '{node.operations[0].state}'",
                node.span,
            )
        for op in operations:
            edge = here / op.state
            x = self.operation(edge, op.operation, states[op.state], channels, op.span)
            if cell.mix == "spike":
                x = self.neuron(f"{edge.path}.neuron", x, op.span, node.neuron, op.b)
            currents.append(x)
        total = self.add(ir.Add(path=f"{here.path}.sum", span=node.span), *currents)
        states[node.name] = self.neuron(f"{here.path}.neuron", total, node.span, node.neuron)
        return states[node.name]

    def mixed_nodes(
        self, cell: ast.SearchCell, scope: Scope, states: dict[str, str], channels: int
    ) -> list[str]:
        """A searchable cell: every node reads every earlier state through all candidates, mixed by
        one alpha per edge, which all places of the cell share."""
        outputs = []
        for number in range(cell.nodes):
            name = f"n{number}"
            here = scope / name
            mixed = []
            for state, x in states.items():
                edge = here / state
                choices = []
                for c in cell.candidates:
                    label = candidate_label(c.operation, c.b)
                    y = self.operation(edge / label, c.operation, x, channels, c.span)
                    if cell.mix == "spike":
                        y = self.neuron(f"{edge.path}.{label}.neuron", y, c.span, b=c.b)
                    choices.append(y)
                alpha = edge_owner(cell.name, name, state)
                gates = tuple(ir.Gate(alpha, k, len(choices)) for k in range(len(choices)))
                mixed.append(
                    self.add(
                        ir.Mixed(path=f"{edge.path}.mixed", gates=gates, span=cell.span), *choices
                    )
                )
            total = self.add(ir.Add(path=f"{here.path}.sum", span=cell.span), *mixed)
            states[name] = self.neuron(f"{here.path}.neuron", total, cell.span)
            outputs.append(states[name])
        return outputs

    # --- heads ------------------------------------------------------------------------------

    def classifier(self, task: ast.Classify, span: Span | None) -> None:
        """Global average pool, neuron, linear + BN without a neuron, mean over time (method §3)."""
        scope = Scope("head", "head")
        finals = self.value(task.value).finals
        currents = []
        for number, x in enumerate(finals):
            own = scope / f"level{number}" if len(finals) > 1 else scope
            rank = len(self.shapes[x]) - 1
            x = self.add(
                ir.AdaptiveAveragePool(path=f"{own.path}.pool", size=(1,) * rank, span=span), x
            )
            x = self.neuron(f"{own.path}.neuron", x, span)
            currents.append(self.linear(own, x, task.classes, span))
        x = currents[0]
        if len(currents) > 1:
            x = self.add(ir.Add(path="head.sum", span=span), *currents)
        self.readout("logits", scope, x, span)

    def linear(self, scope: Scope, x: str, features: int, span: Span | None) -> str:
        x = self.add(ir.Flatten(path=f"{scope.path}.flatten", span=span), x)
        node = ir.Linear(
            path=f"{scope.path}.linear",
            owners=(ir.Owner(f"{scope.owner}.linear", features),),
            in_features=self.shapes[x][0],
            out_features=features,
            span=span,
        )
        return self.add(node, x)

    def readout(self, name: str, scope: Scope, x: str, span: Span | None, **output: object) -> None:
        x = self.batch_norm(scope / "bn", x, span)
        x = self.add(ir.MeanOverTime(path=f"{scope.path}.mean", span=span), x)
        self.add(ir.Output(path=name, span=span, **output), x)  # type: ignore[arg-type]

    def auxiliary(self, index: int, auxiliary: ast.Auxiliary) -> None:
        """LIF(pool to 2x2), conv1x1 to 128 and conv2x2 to 768, both + BN + LIF, linear + BN, mean
        over time (method §3). Made for 8x8 maps, where the pool is 5x5 with stride 3."""
        span, task = auxiliary.span, auxiliary.task
        scope = Scope(f"auxiliary.{index}", f"auxiliary.{index}")
        x = self.single(task.value)
        path = f"{scope.path}.pool"
        if self.shapes[x][1:] == (8, 8):
            pool: ir.Node = ir.Pool(
                path=path, kind="average", kernel=(5, 5), stride=(3, 3), padding=(0, 0), span=span
            )
        elif len(self.shapes[x]) == 3:
            pool = ir.AdaptiveAveragePool(path=path, size=(2, 2), span=span)
        else:
            self.fail("found an auxiliary head on a 3-D map, expected a 2-D one", span)
        x = self.neuron(f"{path}.neuron", self.add(pool, x), span)
        for number, (channels, kernel) in enumerate(zip(AUXILIARY_WIDTHS, (1, 2), strict=True)):
            here = scope / number
            x = self.conv(here / "conv", x, channels, (kernel, kernel), span, padding=(0, 0))
            x = self.neuron(f"{here.path}.neuron", self.batch_norm(here / "bn", x, span), span)
        x = self.linear(scope, x, task.classes, span)
        weight = 0.4 if auxiliary.weight is None else auxiliary.weight
        self.readout(f"{scope.path}.logits", scope, x, span, role="auxiliary", weight=weight)

    def disparity(self, task: ast.Disparity, span: Span | None) -> None:
        """Cost resized to (D, H, W) of the input, then the sub-pixel estimator (method §8)."""
        x = self.single(task.value)
        shape = self.shapes[x]
        if len(shape) != 4 or shape[0] != 1:
            self.fail(
                f"found a value of shape {shape}, expected a cost (1, D, H, W)", task.value.span
            )
        size = ((task.max_disparity + 1) // 2, *self.genotype.inputs[0].shape[1:])
        x = self.add(ir.Resize(path="head.resize", size=size, mode="linear", span=span), x)
        estimator = ir.SoftArgmin(path="head.soft_argmin", span=span)
        if task.support is not None:
            estimator = estimator.model_copy(update={"support": task.support})
        x = self.add(estimator, x)
        self.add(ir.Output(path="disparity", span=span), x)


def edge_owner(cell: str, node: str, state: str) -> str:
    """Under what name the alphas of a searchable cell's edge are stored."""
    return f"cells.{cell}.{node}.{state}"


def neuron_fields(neuron: ast.Neuron) -> dict[str, Any]:
    """The IR fields that a neuron call gives."""
    fields = {
        key: value
        for key, value in neuron.__dict__.items()
        if value is not None and key not in ("span", "surrogate")
    }
    if neuron.surrogate is not None:
        fields |= surrogate_fields(neuron.surrogate)
    return fields


def surrogate_fields(surrogate: ast.Surrogate) -> dict[str, Any]:
    """The IR fields that a surrogate call gives."""
    return {"surrogate": surrogate.kind} | ({} if surrogate.b is None else {"b": surrogate.b})
