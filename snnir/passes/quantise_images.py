"""Take images as the whole numbers 0 … 255; the weights that read them take the factor.

    conv_w(image)      -->      conv_(w/255)(quantise(image)),  quantise: clip(round(255·x), 0, 255)

Of an image in [0, 1] that was 8-bit, k/255, this gives back k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnir.errors import SnnirError
from snnir.ir.graph import Graph
from snnir.ir.nodes import Node, Owner, Quantise, WeightLayer
from snnir.passes.base import Pass
from snnir.weights import Weights

if TYPE_CHECKING:
    import numpy as np

LEVELS = 255
"""The largest value of an 8-bit image."""


def eight_bit(images: np.ndarray) -> np.ndarray:
    """The nearest 8-bit images, k/255 in fp32, which is what the quantised network sees."""
    import numpy as np

    return (np.rint(images * LEVELS).clip(0, LEVELS) / LEVELS).astype(np.float32)


def quantise_images(graph: Graph, weights: Weights) -> bool:
    frames = [node for node in graph.network_inputs if node.kind == "frame"]
    readers = {path for frame in frames for path in graph.consumers(frame.path)}
    owners = {owner for path in readers for owner in _owners(graph[path])}
    for node in graph.nodes():
        scaled = bool(owners.intersection(_owners(node)))
        if scaled != (node.path in readers):
            place = f"{graph.source.locate(node.span)}: " if graph.source else ""
            raise SnnirError(
                f"{place}{node.path} ({node.op}): found weights for images and for other values, "
                "or an image read without weights, expected a convolution of its own (exact mode)"
            )
    for owner in owners if weights else ():
        weights[f"{owner.path}.weight"] = weights[f"{owner.path}.weight"] / LEVELS
    for frame in frames:
        path = f"{frame.path}.quantise"
        graph.add(Quantise(path=path, scale=LEVELS, low=0, high=LEVELS, span=frame.span))
        graph.redirect(frame.path, path)
        graph.set_inputs(path, [frame.path])
    return bool(frames)


def _owners(node: Node) -> tuple[Owner, ...]:
    return node.owners if isinstance(node, WeightLayer) else ()


QUANTISE_IMAGES = Pass("quantise_images", quantise_images)
