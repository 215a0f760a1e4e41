"""Let convolutions skip the pixels that a nearest resize by a whole factor drops before them.

    y = conv(resize(x)) stride=s padding=p, resize by 1/2
-->
    y = conv(x) stride=2s padding=2p dilation=2

Exact: resize takes pixels 0, 2, 4, … (index floor(i·in/out)), and so do the spread taps.
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import Conv, Resize
from snnir.passes.base import Pass
from snnir.weights import Weights


def merge_resizes(graph: Graph, weights: Weights) -> bool:
    modified = False
    for resize in graph.of_type(Resize):
        (source,) = graph.inputs(resize.path)
        strides = set(resize.strides(graph.shape(source)) or ())
        readers = [graph[path] for path in graph.consumers(resize.path)]
        if len(strides) != 1 or not all(isinstance(reader, Conv) for reader in readers):
            continue
        (factor,) = strides
        for reader in readers:
            assert isinstance(reader, Conv)
            update = {
                "stride": tuple(factor * s for s in reader.stride),
                "padding": tuple(factor * p for p in reader.padding),
                "dilation": factor * reader.dilation,
            }
            graph.replace(reader.model_copy(update=update))
        graph.bypass(resize.path)
        modified = True
    return modified


MERGE_RESIZES = Pass("merge_resizes", merge_resizes)
