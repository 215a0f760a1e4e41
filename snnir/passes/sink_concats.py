"""Move concatenations down to the layers that sum over them, and split those: no concat is left.

    f(concat(a, b))       -->      concat(f(a), f(b))
    conv(concat(a, b))    -->      add(conv_0(a), conv_1(b))    the bias stays with the first

with f a pool, nearest resize, neuron or flatten. Only for ungrouped convolutions. What else reads a
concatenation keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from snnir.ir.graph import Graph
from snnir.ir.nodes import (
    AdaptiveAveragePool,
    Add,
    Concat,
    Conv,
    Flatten,
    Linear,
    Neuron,
    Node,
    Owner,
    Pool,
    Repeat,
    Resize,
)
from snnir.passes.base import Pass
from snnir.weights import Weights


def sink_concats(graph: Graph, weights: Weights) -> bool:
    before = dict(weights)
    modified = False
    for node in graph.nodes():
        sources = graph.inputs(node.path)
        if len(sources) != 1 or not isinstance(graph[sources[0]], Concat):
            continue
        parts = graph.inputs(sources[0])
        if _works_per_channel(node):
            _move_above(graph, node, parts)
        elif isinstance(node, Linear) or (isinstance(node, Conv) and node.groups == 1):
            _split(graph, node, parts, before, weights)
        else:
            continue
        modified = True
    unread = [concat.path for concat in graph.of_type(Concat) if not graph.consumers(concat.path)]
    graph.remove(*unread)
    return modified


def _works_per_channel(node: Node) -> bool:
    if isinstance(node, Resize):
        return node.mode == "nearest"
    return isinstance(node, AdaptiveAveragePool | Flatten | Neuron | Pool | Repeat)


def _move_above(graph: Graph, node: Node, parts: Sequence[str]) -> None:
    """Put a concatenation of one node per part in the place of `node`."""
    moved = []
    for number, part in enumerate(parts):
        path = graph.add(node.model_copy(update={"path": f"{node.path}.{number}"}), [part])
        shape = node.output_shape([graph.shape(part)])
        graph.set_type(path, replace(graph.type(node.path), shape=shape))
        moved.append(path)
    graph.replace(Concat(path=node.path, span=node.span))
    graph.set_inputs(node.path, moved)


def _split(
    graph: Graph, node: Conv | Linear, parts: Sequence[str], before: Weights, weights: Weights
) -> None:
    """Put the sum of one layer per part in the place of `node`."""
    pieces = []
    start = 0
    for number, part in enumerate(parts):
        width = graph.shape(part)[0]
        owners = tuple(Owner(f"{path}.{number}", channels) for path, channels in node.owners)
        update = {
            "path": f"{node.path}.{number}",
            "owners": owners,
            "bias": node.bias and number == 0,
            "in_features" if isinstance(node, Linear) else "in_channels": width,
        }
        pieces.append(graph.add(node.model_copy(update=update), [part]))
        for whole, piece in zip(node.owners, owners, strict=True) if before else ():
            weight = before[f"{whole.path}.weight"]
            weights[f"{piece.path}.weight"] = weight[:, start : start + width]
            if number == 0 and node.bias:
                weights[f"{piece.path}.bias"] = before[f"{whole.path}.bias"]
        start += width
    graph.replace(Add(path=node.path, span=node.span))
    graph.set_inputs(node.path, pieces)


SINK_CONCATS = Pass("sink_concats", sink_concats)
