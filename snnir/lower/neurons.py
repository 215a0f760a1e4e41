"""Neurons over time as one autograd function that keeps only the membranes.

`tau` is the leak factor: the share of the membrane kept per step. SpikingJelly writes the same
neuron as LIFNode(tau=1/(1-tau), decay_input=False); snnTorch calls tau `beta`. A spike needs
u > threshold, strictly (SpikingJelly fires at equality).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnir.ir.nodes import Neuron
from snnir.lower.surrogates import SURROGATES

NeuronState = dict[str, Tensor]
"""State after a step, by name: v = u·(1 - y) [N, …]; for ALIF also a, already advanced to the next
step [N, …]."""


def run_neuron(neuron: Neuron, current: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
    """Run `neuron` on currents [T, N, …] from `state` (empty: at rest); equations in
    `snnir.ir.nodes.Neuron`, method §1.

    Returns spikes [T, N, …] (for relu: activations) and the state after the last step.
    """
    if neuron.kind == "relu":
        return torch.relu(current), {}
    if not neuron.states:
        spikes, *_ = _Spiking.apply(current.unsqueeze(0), None, None, neuron)
        return spikes.squeeze(0), {}
    spikes, v, a = _Spiking.apply(current, state.get("v"), state.get("a"), neuron)
    return spikes, {"v": v, "a": a} if neuron.kind == "alif" else {"v": v}


class _Spiking(torch.autograd.Function):
    """The recurrence over T, and its gradient with the surrogate in place of H'.

    With g[t] the surrogate at u[t] - A[t], gv and ga the gradients of what t passes on to t + 1
    (v[t] = u[t](1 - y[t]) and a[t+1] = tau_a·a[t] + y[t]):

        gy = dL/dy[t] + ga - gv·u[t]   (the last term only when the reset is not detached)
        gu = gy·g[t] + gv·(1 - y[t]);  gv <- leak·gu;  ga <- tau_a·ga - beta·gy·g[t]
    """

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, v: Tensor | None, a: Tensor | None, neuron: Neuron
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        adaptive = neuron.kind == "alif"
        membranes = torch.empty_like(current)
        thresholds = torch.empty_like(current) if adaptive else None
        spikes = torch.empty_like(current)
        threshold: float | Tensor = neuron.v_threshold
        ctx.started = v is not None
        if adaptive and a is None:
            a = torch.zeros_like(current[0])
        for t in range(len(current)):
            u, y = membranes[t], spikes[t]
            if v is None:
                u.copy_(current[t])
            else:
                torch.mul(v, neuron.leak, out=u)
                u.add_(current[t])
            if thresholds is not None:
                assert a is not None
                threshold = torch.mul(a, neuron.beta, out=thresholds[t]).add_(neuron.v_threshold)
            y.copy_(u > threshold)
            v = (1 - y).mul_(u)
            if a is not None:
                a = (a * neuron.tau_a).add_(y)
        ctx.save_for_backward(membranes, thresholds)
        ctx.neuron = neuron
        return spikes, v, a

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_spikes, gv, ga = gradients
        membranes, thresholds = ctx.saved_tensors
        neuron: Neuron = ctx.neuron
        surrogate = SURROGATES[neuron.surrogate]
        grad_current = torch.empty_like(membranes)
        for t in reversed(range(len(membranes))):
            u = membranes[t]
            distance = u - (neuron.v_threshold if thresholds is None else thresholds[t])
            gy = grad_spikes[t].clone()
            if ga is not None:
                gy += ga
            if not neuron.detach_reset:
                gy -= gv * u
            gs = gy.mul_(surrogate(distance, neuron.b))
            gu = torch.mul(gv, distance <= 0, out=grad_current[t]).add_(gs)
            gv = gu * neuron.leak
            if ga is not None:
                ga = (ga * neuron.tau_a).sub_(gs, alpha=neuron.beta)
        return (grad_current, gv, ga, None) if ctx.started else (grad_current, None, None, None)
