"""The torch module: any batch, sequence against steps, state, parameters, training outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import as_float64, assert_all_fire, calibrated, genotype, run_recorded

import snnir
from snnir.errors import SnnirError
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.lower.initialise import calibrate_batch_norm, initial_weights
from snnir.passes import DEPLOYMENT, TRAINING, run_passes
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
