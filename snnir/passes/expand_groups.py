"""Make grouped convolutions ordinary ones, with zeros between the groups.

y = conv(x) groups=C      -->      y = conv(x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnir.ir.graph import Graph
from snnir.ir.nodes import Conv
from snnir.passes.base import Pass
from snnir.weights import Weights

if TYPE_CHECKING:
    import numpy as np


def expand_groups(graph: Graph, weights: Weights) -> bool:
    before = dict(weights)
    grouped = [conv for conv in graph.of_type(Conv) if conv.groups > 1]
    for conv in grouped:
        graph.replace(conv.model_copy(update={"groups": 1}))
        first = 0
        for path, channels in conv.owners if before else ():
            weights[f"{path}.weight"] = _expanded(conv, before[f"{path}.weight"], first)
            first += channels
    return bool(grouped)


def _expanded(conv: Conv, weight: np.ndarray, first: int) -> np.ndarray:
    """The weight [O, I / groups, …] of the output channels from `first` on, as [O, I, …]."""
    import numpy as np

    wide = np.zeros((len(weight), conv.in_channels, *conv.kernel), weight.dtype)
    inputs = conv.in_channels // conv.groups
    for number, taps in enumerate(weight):
        group = (first + number) * conv.groups // conv.out_channels
        wide[number, group * inputs : (group + 1) * inputs] = taps
    return wide


EXPAND_GROUPS = Pass("expand_groups", expand_groups)
