"""`Graph`: a typed dataflow graph around a networkx MultiDiGraph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import networkx as nx

from snnir.genotype.ast import Annotation
from snnir.ir.nodes import Input, Neuron, Node, Output
from snnir.ir.types import Shape, TensorType
from snnir.source import Source

N = TypeVar("N", bound=Node)


class Edge(NamedTuple):
    """`target` reads `source` as its input number `slot`; the type is that of the value."""

    source: str
    target: str
    slot: int
    type: TensorType


class Graph:
    """Nodes by path, edges by input slot, types by producer.

    A pass works on a `copy()`; nodes themselves are frozen and shared.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        *,
        source: Source | None = None,
        annotations: Sequence[Annotation] = (),
    ):
        self.name = name
        self.steps = steps
        self.source = source
        self.annotations = tuple(annotations)
        self._nx = nx.MultiDiGraph()
        self._order: list[str] | None = None
        self._inferred: dict[str, TensorType] | None = None

    # --- reading ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._nx)

    def __contains__(self, path: str) -> bool:
        return path in self._nx

    def __getitem__(self, path: str) -> Node:
        return self._nx.nodes[path]["node"]

    def nodes(self) -> list[Node]:
        """All nodes, each after what it reads, otherwise as they were added.

        Raises networkx.NetworkXUnfeasible on a cycle.
        """
        if self._order is None:
            number = {path: n for n, path in enumerate(self._nx)}
            self._order = list(
                nx.lexicographical_topological_sort(self._nx, key=number.__getitem__)
            )
        return [self[path] for path in self._order]

    def of_type(self, kind: type[N]) -> list[N]:
        """The nodes of one type, in topological order."""
        return [node for node in self.nodes() if isinstance(node, kind)]

    def inputs(self, path: str) -> tuple[str, ...]:
        """Paths of what `path` reads, in slot order."""
        return self._nx.nodes[path]["inputs"]

    def consumers(self, path: str) -> list[str]:
        """Paths of the nodes that read `path`, once per read."""
        return [target for _, target, _ in self._nx.out_edges(path, keys=True)]

    def edges(self) -> Iterator[Edge]:
        """Every edge with the type of the value on it."""
        for source, target, slot in self._nx.edges(keys=True):
            yield Edge(source, target, slot, self.type(source))

    def type(self, path: str) -> TensorType:
        """What is known of the value that `path` produces."""
        return self._nx.nodes[path]["type"]

    def inferred(self, infer: Callable[[Graph], dict[str, TensorType]]) -> dict[str, TensorType]:
        """What `infer` says of this graph, kept until the graph changes."""
        if self._inferred is None:
            self._inferred = infer(self)
        return self._inferred

    def shape(self, path: str) -> Shape:
        """The shape that `path` produces; shapes must have been inferred."""
        shape = self.type(path).shape
        assert shape is not None, f"{path}: shapes have not been inferred"
        return shape

    def input_shapes(self, path: str) -> list[Shape]:
        return [self.shape(source) for source in self.inputs(path)]

    @property
    def network_inputs(self) -> list[Input]:
        return self.of_type(Input)

    @property
    def outputs(self) -> list[Output]:
        """The head's output first, then auxiliary heads."""
        return sorted(self.of_type(Output), key=lambda node: node.role != "head")

    @property
    def neurons(self) -> list[Neuron]:
        return self.of_type(Neuron)

    def parameter_shapes(self) -> dict[str, Shape]:
        """Shapes of all learned parameters, by name; shared ones once."""
        return {k: v for node in self.nodes() for k, v in node.parameter_shapes().items()}

    def buffer_shapes(self) -> dict[str, Shape]:
        """Shapes of all running statistics, by name; shared ones once."""
        return {k: v for node in self.nodes() for k, v in node.buffer_shapes().items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]

    def _content(self) -> tuple:
        nodes = {p: (self[p], self.inputs(p), self.type(p)) for p in self._nx}
        return self.name, self.steps, self.source, self.annotations, nodes

    # --- rewriting --------------------------------------------------------------------------

    def copy(self) -> Graph:
        """An independent graph with the same (frozen) nodes."""
        twin = Graph(self.name, self.steps, source=self.source, annotations=self.annotations)
        twin._nx = self._nx.copy()
        twin._order, twin._inferred = self._order, self._inferred
        return twin

    def add(self, node: Node, inputs: Sequence[str] = ()) -> str:
        """Add a node that reads `inputs`; returns its path."""
        if node.path in self._nx:
            raise ValueError(f"path '{node.path}' is taken")
        self._changed()
        self._nx.add_node(node.path, node=node, type=TensorType())
        self._connect(node.path, inputs)
        return node.path

    def replace(self, node: Node) -> None:
        """Put `node` in the place of the node with its path, edges kept."""
        self._inferred = None
        self._nx.nodes[node.path]["node"] = node

    def set_inputs(self, path: str, inputs: Sequence[str]) -> None:
        """Make `path` read `inputs` instead of what it reads."""
        self._changed()
        self._nx.remove_edges_from(list(self._nx.in_edges(path, keys=True)))
        self._connect(path, inputs)

    def set_type(self, path: str, type: TensorType) -> None:
        self._nx.nodes[path]["type"] = type

    def redirect(self, old: str, new: str) -> None:
        """Make everything that reads `old` read `new`."""
        for target in list(self._nx.successors(old)):
            self.set_inputs(
                target, [new if source == old else source for source in self.inputs(target)]
            )

    def bypass(self, path: str) -> None:
        """Remove a one-input node; its readers read its input."""
        (source,) = self.inputs(path)
        self.redirect(path, source)
        self.remove(path)

    def remove(self, *paths: str) -> None:
        self._changed()
        self._nx.remove_nodes_from(paths)

    def reachable(self, targets: Sequence[str]) -> set[str]:
        """`targets` and everything they depend on."""
        seen = set(targets)
        stack = list(targets)
        while stack:
            for source in self._nx.predecessors(stack.pop()):
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return seen

    def _changed(self) -> None:
        """Forget what was derived from the structure."""
        self._order = self._inferred = None

    def _connect(self, path: str, inputs: Sequence[str]) -> None:
        self._nx.nodes[path]["inputs"] = tuple(inputs)
        for slot, source in enumerate(inputs):
            if source not in self._nx:
                raise ValueError(f"'{path}' reads '{source}', which is not in the graph")
            self._nx.add_edge(source, path, slot)
