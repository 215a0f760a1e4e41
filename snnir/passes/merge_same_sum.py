"""Add inside the convolution: summed convolutions become one over concatenated inputs.

    y = add(conv_a(p), conv_b(q), r)      -->      y = add(conv_ab(concat(p, q)), r)
    y = add(conv_a(p), conv_b(p))         -->      y = conv_(a+b)(p)

Only after folding (batch norm between them would normalise the sum), and only over sources of one
domain, so that spikes are not drawn into a layer that multiplies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, Concat, Conv, Owner
from snnir.passes.base import Pass
from snnir.passes.naming import merged_path
from snnir.weights import Weights


def merge_same_sum(graph: Graph, weights: Weights) -> bool:
    concats: dict[tuple[str, ...], str] = {}
    before = dict(weights)
    modified = False
    for add in graph.of_type(Add):
        groups: dict[tuple, list[Conv]] = defaultdict(list)
        for source in graph.inputs(add.path):
            node = graph[source]
            if isinstance(node, Conv) and _mergeable(graph, node):
                read = graph.type(graph.inputs(source)[0])
                geometry = (node.kernel, node.stride, node.padding, node.dilation)
                key = (geometry, read.domain, (read.shape or ())[1:])
                groups[key].append(node)
        for convs in groups.values():
            if len(convs) > 1:
                merged = _merge(graph, convs, concats, before, weights)
                kept = [s for s in graph.inputs(add.path) if s not in {c.path for c in convs}]
                graph.set_inputs(add.path, [merged, *kept])
                graph.remove(*(conv.path for conv in convs))
                modified = True
        if len(graph.inputs(add.path)) == 1:
            graph.bypass(add.path)
    return modified


def _mergeable(graph: Graph, conv: Conv) -> bool:
    return conv.groups == 1 and len(conv.owners) == 1 and len(graph.consumers(conv.path)) == 1


def _merge(
    graph: Graph,
    convs: Sequence[Conv],
    concats: dict[tuple[str, ...], str],
    before: Weights,
    weights: Weights,
) -> str:
    path = merged_path([conv.path for conv in convs])
    owner = merged_path([conv.owners[0].path for conv in convs])
    sources = {graph.inputs(conv.path)[0]: conv.in_channels for conv in convs}
    read = tuple(sources)
    if len(read) == 1:
        (source,) = read
    elif read in concats:
        source = concats[read]
    else:
        source = graph.add(Concat(path=f"{path}.inputs", span=convs[0].span), read)
        concats[read] = source
    node = convs[0].model_copy(
        update={
            "path": path,
            "owners": (Owner(owner, convs[0].out_channels),),
            "in_channels": sum(sources.values()),
            "bias": any(conv.bias for conv in convs),
        }
    )
    if before:
        parts = [(read.index(graph.inputs(conv.path)[0]), conv) for conv in convs]
        _sum_weights(parts, owner, before, weights)
    return graph.add(node, [source])


def _sum_weights(
    parts: Sequence[tuple[int, Conv]], owner: str, before: Weights, weights: Weights
) -> None:
    """Weights side by side per source, added where one source is read twice; biases added."""
    import numpy as np

    dtype = before[f"{parts[0][1].owners[0].path}.weight"].dtype
    by_source: dict[int, list[np.ndarray]] = defaultdict(list)
    for number, conv in parts:
        by_source[number].append(before[f"{conv.owners[0].path}.weight"].astype("float64"))
    stacked = np.concatenate([sum(by_source[number]) for number in sorted(by_source)], axis=1)
    weights[f"{owner}.weight"] = stacked.astype(dtype)
    biases = [before[f"{conv.owners[0].path}.bias"] for _, conv in parts if conv.bias]
    if biases:
        weights[f"{owner}.bias"] = np.sum(biases, axis=0, dtype="float64").astype(dtype)


MERGE_SAME_SUM = Pass("merge_same_sum", merge_same_sum)
