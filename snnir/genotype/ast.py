"""The typed syntax tree of a genotype: frozen, compared without spans.

An argument left out in the text is None here; defaults belong to the IR (`snnir.ir.nodes`), so
that printing gives back what was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from snnir.source import Source, Span

SurrogateKind = Literal["dspike", "triangle", "superspike", "arctan", "rectangular", "sigmoid"]
NeuronKind = Literal["if", "lif", "alif", "binary", "relu"]
Mix = Literal["membrane", "spike"]


class Element(BaseModel):
    """A piece of a genotype; equality ignores where it stood in the source."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    span: Span | None = None

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash((type(self), self._content()))

    def _content(self) -> tuple[object, ...]:
        return tuple(value for key, value in self.__dict__.items() if key != "span")


class Surrogate(Element):
    """A surrogate gradient and its temperature b (method §2): `dspike(b=3)`."""

    kind: SurrogateKind
    b: float | None = None


class Neuron(Element):
    """A neuron model and the parameters given: `lif(tau=0.2, surrogate=dspike(b=3))`."""

    kind: NeuronKind
    tau: float | None = None
    v_threshold: float | None = None
    tau_a: float | None = None
    beta: float | None = None
    surrogate: Surrogate | None = None
    detach_reset: bool | None = None


class Input(Element):
    """`input NAME: frame[C, H, W]` or `events[C, H, W]`."""

    name: str
    kind: Literal["frame", "events"]
    shape: tuple[int, int, int]


class Steps(Element):
    """`steps T`: how many time steps one sample takes."""

    count: int


class DefaultNeuron(Element):
    """`neuron CALL`: the neuron of every node that names none."""

    neuron: Neuron


class CellOperation(Element):
    """`conv3x3(prev, b=5)`: an operation on a state; b is a label unless the cell mixes spikes."""

    operation: str
    state: str
    b: float | None = None


class CellNode(Element):
    """`n0 = op(state) + op(state) : neuron`."""

    name: str
    operations: tuple[CellOperation, ...]
    neuron: Neuron | None = None


class Cell(Element):
    """A cell whose nodes are known; its output is the concatenation of them."""

    name: str
    states: tuple[str, str]
    mix: Mix | None = None
    nodes: tuple[CellNode, ...]


class Candidate(Element):
    """One operation that a searchable edge may become."""

    operation: str
    b: float | None = None


class SearchCell(Element):
    """A cell to be searched: every node reads every earlier state through every candidate."""

    name: str
    states: tuple[str, str]
    nodes: int
    keep: int
    mix: Mix | None = None
    candidates: tuple[Candidate, ...]


class LayerOperation(Element):
    """An operation of `stem` or `out`: conv + BN + neuron, parts left out by `=false`."""

    operation: str
    channels: int
    stride: int | None = None
    bn: bool | None = None
    bias: bool | None = None
    spike: bool | None = None


class ResizeToStem(Element):
    """`resize(stem)`: nearest resizing to the stem's output size."""


class PlacedCell(Element):
    """`normal@1`: a cell at a resolution level."""

    cell: str
    level: int


class Layers(Element):
    """The cells of a backbone, in order."""

    channels: int
    cells: tuple[PlacedCell, ...]


class Trellis(Element):
    """`layers channels=C search depth=L levels=K { cell }`: resolutions to be searched."""

    channels: int
    depth: int
    levels: int
    cell: str


class Backbone(Element):
    """Stem, layers and what follows them, as a function of one feature map."""

    name: str
    parameter: str
    stem: tuple[LayerOperation, ...]
    layers: Layers | Trellis | None = None
    out: tuple[LayerOperation | ResizeToStem, ...] = ()


class Reference(Element):
    """A value by name, or with `layer` the output of one cell of a backbone."""

    name: str
    layer: int | None = None


class Application(Element):
    """`feature(left)`: a backbone applied to a value."""

    backbone: str
    argument: Expression


class CostVolume(Element):
    """`cost_volume(a, b, max_disparity=63)` (method §8)."""

    left: Expression
    right: Expression
    max_disparity: int


Expression = Reference | Application | CostVolume


def walk(expression: Expression) -> Iterator[Expression]:
    """An expression and everything inside it."""
    yield expression
    if isinstance(expression, Application):
        yield from walk(expression.argument)
    elif isinstance(expression, CostVolume):
        yield from walk(expression.left)
        yield from walk(expression.right)


class Definition(Element):
    """`NAME = expression`."""

    name: str
    value: Expression


class Classify(Element):
    """`head classify(x, classes=10)` (method §3, classifier head)."""

    value: Expression
    classes: int


class Disparity(Element):
    """`head disparity(x, max_disparity=63, support=2)` (method §8, estimator)."""

    value: Expression
    max_disparity: int
    support: int | None = None


class Head(Element):
    """What the network computes."""

    task: Classify | Disparity


class Auxiliary(Element):
    """A classifier on an intermediate layer whose loss helps training; not deployed."""

    task: Classify
    weight: float | None = None


class Annotation(Element):
    """`PATH key=value, …`: settings of the neurons that the path matches."""

    path: str
    surrogate: Surrogate | None = None
    tau: float | None = None
    tau_a: float | None = None
    neuron: Neuron | None = None


class Annotate(Element):
    """`annotate { … }`: what DGS, TPS and HNS found; later lines win."""

    annotations: tuple[Annotation, ...]


Statement = (
    Input
    | Steps
    | DefaultNeuron
    | Cell
    | SearchCell
    | Backbone
    | Definition
    | Head
    | Auxiliary
    | Annotate
)


class Genotype(Element):
    """A whole `.snn` file."""

    name: str
    statements: tuple[Statement, ...]
    source: Source | None = None

    def _content(self) -> tuple[object, ...]:
        return (self.name, self.statements)

    def all(self, *kinds: type) -> list:
        """The statements of the given kinds, in source order."""
        return [s for s in self.statements if isinstance(s, kinds)]

    @property
    def inputs(self) -> list[Input]:
        return self.all(Input)

    @property
    def steps(self) -> int:
        """Time steps per sample, 1 when the text does not say."""
        return next((s.count for s in self.all(Steps)), 1)

    @property
    def default_neuron(self) -> Neuron:
        """The `neuron` statement's, or a LIF with every default."""
        return next((s.neuron for s in self.all(DefaultNeuron)), Neuron(kind="lif"))

    @property
    def cells(self) -> dict[str, Cell | SearchCell]:
        return {c.name: c for c in self.all(Cell, SearchCell)}

    @property
    def backbones(self) -> dict[str, Backbone]:
        return {b.name: b for b in self.all(Backbone)}

    @property
    def definitions(self) -> dict[str, Definition]:
        return {d.name: d for d in self.all(Definition)}

    @property
    def head(self) -> Head:
        return next(iter(self.all(Head)))

    @property
    def auxiliaries(self) -> list[Auxiliary]:
        return self.all(Auxiliary)

    @property
    def annotations(self) -> list[Annotation]:
        return [a for block in self.all(Annotate) for a in block.annotations]

    @property
    def searchable(self) -> bool:
        """Whether anything is left to search."""
        return bool(self.all(SearchCell)) or any(
            isinstance(b.layers, Trellis) for b in self.backbones.values()
        )


for _model in (Application, CostVolume, Definition, Classify, Disparity):
    _model.model_rebuild()
