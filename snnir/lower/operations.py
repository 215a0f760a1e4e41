"""What each node computes in torch.

Stepped values are held flat, [T·N, …], so that everything but neurons and time means runs batched
over time; `Flow.steps` is the T to unfold by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from snnir.ir import nodes as ir
from snnir.ir.estimator import STEPS_PER_UNIT, exponentials, interpolation_matrix
from snnir.lower.fused import Parameters
from snnir.lower.gates import Gates
from snnir.lower.gradients import convolve, every
from snnir.lower.neurons import NeuronState, on_grid, run_neuron
from snnir.lower.synchronised import synchronised_batch_norm

if TYPE_CHECKING:
    from snnir.lower.module import SpikingModule

State = dict[str, Tensor]
"""State between steps, by `path.v` and `path.a`, each [N, …]."""


@dataclass
class Flow:
    """One run: the module whose parameters are read, the number of steps, state in and out, and
    the weights of a search's candidates."""

    module: SpikingModule
    steps: int
    state: State
    new_state: State
    gates: Gates


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the run: [T·N, …] if stepped, [N, …] if static."""

    data: Tensor
    stepped: bool

    def unfolded(self, steps: int) -> Tensor:
        """As [T, N, …]."""
        if self.stepped:
            return self.data.unflatten(0, (steps, -1))
        return self.data.expand(steps, *self.data.shape)


def compute(node: ir.Node, flow: Flow, inputs: list[Value], *, lean: bool = False) -> Value:
    """Run one node; `lean`: a sum's or neuron's result may take the place of its first input in
    memory, and what a convolution reads is spikes."""
    if isinstance(node, ir.Neuron):
        return _neuron(node, flow, inputs[0], lean)
    if isinstance(node, ir.MeanOverTime):
        x = inputs[0]
        return Value(x.unfolded(flow.steps).mean(0), False) if x.stepped else x
    stepped = isinstance(node, ir.Repeat) or any(x.stepped for x in inputs)
    flat = [
        x.data if x.stepped == stepped else x.unfolded(flow.steps).flatten(0, 1) for x in inputs
    ]
    if isinstance(node, ir.Add):
        return Value(_add(flat, lean and inputs[0].stepped == stepped), stepped)
    if isinstance(node, ir.Conv):
        return Value(_conv(node, flow.module, flat[0], spikes=lean), stepped)
    if isinstance(node, ir.BatchNorm):
        return Value(_batch_norm(node, flow, flat[0]), stepped)
    if isinstance(node, ir.Mixed):
        return Value(_mixed(node, flow, flat), stepped)
    return Value(_apply(node, flow.module, *flat), stepped)


def _neuron(node: ir.Neuron, flow: Flow, current: Value, in_place: bool) -> Value:
    if not node.states and not current.stepped:
        return Value(run_neuron(node, current.data, {})[0], False)
    state: NeuronState = {
        name: flow.state[f"{node.path}.{name}"]
        for name in node.states
        if f"{node.path}.{name}" in flow.state
    }
    in_place = in_place and current.stepped
    leak = learned_leak(node, flow.module)
    out, state = run_neuron(node, current.unfolded(flow.steps), state, in_place=in_place, leak=leak)
    flow.new_state |= {f"{node.path}.{name}": value for name, value in state.items()}
    return Value(out.flatten(0, 1), True)


LARGEST_LEAK = 0.99
"""Where leak factors that are searched or learned end (method §5)."""


def learned_leak(node: ir.Neuron, module: SpikingModule) -> Tensor | None:
    """The leak factor that a neuron's parameter stands for, if it has one."""
    if node.learned is None:
        return None
    value = module.parameter(node.learned.parameter)
    return value.clamp(0, LARGEST_LEAK) if node.learned.form == "tau" else 1 - value.sigmoid()


def _add(inputs: list[Tensor], in_place: bool) -> Tensor:
    total, *others = inputs
    for x in others:
        total = total.add_(x) if in_place else total + x
        in_place = True
    return total


@singledispatch
def _apply(node: ir.Node, module: SpikingModule, *inputs: Tensor) -> Tensor:
    raise TypeError(f"{node.path}: no torch form of {node.op}")


@_apply.register(ir.Repeat)
@_apply.register(ir.Identity)
@_apply.register(ir.Output)
def _same(node: ir.Node, module: SpikingModule, x: Tensor) -> Tensor:
    return x


def _conv(node: ir.Conv, module: SpikingModule, x: Tensor, *, spikes: bool) -> Tensor:
    weight = module.stacked(node, "weight")
    bias = module.stacked(node, "bias") if node.bias else None
    geometry = node.stride, node.padding, node.groups
    return convolve(x, weight, bias, *geometry, dilation=node.dilation, spikes=spikes)


@_apply.register(ir.Linear)
def _linear(node: ir.Linear, module: SpikingModule, x: Tensor) -> Tensor:
    bias = module.stacked(node, "bias") if node.bias else None
    return F.linear(x, module.stacked(node, "weight"), bias)


def batch_norm_parameters(node: ir.BatchNorm, flow: Flow) -> tuple[Parameters, ...]:
    """What each of a batch norm's owners has of its parameters, side by side in memory."""
    module = flow.module
    weights: Sequence[Tensor] = module.side_by_side(node, "weight")
    biases: Sequence[Tensor] = module.side_by_side(node, "bias")
    if node.gates:
        gate, sizes = flow.gates.per_channel(node), [owner.channels for owner in node.owners]
        weights = (module.stacked(node, "weight") * gate).split_with_sizes(sizes)
        biases = (module.stacked(node, "bias") * gate).split_with_sizes(sizes)
    running = (module.side_by_side(node, name) for name in ("running_mean", "running_var"))
    return tuple(map(Parameters, weights, biases, *running))


def _batch_norm(node: ir.BatchNorm, flow: Flow, x: Tensor) -> Tensor:
    module = flow.module
    mean, var, weight, bias = (
        module.stacked(node, name) for name in ("running_mean", "running_var", "weight", "bias")
    )
    if node.gates:
        gate = flow.gates.per_channel(node)
        weight, bias = weight * gate, bias * gate
    momentum = module.batch_norm_momentum
    if module.training and module.synchronised:
        return synchronised_batch_norm(x, mean, var, weight, bias, momentum, node.eps)
    return F.batch_norm(x, mean, var, weight, bias, module.training, momentum, node.eps)


@_apply.register(ir.Pool)
def _pool(node: ir.Pool, module: SpikingModule, x: Tensor) -> Tensor:
    if node.kind == "max":
        return F.max_pool2d(x, node.kernel, node.stride, node.padding)
    return F.avg_pool2d(x, node.kernel, node.stride, node.padding)


@_apply.register(ir.AdaptiveAveragePool)
def _adaptive_average_pool(
    node: ir.AdaptiveAveragePool, module: SpikingModule, x: Tensor
) -> Tensor:
    pool: Callable[..., Tensor] = (
        F.adaptive_avg_pool2d if len(node.size) == 2 else F.adaptive_avg_pool3d
    )
    return pool(x, node.size)


@_apply.register(ir.Flatten)
def _flatten(node: ir.Flatten, module: SpikingModule, x: Tensor) -> Tensor:
    return x.flatten(1)


@_apply.register(ir.Resize)
def _resize(node: ir.Resize, module: SpikingModule, x: Tensor) -> Tensor:
    if node.grid is not None:
        return _interpolate(x, node.size, node.grid)
    if node.mode == "linear":
        return F.interpolate(
            x, size=node.size, mode={2: "bilinear", 3: "trilinear"}[len(node.size)]
        )
    if strides := node.strides(tuple(x.shape[1:])):
        return every(x, strides)
    for axis, (old, new) in enumerate(zip(x.shape[2:], node.size, strict=True), start=2):
        if old != new:
            x = x.index_select(axis, torch.arange(new, device=x.device) * old // new)
    return x


def _interpolate(x: Tensor, size: tuple[int, ...], grid: int) -> Tensor:
    """Linearly, on a grid (`snnir.ir.nodes.Resize`)."""
    x = on_grid(x.clone(), grid)
    for axis, (old, new) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        if old != new:
            matrix = torch.from_numpy(interpolation_matrix(old, new, exact=True)).to(x)
            x = on_grid(x.movedim(axis, -1) @ matrix, grid).movedim(-1, axis)
    return x


@_apply.register(ir.Concat)
def _concat(node: ir.Concat, module: SpikingModule, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, 1)


@_apply.register(ir.Slice)
def _slice(node: ir.Slice, module: SpikingModule, x: Tensor) -> Tensor:
    return x[:, node.start : node.stop]


@_apply.register(ir.Quantise)
def _quantise(node: ir.Quantise, module: SpikingModule, x: Tensor) -> Tensor:
    return (x * node.scale).round().clamp(node.low, node.high)


def split(parts: list[ir.Slice], x: Value) -> list[Value]:
    """All slices of a value at once: their gradients are then joined, not added up padded."""
    sizes = [part.stop - part.start for part in parts]
    return [Value(data, x.stepped) for data in x.data.split(sizes, 1)]


@_apply.register(ir.CostVolume)
def _cost_volume(node: ir.CostVolume, module: SpikingModule, left: Tensor, right: Tensor) -> Tensor:
    n, c, h, w = left.shape
    volume = left.new_zeros(n, 2 * c, node.slices, h, w)
    for d in range(node.slices):
        volume[:, :c, d, :, d:] = left[..., d:]
        volume[:, c:, d, :, d:] = right[..., : w - d]
    return volume


@_apply.register(ir.SoftArgmin)
def _soft_argmin(node: ir.SoftArgmin, module: SpikingModule, cost: Tensor) -> Tensor:
    """Training returns the cost [N, D, H, W] that the loss reads; evaluation the disparity."""
    cost = cost.squeeze(1)
    return cost if module.training else sub_pixel(cost, node.support, exact=node.exact)


def sub_pixel(cost: Tensor, support: int, *, exact: bool = False) -> Tensor:
    """Disparity [N, H, W] from a cost [N, D, H, W] (`snnir.ir.nodes.SoftArgmin`)."""
    index = torch.arange(cost.shape[1], device=cost.device).view(1, -1, 1, 1)
    least = cost.amin(1, keepdim=True)
    best = torch.where(cost == least, index, cost.shape[1]).amin(1, keepdim=True)
    near = ((index - best).abs() <= support).to(cost.dtype)
    weight = (_whole_exponential if exact else torch.exp)(least - cost) * near
    return (weight * (2 * index).to(cost.dtype)).sum(1) / weight.sum(1)


def _whole_exponential(x: Tensor) -> Tensor:
    """exp(x), x <= 0, from the table."""
    table = torch.from_numpy(exponentials()).to(x)
    steps = (-x * STEPS_PER_UNIT).round_().clamp_(max=len(table) - 1)
    return table[steps.long()]


def _mixed(node: ir.Mixed, flow: Flow, inputs: list[Tensor]) -> Tensor:
    total = None
    for gate, x in zip(node.gates, inputs, strict=True):
        weight = flow.gates[gate]
        total = weight * x if total is None else torch.addcmul(total, weight, x)
    assert total is not None
    return total
