"""Average by a convolution, whose weights can be rounded like any others.

average_pool(x), k taps      -->      depthwise conv of 1/k, without bias
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import AdaptiveAveragePool, Conv, Pool
from snnir.ir.types import volume
from snnir.passes.base import Pass
from snnir.weights import Weights


def pools_to_convolutions(graph: Graph, weights: Weights) -> bool:
    modified = False
    for node in graph.nodes():
        if isinstance(node, Pool) and node.kind == "average":
            kernel, stride, padding = node.kernel, node.stride, node.padding
        elif isinstance(node, AdaptiveAveragePool) and set(node.size) == {1}:
            kernel = graph.input_shapes(node.path)[0][1:]
            stride, padding = (1,) * len(kernel), (0,) * len(kernel)
        else:
            continue
        channels = graph.shape(node.path)[0]
        conv = Conv(
            path=node.path,
            in_channels=channels,
            out_channels=channels,
            groups=channels,
            kernel=kernel,
            stride=stride,
            padding=padding,
            bias=False,
            span=node.span,
        )
        graph.replace(conv)
        if weights:
            import numpy as np

            weights[f"{node.path}.weight"] = np.full(
                (channels, 1, *kernel), 1 / volume(kernel), "float32"
            )
        modified = True
    return modified


POOLS_TO_CONVOLUTIONS = Pass("pools_to_convolutions", pools_to_convolutions)
