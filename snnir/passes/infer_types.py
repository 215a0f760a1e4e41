"""Attach to every edge what flows on it.

    x = conv(image) : ?      -->      x = conv(image) : real[16, 32, 32] static
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.infer import infer_domains, infer_shapes
from snnir.passes.base import Pass
from snnir.weights import Weights


def attach_shapes(graph: Graph, weights: Weights) -> bool:
    infer_shapes(graph)
    return False


def attach_domains(graph: Graph, weights: Weights) -> bool:
    infer_domains(graph)
    return False


INFER_SHAPES = Pass("infer_shapes", attach_shapes)
INFER_DOMAINS = Pass("infer_domains", attach_domains)
