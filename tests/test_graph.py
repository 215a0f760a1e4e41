"""The graph: golden numbers, shapes by hand, verification, serialisation."""

from __future__ import annotations

import json

import pytest
from helpers import GENOTYPES, genotype, small

from snnir.analysis.counts import layers, parameter_count
from snnir.analysis.purity import violations
from snnir.errors import SnnirError
from snnir.ir import Domain, Graph, Time, VerifyError, build, verify
from snnir.ir.infer import infer_types
from snnir.ir.nodes import Add, Conv, Gate, Identity, Input, Mixed, Neuron, Output
from snnir.ir.serialize import graph_from_json, graph_to_json
from snnir.ir.types import join_domains
from snnir.passes import ANALYSIS, DEPLOYMENT, FOLDING, TRAINING, run_passes

ALL = sorted(path.stem for path in GENOTYPES.glob("*.snn"))


def folded(name: str) -> Graph:
    return run_passes(FOLDING, build(genotype(name))).graph


@pytest.mark.parametrize("name", ALL)
def test_every_genotype_builds_a_verified_graph(name):
    graph = build(genotype(name))
    types = verify(graph, when="after build")
    assert set(types) == {node.path for node in graph.nodes()}
    analysed = run_passes(ANALYSIS, graph).graph
    for edge in analysed.edges():
        assert edge.type.shape is not None
        assert edge.type.domain is not None
        assert edge.type.time is not None


@pytest.mark.parametrize(
    ("name", "parameters"), [("spikedhs_cla", 14_293_758), ("spikedhs_stereo", 868_824)]
)
def test_golden_parameters(name, parameters):
    """method §3 and §8: the paper's 14M and 0.87M, auxiliary head excluded."""
    assert parameter_count(build(genotype(name))) == parameters


def test_golden_macs():
    """One step of SpikeDHS-CLA at 32x32, padding taps included."""
    assert sum(layer.macs for layer in layers(folded("spikedhs_cla"))) == 1_999_951_488


def test_counts_by_hand():
    graph = build(
        small(
            """input image: frame[2, 5, 7]
            cell c(a, b) { n0 = conv3x3(a) + conv1x1(b) }
            backbone trunk(image) { stem conv3x3(4, stride=2) layers channels=3 { c@0 } }
            head classify(trunk, classes=6)"""
        )
    )
    stem = 4 * 2 * 9 + 4 + 8  # weights, bias, batch norm; output 4 x 3 x 4
    cell = (3 * 4 * 9 + 3 + 6) + (3 * 4 + 3 + 6)
    head = 3 * 6 + 6 + 12
    assert parameter_count(graph) == stem + cell + head
    macs = {layer.path: layer.macs for layer in layers(run_passes(FOLDING, graph).graph)}
    assert macs["trunk.stem.0.conv"] == 4 * 3 * 4 * (2 * 9)
    assert macs["trunk.layers.0.n0.a.conv"] == 3 * 3 * 4 * (4 * 9)
    assert macs["trunk.layers.0.n0.b.conv"] == 3 * 3 * 4 * 4
    assert macs["head.linear"] == 18
    assert sum(macs.values()) == 864 + 1296 + 144 + 18


def test_macs_in_three_dimensions_by_hand():
    macs = {layer.path: layer.macs for layer in layers(folded("small_stereo"))}
    # volume: 8 channels, 15 // round(24 / 12) = 7 slices of 9 x 12; stem 8 -> 4, kernel 27
    assert macs["matching.stem.0.conv"] == 4 * 7 * 9 * 12 * (8 * 27)


def test_shapes_levels_and_resizing():
    graph = run_passes(ANALYSIS, build(genotype("hybrid"))).graph
    assert graph.shape("trunk.stem.0.neuron") == (16, 28, 28)
    assert graph.shape("trunk.layers.1.prev.resize") == (16, 14, 14)
    assert graph.shape("trunk.layers.2.concat") == (32, 14, 14)
    assert graph.shape("logits") == (10,)
    odd = build(
        small(
            """input image: frame[1, 7, 10]
            cell c(a, b) { n0 = conv3x3(a) + conv3x3(b) }
            backbone t(image) { stem conv3x3(4) layers channels=2 { c@1 c@2 c@1 c@0 } }
            head classify(t, classes=2)"""
        )
    )
    sizes = [run_passes(ANALYSIS, odd).graph.shape(f"t.layers.{i}.concat")[1:] for i in range(4)]
    assert sizes == [(4, 5), (2, 3), (4, 5), (7, 10)]


def test_domains_and_times_are_inferred():
    graph = run_passes(ANALYSIS, build(genotype("hybrid"))).graph
    assert graph.type("image").domain == Domain.REAL
    assert graph.type("image").time == Time.STATIC
    assert graph.type("trunk.stem.0.neuron").domain == Domain.SPIKE
    assert graph.type("trunk.layers.0.n0.sum").domain == Domain.REAL
    assert graph.type("trunk.layers.2.n1.neuron").domain == Domain.REAL
    assert graph.type("trunk.layers.2.concat").domain == Domain.REAL
    assert graph.type("trunk.layers.1.concat").domain == Domain.SPIKE
    stereo = run_passes(ANALYSIS, build(genotype("small_stereo"))).graph
    assert stereo.type("left").domain == Domain.SIGNED
    assert stereo.type("volume").domain == Domain.SPIKE
    assert stereo.type("disparity").time == Time.STEPPED


def test_joined_domains():
    assert join_domains([Domain.SPIKE, Domain.SPIKE]) == Domain.SPIKE
    assert join_domains([Domain.SPIKE, Domain.SIGNED]) == Domain.SIGNED
    assert join_domains([Domain.SPIKE, Domain.COUNT]) == Domain.COUNT
    assert join_domains([Domain.SIGNED, Domain.COUNT]) == Domain.REAL


def test_one_backbone_applied_twice_shares_its_parameters():
    graph = build(genotype("small_stereo"))
    left, right = graph["feature(left).stem.0.conv"], graph["feature(right).stem.0.conv"]
    assert isinstance(left, Conv)
    assert left.owners == right.owners
    assert left.owners[0].path == "feature.stem.0.conv"
    assert not any("(" in name for name in graph.parameter_shapes())


def test_a_space_has_mixed_edges_and_transitions():
    graph = build(genotype("stereo_space"))
    mixed = graph.of_type(Mixed)
    edges = [m for m in mixed if m.gates[0].owner.startswith("cells.")]
    states = [m for m in mixed if ".transitions." in m.gates[0].owner]
    assert {len(m.gates) for m in edges} == {3}
    # the matching trellis, 4 layers over 4 levels: 2 + 3 + 4 + 4 states
    assert len([m for m in states if m.path.startswith("matching.")]) == 13
    assert graph.parameter_shapes()["cells.match.n2.n1.logits"] == (3,)
    # level 0 is left for levels 0 and 1 alone
    assert graph.parameter_shapes()["matching.transitions.3.level0.logits"] == (2,)
    assert graph.parameter_shapes()["matching.transitions.3.level1.logits"] == (3,)
    final = [n.path for n in graph.of_type(Conv) if n.path.startswith("matching.out.0.level")]
    assert len(final) == 4


def test_default_neurons_are_inherited():
    graph = build(genotype("menu"))
    n2 = graph["trunk.layers.0.n2.neuron"]
    assert isinstance(n2, Neuron)
    assert (n2.kind, n2.tau, n2.tau_a, n2.surrogate, n2.b) == ("alif", 0.3, 0.4, "arctan", 2)
    assert graph["trunk.layers.2.n1.neuron"].v_threshold == 0.6
    spikes = build(genotype("spikes"))
    assert spikes["trunk.layers.0.n0.prev_prev.neuron"].b == 5
    assert isinstance(spikes["trunk.layers.0.n0.prev.neuron"], Neuron)


def test_purity_names_each_violation():
    assert violations(folded("spikedhs_cla")) == []
    assert violations(folded("spikedhs_stereo")) == []
    assert violations(folded("menu")) == []
    graph = build(
        small(
            """input image: frame[1, 8, 8]
            cell c(a, b) { n0 = conv3x3(b) : relu n1 = conv3x3(n0) + conv3x3(a) }
            backbone t(image) { stem conv3x3(4) layers channels=2 { c@0 c@0 } }
            head classify(t, classes=2)"""
        )
    )
    found = {v.path: v.reason for v in violations(run_passes(FOLDING, graph).graph)}
    assert found["t.layers.0.n1.n0.conv"] == "reads real values from t.layers.0.n0.neuron"
    assert found["t.layers.1.n0.b.conv"] == "reads real values from t.layers.0.n0.neuron"
    assert "t.stem.0.conv" not in found
    assert "t.layers.0.n1.a.conv" not in found


# --- verification -----------------------------------------------------------------------------


def broken(edit) -> str:
    graph = run_passes(ANALYSIS, build(genotype("hybrid"))).graph
    edit(graph)
    with pytest.raises(VerifyError) as caught:
        verify(graph, when="after a_pass")
    return str(caught.value)


def test_errors_name_pass_path_and_source_line():
    def wrong_channels(graph):
        conv = graph["trunk.layers.1.n0.prev.conv"]
        graph.replace(conv.model_copy(update={"in_channels": 5}))

    message = broken(wrong_channels)
    assert "hybrid.snn:16:29: trunk.layers.1.n0.prev.conv (conv): after a_pass" in message
    assert "found 16 channels, expected 5" in message


def test_cycles_arity_owners_and_stale_types_are_found():
    assert "found a cycle" in broken(
        lambda g: g.set_inputs("trunk.stem.0.conv", ["trunk.layers.2.concat"])
    )
    assert "found 2 inputs, expected 1" in broken(
        lambda g: g.set_inputs("head.pool", ["trunk.layers.2.concat", "trunk.layers.2.concat"])
    )
    assert "found 0 outputs of the head" in broken(lambda g: g.remove("logits"))
    assert "expected 8 channels in all" in broken(
        lambda g: g.replace(g["trunk.layers.0.n0.prev_prev.conv"].model_copy(update={"owners": ()}))
    )

    def other_kind(graph):
        graph.replace(graph["trunk.layers.0.n0.neuron"].model_copy(update={"kind": "relu"}))

    assert "found domain spike, expected real" in broken(other_kind)

    def removed(graph):
        graph.remove("trunk.layers.0.n0.neuron")

    assert "which is not in the graph" in broken(removed)


def test_static_and_stepped_do_not_mix():
    graph = Graph("mixed", 2)
    graph.add(Input(path="a", kind="frame", shape=(1, 4, 4)))
    graph.add(Input(path="b", kind="events", shape=(1, 4, 4)))
    graph.add(Add(path="sum"), ["a", "b"])
    graph.add(Output(path="logits"), ["sum"])
    with pytest.raises(VerifyError, match="found static and stepped inputs"):
        verify(graph, when="now")


def test_paths_are_unique():
    graph = Graph("twice", 1)
    graph.add(Input(path="a", kind="frame", shape=(1, 4, 4)))
    with pytest.raises(ValueError, match="taken"):
        graph.add(Identity(path="a"), ["a"])
    with pytest.raises(ValueError, match="not in the graph"):
        graph.add(Identity(path="b"), ["c"])


# --- serialisation ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "passes", [(), TRAINING, DEPLOYMENT], ids=["built", "training", "deployed"]
)
def test_json_reads_back_equal(name, passes):
    graph = run_passes(passes, build(genotype(name))).graph
    text = graph_to_json(graph)
    again = graph_from_json(text)
    assert again == graph
    assert graph_to_json(again) == text


def test_json_differs_by_one_line_for_one_change():
    graph = run_passes(ANALYSIS, build(genotype("hybrid"))).graph
    changed = graph.copy()
    neuron = changed["trunk.layers.0.n0.neuron"]
    changed.replace(neuron.model_copy(update={"tau": 0.9}))
    assert changed != graph
    before, after = graph_to_json(graph).splitlines(), graph_to_json(changed).splitlines()
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def edited(change) -> str:
    data = json.loads(graph_to_json(build(genotype("hybrid"))))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "other"}',
        edited(lambda d: d["nodes"][1].update(op="exec")),
        edited(lambda d: d["nodes"][2].update(surprise=1)),
        edited(lambda d: d["nodes"][2].update(kernel=[-1, "x"])),
        edited(lambda d: d["nodes"][2].update(inputs=["nowhere"])),
        edited(lambda d: d["nodes"].pop()),
        edited(lambda d: d.pop("steps")),
        edited(lambda d: d["nodes"][2].update(in_channels=7)),
    ],
)
def test_json_from_outside_is_not_trusted(text):
    with pytest.raises(SnnirError):
        graph_from_json(text, name="graph.json")


def test_inference_agrees_with_the_builder():
    graph = build(genotype("menu"))
    types = infer_types(graph)
    assert types["trunk.layers.1.concat"].shape == (12, 3, 3)
    assert types["auxiliary.0.logits"].shape == (4,)


def test_gates_say_what_they_weigh():
    node = Mixed(path="m", gates=(Gate("cells.c.n0.a", 0, 2), Gate("cells.c.n0.a", 1, 2)))
    assert node.parameter_shapes() == {"cells.c.n0.a.logits": (2,)}
