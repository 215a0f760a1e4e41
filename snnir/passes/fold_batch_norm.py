"""Fold batch norm into what precedes it; afterwards spikes meet nothing but weights (method §3).

With s = weight / sqrt(running_var + eps):

    conv or linear: bn(W x + b)      -->   (s W) x + s (b - mean) + bias
    average pool:   bn(pool(x))      -->   depthwise conv of s / k² and bias; if the pool reads a
                                           conv1x1 without bias, one conv of the pool's kernel
    anything else:  bn(x)            -->   depthwise conv1x1 of s and bias
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnir.ir.graph import Graph
from snnir.ir.nodes import BatchNorm, Conv, Linear, Node, Owner, Pool
from snnir.ir.types import volume
from snnir.passes.base import Pass
from snnir.weights import Weights

if TYPE_CHECKING:
    import numpy as np


def fold_batch_norm(graph: Graph, weights: Weights) -> bool:
    before = dict(weights)
    modified = False
    for bn in graph.of_type(BatchNorm):
        (source,) = graph.inputs(bn.path)
        producer = graph[source]
        if bn.gates:  # what a search still weighs stays as it is
            continue
        private = len(graph.consumers(source)) == 1
        if isinstance(producer, Conv | Linear) and private and _same_parts(producer, bn):
            graph.replace(producer.model_copy(update={"bias": True}))
            graph.bypass(bn.path)
            for weighted, normed in zip(producer.owners, bn.owners, strict=True):
                _fold_weights(weighted.path, normed.path, bn.eps, before, weights)
        elif len(graph.shape(bn.path)) < 3 or len(bn.owners) > 1:
            continue
        elif isinstance(producer, Pool) and producer.kind == "average" and private:
            _fold_average_pool(graph, bn, producer, before, weights)
        else:
            _replace_by_depthwise(graph, bn, None, before, weights)
        modified = True
    return modified


def _same_parts(producer: Conv | Linear, bn: BatchNorm) -> bool:
    return [o.channels for o in producer.owners] == [o.channels for o in bn.owners]


def _scale_and_shift(path: str, eps: float, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """s and the constant s·(0 - mean) + bias, in float64."""
    mean, var, gamma, beta = (
        weights[f"{path}.{name}"].astype("float64")
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    scale = gamma / (var + eps) ** 0.5
    return scale, beta - mean * scale


def _fold_weights(path: str, bn_path: str, eps: float, before: Weights, weights: Weights) -> None:
    if not before:
        return
    weight = before[f"{path}.weight"]
    scale, shift = _scale_and_shift(bn_path, eps, before)
    bias = before.get(f"{path}.bias")
    folded = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    weights[f"{path}.weight"] = folded.astype(weight.dtype)
    weights[f"{path}.bias"] = (shift if bias is None else shift + bias * scale).astype(weight.dtype)


def _fold_average_pool(
    graph: Graph, bn: BatchNorm, pool: Pool, before: Weights, weights: Weights
) -> None:
    (source,) = graph.inputs(pool.path)
    producer = graph[source]
    graph.bypass(pool.path)
    if not _is_plain_pointwise(graph, producer):
        _replace_by_depthwise(graph, bn, pool, before, weights)
        return
    assert isinstance(producer, Conv)
    conv = producer.model_copy(
        update={"kernel": pool.kernel, "stride": pool.stride, "padding": pool.padding, "bias": True}
    )
    graph.replace(conv)
    graph.bypass(bn.path)
    if before:
        (owner,) = conv.owners
        scale, shift = _scale_and_shift(bn.owners[0].path, bn.eps, before)
        pointwise = before[f"{owner.path}.weight"]
        tap = pointwise * (scale / volume(pool.kernel)).reshape(-1, *[1] * (pointwise.ndim - 1))
        spread = tap.repeat(pool.kernel[0], axis=-2).repeat(pool.kernel[1], axis=-1)
        weights[f"{owner.path}.weight"] = spread.astype(pointwise.dtype)
        weights[f"{owner.path}.bias"] = shift.astype(pointwise.dtype)


def _is_plain_pointwise(graph: Graph, node: Node) -> bool:
    return (
        isinstance(node, Conv)
        and volume(node.kernel) == 1
        and volume(node.stride) == 1
        and node.dilation == 1
        and not node.bias
        and node.groups == 1
        and len(node.owners) == 1
        and len(graph.consumers(node.path)) == 1
    )


def _replace_by_depthwise(
    graph: Graph, bn: BatchNorm, pool: Pool | None, before: Weights, weights: Weights
) -> None:
    """Put a depthwise conv in the place of `bn` (and of the pool it read)."""
    rank = len(graph.shape(bn.path)) - 1
    kernel = pool.kernel if pool else (1,) * rank
    (owner,) = bn.owners
    folded = f"{owner.path.removesuffix('bn')}depthwise"
    (source,) = graph.inputs(bn.path)
    path = graph.add(
        Conv(
            path=f"{bn.path.removesuffix('bn')}depthwise",
            owners=(Owner(folded, bn.out_channels),),
            in_channels=bn.out_channels,
            out_channels=bn.out_channels,
            groups=bn.out_channels,
            kernel=kernel,
            stride=pool.stride if pool else (1,) * rank,
            padding=pool.padding if pool else (0,) * rank,
            span=bn.span,
        ),
        [source],
    )
    graph.redirect(bn.path, path)
    graph.remove(bn.path)
    if before:
        dtype = before[f"{owner.path}.weight"].dtype
        scale, shift = _scale_and_shift(owner.path, bn.eps, before)
        taps = (scale / volume(kernel)).reshape(-1, 1, *[1] * rank)
        for axis, size in enumerate(kernel, start=2):
            taps = taps.repeat(size, axis=axis)
        weights[f"{folded}.weight"] = taps.astype(dtype)
        weights[f"{folded}.bias"] = shift.astype(dtype)


FOLD_BATCH_NORM = Pass("fold_batch_norm", fold_batch_norm)
