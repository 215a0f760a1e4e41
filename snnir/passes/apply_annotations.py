"""Write the genotype's annotations (what DGS, TPS and HNS found) into the neurons they match.

    y = neuron(u) kind=lif      annotate { trunk.layers[2].n1 neuron=relu }
-->
    y = neuron(u) kind=relu
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from snnir.errors import Diagnostic, GenotypeError, did_you_mean
from snnir.genotype.ast import Annotation
from snnir.genotype.vocabulary import NEURON_ARGUMENTS
from snnir.ir.build import neuron_fields, surrogate_fields
from snnir.ir.graph import Graph
from snnir.ir.nodes import Neuron
from snnir.passes.base import Pass
from snnir.source import Source
from snnir.weights import Weights


def owner_path(path: str) -> str:
    """A path without what its backbone reads: `feature(left).stem.0` -> `feature.stem.0`."""
    return re.sub(r"\([^.]*\)(?=\.)", "", path)


def language_path(neuron_path: str) -> str:
    """A neuron's path in the language: `trunk.layers.3.n1.neuron` -> `trunk.layers[3].n1`.

    Every application of a backbone goes by its name: `feature(left).stem.0` -> `feature.stem[0]`.
    """
    indexed = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", owner_path(neuron_path))
    return indexed.removesuffix(".neuron") if indexed != "head.neuron" else indexed


def apply_annotations(graph: Graph, weights: Weights) -> bool:
    by_path: dict[str, list[str]] = defaultdict(list)
    for neuron in graph.neurons:
        by_path[language_path(neuron.path)].append(neuron.path)
    wrong: list[Diagnostic] = []
    modified = False
    for annotation in graph.annotations:
        matched = [p for path in matching(annotation.path, by_path) for p in by_path[path]]
        if not matched:
            known = [p for p in by_path if p.count(".") == annotation.path.count(".")]
            message = f"found '{annotation.path}', which matches no neuron of the network"
            wrong.append(Diagnostic(message, annotation.span, did_you_mean(annotation.path, known)))
            continue
        unused = set(_settings(annotation))
        for path in matched:
            old = graph[path]
            assert isinstance(old, Neuron)
            new, used = _annotated(old, annotation)
            unused -= used
            if new != old:
                graph.replace(new)
                modified = True
        wrong += [
            Diagnostic(
                f"found {key}= on '{annotation.path}', which matches no neuron with one",
                annotation.span,
            )
            for key in sorted(unused)
        ]
    if wrong:
        raise GenotypeError(graph.source or Source("<graph>", ""), wrong)
    graph.annotations = ()
    return modified


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """Which of some neurons' language paths an annotation's path means."""
    if "*" not in pattern:
        return [p for p in (pattern, pattern.removesuffix(".neuron")) if p in paths][:1]
    regex = re.escape(pattern).replace(r"\[\*\]", r"\[\d+\]").replace(r"\.\*", r"\.[^.\[]+")
    return [path for path in paths if re.fullmatch(regex, path)]


def _settings(annotation: Annotation) -> dict[str, object]:
    keys = ("neuron", "surrogate", "tau", "tau_a")
    return {key: getattr(annotation, key) for key in keys if getattr(annotation, key) is not None}


def _annotated(neuron: Neuron, annotation: Annotation) -> tuple[Neuron, set[str]]:
    """The neuron with the settings its kind has; `neuron=` first, so that the others refine it."""
    fields = neuron.model_dump()
    used = set()
    if annotation.neuron is not None:
        fields |= neuron_fields(annotation.neuron)
        used.add("neuron")
    takes = NEURON_ARGUMENTS[str(fields["kind"])]
    for key in ("tau", "tau_a"):
        if getattr(annotation, key) is not None and key in takes:
            fields[key] = getattr(annotation, key)
            used.add(key)
    if annotation.surrogate is not None and "surrogate" in takes:
        fields |= surrogate_fields(annotation.surrogate)
        used.add("surrogate")
    return Neuron.model_validate(fields), used


APPLY_ANNOTATIONS = Pass("apply_annotations", apply_annotations)
