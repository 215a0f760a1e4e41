"""Neurons and surrogates against a plain, obviously right version: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from snnir.ir.nodes import Neuron
from snnir.lower.neurons import run_neuron
from snnir.lower.surrogates import SURROGATES

KINDS = ("if", "lif", "alif", "binary", "relu")


def plain_surrogate(name, u, threshold, b):
    """method §2, written with its own x = u - c + 1/2."""
    x = u - threshold + 0.5
    if name == "dspike":
        inside = (x >= 0) & (x <= 1)
        return torch.where(
            inside, b * (1 - torch.tanh(b * (x - 0.5)) ** 2) / (2 * math.tanh(b / 2)), 0.0
        )
    if name == "triangle":
        return b * torch.clamp(1 - (x - 0.5).abs(), min=0)
    if name == "superspike":
        return 1 / (b * (x - 0.5).abs() + 1) ** 2
    if name == "arctan":
        return (b / 3) / (1 + (math.pi * (x - 0.5)) ** 2)
    if name == "rectangular":
        return b * ((x - 0.5).abs() <= 1 / (2 * b)).double()
    return b * torch.sigmoid(b * (x - 0.5)) * (1 - torch.sigmoid(b * (x - 0.5)))


class PlainSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, threshold, name, b):
        ctx.save_for_backward(u, threshold)
        ctx.name, ctx.b = name, b
        return (u > threshold).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        u, threshold = ctx.saved_tensors
        g = grad * plain_surrogate(ctx.name, u, threshold, ctx.b)
        return g, -g, None, None


def plain_neuron(n: Neuron, current, v=None, a=None, leak=None):
    """The equations of method §1, step by step, with autograd doing the rest."""
    if n.kind == "relu":
        return torch.clamp(current, min=0)
    tau = {"if": 1.0, "binary": 0.0}.get(n.kind, n.tau) if leak is None else leak
    kept = torch.zeros_like(current[0]) if v is None else v
    rise = torch.zeros_like(current[0]) if a is None else a
    spikes = []
    for t in range(len(current)):
        u = tau * kept + current[t]
        threshold = torch.full_like(u, n.v_threshold)
        if n.kind == "alif":
            threshold = threshold + n.beta * rise
        y = PlainSpike.apply(u, threshold, n.surrogate, n.b)
        kept = u * (1 - (y.detach() if n.detach_reset else y))
        rise = n.tau_a * rise + y
        spikes.append(y)
    return torch.stack(spikes)


def neuron(kind, **fields):
    defaults = {"tau": 0.4, "v_threshold": 0.5, "tau_a": 0.3, "beta": 0.25, "b": 2.5}
    return Neuron(path="n", kind=kind, **{**defaults, **fields})


def currents(steps=5, seed=0):
    torch.manual_seed(seed)
    return torch.randn(steps, 3, 4, 5, dtype=torch.float64) * 0.7 + 0.25


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_plain_neuron(kind, surrogate, detach_reset):
    n = neuron(kind, surrogate=surrogate, detach_reset=detach_reset)
    ours = currents().requires_grad_()
    theirs = currents().requires_grad_()
    found, _ = run_neuron(n, ours, {})
    expected = plain_neuron(n, theirs)
    assert torch.equal(found, expected)
    rate = float((found != 0).double().mean())
    assert 0.05 < rate < 0.95, "a neuron that always or never fires proves nothing"
    torch.manual_seed(1)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert theirs.grad.abs().max() > 0.01
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("kind", ["lif", "alif"])
def test_the_gradient_of_a_learned_leak(kind, started, detach_reset, monkeypatch):
    """From rest and from a state, in one block and in several."""
    n = neuron(kind, surrogate="arctan", detach_reset=detach_reset)
    state = {"v": 0.4 * torch.ones(3, 4, 5, dtype=torch.float64)} if started else {}
    if started and kind == "alif":
        state["a"] = torch.zeros(3, 4, 5, dtype=torch.float64)
    for values in (2**18, 2 * 60):
        monkeypatch.setattr("snnir.lower.neurons.CACHED_VALUES", values)
        results = []
        for ours in (True, False):
            current = currents().requires_grad_()
            leak = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
            if ours:
                found, _ = run_neuron(n, current, dict(state), leak=leak)
            else:
                found = plain_neuron(n, current, v=state.get("v"), leak=leak)
            torch.manual_seed(1)
            (found * torch.randn_like(found)).sum().backward()
            results.append((found.detach(), current.grad, leak.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert results[1][2].abs() > 0.01
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["if", "lif", "alif"])
def test_gradients_flow_through_the_state(kind):
    """Two halves with the state handed over equal the whole, gradients too."""
    n = neuron(kind)
    whole, halves = currents(6).requires_grad_(), currents(6).requires_grad_()
    expected, _ = run_neuron(n, whole, {})
    first, state = run_neuron(n, halves[:2], {})
    second, _ = run_neuron(n, halves[2:], state)
    assert torch.equal(torch.cat([first, second]), expected)
    weight = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    (expected * weight).sum().backward()
    (torch.cat([first, second]) * weight).sum().backward()
    torch.testing.assert_close(halves.grad, whole.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("kind", ["if", "lif", "alif", "binary"])
def test_a_second_backward_pass_is_an_error(kind, retain):
    """The first one overwrites the membranes, whatever it was told to retain."""
    spikes, _ = run_neuron(neuron(kind), currents().requires_grad_(), {})
    spikes.sum().backward(retain_graph=retain)
    with pytest.raises(RuntimeError, match=r"second time|modified by an inplace operation"):
        spikes.sum().backward()


@pytest.mark.parametrize("kind", ["lif", "alif", "binary"])
def test_a_gradient_of_the_gradient_is_an_error(kind):
    current = currents().requires_grad_()
    spikes, _ = run_neuron(neuron(kind), current, {})
    (gradient,) = torch.autograd.grad(spikes.square().sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("kind", ["if", "lif", "alif", "binary"])
def test_in_place_gives_the_same_and_takes_the_currents_memory(kind):
    ours, theirs = currents().requires_grad_(), currents().requires_grad_()
    taken = ours * 1
    address = taken.data_ptr()
    found, _ = run_neuron(neuron(kind), taken, {}, in_place=True)
    expected, _ = run_neuron(neuron(kind), theirs, {})
    assert torch.equal(found, expected)
    assert found.data_ptr() != address
    assert taken.data_ptr() == address
    assert not torch.equal(taken, ours) or kind == "binary"  # membranes now
    found.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_currents_are_left_alone_unless_in_place():
    current = currents()
    run_neuron(neuron("lif"), current, {})
    assert torch.equal(current, currents())


def test_blocks_of_steps_do_not_change_the_gradient(monkeypatch):
    gradients = []
    for values in (1, 150, 2**18):
        monkeypatch.setattr("snnir.lower.neurons.CACHED_VALUES", values)
        current = currents(7).requires_grad_()
        run_neuron(neuron("alif"), current, {})[0].square().sum().backward()
        gradients.append(current.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_the_default_reset_is_in_the_gradient():
    attached, detached = currents().requires_grad_(), currents().requires_grad_()
    run_neuron(neuron("lif"), attached, {})[0].sum().backward()
    run_neuron(neuron("lif", detach_reset=True), detached, {})[0].sum().backward()
    assert not torch.allclose(attached.grad, detached.grad)


def test_a_spike_needs_more_than_the_threshold():
    n = neuron("lif", v_threshold=0.5)
    u = torch.tensor([[0.5], [0.5 + 1e-12]], dtype=torch.float64)[None]
    assert run_neuron(n, u, {})[0].flatten().tolist() == [0.0, 1.0]


def test_lif_by_hand():
    """tau 0.5, threshold 1: u = 0.8, 0.4 + 0.8 = 1.2 (fires, reset), 0.8."""
    spikes, state = run_neuron(
        neuron("lif", tau=0.5, v_threshold=1.0), torch.full((3, 1), 0.8, dtype=torch.float64), {}
    )
    assert spikes.flatten().tolist() == [0, 1, 0]
    assert float(state["v"]) == 0.8


def test_alif_threshold_rises_to_its_limit():
    """A always firing: a -> 1/(1 - tau_a), so A stays below v_threshold + beta/(1 - tau_a)."""
    n = neuron("alif", tau=0.0, tau_a=0.5, beta=0.4)
    limit = n.v_threshold + n.beta / (1 - n.tau_a)
    below = torch.full((30, 1), limit - 1e-3, dtype=torch.float64)
    above = torch.full((30, 1), limit + 1e-3, dtype=torch.float64)
    assert run_neuron(n, above, {})[0].mean() == 1
    assert run_neuron(n, below, {})[0].mean() < 1
    _, state = run_neuron(n, above, {})
    assert float(state["a"]) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("b", [1.0, 3.0, 6.0])
def test_surrogates_are_the_papers(name, b):
    u = torch.linspace(-2, 3, 2001, dtype=torch.float64)
    found = SURROGATES[name](u - 0.5, b)
    expected = plain_surrogate(name, u, 0.5, b)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert found.argmax() == 1000 or name == "rectangular"


def test_dspike_integrates_to_one():
    """Dspike is the slope of a function from 0 to 1 (paper eq. 11)."""
    d = torch.linspace(-0.5, 0.5, 100_001, dtype=torch.float64)
    for b in (1.0, 3.0, 5.0):
        assert float(torch.trapezoid(SURROGATES["dspike"](d, b), d)) == pytest.approx(1, abs=1e-6)
