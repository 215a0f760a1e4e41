"""Exact mode: bounds that hold and are reached, the certificate, every spike in every runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from helpers import GENOTYPES, as_float64, calibrated, genotype, small
from hypothesis import given, settings
from hypothesis import strategies as st

import snnir
from snnir.analysis.certificate import certify
from snnir.errors import SnnirError
from snnir.export.exactness import check_exactness, run_numpy, run_torch
from snnir.export.interpreter import interpret
from snnir.export.onnx import export_onnx
from snnir.genotype import parse
from snnir.ir import build
from snnir.ir import nodes as ir
from snnir.ir.estimator import STEPS_PER_UNIT, UNIT, exponentials
from snnir.ir.graph import Graph
from snnir.ir.serialize import graph_from_json, graph_to_json
from snnir.lower import SpikingModule
from snnir.lower.initialise import initial_weights, seeded_inputs
from snnir.lower.operations import _apply, sub_pixel
from snnir.passes import (
    FOLDING,
    MERGING,
    ROUNDING,
    ROUNDING_WITH_LEAKS,
    WHOLE_NUMBERS,
    run_passes,
)
from snnir.passes.intervals import (
    Bounds,
    Interval,
    bound_graph,
    bound_membrane,
    bound_node,
    lowest_bit,
)
from snnir.passes.quantise_images import eight_bit
from snnir.passes.round_to_grid import MOST_ROUNDING

NETWORKS = ("hybrid", "menu", "spikes", "small_stereo")
FORMS = ("sequence", "step")
EXACT = (*FOLDING, *WHOLE_NUMBERS, *ROUNDING, *MERGING)


@cache
def exact(name):
    """A calibrated network in exact mode, and 8-bit inputs."""
    graph, weights, inputs = calibrated(name)
    images = tuple(eight_bit(x) if x.ndim == 4 else x for x in inputs)
    return run_passes(EXACT, graph, weights), images


# --- every spike, in every runtime ------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_spike_is_equal_end_to_end(name, form):
    result, inputs = exact(name)
    model = export_onnx(result.graph, result.weights, form=form)
    found = check_exactness(model, result.graph, result.weights, inputs, form=form)
    assert found.passed, found
    assert found.mismatches == 0
    assert [layer.path for layer in found.layers] == [n.path for n in result.graph.neurons]
    assert found.spikes_compared > 10_000
    for layer in found.layers:
        assert 0.005 < layer.firing_rate < 0.995, layer
    assert found.output.passed
    assert found.output.firing_rate > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_step_by_step_is_the_sequence_in_torch_and_numpy(name):
    result, inputs = exact(name)
    expected = run_torch(SpikingModule(result.graph, result.weights).eval(), inputs)
    module = SpikingModule(result.graph, result.weights).eval()
    spikes = {n.path: [] for n in result.graph.neurons if n.states}
    state, numpy_state = None, None
    for t in range(result.graph.steps):
        now = [x if x.ndim == 4 else x[t] for x in inputs]
        shown = [x if x.ndim == 4 else x[t : t + 1] for x in inputs]
        with torch.no_grad():
            _, state = module.step(*map(torch.from_numpy, now), state=state)
        _, numpy_state = interpret(
            result.graph,
            result.weights,
            shown,
            steps=1,
            state=numpy_state,
            observe=lambda node, y: spikes[node.path].append(y[0]) if node.path in spikes else None,
        )
        assert state.keys() == numpy_state.keys()
        for name_, value in state.items():
            np.testing.assert_array_equal(value.numpy(), numpy_state[name_], err_msg=name_)
    for path, by_step in spikes.items():
        np.testing.assert_array_equal(np.stack(by_step), expected[path], err_msg=path)


def test_the_order_of_the_sums_does_not_matter():
    """Input channels in another order, through torch's own convolution."""
    result, _ = exact("hybrid")
    rng = np.random.default_rng(0)
    for node in result.graph.of_type(ir.Conv):
        source = result.graph.inputs(node.path)[0]
        if node.groups > 1 or result.graph.type(source).domain != "spike":
            continue
        weight = torch.from_numpy(
            np.concatenate([result.weights[f"{o.path}.weight"] for o in node.owners])
        )
        x = torch.from_numpy(rng.integers(0, 2, (2, *result.graph.shape(source)))).float()
        order = torch.from_numpy(rng.permutation(node.in_channels))
        convolve = torch.nn.functional.conv2d
        one = convolve(x, weight, None, node.stride, node.padding)
        other = convolve(x[:, order], weight[:, order], None, node.stride, node.padding)
        wide = convolve(x.double(), weight.double(), None, node.stride, node.padding)
        assert torch.equal(one, other)
        assert torch.equal(one.double(), wide)
        assert one.abs().max() > 0


def test_the_fp32_network_fails_the_same_comparison():
    """On enough samples: a spike is within rounding of its threshold now and then."""
    graph, weights, _ = calibrated("hybrid")
    fp32 = run_passes((*FOLDING, *MERGING), graph, weights)
    inputs = seeded_inputs(graph, 5, 60)
    expected = run_torch(SpikingModule(fp32.graph, fp32.weights).eval(), inputs)
    interpreted = run_numpy(fp32.graph, fp32.weights, inputs)
    assert sum(int((interpreted[p] != y).sum()) for p, y in expected.items()) > 0


@pytest.mark.parametrize("where", ["a leak", "a weight", "the grid"])
def test_a_corrupted_export_is_caught(where):
    result, inputs = exact("hybrid")
    graph, weights = result.graph.copy(), dict(result.weights)
    neuron = graph.neurons[1]
    if where == "a leak":
        graph.replace(neuron.model_copy(update={"tau": neuron.tau * 1.01}))
    elif where == "the grid":
        graph.replace(neuron.model_copy(update={"grid": neuron.grid + 8}))
    else:
        name = "trunk.layers.1.n0.prev_prev+prev.conv.weight"
        weights[name] = weights[name].copy()
        weights[name].flat[7] += 2.0**-6
    model = export_onnx(graph, weights)
    found = check_exactness(model, result.graph, result.weights, inputs, form="sequence")
    assert not found.passed
    assert sum(layer.onnxruntime_mismatches for layer in found.layers) > 0
    assert all(layer.numpy_mismatches == 0 for layer in found.layers)


# --- bounds -----------------------------------------------------------------------------------


@given(st.integers(0, 2**24), st.integers(-100, 60))
def test_the_lowest_bit(mantissa, exponent):
    x = np.array(np.ldexp(float(mantissa), exponent))
    bit = int(lowest_bit(x))
    if mantissa:
        assert np.ldexp(x, -bit) % 2 == 1
    else:
        assert bit > 1000


LAYER = """
input event: events[{channels}, 3, 3]
steps {steps}
neuron {neuron}
cell one(prev_prev, prev) {{ n0 = conv1x1(prev) }}
backbone trunk(event) {{ stem conv3x3(2, bn=false)  layers channels=2 {{ one@0 }} }}
head classify(trunk, classes=2)
"""


def stem_only(channels, neuron="lif(tau=0.25)", steps=3):
    return build(small(LAYER.format(channels=channels, neuron=neuron, steps=steps)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_the_bound_of_a_convolution_is_reached_and_not_passed(seed):
    """All 3^9 inputs of a 3x3 convolution: the largest sum of any is the bound, exactly."""
    network = stem_only(1)
    rng = np.random.default_rng(seed)
    weights = initial_weights(network, 0)
    taps = rng.integers(-9, 10, (2, 1, 3, 3)) / 8
    bias = rng.integers(-9, 10, 2) / 8
    weights["trunk.stem.0.conv.weight"] = taps.astype(np.float32)
    weights["trunk.stem.0.conv.bias"] = bias.astype(np.float32)
    folded = run_passes(FOLDING, network, weights)
    found = bound_graph(folded.graph, folded.weights)["trunk.stem.0.conv"]
    inputs = np.array(list(product([-1, 0, 1], repeat=9)))
    sums = inputs @ taps.reshape(2, 9).T + bias
    np.testing.assert_array_equal(found.value.high, sums.max(0))
    np.testing.assert_array_equal(found.value.low, sums.min(0))
    assert found.value.finest >= -3
    assert found.sums[0].magnitude >= np.abs(sums).max()


@pytest.mark.parametrize("neuron", ["lif(tau=0.25)", "lif(tau=0.75)", "if", "alif(tau=0.5)"])
@pytest.mark.parametrize("grid", [None, -8])
def test_the_bound_of_a_membrane_holds_for_all_inputs(neuron, grid):
    """Every sequence of three currents within the bounds, on the grid and within them."""
    node = stem_only(1, neuron).neurons[0].model_copy(update={"grid": grid, "tau_a": 0.5})
    if node.kind == "if" and grid is not None:
        pytest.skip("a neuron without leak has no product to round")
    network = stem_only(1, neuron)
    weights = initial_weights(network, 0)
    weights["trunk.stem.0.conv.weight"] = np.array([[-3.0], [1.0]]).repeat(9).reshape(2, 1, 3, 3)
    weights["trunk.stem.0.conv.bias"] = np.zeros(2)
    weights = {name: x.astype(np.float32) / 8 for name, x in weights.items()}
    folded = run_passes(FOLDING, network, weights)
    graph = folded.graph
    graph.replace(node)
    bounds = bound_graph(graph, folded.weights)
    current, membrane = bounds["trunk.stem.0.conv"].value, bounds[node.path].sums[0]
    lowest = 0.0
    for levels in product([current.low[0], -0.125, 0.0, 0.625, current.high[0]], repeat=3):
        v, a = 0.0, 0.0
        for level in levels:
            u = on_grid(node.leak * v, grid) + level
            threshold = node.v_threshold
            if node.kind == "alif":
                threshold += on_grid(node.beta * a, grid)
            y = float(u > threshold)
            assert membrane.low[0] <= u <= membrane.high[0]
            assert np.ldexp(u, -membrane.grid[0]) % 1 == 0
            v, a = u * (1 - y), on_grid(node.tau_a * a, grid) + y
    for _ in range(60 if grid else graph.steps):  # the bound is no more than it has to be
        lowest = on_grid(node.leak * lowest, grid) + current.low[0]
    assert lowest <= 0.95 * membrane.low[0]


def on_grid(x, grid):
    return x if grid is None else np.rint(x * 2.0**-grid) * 2.0**grid


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_sums_on_a_grid_are_exact_in_any_order(seed):
    """What the certificate rests on: fp32 sums of terms whose bound fits are the exact ones."""
    rng = np.random.default_rng(seed)
    terms = rng.integers(-(2**15), 2**15, 400) * 2.0**-17
    assert max(terms[terms > 0].sum(), -terms[terms < 0].sum()) <= 2.0 ** (24 - 17)
    for _ in range(3):
        total = np.float32(0)
        for term in rng.permutation(terms).astype(np.float32):
            total += term
        assert float(total) == terms.sum()


# --- the certificate --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_certificate_holds_and_names_every_sum(name):
    result, _ = exact(name)
    certificate = certify(result.graph, result.weights)
    assert certificate.holds
    listed = {layer.path for layer in certificate.layers}
    assert {n.path for n in result.graph.nodes() if isinstance(n, ir.Conv | ir.Linear)} <= listed
    assert {n.path for n in result.graph.neurons if n.states} <= listed
    assert all(0 <= layer.headroom_bits < 24 for layer in certificate.layers)
    beyond = {"small_stereo": {"soft_argmin"}, "menu": {"mean_over_time"}}
    beyond["spikes"] = beyond["menu"]  # a mean over three steps divides
    assert {result.graph[p].op for p in certificate.outside} == beyond.get(name, set())
    assert certificate.steps == (3 if name == "menu" else None)  # it has an if neuron


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_recorded_lies_outside_the_certificate(name):
    result, inputs = exact(name)
    bounds = bound_graph(result.graph, result.weights)
    seen = {}
    interpret(
        result.graph, result.weights, inputs, observe=lambda node, x: seen.update({node.path: x})
    )
    checked = 0
    for path, found in bounds.items():
        if found.value is None:
            continue
        x = np.moveaxis(seen[path], -len(result.graph.shape(path)), -1).astype(np.float64)
        assert (x >= found.value.low).all(), path
        assert (x <= found.value.high).all(), path
        assert (np.ldexp(x, -found.value.grid) % 1 == 0).all(), path
        checked += 1
    assert checked > len(result.graph.neurons)


def off_grid(weights, graph):
    """By one unit in the last place."""
    taps = weights["trunk.layers.0.n1.prev+n0.conv.weight"]
    taps.flat[3] = np.nextafter(taps.flat[3], np.float32(1))


def too_large(weights, graph):
    weights["trunk.layers.0.n1.prev+n0.conv.weight"].flat[3] = 2.0**12


def real_input(weights, graph):
    graph.bypass("image.quantise")


def no_grid(weights, graph):
    neuron = graph.neurons[0]
    graph.replace(neuron.model_copy(update={"grid": None}))


CORRUPTIONS = {
    off_grid: "trunk.layers.0.n1.prev+n0.conv",
    too_large: "trunk.layers.0.n1.prev+n0.conv",
    real_input: "trunk.stem.0.neuron",
    no_grid: "trunk.stem.0.neuron",
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda f: f.__name__)
def test_the_certificate_is_falsifiable(corrupt):
    result, _ = exact("hybrid")
    weights = {name: x.copy() for name, x in result.weights.items()}
    graph = result.graph.copy()
    corrupt(weights, graph)
    certificate = certify(graph, weights)
    assert not certificate.holds
    failing = {layer.path for layer in certificate.layers if not layer.holds}
    assert CORRUPTIONS[corrupt] in failing | set(certificate.neurons_outside)


@pytest.mark.parametrize("name", ["hybrid", "small_stereo"])
def test_the_fp32_network_has_no_certificate(name):
    graph, weights, _ = calibrated(name)
    fp32 = run_passes((*FOLDING, *MERGING), graph, weights)
    assert not certify(fp32.graph, fp32.weights).holds


CANCELLING = """
input event: events[2, 4, 4]
neuron binary
cell one(prev_prev, prev) { n0 = conv3x3(prev) + conv3x3(prev_prev) }
backbone trunk(event) { stem conv3x3(2), conv3x3(2)  layers channels=2 { one@0 } }
head classify(trunk, classes=2)
"""


@pytest.mark.parametrize("size", [0.9, 1.7])
def test_sums_are_bounded_alike_before_and_after_they_are_merged(size):
    """A bias that keeps one term of a sum from below 0 does nothing for the terms themselves, which
    one convolution in the place of two adds up. No membrane bound hides it in a `binary` neuron."""
    network = build(small(CANCELLING))
    whole = run_passes((*FOLDING, *WHOLE_NUMBERS), network, initial_weights(network, 0))
    for source, bias in (("prev", 18 * size), ("prev_prev", 0)):
        conv = f"trunk.layers.0.n0.{source}.conv"
        whole.weights[f"{conv}.weight"][:] = -size
        whole.weights[f"{conv}.bias"][:] = bias
    rounded = run_passes((*ROUNDING, *MERGING), whole.graph, whole.weights)
    certificate = certify(rounded.graph, rounded.weights)
    (layer,) = (x for x in certificate.layers if x.path.startswith("trunk.layers.0.n0.prev"))
    assert layer.path == "trunk.layers.0.n0.prev+prev_prev.conv"
    assert layer.worst_case_sum == pytest.approx(36 * size, rel=1e-3)
    assert certificate.holds


# --- neurons that other programs have ---------------------------------------------------------

LEAKY = (*FOLDING, *WHOLE_NUMBERS, *ROUNDING_WITH_LEAKS)


@cache
def with_leaks():
    graph, weights, inputs = calibrated("layered")
    whole = run_passes((*FOLDING, *WHOLE_NUMBERS), graph, weights)
    rounded = run_passes(ROUNDING_WITH_LEAKS, whole.graph, whole.weights)
    return whole, rounded, tuple(map(eight_bit, inputs))


def test_leaks_are_quarters_and_nothing_in_a_neuron_is_rounded():
    whole, rounded, _ = with_leaks()
    certificate = certify(rounded.graph, rounded.weights, whole.weights, for_others=True)
    assert certificate.holds
    assert certificate.steps == rounded.graph.steps
    leaks = {}
    for before, after in zip(whole.graph.neurons, rounded.graph.neurons, strict=True):
        leaks[before.leak] = after.leak
        assert after.grid is None
        assert abs(before.v_threshold - after.v_threshold) < 1e-3
        assert float(np.float32(after.v_threshold)) == after.v_threshold
    assert leaks == {0.2: 0.25, 0.6: 0.5, 0.0: 0.0}


def test_no_membrane_comes_nearer_to_its_threshold_than_half_a_step():
    """Measured in float64, in every neuron: what makes spikes equal wherever they are computed.
    The bound is tight: some membrane is at exactly that distance on a coarse enough grid."""
    _, rounded, inputs = with_leaks()
    graph = rounded.graph
    bounds = bound_graph(graph, rounded.weights)
    module = SpikingModule(graph, as_float64(rounded.weights)).double().eval()
    seen = {}
    with torch.no_grad():
        module.run(
            *(torch.from_numpy(x).double() for x in inputs),
            observe=lambda node, y: seen.setdefault(node.path, y),
        )
    for neuron in graph.neurons:
        source = graph.inputs(neuron.path)[0]
        grid = bound_membrane(neuron, bounds[source].value, graph.steps).finest
        v, spikes = 0.0, 0
        for current in seen[source].unfolded(graph.steps):
            u = neuron.leak * v + current
            distance = (u - neuron.v_threshold).abs()
            assert float(distance.min()) >= 2.0 ** (grid - 1), neuron.path
            fired = u > neuron.v_threshold
            v, spikes = u * ~fired, spikes + int(fired.sum())
        assert spikes > 0


@pytest.mark.parametrize("where", ["a leak", "a threshold"])
def test_what_other_programs_may_decide_otherwise_has_no_certificate(where):
    _, rounded, _ = with_leaks()
    graph = rounded.graph.copy()
    neuron = graph.neurons[2]
    change = {"a leak": {"tau": 0.2}, "a threshold": {"v_threshold": 0.5}}[where]
    graph.replace(neuron.model_copy(update=change))
    certificate = certify(graph, rounded.weights, for_others=True)
    assert certificate.ties == (neuron.path,)
    assert not certificate.holds


# --- the passes -------------------------------------------------------------------------------


def test_rounding_changes_little():
    graph, weights, _ = calibrated("menu")
    whole = run_passes((*FOLDING, *WHOLE_NUMBERS), graph, weights)
    rounded = run_passes(ROUNDING, whole.graph, whole.weights)
    certificate = certify(rounded.graph, rounded.weights, whole.weights)
    shares = [layer.weight_rounding for layer in certificate.layers if layer.op == "conv"]
    assert 0 < max(shares) < 1e-3
    for before, after in zip(whole.graph.neurons, rounded.graph.neurons, strict=True):
        assert 0 <= before.v_threshold - after.v_threshold < 1e-4
        assert after.leak == before.leak
        assert (after.grid is not None) == (bool(after.states) and after.leak < 1)


def test_one_sum_has_one_grid():
    """Layers that feed one neuron, and a layer applied twice, are rounded alike."""
    result, _ = exact("small_stereo")
    left, right = (result.graph[f"feature({view}).stem.0.neuron"] for view in ("left", "right"))
    assert left.grid == right.grid


def test_the_estimator_on_a_grid_is_the_estimator():
    """Disparities of random costs, exact against float64 without a grid: the table's steps of 1/64
    and the costs' of 2^-7 are all that differs; the chosen index is the same."""
    cost = torch.from_numpy(np.random.default_rng(0).normal(0, 4, (3, 1, 8, 6, 9)))
    assert float((cost.max() - cost.min()) / 2**13) < 2**-7
    plain = ir.Resize(path="r", size=(12, 18, 27), mode="linear")
    gridded = plain.model_copy(update={"grid": -7})
    found, expected = (_apply(node, None, cost) for node in (gridded, plain))
    assert 0 < float((found - expected).abs().max()) < 0.03
    assert bool((np.ldexp(found.numpy(), 7) % 1 == 0).all())
    disparities = [sub_pixel(x.squeeze(1), 2, exact=x is found) for x in (found, expected)]
    differences = (disparities[0] - disparities[1]).abs()
    assert float(differences.quantile(0.99)) < 0.05
    assert float(disparities[1].std()) > 1


def test_of_equal_costs_the_first_is_the_least():
    cost = torch.tensor([3.0, 1.0, 9.0, 9.0, 1.0, 3.0]).view(1, 6, 1, 1)
    assert float(sub_pixel(cost, 0)) == float(sub_pixel(cost, 0, exact=True)) == 2


def test_exponentials_are_far_from_halves():
    """So that every machine rounds them alike."""
    x = np.arange(len(exponentials())) / STEPS_PER_UNIT
    away = np.abs(np.exp(-x) * UNIT % 1 - 0.5)
    assert away.min() > 1e-6
    assert exponentials()[0] == UNIT
    assert exponentials()[-1] == 0
    assert (np.diff(exponentials()) <= 0).all()


def test_an_8_bit_image_is_seen_as_its_pixels():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    images = pixels.astype(np.float32) / 255
    node = ir.Quantise(path="q", scale=255, low=0, high=255)
    np.testing.assert_array_equal(eight_bit(images), images)
    graph = build(genotype("hybrid"))
    quantised = run_passes((*FOLDING, *WHOLE_NUMBERS), graph).graph
    assert quantised["image.quantise"] == node.model_copy(
        update={"path": "image.quantise", "span": quantised["image.quantise"].span}
    )
    from snnir.export.interpreter import _value

    np.testing.assert_array_equal(_value(node, [images], None), pixels)
    np.testing.assert_array_equal(_value(node, [images * 3 - 1], None).max(), 255)
    np.testing.assert_array_equal(_value(node, [images * 3 - 1], None).min(), 0)


def test_whole_numbers_and_pools_keep_the_function():
    """Before rounding: the same logits of 8-bit images, up to fp32's own rounding."""
    graph, weights, inputs = calibrated("menu")
    images = [eight_bit(x) for x in inputs]
    folded = run_passes(FOLDING, graph, weights)
    whole = run_passes(WHOLE_NUMBERS, folded.graph, folded.weights)
    assert not whole.graph.of_type(ir.AdaptiveAveragePool)
    outputs = [
        SpikingModule(r.graph, {k: v.astype(np.float64) for k, v in r.weights.items()})
        .double()
        .eval()(*(torch.from_numpy(x).double() for x in images))
        for r in (folded, whole)
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)


def test_an_exact_graph_is_read_back():
    result, _ = exact("hybrid")
    assert graph_from_json(graph_to_json(result.graph)) == result.graph


RELU = """
input event: events[2, 8, 8]
steps 2
neuron relu
cell one(prev_prev, prev) { n0 = conv3x3(prev) + conv3x3(prev_prev) }
backbone trunk(event) { stem conv3x3(32), conv3x3(32)  layers channels=512 { one@0 one@0 } }
head classify(trunk, classes=2)
"""

TWO_KINDS = """
input image: frame[2, 8, 8]
input event: events[2, 8, 8]
neuron lif
cell one(prev_prev, prev) { n0 = conv3x3(prev) }
cell deep(prev_prev, prev) { n0 = conv3x3x3(prev) }
backbone feature(view) { stem conv3x3(8)  layers channels=8 { one@0 } }
backbone matching(volume) {
  stem conv1x1x1(4, bn=false)
  layers channels=4 { deep@0 }
  out conv1x1x1(1, bn=false, bias=false, spike=false)
}
steps 2
volume = cost_volume(feature(image), feature(event), max_disparity=7)
head disparity(matching(volume), max_disparity=7)
"""


def test_a_layer_too_wide_for_the_range_is_named():
    """A relu's 10 bits and the 9,216 products of a sum leave none for its weights."""
    network = build(small(RELU))
    with pytest.raises(SnnirError) as caught:
        run_passes(EXACT, network, initial_weights(network, 0))
    message = str(caught.value)
    assert "trunk.layers.1.n0.sum (add): found a sum of up to" in message
    assert f"expected at most {MOST_ROUNDING:.0%}" in message
    assert "fewer channels" in message
    assert "trunk.stem.0" not in message  # what fits is not named


def test_weights_too_small_beside_a_skip_are_refused():
    """They would all be rounded to 0, which no sum that leaves the range tells."""
    text = LAYER.replace("n0 = conv1x1(prev)", "n0 = conv1x1(prev) + skip(prev_prev)")
    network = build(small(text.format(channels=2, neuron="lif(v_threshold=1e-11)", steps=3)))
    weights = initial_weights(network, 0)
    conv = "trunk.layers.0.n0.prev.conv.weight"
    weights[conv] = weights[conv] * np.float32(1e-12)
    with pytest.raises(SnnirError, match=r"n0\..*changes its weights by 100%"):
        run_passes(EXACT, network, weights)


def test_small_weights_alone_have_a_grid_of_their_own():
    network = stem_only(2, "lif(v_threshold=1e-13)")
    weights = initial_weights(network, 0)
    for leaf in ("weight", "bias"):
        weights[f"trunk.stem.0.conv.{leaf}"] = weights[f"trunk.stem.0.conv.{leaf}"] * np.float32(
            1e-13
        )
    whole = run_passes((*FOLDING, *WHOLE_NUMBERS), network, weights)
    rounded = run_passes(ROUNDING, whole.graph, whole.weights)
    stem = "trunk.stem.0.conv"
    (layer,) = (
        x for x in certify(rounded.graph, rounded.weights, whole.weights).layers if x.path == stem
    )
    assert layer.holds
    assert 0 < layer.weight_rounding < 1e-3


def test_channels_without_terms_lie_on_every_grid():
    network = stem_only(1)
    weights = initial_weights(network, 0)
    taps = np.zeros((2, 1, 3, 3), np.float32)
    weights["trunk.stem.0.conv.bias"][:] = 0
    for value, finest in ((24.0, 3), (0.0, 0)):
        taps[1] = value
        weights["trunk.stem.0.conv.weight"] = taps
        folded = run_passes(FOLDING, network, weights)
        found = bound_graph(folded.graph, folded.weights)["trunk.stem.0.conv"].value
        assert found.finest == finest
        assert found.grid_steps == value * 9 / 2**finest


def test_a_threshold_out_of_reach_stays_and_is_no_tie():
    graph, weights, _ = calibrated("layered")
    whole = run_passes((*FOLDING, *WHOLE_NUMBERS), graph, weights)
    head = whole.graph["head.neuron"].model_copy(update={"v_threshold": 5e5})
    whole.graph.replace(head)
    rounded = run_passes(ROUNDING_WITH_LEAKS, whole.graph, whole.weights)
    assert rounded.graph["head.neuron"].v_threshold == 5e5
    certificate = certify(rounded.graph, rounded.weights, for_others=True)
    assert certificate.holds
    assert certificate.ties == ()


@pytest.mark.parametrize(("support", "fits"), [(2, True), (11, True), (1000, False)])
def test_the_estimators_sum_is_of_distinct_disparities(support, fits):
    """At most 4096 times the sum of the largest 2·support + 1 of 96 disparities."""
    node = ir.SoftArgmin(path="s", support=support, exact=True)
    graph = Graph("one", 1)
    graph.add(ir.Input(path="x", kind="events", shape=(1, 1, 1)))
    graph.add(node, ["x"])
    graph.set_type("x", replace(graph.type("x"), shape=(1, 96, 1, 1)))
    one = Interval(np.zeros(1, int), np.zeros(1), np.ones(1))
    bounds = bound_node(node, graph, {}, {"x": Bounds(one)})
    worst = 4096 * sum(2 * d for d in range(max(0, 96 - 2 * support - 1), 96))
    assert bounds.sums[1].magnitude == worst
    assert (bounds.bits <= 24) == fits


def test_a_support_too_wide_is_named():
    text = (GENOTYPES / "small_stereo.snn").read_text()
    wide = text.replace("18, 24]", "18, 288]").replace("max_disparity=15", "max_disparity=255")
    network = build(parse(wide.replace("support=2", "support=1000")))
    weights = initial_weights(network, 0)
    with pytest.raises(SnnirError, match=r"soft_argmin\): found .* a smaller support"):
        run_passes(EXACT, network, weights)


def test_other_events_than_signs_are_refused():
    network = genotype("small_stereo")
    left, right = seeded_inputs(build(network), 1, 2)
    with pytest.raises(SnnirError, match="input 'left': found other values than -1, 0 and 1"):
        snnir.compile(network, precision="exact", inputs=[left * 2, right])


def test_weights_for_images_and_events_alike_are_refused():
    with pytest.raises(SnnirError, match=r"feature\(event\)\.stem\.0\.conv .*images and for other"):
        run_passes((*FOLDING, *WHOLE_NUMBERS), build(small(TWO_KINDS)))


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_compile_in_exact_mode(run, form):
    code, out, err = run(
        "compile", "fashion_small", "--precision", "exact", "--form", form, "-o", "out", "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["precision"] == "exact"
    assert report["certificate"]["holds"]
    assert report["certificate"]["steps"] is None
    layers = {layer["path"]: layer for layer in report["certificate"]["layers"]}
    assert layers["trunk.stem.0.conv"]["headroom_bits"] >= 0
    assert layers["trunk.stem.0.conv"]["weight_rounding"] < 1e-3
    assert layers["head.neuron"]["neuron"] == "lif, leak 0.2, v_threshold 0.5"
    end_to_end = report["parity"]["end_to_end"]
    assert end_to_end["passed"]
    assert end_to_end["mismatches"] == end_to_end["output"]["onnxruntime_mismatches"] == 0
    assert end_to_end["spikes_compared"] > 100_000
    assert all(0.005 < layer["firing_rate"] < 0.995 for layer in end_to_end["layers"])
    assert report["parity"]["max_abs_diff"] == 0
    assert report["macs"] == 18_685_248  # the pool is counted as it was written
    with open("out/report.html", encoding="utf-8") as page:
        assert "<h2>Certificate</h2>" in page.read()


def test_a_spike_that_differs_fails_the_command(run, monkeypatch):
    from snnir.export import exactness

    def wrong(graph, weights, inputs):
        outputs = run_numpy(graph, weights, inputs)
        outputs["head.neuron"] = 1 - outputs["head.neuron"]
        return outputs

    monkeypatch.setattr(exactness, "run_numpy", wrong)
    code, _, err = run("compile", "fashion_small", "--precision", "exact", "-o", "out")
    assert code == 1
    assert "the proof failed" in err
