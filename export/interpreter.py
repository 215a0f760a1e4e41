"""A graph run by NumPy alone: slow, plain, and independent of torch and of ONNX.

Sums are taken in another order than theirs on purpose: a convolution goes tap by tap, from the
last. Where every sum is exact (docs/exact.md) that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from itertools import product
from typing import Any

import numpy as np

from snnir.ir import nodes as ir
from snnir.ir.estimator import FRACTION_BITS, STEPS_PER_UNIT, exponentials
from snnir.ir.graph import Graph
from snnir.ir.types import Time
from snnir.weights import Weights

State = dict[str, np.ndarray]
"""State between steps, by `path.v` and `path.a`, each [N, …]."""

Observer = Callable[[ir.Node, np.ndarray], None]


@dataclass
class _Run:
    graph: Graph
    weights: Weights
    steps: int
    state: State
    new_state: State = field(default_factory=dict)

    def stepped(self, path: str) -> bool:
        return self.graph.type(path).time is Time.STEPPED


def interpret(
    graph: Graph,
    weights: Weights,
    inputs: Sequence[np.ndarray],
    *,
    steps: int | None = None,
    state: State | None = None,
    observe: Observer = lambda node, value: None,
) -> tuple[np.ndarray, State]:
    """Run a folded graph in fp32 from `state` (None: at rest), frames [N, C, H, W] and events
    [T, N, C, H, W]; returns its output and final state. `steps` is how often a frame is shown.

    `observe` sees each node's value, [T, N, …] or, where it is static, [N, …].

    Raises:
        TypeError: for a node of a search space or a batch norm that is not folded.
    """
    events = [x.shape[0] for x in inputs if x.ndim == 5]
    run = _Run(graph, weights, events[0] if events else steps or graph.steps, state or {})
    given = dict(zip((node.path for node in graph.network_inputs), inputs, strict=True))
    values: dict[str, np.ndarray] = {}
    for node in graph.nodes():
        read = [values[path] for path in graph.inputs(node.path)]
        value = given[node.path] if isinstance(node, ir.Input) else _value(node, read, run)
        values[node.path] = np.asarray(value, np.float32)
        observe(node, values[node.path])
    return values[graph.outputs[0].path], run.new_state


@singledispatch
def _value(node: ir.Node, read: list[np.ndarray], run: _Run) -> np.ndarray:
    raise TypeError(f"{node.path}: no NumPy form of {node.op}")


@_value.register(ir.Identity)
@_value.register(ir.Output)
def _same(node: ir.Node, read: list[np.ndarray], run: _Run) -> np.ndarray:
    return read[0]


@_value.register(ir.Repeat)
def _repeat(node: ir.Repeat, read: list[np.ndarray], run: _Run) -> np.ndarray:
    return np.broadcast_to(read[0], (run.steps, *read[0].shape))


@_value.register(ir.Quantise)
def _quantise(node: ir.Quantise, read: list[np.ndarray], run: _Run) -> np.ndarray:
    return np.clip(np.rint(read[0] * np.float32(node.scale)), node.low, node.high)


@_value.register(ir.Conv)
def _conv(node: ir.Conv, read: list[np.ndarray], run: _Run) -> np.ndarray:
    """Tap by tap: each kernel position's weights [O, C] times the pixels it meets."""
    weight, bias = _parameters(node, run)
    rank = len(node.kernel)
    x = read[0].reshape(-1, *read[0].shape[-rank - 1 :])
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in node.padding)])
    sizes = run.graph.shape(node.path)[1:]
    samples, groups = len(x), node.groups
    total = np.zeros((samples, groups, node.out_channels // groups, np.prod(sizes)), np.float32)
    for tap in reversed(list(product(*map(range, node.kernel)))):
        window = (
            slice(first, first + stride * size, stride)
            for first, stride, size in zip(tap, node.stride, sizes, strict=True)
        )
        pixels = _at(x, window).reshape(samples, groups, -1, np.prod(sizes))
        taps = _at(weight, tap).reshape(groups, -1, pixels.shape[2])
        total += taps @ pixels
    summed = total.reshape(samples, node.out_channels, *sizes)
    summed += bias.reshape(-1, *[1] * rank)
    return summed.reshape(*read[0].shape[: -rank - 1], *summed.shape[1:])


def _at(x: np.ndarray, last: Iterable[int | slice]) -> np.ndarray:
    """x with its last dimensions indexed."""
    index: Any = (..., *last)
    return x[index]


@_value.register(ir.Linear)
def _linear(node: ir.Linear, read: list[np.ndarray], run: _Run) -> np.ndarray:
    weight, bias = _parameters(node, run)
    return read[0] @ weight.T + bias


def _parameters(node: ir.Conv | ir.Linear, run: _Run) -> tuple[np.ndarray, np.ndarray]:
    weight = np.concatenate([run.weights[f"{owner.path}.weight"] for owner in node.owners])
    if not node.bias:
        return weight, np.zeros(len(weight), np.float32)
    return weight, np.concatenate([run.weights[f"{owner.path}.bias"] for owner in node.owners])


@_value.register(ir.Pool)
def _pool(node: ir.Pool, read: list[np.ndarray], run: _Run) -> np.ndarray:
    rank, maximum = len(node.kernel), node.kind == "max"
    spread = [(0, 0)] * (read[0].ndim - rank) + [(p, p) for p in node.padding]
    x = np.pad(read[0], spread, constant_values=-np.inf if maximum else 0.0)
    axes = tuple(range(x.ndim - rank, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, node.kernel, axes)
    strides = (slice(None, None, stride) for stride in node.stride)
    kept = _at(windows, (*strides, *[slice(None)] * rank))
    inner = tuple(range(-rank, 0))
    return kept.max(inner) if maximum else kept.mean(inner, dtype=np.float32)


@_value.register(ir.AdaptiveAveragePool)
def _global_average_pool(
    node: ir.AdaptiveAveragePool, read: list[np.ndarray], run: _Run
) -> np.ndarray:
    if set(node.size) != {1}:
        raise TypeError(f"{node.path}: no NumPy form of adaptive pooling to {node.size}")
    return read[0].mean(tuple(range(-len(node.size), 0)), keepdims=True)


@_value.register(ir.Flatten)
def _flatten(node: ir.Flatten, read: list[np.ndarray], run: _Run) -> np.ndarray:
    rank = len(run.graph.input_shapes(node.path)[0])
    return read[0].reshape(*read[0].shape[:-rank], -1)


@_value.register(ir.Resize)
def _resize(node: ir.Resize, read: list[np.ndarray], run: _Run) -> np.ndarray:
    x = _on_grid(read[0], node.grid)
    for axis, new in zip(range(-len(node.size), 0), node.size, strict=True):
        old = x.shape[axis]
        if node.mode == "nearest":
            x = x.take(np.arange(new) * old // new, axis)
        elif old != new:
            at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
            low = at.astype(np.int64)
            share = (at - low).astype(np.float32).reshape(-1, *[1] * (-axis - 1))
            if node.grid is not None:
                share = _on_grid(share, -FRACTION_BITS)
            high = np.minimum(low + 1, old - 1)
            x = x.take(high, axis) * share + x.take(low, axis) * (1 - share)
            x = _on_grid(x, node.grid)
    return x


@_value.register(ir.Concat)
def _concat(node: ir.Concat, read: list[np.ndarray], run: _Run) -> np.ndarray:
    return np.concatenate(read, _channels(node, run))


@_value.register(ir.Slice)
def _slice(node: ir.Slice, read: list[np.ndarray], run: _Run) -> np.ndarray:
    return np.take(read[0], np.arange(node.start, node.stop), _channels(node, run))


def _channels(node: ir.Node, run: _Run) -> int:
    """The axis of the channels, from the end."""
    return -len(run.graph.shape(node.path))


@_value.register(ir.Add)
def _add(node: ir.Add, read: list[np.ndarray], run: _Run) -> np.ndarray:
    return sum(reversed(read), np.zeros((), np.float32))


@_value.register(ir.Neuron)
def _neuron(node: ir.Neuron, read: list[np.ndarray], run: _Run) -> np.ndarray:
    """The equations of `snnir.ir.nodes.Neuron`, operation by operation."""
    current = read[0]
    if node.kind == "relu":
        return _on_grid(np.maximum(current, 0), node.grid)
    threshold = np.float32(node.v_threshold)
    if not node.states:
        return current > threshold
    if not run.stepped(run.graph.inputs(node.path)[0]):
        current = np.broadcast_to(current, (run.steps, *current.shape))
    rest = np.zeros(current.shape[1:], np.float32)
    v, a = (run.state.get(f"{node.path}.{name}", rest) for name in ("v", "a"))
    spikes = np.empty(current.shape, np.float32)
    for t in range(run.steps):
        u = _product(node.leak, v, node.grid) + current[t]
        risen = _product(node.beta, a, node.grid) + threshold if node.kind == "alif" else threshold
        spikes[t] = u > risen
        v = np.where(spikes[t] > 0, np.float32(0), u)
        a = _product(node.tau_a, a, node.grid) + spikes[t]
    run.new_state |= {f"{node.path}.{name}": {"v": v, "a": a}[name] for name in node.states}
    return spikes


def _product(factor: float, x: np.ndarray, grid: int | None) -> np.ndarray:
    return _on_grid(np.float32(factor) * x, grid)


def _on_grid(x: np.ndarray, grid: int | None) -> np.ndarray:
    """Rounded to multiples of 2^grid, halves to even."""
    return x if grid is None else np.ldexp(np.rint(np.ldexp(x, -grid)), grid)


@_value.register(ir.MeanOverTime)
def _mean_over_time(node: ir.MeanOverTime, read: list[np.ndarray], run: _Run) -> np.ndarray:
    return read[0].mean(0) if run.stepped(run.graph.inputs(node.path)[0]) else read[0]


@_value.register(ir.CostVolume)
def _cost_volume(node: ir.CostVolume, read: list[np.ndarray], run: _Run) -> np.ndarray:
    left, right = read
    channels, height, width = left.shape[-3:]
    volume = np.zeros((*left.shape[:-3], 2 * channels, node.slices, height, width), np.float32)
    for d in range(node.slices):
        volume[..., :channels, d, :, d:] = left[..., d:]
        volume[..., channels:, d, :, d:] = right[..., : width - d]
    return volume


@_value.register(ir.SoftArgmin)
def _soft_argmin(node: ir.SoftArgmin, read: list[np.ndarray], run: _Run) -> np.ndarray:
    cost = read[0].squeeze(-4)
    index = np.arange(cost.shape[-3]).reshape(-1, 1, 1)
    best = cost.argmin(-3, keepdims=True)
    near = np.abs(index - best) <= node.support
    excess = cost - cost.min(-3, keepdims=True)
    if node.exact:
        steps = np.rint(excess * STEPS_PER_UNIT).clip(0, len(exponentials()) - 1)
        weight = exponentials()[steps.astype(int)] * near
    else:
        weight = np.exp(-excess) * near
    return (weight * (2 * index)).sum(-3) / weight.sum(-3)
