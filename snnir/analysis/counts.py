"""What a network consists of: parameters, layers, synapses, dense multiply-accumulates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from snnir.ir.graph import Graph
from snnir.ir.nodes import Conv, Input, Node, Output, Pool
from snnir.ir.types import Domain, Shape, Time, volume


@dataclass(frozen=True)
class Layer:
    """One node of a folded graph."""

    path: str
    op: str
    shape: Shape
    """Of the output, without steps and batch."""
    macs: int
    """Dense multiply-accumulates of one step, padding taps included."""
    macs_exact: int
    """Those that read a value, not padding."""
    domain: Domain
    """Of the output."""
    reads: Domain
    time: Time
    """A static layer runs once per sample, one that reads or gives stepped values T times."""

    def runs(self, steps: int) -> int:
        """How often it runs per sample."""
        return steps if self.time == Time.STEPPED else 1


def parameter_count(graph: Graph) -> int:
    """Learned parameters that the head depends on, auxiliary heads excluded, before folding."""
    needed = graph.reachable([graph.outputs[0].path])
    shapes = {
        name: shape for path in needed for name, shape in graph[path].parameter_shapes().items()
    }
    return sum(volume(shape) for shape in shapes.values())


def layers(graph: Graph) -> list[Layer]:
    """The nodes between input and output, in order; types must have been inferred."""
    found = []
    for node in graph.nodes():
        if isinstance(node, Input | Output):
            continue
        read = graph.type(graph.inputs(node.path)[0])
        made = graph.type(node.path)
        assert read.shape is not None
        assert made.shape is not None
        assert made.domain is not None
        assert read.domain is not None
        macs = node.macs(graph.input_shapes(node.path), made.shape)
        found.append(
            Layer(
                path=node.path,
                op=node.op,
                shape=made.shape,
                macs=macs,
                macs_exact=_exact_macs(node, read.shape) if macs else 0,
                domain=made.domain,
                reads=read.domain,
                time=Time.STEPPED if Time.STEPPED in (read.time, made.time) else Time.STATIC,
            )
        )
    return found


def taps_by_place(node: Conv | Pool, shape: Shape) -> list[list[int]]:
    """Along each axis, how many windows hold each index of an input of this `shape`; those at the
    border are in fewer. Together they hold the value at (y, x) as often as their product."""
    dilation = node.dilation if isinstance(node, Conv) else 1
    return [
        _windows_over(size, kernel, stride, padding, dilation)
        for size, kernel, stride, padding in zip(
            shape[1:], node.kernel, node.stride, node.padding, strict=True
        )
    ]


def _exact_macs(node: Node, shape: Shape) -> int:
    """Dense multiply-accumulates of one step that read a value of the input, not padding."""
    if not isinstance(node, Conv):
        return node.macs([shape], node.output_shape([shape]))
    taps = math.prod(sum(axis) for axis in taps_by_place(node, shape))
    return node.in_channels * node.out_channels // node.groups * taps


def _windows_over(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    counts = [0] * size
    reach = dilation * (kernel - 1) + 1
    for start in range(-padding, size + padding - reach + 1, stride):
        for index in range(start, start + reach, dilation):
            if 0 <= index < size:
                counts[index] += 1
    return counts
