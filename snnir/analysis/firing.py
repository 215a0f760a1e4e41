"""Spikes, counted while a network runs: through torch (`snnir.lower.counting`) or onnxruntime
(`snnir.export.counting`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from snnir.ir.graph import Graph
from snnir.ir.nodes import (
    Concat,
    CostVolume,
    Flatten,
    Identity,
    Input,
    Neuron,
    Node,
    Pool,
    Repeat,
    Resize,
)
from snnir.ir.types import Domain


def is_counted(graph: Graph, node: Node) -> bool:
    """Whether a node's values are to be counted: neurons, events, and max pools, behind which the
    number of spikes does not follow from those before."""
    if isinstance(node, Input):
        return node.kind == "events"
    if isinstance(node, Pool):
        return node.kind == "max" and graph.type(node.path).domain != Domain.REAL
    return isinstance(node, Neuron)


@dataclass
class SpikeCounts:
    """Non-zero values by step and place, summed over samples."""

    samples: int = 0
    by_path: dict[str, np.ndarray] = field(default_factory=dict)
    """Of each node that `is_counted`: [T, C, H, W], T = 1 for a static one."""

    @property
    def steps(self) -> int:
        """Of a sample."""
        return max(map(len, self.by_path.values()), default=1)

    def add(self, found: Mapping[str, np.ndarray]) -> None:
        """A batch's counts."""
        for path, counts in found.items():
            total = self.by_path.get(path)
            self.by_path[path] = counts.astype(np.int64) if total is None else total + counts

    def rate(self, path: str) -> float:
        """Mean share of non-zero values, over steps, samples and neurons."""
        counts = self.by_path[path]
        return float(counts.sum()) / (counts.size * self.samples)

    def by_step(self, path: str) -> list[float]:
        """The rate at each step."""
        counts = self.by_path[path]
        share = counts.reshape(len(counts), -1).mean(1) / self.samples
        return [float(x) for x in share]

    def silent(self, path: str) -> float:
        """The share of neurons that never fired."""
        return float((self.by_path[path].sum(0) == 0).mean())

    def saturated(self, path: str) -> float:
        """The share of neurons that fired at every step of every sample."""
        counts = self.by_path[path]
        return float((counts.sum(0) == len(counts) * self.samples).mean())

    def places(self, graph: Graph, path: str) -> np.ndarray:
        """Non-zero values of any node that carries spikes, per sample: summed over steps (a static
        value counts once) and channels, [H, W]; [] for a flat vector."""
        if path in self.by_path:
            return self.by_path[path].sum((0, 1)) / self.samples
        node = graph[path]
        read = [self.places(graph, source) for source in graph.inputs(path)]
        if isinstance(node, Concat):
            return np.sum(read, axis=0)
        if isinstance(node, CostVolume):
            left, right = read
            return _shifted(left, right, node.slices)
        (found,) = read
        if isinstance(node, Resize) and node.mode == "nearest":
            for axis, (old, new) in enumerate(zip(found.shape, node.size, strict=True)):
                found = found.take(np.arange(new) * old // new, axis)
            return found
        if isinstance(node, Repeat):
            return found * self.steps
        if isinstance(node, Flatten):
            return found.sum()
        if isinstance(node, Identity):
            return found
        raise TypeError(f"{path} ({node.op}): its spikes do not follow from those that it reads")

    def nonzero(self, graph: Graph, path: str) -> float:
        """Non-zero values of a node per sample, over all steps."""
        return float(self.places(graph, path).sum())


def _shifted(left: np.ndarray, right: np.ndarray, slices: int) -> np.ndarray:
    """[slices, H, W] of a cost volume's spikes: right x - d beside left x."""
    found = np.zeros((slices, *left.shape))
    for d in range(slices):
        found[d, :, d:] = left[:, d:] + right[:, : right.shape[1] - d]
    return found
