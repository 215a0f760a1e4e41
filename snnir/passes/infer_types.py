"""Attach to every edge what flows on it: its shape, then its domain and time.

x = conv(image) : ?      -->      x = conv(image) : real[16, 32, 32] static
"""

from __future__ import annotations

from dataclasses import replace

from snnir.ir.graph import Graph
from snnir.ir.infer import infer_types
from snnir.passes.base import Pass
from snnir.weights import Weights


def infer_shapes(graph: Graph, weights: Weights) -> bool:
    for path, inferred in infer_types(graph).items():
        graph.set_type(path, replace(graph.type(path), shape=inferred.shape))
    return False


def infer_domains(graph: Graph, weights: Weights) -> bool:
    for path, inferred in infer_types(graph).items():
        known = graph.type(path)
        graph.set_type(path, replace(known, domain=inferred.domain, time=inferred.time))
    return False


INFER_SHAPES = Pass("infer_shapes", infer_shapes)
INFER_DOMAINS = Pass("infer_domains", infer_domains)
