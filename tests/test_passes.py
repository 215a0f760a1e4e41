"""Each pass: a text pair (before, expected), and the network executed before and after.

golden/passes/NAME.txt holds a genotype, the passes to run first, and the graph before and after.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import TESTS, as_float64, assert_all_fire, calibrated, genotype, run_recorded, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snnir import passes
from snnir.genotype import parse
from snnir.ir import VerifyError, build
from snnir.ir.text import graph_text
from snnir.lower import SpikingModule
from snnir.lower.initialise import seeded_inputs
from snnir.passes import (
    ANALYSIS,
    DEPLOYMENT,
    FOLDING,
    NIR_DEPLOYMENT,
    SIMPLIFICATION,
    TRAINING,
    WIDENING,
    Pass,
    run_passes,
)
from snnir.passes.naming import merged_path

PASSES = {
    step.name: step
    for step in (
        passes.INFER_SHAPES,
        passes.INFER_DOMAINS,
        passes.APPLY_ANNOTATIONS,
        passes.DROP_AUXILIARY_HEADS,
        passes.FOLD_BATCH_NORM,
        passes.DROP_IDENTITIES,
        passes.MERGE_DUPLICATES,
        passes.DROP_DEAD_NODES,
        passes.MERGE_SAME_SUM,
        passes.GATE_BATCH_NORM,
        passes.FLATTEN_SUMS,
        passes.MERGE_PARALLEL_NODES,
        passes.MERGE_SHARED_INPUT,
        passes.HOIST_STATIC,
        passes.EXPAND_GROUPS,
        passes.CONVOLVE_SKIPS,
        passes.SINK_CONCATS,
        passes.MERGE_RESIZES,
    )
}
FIRST = {
    "infer_shapes": (),
    "infer_domains": (passes.INFER_SHAPES,),
    "apply_annotations": (passes.INFER_SHAPES, passes.INFER_DOMAINS),
    "drop_auxiliary_heads": ANALYSIS,
    "fold_batch_norm": ANALYSIS,
    "drop_identities": ANALYSIS,
    "merge_duplicates": (*ANALYSIS, passes.DROP_IDENTITIES),
    "drop_dead_nodes": ANALYSIS,
    "merge_same_sum": (*ANALYSIS, passes.FOLD_BATCH_NORM, passes.DROP_IDENTITIES),
    "gate_batch_norm": (*ANALYSIS, *SIMPLIFICATION),
    "flatten_sums": (*ANALYSIS, *SIMPLIFICATION, passes.GATE_BATCH_NORM),
    "merge_parallel_nodes": (*ANALYSIS, *SIMPLIFICATION),
    "merge_shared_input": (*ANALYSIS, *SIMPLIFICATION),
    "hoist_static": ANALYSIS,
    "expand_groups": FOLDING,
    "convolve_skips": FOLDING,
    "sink_concats": (*FOLDING, passes.EXPAND_GROUPS, passes.CONVOLVE_SKIPS),
    "merge_resizes": NIR_DEPLOYMENT[:-1],
}
"""What runs before each pass in its tests."""


def test_every_pass_is_tested():
    used = {step.name for step in (*TRAINING, *DEPLOYMENT, *NIR_DEPLOYMENT)}
    assert used == set(PASSES) == set(FIRST)


@pytest.mark.parametrize("name", PASSES)
def test_the_text_pair(name, golden):
    path = TESTS / "golden" / "passes" / f"{name}.txt"
    text = path.read_text().split("--- before\n")[0]
    before = run_passes(FIRST[name], build(parse(text))).graph
    after = run_passes([PASSES[name]], before).graph
    golden(path, f"{text}--- before\n{graph_text(before)}--- after\n{graph_text(after)}")
    assert graph_text(before) != graph_text(after)


NETWORKS = ("hybrid", "menu", "spikes", "small_stereo")
SPACES = ("small_space", "small_spike_space", "small_trellis", "small_stereo_space")
CASES = [
    (name, network)
    for name in PASSES
    for network in (SPACES if name in ("gate_batch_norm", "flatten_sums") else NETWORKS)
    if name not in ("infer_shapes", "infer_domains", "drop_dead_nodes")
]


@pytest.mark.parametrize(("name", "network"), CASES)
def test_execution_before_and_after(name, network):
    """Every spike and the output, in float64, on a calibrated network whose layers fire."""
    graph, weights, inputs = calibrated(network)
    before = run_passes(FIRST[name], graph, as_float64(weights))
    after = run_passes([PASSES[name]], before.graph, before.weights)
    if name == "apply_annotations":
        expected_change = network == "hybrid"
        assert bool(after.modified) == expected_change
        return
    unchanged = {
        "drop_auxiliary_heads": ("hybrid", "spikes", "small_stereo"),
        "hoist_static": ("small_stereo",),
        "merge_duplicates": ("spikes",),
        "merge_parallel_nodes": ("hybrid", "menu", "small_stereo"),
        "merge_same_sum": ("spikes",),
        "gate_batch_norm": ("small_spike_space",),
        "flatten_sums": ("small_spike_space",),
        "expand_groups": ("hybrid", "spikes", "small_stereo"),
        "convolve_skips": ("hybrid", "menu"),
        "merge_resizes": ("small_stereo",),
    }
    assert bool(after.modified) == (network not in unchanged.get(name, ()))
    output, spikes = run_recorded(before.graph, before.weights, inputs)
    found, found_spikes = run_recorded(after.graph, after.weights, inputs)
    assert_all_fire(found_spikes)
    for path in spikes if name == "sink_concats" else found_spikes:
        assert torch.equal(whole(found_spikes, path), spikes[path]), path
    torch.testing.assert_close(found, output, rtol=0, atol=1e-10)


def test_annotations_change_the_neurons_they_name_and_the_spikes():
    graph, weights, inputs = calibrated("hybrid")
    plain = graph.copy()
    plain.annotations = ()
    _, without = run_recorded(run_passes(TRAINING, plain).graph, as_float64(weights), inputs)
    annotated = run_passes(TRAINING, graph).graph
    assert annotated["trunk.stem.0.neuron"].b == 2.4
    assert annotated["trunk.layers.0.n0.neuron"].tau == 0.35
    assert annotated["trunk.layers.1.n0.neuron"].surrogate == "triangle"
    assert annotated["trunk.layers.1.n1.neuron"].tau == 0.1
    assert annotated["trunk.layers.2.n1.neuron"].kind == "relu"
    assert annotated["trunk.layers.2.n0.neuron"] == plain["trunk.layers.2.n0.neuron"]
    _, spikes = run_recorded(annotated, as_float64(weights), inputs)
    assert "trunk.layers.2.n1.neuron" not in spikes
    assert torch.equal(spikes["trunk.stem.0.neuron"], without["trunk.stem.0.neuron"])
    assert not torch.equal(spikes["trunk.layers.0.n0.neuron"], without["trunk.layers.0.n0.neuron"])


@pytest.mark.parametrize("lines", ["trunk.stem[0] tau=0.7", "feature.stem[0] tau=0.7"])
def test_annotations_reach_every_application_of_a_backbone(lines):
    name = "small_stereo" if "feature" in lines else "menu"
    text = (TESTS / "genotypes" / f"{name}.snn").read_text() + f"annotate {{ {lines} }}\n"
    graph = run_passes(ANALYSIS, build(parse(text))).graph
    changed = [n.path for n in graph.neurons if n.tau == 0.7]
    expected = {
        "menu": ["trunk.stem.0.neuron"],
        "small_stereo": ["feature(left).stem.0.neuron", "feature(right).stem.0.neuron"],
    }
    assert changed == expected[name]


def test_later_annotations_win():
    text = (TESTS / "genotypes" / "menu.snn").read_text()
    text += (
        "annotate { trunk.layers[*].* tau=0.1\n trunk.layers[1].n1 tau=0.6, neuron=lif(tau=0.9) }"
    )
    graph = run_passes(ANALYSIS, build(parse(text))).graph
    assert graph["trunk.layers.0.n1.neuron"].tau == 0.1
    assert graph["trunk.layers.1.n1.neuron"].tau == 0.6


MERGES = [
    *((network, passes.MERGE_SHARED_INPUT) for network in NETWORKS),
    *((space, *WIDENING[len(SIMPLIFICATION) : -1]) for space in SPACES),
]


@pytest.mark.parametrize(("network", "merges"), [(n, m) for n, *m in MERGES])
def test_merging_is_exact_in_training(network, merges):
    """Outputs, gradients (a search's alpha and beta too) and running statistics in training mode,
    merged and not."""
    graph, weights, _ = calibrated(network)
    weights = as_float64(weights)
    rng = np.random.default_rng(0)
    for name in weights:
        if name.endswith(".logits"):
            weights[name] = rng.normal(size=weights[name].shape)
    inputs = seeded_inputs(graph, 7, 3)
    results = []
    for pipeline in ((*ANALYSIS, *SIMPLIFICATION), (*ANALYSIS, *SIMPLIFICATION, *merges)):
        result = run_passes(pipeline, graph, weights)
        module = SpikingModule(result.graph, result.weights)
        output = module(*(torch.from_numpy(x.astype(np.float64)) for x in inputs))
        parts = [output[0], *output[1]] if isinstance(output, tuple) else [output]
        torch.manual_seed(0)
        sum((part * torch.randn_like(part)).sum() for part in parts).backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        results.append((parts, gradients, dict(module.named_buffers())))
    (parts, gradients, buffers), (merged_parts, merged_gradients, merged_buffers) = results
    for a, b in zip(parts, merged_parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert sum(float(g.abs().sum()) for g in gradients.values()) > 1
    for name, gradient in gradients.items():
        torch.testing.assert_close(merged_gradients[name], gradient, rtol=1e-8, atol=1e-9)
    for name, value in buffers.items():
        torch.testing.assert_close(merged_buffers[name], value, rtol=0, atol=1e-12)
    moved = [not np.allclose(value, weights[name], atol=1e-6) for name, value in buffers.items()]
    assert sum(moved) > len(moved) / 2, "the statistics did not move"


@pytest.mark.parametrize("network", ["hybrid", "menu", "spikes", "small_stereo"])
@pytest.mark.parametrize(
    "pipeline", [FOLDING, DEPLOYMENT, TRAINING], ids=["folding", "deployment", "training"]
)
def test_whole_pipelines_keep_every_spike(network, pipeline):
    graph, weights, inputs = calibrated(network)
    reference = run_passes(ANALYSIS, graph, as_float64(weights))
    output, spikes = run_recorded(reference.graph, reference.weights, inputs)
    result = run_passes(pipeline, graph, as_float64(weights))
    found, found_spikes = run_recorded(result.graph, result.weights, inputs)
    assert_all_fire(found_spikes)
    assert all(torch.equal(found_spikes[path], spikes[path]) for path in found_spikes)
    torch.testing.assert_close(found, output, rtol=0, atol=1e-10)


def test_deployment_leaves_no_batch_norm_and_merges():
    graph = build(genotype("spikedhs_cla"))
    folded, deployed = run_passes(FOLDING, graph).graph, run_passes(DEPLOYMENT, graph).graph
    kinds = [node.op for node in deployed.nodes()]
    assert "batch_norm" not in kinds
    assert "repeat" not in kinds
    assert not any(node.path.startswith("auxiliary") for node in deployed.nodes())
    assert kinds.count("conv") < [node.op for node in folded.nodes()].count("conv") / 2


@st.composite
def random_cells(draw):
    """A genotype of one random cell in three places, over every 2-D operation."""
    operations = ["conv1x1", "conv3x3", "sepconv3x3", "avgpool3x3", "maxpool3x3", "skip"]
    lines, known = [], ["a", "b"]
    for index in range(draw(st.integers(1, 3))):
        read = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        terms = [f"{draw(st.sampled_from(operations))}({state})" for state in read]
        lines.append(f"  n{index} = {' + '.join(terms)}")
        known.append(f"n{index}")
    levels = draw(st.sampled_from(["c@0 c@0", "c@0 c@1 c@1", "c@1 c@0 c@1"]))
    return (
        "snn 1\nnetwork random\ninput image: frame[1, 7, 7]\nsteps 2\n"
        "cell c(a, b) {\n" + "\n".join(lines) + "\n}\n"
        f"backbone t(image) {{ stem conv3x3(4) layers channels=2 {{ {levels} }} }}\n"
        "head classify(t, classes=3)\n"
    )


@given(random_cells())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_networks_compute_the_same_before_and_after(text):
    graph = build(parse(text))
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in (graph.parameter_shapes() | graph.buffer_shapes()).items():
        positive = name.endswith(("running_var", "bn.weight"))
        value = rng.normal(0.3, 0.5, shape)
        weights[name] = np.abs(value) + 0.2 if positive else value
    inputs = (rng.random((2, 1, 7, 7)),)
    output, spikes = run_recorded(run_passes(ANALYSIS, graph).graph, weights, inputs)
    for pipeline in (TRAINING, DEPLOYMENT):
        result = run_passes(pipeline, graph, weights)
        found, found_spikes = run_recorded(result.graph, result.weights, inputs)
        for path, values in found_spikes.items():
            assert torch.equal(values, spikes[path]), path
        torch.testing.assert_close(found, output, rtol=0, atol=1e-9)
    assert sum(float(x.sum()) for x in spikes.values()) > 0


# --- running passes ---------------------------------------------------------------------------


def test_a_pass_that_breaks_the_graph_is_named():
    def break_it(graph, weights):
        graph.set_inputs("head.linear", ["head.pool"])
        return True

    with pytest.raises(VerifyError, match=r"head\.linear \(linear\): after vandalise: found shape"):
        run_passes([*ANALYSIS, Pass("vandalise", break_it)], build(genotype("hybrid")))


def test_a_pass_that_loses_weights_is_named():
    graph, weights, _ = calibrated("hybrid")

    def lose(graph, weights):
        del weights["head.linear.weight"]
        return True

    with pytest.raises(VerifyError, match=r"after lose: head\.linear\.weight: found None"):
        run_passes([Pass("lose", lose)], graph, weights)


def test_passes_leave_their_input_alone():
    graph, weights, _ = calibrated("hybrid")
    text, names = graph_text(graph), set(weights)
    before = weights["trunk.stem.0.conv.weight"].copy()
    run_passes(DEPLOYMENT, graph, weights)
    assert graph_text(graph) == text
    assert set(weights) == names
    assert np.array_equal(weights["trunk.stem.0.conv.weight"], before)


def test_unmodified_is_reported():
    result = run_passes(DEPLOYMENT, build(genotype("hybrid")))
    again = run_passes([passes.DROP_IDENTITIES, passes.FOLD_BATCH_NORM], result.graph)
    assert again.modified == ()
    assert graph_text(again.graph) == graph_text(result.graph)


def test_merged_names_show_where_the_parts_differ():
    assert merged_path(["t.3.n0.prev.conv", "t.3.n1.prev.conv"]) == "t.3.n0+n1.prev.conv"
    assert merged_path(["t.3.n0.a.conv", "t.4.n0.b.conv"]) == "t.3.n0.a+4.n0.b.conv"
    assert merged_path(["a.conv", "a.conv"]) == "a.conv+conv"
