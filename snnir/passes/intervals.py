"""Interval arithmetic: on which power-of-two grid each value lies, and between which bounds.

A value k·2^g with |k| <= 2^24 is an fp32 number. So a sum whose terms lie on one grid, and whose
every partial sum stays within 2^24 grid steps, is exact in fp32 in whatever order it is added up.
Partial sums are bounded by the positive and the negative terms apart: no subset of the terms sums
to more.

Grids are read off the numbers themselves, so one weight moved off its grid shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from math import log2
from typing import TYPE_CHECKING, Final

from snnir.ir import nodes as ir
from snnir.ir.estimator import FRACTION_BITS, UNIT
from snnir.ir.graph import Graph
from snnir.ir.types import Time, volume
from snnir.weights import Weights

if TYPE_CHECKING:
    import numpy as np

EXACT_BITS: Final = 24
"""fp32 holds every whole number up to 2^24."""

NO_BITS: Final = 2**20
"""The grid of zero, which lies on all."""


@dataclass(frozen=True)
class Interval:
    """Values by channel [C]: multiples of 2^grid within [low, high]."""

    grid: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def finest(self) -> int:
        """The finest grid of any channel; of nothing but zeros, 0."""
        finest = int(self.grid.min())
        return finest if finest < NO_BITS // 2 else 0

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        import numpy as np

        return float(np.maximum(-self.low, self.high).max())

    @property
    def grid_steps(self) -> float:
        """The largest absolute value in steps of its channel's grid."""
        import numpy as np

        return float(np.ldexp(np.maximum(-self.low, self.high), -self.grid).max())


@dataclass(frozen=True)
class Bounds:
    """What is known of one node."""

    value: Interval | None
    """None: on no grid."""
    sums: tuple[Interval, ...] = ()
    """The partial sums, products included, that the node computes on the way."""
    terms: Interval | None = None
    """Of a weighted sum, what any subset of its terms sums to."""

    @property
    def bits(self) -> float:
        """log2 of the largest partial sum in steps of its grid; exact up to 24."""
        return log2(max([1.0, *(interval.grid_steps for interval in self.sums)]))


def lowest_bit(x: np.ndarray | np.floating | float) -> np.ndarray:
    """The exponent of each number's lowest bit: the coarsest grid it lies on (`NO_BITS` for 0)."""
    import numpy as np

    mantissa, exponent = np.frexp(np.asarray(x, "float64"))
    whole = np.abs(np.ldexp(mantissa, 53)).astype("int64")
    trailing = np.frexp((whole & -whole).astype("float64"))[1] - 1
    return np.where(whole == 0, NO_BITS, exponent - 53 + trailing)


def bound_graph(graph: Graph, weights: Weights) -> dict[str, Bounds]:
    """The bounds of every node of a folded graph, by path, over its T steps from rest."""
    bounds: dict[str, Bounds] = {}
    for node in graph.nodes():
        bounds[node.path] = bound_node(node, graph, weights, bounds)
    return bounds


def bound_node(
    node: ir.Node, graph: Graph, weights: Weights, bounds: Mapping[str, Bounds]
) -> Bounds:
    """The bounds of one node from those of what it reads."""
    read = [bounds[source].value for source in graph.inputs(node.path)]
    if isinstance(node, ir.Quantise):
        return Bounds(_whole(graph.shape(node.path)[0], node.low, node.high))
    if isinstance(node, ir.Add):
        return _add([bounds[source] for source in graph.inputs(node.path)])
    known = [x for x in read if x is not None]
    return _bound(node, known, graph, weights) if len(known) == len(read) else Bounds(None)


def _add(read: list[Bounds]) -> Bounds:
    """The terms of all that is summed, in any order: what one convolution in their place may meet
    on its way, and what several in its place may."""
    import numpy as np

    values = [x.value for x in read if x.value is not None]
    if len(values) < len(read):
        return Bounds(None)
    grid = np.min([x.grid for x in values], axis=0)
    terms = [x.terms or x.value for x in read]
    partial = Interval(
        grid,
        np.sum([np.minimum(x.low, 0) for x in terms if x is not None], axis=0),
        np.sum([np.maximum(x.high, 0) for x in terms if x is not None], axis=0),
    )
    value = Interval(grid, np.sum([x.low for x in values], 0), np.sum([x.high for x in values], 0))
    return Bounds(value, (partial,), partial)


@singledispatch
def _bound(node: ir.Node, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    """What is not named below divides, multiplies by real numbers or exponentiates: no grid."""
    return Bounds(None)


@_bound.register(ir.Identity)
@_bound.register(ir.Repeat)
@_bound.register(ir.Output)
def _same(node: ir.Node, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    return Bounds(read[0])


@_bound.register(ir.Input)
def _input(node: ir.Input, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    return Bounds(None if node.kind == "frame" else _whole(node.shape[0], -1, 1))


@_bound.register(ir.Conv)
@_bound.register(ir.Linear)
def _weighted(
    node: ir.Conv | ir.Linear, read: list[Interval], graph: Graph, weights: Weights
) -> Bounds:
    """Σ w·x + b per output channel; taps that padding leaves out only make sums smaller."""
    import numpy as np

    groups = node.groups if isinstance(node, ir.Conv) else 1
    weight = np.concatenate([weights[f"{owner.path}.weight"] for owner in node.owners])
    taps = weight.astype("float64").reshape(len(weight), weight.shape[1], -1)
    group = np.arange(len(weight)) // (len(weight) // groups)
    x = read[0]
    low, high, grid = (
        part.reshape(groups, -1)[group]
        for part in (np.minimum(x.low, 0), np.maximum(x.high, 0), x.grid)
    )
    positive = np.maximum(taps, 0).sum(-1)
    negative = np.minimum(taps, 0).sum(-1)
    most = (positive * high + negative * low).sum(-1)
    least = (positive * low + negative * high).sum(-1)
    finest = (lowest_bit(taps).min(-1) + grid).min(-1)
    bias = np.zeros(len(weight))
    if node.bias:
        bias = np.concatenate([weights[f"{owner.path}.bias"] for owner in node.owners])
        bias = bias.astype("float64")
        finest = np.minimum(finest, lowest_bit(bias))
    partial = Interval(finest, least + np.minimum(bias, 0), most + np.maximum(bias, 0))
    return Bounds(Interval(finest, least + bias, most + bias), (partial,), partial)


@_bound.register(ir.Pool)
def _pool(node: ir.Pool, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    return Bounds(read[0] if node.kind == "max" else None)


@_bound.register(ir.Resize)
def _resize(node: ir.Resize, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    if node.mode == "nearest":
        return Bounds(read[0])
    return Bounds(None) if node.grid is None else _interpolated(node, read[0])


def _interpolated(node: ir.Resize, x: Interval) -> Bounds:
    """Means of two, rounded before and after each axis, by half a step each time; the fractions add
    their bits to what is rounded."""
    import numpy as np

    assert node.grid is not None
    rounding = (len(node.size) + 1) * 2.0 ** (node.grid - 1)
    low, high = x.low - rounding, x.high + rounding
    grid = np.full(len(x.grid), node.grid)
    return Bounds(Interval(grid, low, high), (Interval(grid - FRACTION_BITS, low, high),))


@_bound.register(ir.SoftArgmin)
def _soft_argmin(
    node: ir.SoftArgmin, read: list[Interval], graph: Graph, weights: Weights
) -> Bounds:
    """What is divided, weights times distinct disparities: the division rounds once."""
    import numpy as np

    if not node.exact:
        return Bounds(None)
    x = read[0]
    depth = graph.input_shapes(node.path)[0][1]
    largest = UNIT * sum(2 * d for d in range(max(0, depth - 2 * node.support - 1), depth))
    differences = Interval(x.grid, x.low - x.high, np.zeros_like(x.low))
    return Bounds(None, (differences, _whole(1, 0, largest)))


@_bound.register(ir.Flatten)
def _flatten(node: ir.Flatten, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    size = volume(graph.input_shapes(node.path)[0][1:])
    x = read[0]
    return Bounds(Interval(x.grid.repeat(size), x.low.repeat(size), x.high.repeat(size)))


@_bound.register(ir.Concat)
def _concat(node: ir.Concat, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    return Bounds(_side_by_side(read))


@_bound.register(ir.CostVolume)
def _cost_volume(
    node: ir.CostVolume, read: list[Interval], graph: Graph, weights: Weights
) -> Bounds:
    import numpy as np

    both = _side_by_side(read)
    return Bounds(Interval(both.grid, np.minimum(both.low, 0), np.maximum(both.high, 0)))


@_bound.register(ir.Slice)
def _slice(node: ir.Slice, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    part, x = slice(node.start, node.stop), read[0]
    return Bounds(Interval(x.grid[part], x.low[part], x.high[part]))


@_bound.register(ir.MeanOverTime)
def _mean_over_time(
    node: ir.MeanOverTime, read: list[Interval], graph: Graph, weights: Weights
) -> Bounds:
    """The sum over T; the division after it is exact for powers of two alone."""
    x = read[0]
    if graph.type(graph.inputs(node.path)[0]).time is Time.STATIC:
        return Bounds(x)
    power = graph.steps.bit_length() - 1
    mean = Interval(x.grid - power, x.low, x.high) if graph.steps == 2**power else None
    return Bounds(mean, (Interval(x.grid, x.low * graph.steps, x.high * graph.steps),))


@_bound.register(ir.Neuron)
def _neuron(node: ir.Neuron, read: list[Interval], graph: Graph, weights: Weights) -> Bounds:
    import numpy as np

    current = read[0]
    if node.kind == "relu":
        grid = current.grid if node.grid is None else np.maximum(current.grid, node.grid)
        high = np.maximum(current.high, 0) + _rounding(node)
        return Bounds(Interval(grid, np.zeros_like(high), high))
    spikes = _whole(len(current.grid), 0, 1)
    if not node.states:
        return Bounds(spikes)
    rise = bound_rise(node, graph.steps)
    membrane = bound_membrane(node, current, graph.steps)
    return Bounds(spikes, (membrane, *([rise] if node.kind == "alif" else [])))


def bound_membrane(node: ir.Neuron, current: Interval, steps: int) -> Interval:
    """u = leak·v + I and leak·v, from rest. What does not fire stays below threshold, so only
    negative membranes add up: to the current's over 1 - leak where leak·v is rounded to a grid,
    after any number of steps; else over `steps`, on a grid that gets finer at each."""
    import numpy as np

    most, leak = _highest_threshold(node), _fp32(node.leak)
    grid, low, high = current.grid, np.minimum(current.low, 0), np.maximum(current.high, 0)
    if node.grid is not None and leak < 1:
        settled = (low - _rounding(node)) / (1 - leak)
        highest = high + leak * most + _rounding(node)
        return Interval(np.minimum(node.grid, grid), settled, highest)
    finer = min(0, int(lowest_bit(np.float32(leak))))
    v_low, v_high = low, np.minimum(high, most)
    for _ in range(steps - 1 if leak else 0):
        grid = grid + finer
        u_low, u_high = leak * v_low + current.low, leak * v_high + current.high
        low = np.minimum.reduce([low, leak * v_low, u_low])
        high = np.maximum.reduce([high, leak * v_high, u_high])
        v_low, v_high = np.minimum(u_low, 0), np.clip(u_high, 0, most)
    return Interval(grid, low, high)


def bound_rise(node: ir.Neuron, steps: int) -> Interval:
    """ALIF's a and threshold + beta·a, from rest; one channel."""
    import numpy as np

    threshold, beta, tau = (
        int(lowest_bit(np.float32(x))) for x in (node.v_threshold, node.beta, node.tau_a)
    )
    if node.grid is not None:
        grid = min(threshold, node.grid)
    else:
        decayed = min(0, tau) * max(0, steps - 2)
        grid = min(threshold, decayed, beta + decayed)
    high = max(_largest_rise(node), _highest_threshold(node))
    return Interval(np.array([grid]), np.array([0.0]), np.array([high]))


def _highest_threshold(node: ir.Neuron) -> float:
    if node.kind != "alif":
        return _fp32(node.v_threshold)
    return _fp32(node.v_threshold) + _fp32(node.beta) * _largest_rise(node) + _rounding(node)


def _largest_rise(node: ir.Neuron) -> float:
    """The bound of a = tau_a·a + y."""
    return (1 + _rounding(node)) / (1 - _fp32(node.tau_a))


def _rounding(node: ir.Neuron) -> float:
    """What rounding to the neuron's grid adds at most: half a step, and another half from the fp32
    product before it, which is below 2^24 steps."""
    return 0.0 if node.grid is None else 2.0**node.grid


def _fp32(x: float) -> float:
    """The number that is computed with."""
    import numpy as np

    return float(np.float32(x))


def _side_by_side(parts: Sequence[Interval]) -> Interval:
    import numpy as np

    return Interval(
        np.concatenate([x.grid for x in parts]),
        np.concatenate([x.low for x in parts]),
        np.concatenate([x.high for x in parts]),
    )


def _whole(channels: int, low: float, high: float) -> Interval:
    """Whole numbers in every channel."""
    import numpy as np

    zeros = np.zeros(channels)
    return Interval(zeros.astype("int64"), zeros + low, zeros + high)
