"""Merged layers' parameters in one piece of memory: still the same parameters, for everyone."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import calibrated

from snnir.ir.nodes import BatchNorm, Conv
from snnir.lower import SpikingModule
from snnir.lower.stacking import Stacks
from snnir.passes import ANALYSIS, TRAINING, run_passes


def parts(memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    values = [torch.randn(n, 2, 3, 3, dtype=torch.float64) for n in (1, 3, 2)]
    return [torch.nn.Parameter(v.contiguous(memory_format=memory_format)) for v in values]


def shares(stack, params):
    """Whether the parameters lie in the stack, one after the other."""
    places = stack.detach().split([len(p) for p in params])
    return [p.data_ptr() for p in params] == [place.data_ptr() for place in places]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_stack_is_the_concatenation_and_shares_its_memory(memory_format):
    params = parts(memory_format)
    expected = torch.cat(params).detach()
    stacks = Stacks()
    stack = stacks.get("w", params)
    assert torch.equal(stack, expected)
    assert shares(stack, params)
    assert stack.is_contiguous(memory_format=memory_format)
    assert stacks.get("w", params).data_ptr() == stack.data_ptr(), "stacked once"


def test_gradients_are_those_of_the_concatenation():
    ours, theirs = parts(), parts()
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    (Stacks().get("w", ours) ** 2 * weight).sum().backward()
    (torch.cat(theirs) ** 2 * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_part_that_is_frozen_or_written_to():
    params = parts()
    params[1].requires_grad_(False)
    stacks = Stacks()
    stacks.get("w", params).sum().backward()
    assert params[1].grad is None
    assert params[0].grad is not None
    loss = (stacks.get("w", params) ** 2).sum()
    with torch.no_grad():
        params[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_part_with_new_data_is_stacked_again():
    params = parts()
    stacks = Stacks()
    stacks.get("w", params)
    params[1].data = torch.zeros_like(params[1])
    stack = stacks.get("w", params)
    assert shares(stack, params)
    assert not stack[1:4].any()
    assert stack[0].any()


# --- in a network -----------------------------------------------------------------------------


def network(passes=TRAINING, *, dtype=torch.float64):
    graph, weights, inputs = calibrated("menu")
    module = SpikingModule(run_passes(passes, graph).graph, weights).to(dtype)
    return module, [torch.from_numpy(x).to(dtype) for x in inputs]


def merged(module, kind=Conv):
    """A layer that stands for several, and the parameters it stacks."""
    node = next(n for n in module.graph.of_type(kind) if len(n.owners) > 1)
    return node, [module.parameter(f"{owner.path}.weight") for owner in node.owners]


def loss_of(module, inputs):
    logits, (auxiliary,) = module(*inputs)
    return (logits**2).sum() + (auxiliary**2).sum()


def assert_stacked(module):
    node, params = merged(module)
    stack = module.stacked(node, "weight")
    assert shares(stack, params)
    assert torch.equal(stack, torch.cat(params))


def test_parameters_stay_the_same_tensors_and_an_optimizer_steps_the_stack():
    module, inputs = network()
    node, params = merged(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    before = module.stacked(node, "weight").detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(module, inputs).backward()
        optimizer.step()
    assert all(a is b for a, b in zip(params, merged(module)[1], strict=True))
    assert_stacked(module)
    after = module.stacked(node, "weight")
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_merged_layers_train_like_separate_ones():
    """Gradients equal those of the graph as built."""
    (ours, inputs), (theirs, _) = network(), network(ANALYSIS)
    assert any(len(n.owners) > 1 for n in ours.graph.of_type(BatchNorm))
    for module in (ours, theirs):
        module.train()
        loss_of(module, inputs).backward()
    assert all(p.grad is not None for p in ours.parameters())
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_gradients_lie_in_memory_as_their_parameters_do():
    """Others DDP copies, and warns."""
    module, inputs = network(dtype=torch.float32)
    loss_of(module, inputs).backward()
    strides = {name: (p.stride(), p.grad.stride()) for name, p in module.named_parameters()}
    assert any(p.shape[2:] == (1, 1) for p in module.parameters())
    assert {name: s for name, s in strides.items() if s[0] != s[1]} == {}


def test_running_statistics_of_a_merged_batch_norm_are_written_through():
    module, inputs = network()
    node, _ = merged(module, BatchNorm)
    names = [f"{owner.path}.running_{k}" for owner in node.owners for k in ("mean", "var")]
    before = {name: module.state_dict()[name].clone() for name in names}
    with torch.no_grad():
        module.train()(*inputs)
    for name in names:
        assert (module.state_dict()[name] != before[name]).any(), name


def test_a_converted_module_is_stacked_again():
    module, inputs = network(dtype=torch.float32)
    loss_of(module, inputs)
    module.double()
    loss_of(module, [x.double() for x in inputs]).backward()
    assert_stacked(module)
    assert merged(module)[1][0].grad.dtype == torch.float64


def test_a_copy_is_a_module_of_its_own():
    module, inputs = network()
    loss_of(module, inputs)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for param in twin.parameters():
            param.mul_(0)
        loss_of(twin, inputs)
    assert_stacked(twin)
    assert_stacked(module)
    assert not merged(twin)[1][0].any()
    assert merged(module)[1][0].any()


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_state_is_what_the_stack_holds(assign):
    (module, inputs), (other, _) = network(), network()
    loss_of(module, inputs)
    with torch.no_grad():
        for param in other.parameters():
            param.mul_(1.5)
    module.load_state_dict(other.state_dict(), assign=assign)
    with torch.no_grad():
        assert torch.equal(module.eval()(*inputs), other.eval()(*inputs))
    assert_stacked(module)
