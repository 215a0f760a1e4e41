"""Neurons over time as one autograd function that keeps only the membranes.

`tau` is the leak factor: the share of the membrane kept per step. SpikingJelly writes the same
neuron as LIFNode(tau=1/(1-tau), decay_input=False); snnTorch calls tau `beta`. A spike needs
u > threshold, strictly (SpikingJelly fires at equality).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnir.ir.nodes import Neuron
from snnir.lower.surrogates import SURROGATES

NeuronState = dict[str, Tensor]
"""State after a step, by name: v = u·(1 - y) [N, …]; for ALIF also a, already advanced to the next
step [N, …]."""


def run_neuron(
    neuron: Neuron,
    current: Tensor,
    state: NeuronState,
    *,
    in_place: bool = False,
    leak: Tensor | None = None,
) -> tuple[Tensor, NeuronState]:
    """Run `neuron` on currents [T, N, …] from `state` (empty: at rest); equations in
    `snnir.ir.nodes.Neuron`, method §1.

    Returns spikes [T, N, …] (for relu: activations) and the state after the last step. With
    `in_place` the membranes take the currents' place in memory: for currents nothing else reads.
    `leak`, one number, takes the place of the neuron's and has a gradient.
    """
    if neuron.kind == "relu":
        return on_grid(torch.relu(current), neuron.grid), {}
    if not neuron.states:
        spikes, *_ = _Spiking.apply(current.unsqueeze(0), None, None, None, neuron, in_place)
        return spikes.squeeze(0), {}
    v, a = state.get("v"), state.get("a")
    spikes, v, a = _Spiking.apply(current, v, a, leak, neuron, in_place)
    return spikes, {"v": v, "a": a} if neuron.kind == "alif" else {"v": v}


def outputs_by_path(neuron: Neuron, output: Tensor) -> dict[str, Tensor]:
    """The output [T·N, C, …] of each neuron that a merged one stands for, by path."""
    if not neuron.parts:
        return {neuron.path: output}
    pieces = output.split([part.channels for part in neuron.parts], 1)
    return {part.path: piece for part, piece in zip(neuron.parts, pieces, strict=True)}


CACHED_VALUES = 2**18
"""Values of a block that the gradient works on at once."""


class _Spiking(torch.autograd.Function):
    """The recurrence over T, and its gradient with the surrogate in place of H'.

    With g[t] the surrogate at d[t] = u[t] - A[t], and gu, ga the gradients of u[t + 1] and of
    a[t + 1] = tau_a·a[t] + y[t]:

        gs = (dL/dy[t] + ga - leak·gu·u[t])·g[t];  ga <- tau_a·ga - beta·gs
        gu <- gs + leak·gu·(1 - y[t])

    The term with u[t] is the reset's own, left out when the reset is detached. Without ga it joins
    the last line, gu <- dL/dy[t]·g[t] + leak·gu·passes[t] with passes = 1 - y - u·g, and all but
    this one multiplication is done for many steps at once.

    Only membranes (for ALIF thresholds too) are kept for it, and the gradient overwrites them: a
    second backward pass through one forward pass is torch's error.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        v: Tensor | None,
        a: Tensor | None,
        leak: Tensor | None,
        neuron: Neuron,
        in_place: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        adaptive = neuron.kind == "alif"
        membranes = current if in_place else torch.empty_like(current)
        thresholds = torch.empty_like(membranes) if adaptive else None
        spikes = torch.empty_like(membranes)
        threshold: float | Tensor = neuron.v_threshold
        ctx.started = v is not None
        ctx.leak = neuron.leak if leak is None else float(leak)
        ctx.first = v if leak is not None else None
        if adaptive and a is None:
            a = torch.zeros_like(membranes[0])
        for t in range(len(membranes)):
            u, y = membranes[t], spikes[t]
            if v is not None:
                # multiply, then add: each rounds as it does in an exported model
                leaked = on_grid(v.mul_(ctx.leak) if t else v * ctx.leak, neuron.grid)
                torch.add(current[t], leaked, out=u)
            elif not in_place:
                u.copy_(current[t])
            if thresholds is not None:
                assert a is not None
                threshold = on_grid(torch.mul(a, neuron.beta, out=thresholds[t]), neuron.grid)
                threshold.add_(neuron.v_threshold)
            torch.gt(u, threshold, out=y)
            v = torch.addcmul(u, u, y, value=-1, out=v if t else None)
            if a is not None:
                a = on_grid(a * neuron.tau_a, neuron.grid).add_(y)
        ctx.save_for_backward(membranes, thresholds)
        ctx.set_materialize_grads(False)
        ctx.neuron = neuron
        return spikes, v, a

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_spikes, gu, ga = gradients
        membranes, thresholds = ctx.saved_tensors
        neuron: Neuron = ctx.neuron
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(membranes)
        total = torch.zeros((), dtype=torch.float64, device=membranes.device)
        leak = 1.0  # the state after the last step has not leaked yet
        for block in _blocks(membranes):
            u, gy = membranes[block], grad_spikes[block]
            d = u - (neuron.v_threshold if thresholds is None else thresholds[block])
            slope = SURROGATES[neuron.surrogate](d, neuron.b)
            passes = torch.le(d, 0, out=d)
            if thresholds is None:
                if not neuron.detach_reset:
                    passes.addcmul_(u, slope, value=-1)
                slope.mul_(gy)
            gs = slope
            for t in reversed(range(len(u))):
                if thresholds is not None:
                    received = gy[t].clone() if ga is None else gy[t] + ga
                    if gu is not None and not neuron.detach_reset:
                        received.addcmul_(gu, u[t], value=-leak)
                    gs[t].mul_(received)
                    rise = gs[t] * -neuron.beta
                    ga = rise if ga is None else rise.add_(ga, alpha=neuron.tau_a)
                if gu is None:
                    gu = u[t].copy_(gs[t])
                else:
                    gu = torch.addcmul(gs[t], gu, passes[t], value=leak, out=u[t])
                leak = ctx.leak
                if ctx.needs_input_grad[3]:
                    at = block.start + t
                    total += _kept(neuron, membranes, thresholds, at - 1, ctx.first, gu)
        assert gu is not None
        state = (gu * leak, ga) if ctx.started else (None, None)
        return (membranes, *state, total if ctx.needs_input_grad[3] else None, None, None)


def on_grid(x: Tensor, grid: int | None) -> Tensor:
    """Round in place to multiples of 2^grid, halves to even."""
    return x if grid is None else x.mul_(2.0**-grid).round_().mul_(2.0**grid)


def _kept(
    neuron: Neuron,
    membranes: Tensor,
    thresholds: Tensor | None,
    t: int,
    first: Tensor | None,
    gradient: Tensor,
) -> Tensor | float:
    """Σ gradient · u·(1 - y) at step t, or with the state before the first step: what a step adds
    to the leak's gradient, `gradient` being that of the membranes at t + 1."""
    if t < 0:
        return 0.0 if first is None else (gradient * first).sum(dtype=torch.float64)
    u = membranes[t]
    threshold = neuron.v_threshold if thresholds is None else thresholds[t]
    return (gradient * u * (u <= threshold)).sum(dtype=torch.float64)


def _blocks(x: Tensor) -> list[slice]:
    """Steps of x, from the last, as many at a time as stay in the processor's cache."""
    length = max(1, CACHED_VALUES // max(1, x[0].numel()))
    return [slice(max(0, stop - length), stop) for stop in range(len(x), 0, -length)]
