"""Read skips through a convolution that changes nothing, for targets where convolutions alone can
drop pixels or join channels.

    y = add(conv(x), resize(a))      -->      y = add(conv(x), conv_1(resize(a)))
    y = neuron(concat(a, b))         -->      y = neuron(conv_1(concat(a, b)))

conv_1: 1x1, its weight the identity, without bias.
"""

from __future__ import annotations

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, Concat, Conv, Neuron, Resize
from snnir.passes.base import Pass
from snnir.weights import Weights


def convolve_skips(graph: Graph, weights: Weights) -> bool:
    filled = bool(weights)
    modified = False
    for skip in graph.nodes():
        readers = [
            path for path in set(graph.consumers(skip.path))
            if isinstance(graph[path], Add | Neuron) and isinstance(skip, Concat | Resize)
        ]  # fmt: skip
        if not readers:
            continue
        channels, *size = graph.shape(skip.path)
        ones = (1,) * len(size)
        conv = Conv(
            path=f"{skip.path}.identity", in_channels=channels, out_channels=channels,
            kernel=ones, stride=ones, padding=(0,) * len(size), bias=False, span=skip.span,
        )  # fmt: skip
        graph.add(conv, [skip.path])
        for reader in readers:
            inputs = graph.inputs(reader)
            graph.set_inputs(reader, [conv.path if i == skip.path else i for i in inputs])
        if filled:
            import numpy as np

            dtype = next(iter(weights.values())).dtype
            identity = np.eye(channels, dtype=dtype).reshape(channels, channels, *ones)
            weights[f"{conv.path}.weight"] = identity
        modified = True
    return modified


CONVOLVE_SKIPS = Pass("convolve_skips", convolve_skips)
