"""Which neurons of a network are tuned, and how what was found is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from snnir.errors import SnnirError, did_you_mean
from snnir.genotype import Genotype, ast, parse, print_genotype
from snnir.genotype.ast import NeuronKind
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron
from snnir.passes import ANALYSIS, WIDENING, Pass, run_passes
from snnir.passes.apply_annotations import language_path, matching
from snnir.source import Source

LEAKY: tuple[NeuronKind, ...] = ("lif", "alif")
SPIKING: tuple[NeuronKind, ...] = ("if", "lif", "alif", "binary")
KINDS: tuple[NeuronKind, ...] = (*SPIKING, "relu")

Targets = Mapping[str, Sequence[Neuron]]
"""The neurons to tune by their path in the language: several where a backbone is applied twice."""


def tunable(network: Graph, patterns: Sequence[str], kinds: Sequence[NeuronKind]) -> Targets:
    """The neurons that the patterns name and whose kind is one of `kinds`, annotations applied;
    auxiliary heads aside. No pattern: all.

    Raises:
        SnnirError: a pattern that names no neuron; no neuron of these kinds.
    """
    graph = run_passes(ANALYSIS, network).graph
    needed = graph.reachable([graph.outputs[0].path])
    by_path: dict[str, list[Neuron]] = {}
    for neuron in graph.neurons:
        if neuron.path in needed:
            by_path.setdefault(language_path(neuron.path), []).append(neuron)
    chosen = set(by_path) if not patterns else set()
    for pattern in patterns:
        found = matching(pattern, by_path)
        if not found:
            hint = did_you_mean(pattern, by_path)
            example = ", ".join(list(by_path)[:3])
            raise SnnirError(
                f"nodes: found '{pattern}', which names no neuron of '{network.name}', expected a "
                f"path such as {example} or one with [*] or .* {hint}".rstrip()
            )
        chosen.update(found)
    targets = {
        path: neurons
        for path, neurons in by_path.items()
        if path in chosen and neurons[0].kind in kinds
    }
    if not targets:
        raise SnnirError(
            f"network '{network.name}': found no neuron to tune, expected one of the kinds "
            f"{', '.join(kinds)}" + (f" among {', '.join(patterns)}" if patterns else "")
        )
    return targets


def to_train(network: Graph, change: Pass) -> Graph:
    """A network as built, changed once its annotations are applied, as it trains."""
    return run_passes((*ANALYSIS, change, *WIDENING), network).graph


def annotate(genotype: Genotype, found: Sequence[ast.Annotation]) -> Genotype:
    """The genotype with more annotations, in its last `annotate` block or a new one; lines that
    they make meaningless go. Printed and read back."""
    if not found:
        return genotype
    old = genotype.all(ast.Annotate)
    kept = [a for block in old for a in block.annotations if not _replaced(a, found)]
    block = ast.Annotate(annotations=(*kept, *found))
    statements = tuple(s for s in genotype.statements if s not in old)
    changed = genotype.model_copy(update={"statements": (*statements, block)})
    name = genotype.source.name if genotype.source else genotype.name
    return parse(Source(f"{name}, annotated", print_genotype(changed)))


def _replaced(line: ast.Annotation, found: Sequence[ast.Annotation]) -> bool:
    """Whether one of the later lines sets all that this one sets, of the same path."""
    keys = ("surrogate", "tau", "tau_a", "neuron")
    mine = {key for key in keys if getattr(line, key) is not None}
    return any(
        other.path == line.path and all(getattr(other, key) is not None for key in mine)
        for other in found
    )
