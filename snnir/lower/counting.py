"""Spikes counted while a module runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from snnir.analysis.firing import SpikeCounts, is_counted
from snnir.ir.graph import Graph
from snnir.ir.nodes import Input, Node
from snnir.ir.types import Domain
from snnir.lower.module import Observer, SpikingModule
from snnir.lower.operations import Value
from snnir.weights import Weights


def count_spikes(
    graph: Graph,
    weights: Weights,
    inputs: Sequence[np.ndarray],
    *,
    change: Observer = lambda node, value: value,
) -> SpikeCounts:
    """Run a folded or deployed network on `inputs`, one array per network input (frames
    [N, C, H, W], events [T, N, C, H, W]), and count; `change` is applied to every value."""
    counter = SpikeCounter(graph)
    with torch.no_grad():
        module = SpikingModule(graph, weights).eval()
        tensors = [torch.from_numpy(x) for x in inputs]
        counter.expect(tensors)
        observe: Observer = lambda node, value: counter(node, change(node, value))  # noqa: E731
        module.run(*tensors, observe=observe)
    return counter.counts


class SpikeCounter:
    """An observer of `SpikingModule.run` that counts non-zero values by step and place.

    It sums over the batch alone, so that rates per step, silent neurons and exact synaptic
    operations all follow from `counts`. `expect` comes before every run.
    """

    def __init__(self, graph: Graph):
        self.counts = SpikeCounts()
        self._graph = graph
        self._steps = graph.steps

    def expect(self, inputs: Sequence[Tensor]) -> None:
        """What runs next: a batch of frames [N, C, H, W] or [T, N, C, H, W], as the module takes
        it."""
        given = [len(x) for x in inputs if x.dim() == 5]
        self._steps = given[0] if given else self._graph.steps
        self.counts.samples += inputs[0].shape[-4]

    def __call__(self, node: Node, value: Value) -> Value:
        steps = self._steps if value.stepped else 1
        if is_counted(self._graph, node):
            data = value.data
            if isinstance(node, Input) or self._graph.type(node.path).domain != Domain.SPIKE:
                data = (data != 0).float()
            self.counts.add({node.path: _sum_over_batch(data, steps).cpu().numpy()})
        return value


def _sum_over_batch(x: Tensor, steps: int) -> Tensor:
    """[T·N, C, …] to [T, C, …]: as a product with ones, nine times as fast as torch's sum."""
    last = x.dim() > 2 and not x.is_contiguous()
    ordered = x.movedim(1, -1) if last else x  # as it lies in memory: channels_last
    ones = x.new_ones(steps, 1, len(x) // steps)
    total = torch.bmm(ones, ordered.reshape(steps, len(x) // steps, -1))
    total = total.view(steps, *ordered.shape[1:])
    return total.movedim(-1, 1) if last else total
