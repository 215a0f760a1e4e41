"""What a pass is, and how passes run: verified before and after, types kept up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from snnir.ir.graph import Graph
from snnir.ir.types import TensorType
from snnir.ir.verify import VerifyError, verify
from snnir.weights import Weights, expected_shapes


@dataclass(frozen=True)
class Pass:
    """A rewrite with a name. `rewrite` edits the graph and weights it is given (copies of the
    caller's) and says whether it changed anything. Empty weights: structure only."""

    name: str
    rewrite: Callable[[Graph, Weights], bool]


@dataclass(frozen=True)
class PassResult:
    """A pipeline's outcome; `modified` names the passes that changed something."""

    graph: Graph
    weights: Weights
    modified: tuple[str, ...]


def run_passes(passes: Iterable[Pass], graph: Graph, weights: Weights | None = None) -> PassResult:
    """Run `passes` in order on a copy of `graph`.

    Raises:
        VerifyError: naming the pass before or after which the graph is not valid, the node and
            its source line.
    """
    graph, weights = graph.copy(), dict(weights or {})
    modified: list[str] = []
    verify(graph, when="before the first pass")
    for step in passes:
        known = next((graph.type(n.path) for n in graph.nodes()), TensorType())
        changed = step.rewrite(graph, weights)
        if changed:
            for node in graph.nodes():
                graph.set_type(node.path, TensorType())
        types = verify(graph, when=f"after {step.name}")
        if changed:
            _attach(graph, types, known)
            modified.append(step.name)
        if weights:
            weights = _used_weights(graph, weights, step.name)
    return PassResult(graph, weights, tuple(modified))


def _attach(graph: Graph, types: dict[str, TensorType], known: TensorType) -> None:
    """Attach the inferred types, as far as they were known before."""
    for path, inferred in types.items():
        kept = inferred if known.shape is not None else TensorType()
        if known.domain is None:
            kept = replace(kept, domain=None, time=None)
        graph.set_type(path, kept)


def _used_weights(graph: Graph, weights: Weights, name: str) -> Weights:
    kept: Weights = {}
    for key, shape in expected_shapes(graph).items():
        found = weights[key].shape if key in weights else None
        if found != shape:
            raise VerifyError(f"{graph.name}: after {name}: {key}: found {found}, expected {shape}")
        kept[key] = weights[key]
    return kept
