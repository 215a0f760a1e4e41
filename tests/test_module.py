"""The torch module: any batch, sequence against steps, state, parameters, training outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import as_float64, assert_all_fire, calibrated, genotype, run_recorded, small

import snnir
from snnir.errors import SnnirError
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, Conv, Identity, Input, Neuron, Output, Owner
from snnir.lower import SpikingModule
from snnir.lower.gradients import convolve, every
from snnir.lower.initialise import calibrate_batch_norm, initial_weights
from snnir.passes import ANALYSIS, DEPLOYMENT, TRAINING, run_passes
from snnir.weights import expected_shapes

NETWORKS = ("hybrid", "menu", "spikes", "small_stereo")


def lowered(name, passes=TRAINING):
    """An evaluating float64 module on which every layer fires, and its inputs."""
    graph, weights, inputs = calibrated(name)
    result = run_passes(passes, graph, as_float64(weights))
    module = SpikingModule(result.graph, result.weights).eval()
    return module, [torch.from_numpy(x.astype(np.float64)) for x in inputs]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_calibrated_network_fires(name):
    graph, weights, inputs = calibrated(name)
    _, spikes = run_recorded(run_passes(TRAINING, graph).graph, as_float64(weights), inputs)
    assert_all_fire(spikes)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("passes", [TRAINING, DEPLOYMENT], ids=["training", "deployed"])
def test_steps_with_explicit_state_equal_the_sequence(name, passes):
    module, inputs = lowered(name, passes)
    with torch.no_grad():
        sequence = module(*inputs)
        state, outputs = None, []
        for t in range(module.graph.steps):
            now = [x[t] if x.dim() == 5 else x for x in inputs]
            output, state = module.step(*now, state=state)
            outputs.append(output)
    stepped = torch.stack(outputs)
    if name == "small_stereo":
        torch.testing.assert_close(stepped.squeeze(1), sequence, rtol=0, atol=1e-12)
        assert len({tuple(s.flatten().tolist()) for s in stepped}) > 1, "the state has no effect"
    else:
        torch.testing.assert_close(stepped.mean(0), sequence, rtol=0, atol=1e-12)
        assert not torch.allclose(stepped[0], stepped[1]), "the state has no effect"


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_do_not_depend_on_the_batch(name):
    module, inputs = lowered(name)
    with torch.no_grad():
        together = module(*inputs)
        axis = 1 if name == "small_stereo" else 0
        alone = [module(*(x[..., [i], :, :, :] for x in inputs)) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone, axis), together, rtol=0, atol=1e-12)


def test_no_reset_between_sequences():
    module, inputs = lowered("hybrid")
    with torch.no_grad():
        assert torch.equal(module(*inputs), module(*inputs))


def test_a_frame_shown_at_every_step_equals_the_repeated_frame():
    module, (x,) = lowered("hybrid")
    with torch.no_grad():
        repeated = x.expand(module.graph.steps, *x.shape)
        torch.testing.assert_close(module(repeated), module(x), rtol=0, atol=1e-12)
        moving = torch.stack([x.roll(t, -1) for t in range(module.graph.steps)])
        assert not torch.allclose(module(moving), module(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_state_dict_has_parameters_and_statistics_alone(name):
    module, inputs = lowered(name)
    with torch.no_grad():
        module(*inputs)
    assert set(module.state_dict()) == set(expected_shapes(build(genotype(name))))


def test_parameters_are_named_by_node_path():
    names = snnir.load("spikedhs_cla").state_dict()
    assert names["trunk.layers.3.n1.prev.conv.weight"].shape == (96, 288, 3, 3)
    stereo = build(genotype("small_stereo"))
    module = SpikingModule(stereo)
    assert sum("feature" in n for n in dict(module.named_parameters())) == sum(
        "feature" in n for n in stereo.parameter_shapes()
    )


def test_training_returns_auxiliary_logits_and_trains_every_parameter():
    module = snnir.load(genotype("menu"))
    graph, weights, inputs = calibrated("menu")
    module = SpikingModule(run_passes(TRAINING, graph).graph, weights)
    logits, (auxiliary,) = module(*(torch.from_numpy(x) for x in inputs))
    assert logits.shape == auxiliary.shape == (3, 4)
    target = torch.tensor([0, 1, 3])
    loss = torch.nn.functional.cross_entropy(logits, target)
    loss = loss + 0.3 * torch.nn.functional.cross_entropy(auxiliary, target)
    loss.backward()
    still = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before batch norm is taken out by it again
    assert [n for n in still if not n.endswith("conv.bias")] == []
    with torch.no_grad():
        assert module.eval()(*(torch.from_numpy(x) for x in inputs)).shape == (3, 4)


# --- memory taken twice ---------------------------------------------------------------------


def unchanged(node, value):
    return value


def gradients(module, inputs, observe=None, train=True):
    """Of every parameter, and the running statistics after it."""
    module.train(train).zero_grad()
    outputs, _ = module.run(*inputs, observe=observe)
    flat = torch.cat([y.flatten() for y in torch.utils._pytree.tree_leaves(outputs)])
    (flat * torch.linspace(-1, 1, len(flat), dtype=flat.dtype)).sum().backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    assert all(g is not None for g in found.values())
    return flat.detach(), found | dict(module.named_buffers())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("passes", [ANALYSIS, TRAINING], ids=["as built", "training"])
def test_values_and_gradients_do_not_depend_on_memory_taken_twice(name, passes):
    """An observer keeps every value alive, so that nothing is overwritten or kept as bytes."""
    (lean, inputs), (plain, _) = lowered(name, passes), lowered(name, passes)
    assert lean._lean
    found, ours = gradients(lean, inputs)
    expected, theirs = gradients(plain, inputs, observe=unchanged)
    assert torch.equal(found, expected)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-12, atol=1e-12, msg=key)


def test_what_another_node_reads_is_not_overwritten():
    """A current of two neurons, a sum that is read twice, a summand that is an identity of spikes
    or of a current read elsewhere."""
    graph = Graph("shared", 3)
    graph.add(Input(path="x", kind="events", shape=(2, 5, 5)))
    for path, source in (("a", "x"), ("b", "n0"), ("c", "n1")):
        conv = Conv(
            path=path, in_channels=2, out_channels=2, kernel=(3, 3), stride=(1, 1), padding=(1, 1),
            bias=True, owners=(Owner(path, 2),),
        )  # fmt: skip
        graph.add(conv, [source])
        if path == "a":
            graph.add(Neuron(path="n0", kind="lif", v_threshold=0.1), ["a"])
            graph.add(Neuron(path="n1", kind="lif", v_threshold=0.2), ["a"])
    graph.add(Identity(path="skip"), ["a"])
    graph.add(Identity(path="spikes"), ["n0"])
    graph.add(Add(path="sum"), ["skip", "b", "spikes"])
    graph.add(Add(path="twice"), ["b", "c"])
    graph.add(Neuron(path="n2", kind="alif"), ["sum"])
    graph.add(Neuron(path="n3", kind="lif"), ["twice"])
    graph.add(Add(path="all"), ["twice", "n2", "n3"])
    graph.add(Output(path="y"), ["all"])
    graph = run_passes(ANALYSIS, graph).graph
    module = SpikingModule(graph, seed=1).double()
    assert module._lean == {"b", "c", "n2"}
    torch.manual_seed(0)
    x = torch.randint(-1, 2, (3, 2, 2, 5, 5)).double()
    found, ours = gradients(module, [x])
    expected, theirs = gradients(module, [x], observe=unchanged)
    assert torch.equal(found, expected)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-12, atol=1e-12, msg=key)


def test_an_observer_sees_values_that_stay():
    module, inputs = lowered("menu")
    seen, copies = {}, {}

    def keep(node, value):
        seen[node.path], copies[node.path] = value.data, value.data.clone()
        return value

    with torch.no_grad():
        module.run(*inputs, observe=keep)
    assert all(torch.equal(seen[path], copies[path]) for path in seen)


def test_a_second_backward_pass_is_an_error():
    module, inputs = lowered("hybrid")
    loss = module.train()(*inputs)[0].square().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("groups", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("dims", [2, 3])
def test_convolutions_of_spikes_have_the_gradients_of_torch(dims, groups, dilation):
    torch.manual_seed(0)
    spikes = (torch.rand(3, 4, *[6] * dims, dtype=torch.float64) < 0.4).double()
    weight = torch.randn(6, 4 // groups, *[3] * dims, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    results = []
    for kept in (True, False):
        tensors = [t.clone().requires_grad_() for t in (spikes, weight, bias)]
        geometry = (2,) * dims, (1,) * dims, groups
        y = convolve(*tensors, *geometry, dilation=dilation, spikes=kept)
        y.square().sum().backward()
        results.append([y.detach(), *(t.grad for t in tensors)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dims", [2, 3])
def test_convolutions_with_frozen_weights_have_the_gradients_of_torch(dims):
    """Of real inputs too; and nothing of the input is kept."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, *[6] * dims, dtype=torch.float64)
    weight = torch.randn(6, 4, *[3] * dims, dtype=torch.float64)
    saved = []
    results = []
    for function in (convolve, F.conv2d if dims == 2 else F.conv3d):
        a, bias = x.clone().requires_grad_(), torch.zeros(6, dtype=torch.float64).requires_grad_()
        rest = (1,) if function is convolve else (1, 1)
        y = function(a, weight, bias, (2,) * dims, (1,) * dims, *rest)
        if function is convolve:
            saved = [t.shape for t in y.grad_fn.saved_tensors]
        y.square().sum().backward()
        results.append([y.detach(), a.grad, bias.grad])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    assert saved == [weight.shape]


def test_convolutions_of_spikes_under_autocast():
    torch.manual_seed(0)
    spikes, weight = (torch.rand(3, 4, 6, 6) < 0.4).float(), torch.randn(6, 4, 3, 3)
    results = []
    for kept in (True, False):
        x, w = spikes.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = convolve(x, w, None, (1, 1), (1, 1), 1, spikes=kept)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        results.append([y.detach(), x.grad, w.grad])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("strides", [(2, 2), (1, 3), (2, 1, 2)])
def test_sampling_has_the_gradient_of_slicing(strides):
    x = torch.arange(2 * 3 * 6 ** len(strides), dtype=torch.float64)
    x = x.view(2, 3, *[6] * len(strides)).requires_grad_()
    places = (..., *(slice(None, None, stride) for stride in strides))
    found = every(x, strides)
    assert torch.equal(found, x[places])
    weight = torch.randn_like(found)
    (ours,) = torch.autograd.grad((found * weight).sum(), x)
    (theirs,) = torch.autograd.grad((x[places] * weight).sum(), x)
    assert torch.equal(ours, theirs)


# --- outputs --------------------------------------------------------------------------------


def test_stereo_trains_on_its_cost():
    module, inputs = lowered("small_stereo")
    module.train()
    assert module(*inputs).shape == (3, 3, 8, 18, 24)
    with torch.no_grad():
        disparity = module.eval()(*inputs)
    assert disparity.shape == (3, 3, 18, 24)
    assert float(disparity.std()) > 0.1
    assert 0 <= float(disparity.min()) <= float(disparity.max()) <= 14


def test_soft_argmin_by_hand():
    """Costs 3, 1, 2, 9, 9, 0.9 with support 1: softmin over indices 4 and 5, disparity 2d."""
    from snnir.ir.nodes import SoftArgmin
    from snnir.lower.operations import _apply

    module, _ = lowered("small_stereo")
    cost = torch.tensor([3.0, 1.0, 2.0, 9.0, 9.0, 0.9], dtype=torch.float64).view(1, 1, 6, 1, 1)
    found = _apply(SoftArgmin(path="s", support=1), module, cost)
    weights = np.exp([-9.0, -0.9])
    assert float(found) == pytest.approx(float(weights @ [8, 10] / weights.sum()))


def test_cost_volume_by_hand():
    from snnir.ir.nodes import CostVolume
    from snnir.lower.operations import _apply

    left = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    right = torch.tensor([4.0, 5.0, 6.0]).view(1, 1, 1, 3)
    volume = _apply(CostVolume(path="v", slices=2), None, left, right)
    assert volume.shape == (1, 2, 2, 1, 3)
    assert volume[0, :, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert volume[0, :, 1, 0].tolist() == [[0, 2, 3], [0, 4, 5]]


@pytest.mark.parametrize(("old", "new"), [(8, 4), (7, 4), (4, 8), (5, 9), (3, 3)])
def test_nearest_resizing_takes_floor_of_i_in_over_out(old, new):
    from snnir.ir.nodes import Resize
    from snnir.lower.operations import _apply

    x = torch.arange(old, dtype=torch.float64).view(1, 1, 1, old).expand(1, 1, old, old)
    found = _apply(Resize(path="r", size=(new, new)), None, x)
    assert found[0, 0, 0].tolist() == [i * old // new for i in range(new)]


def test_calibration_takes_the_statistics_of_its_inputs():
    graph, _, inputs = calibrated("hybrid")
    module = SpikingModule(run_passes(TRAINING, graph).graph, seed=5)
    tensors = [torch.from_numpy(x) for x in inputs]
    calibrate_batch_norm(module, tensors)
    assert module.batch_norm_momentum == 0.1
    seen = {}

    def keep(node, value):
        seen[node.path] = value.data
        return value

    with torch.no_grad():
        module.train().run(*tensors, observe=keep)
    mean = module.parameter("trunk.stem.0.bn.running_mean")
    torch.testing.assert_close(
        mean, seen["trunk.stem.0.conv"].mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_initial_weights_depend_on_seed_and_name_alone():
    small, large = build(genotype("hybrid")), build(genotype("menu"))
    assert np.array_equal(
        initial_weights(small, 3)["head.bn.weight"], np.ones(10, dtype=np.float32)
    )
    again = initial_weights(small, 3)
    for name, value in initial_weights(small, 3).items():
        assert np.array_equal(value, again[name])
    assert not np.array_equal(
        initial_weights(large, 3)["trunk.stem.0.conv.weight"],
        initial_weights(large, 4)["trunk.stem.0.conv.weight"],
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 28, 28), r"found shape \[2, 3, 28, 28\]"),
        ((2, 1, 32, 32), r"expected \[N, C, H, W\] or \[T, N, C, H, W\]"),
        ((1, 28, 28), "found shape"),
    ],
)
def test_inputs_that_do_not_fit_are_errors(shape, message):
    module, _ = lowered("hybrid")
    with pytest.raises(SnnirError, match=message):
        module(torch.zeros(shape, dtype=torch.float64))


def test_the_number_of_inputs_is_checked():
    module, inputs = lowered("small_stereo")
    with pytest.raises(SnnirError, match="found 1 inputs, expected 2: left, right"):
        module(inputs[0])
    with pytest.raises(SnnirError, match="expected one number"):
        module(inputs[0], inputs[1][:2])


@pytest.mark.parametrize("name", ["graph", "training", "observer", "forward"])
def test_a_backbone_named_as_modules_attributes_are_is_refused(name):
    network = small(
        f"""
input x: frame[1, 4, 4]
steps 2
neuron lif
backbone {name}(x) {{ stem conv3x3(2) }}
head classify({name}, classes=2)
"""
    )
    with pytest.raises(SnnirError, match=f"found the name '{name}', .* expected another"):
        SpikingModule(run_passes(TRAINING, build(network)).graph)
