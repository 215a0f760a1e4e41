"""`--set KEY=VALUE`: the genotype one would have written by hand, or an error that says why not."""

from __future__ import annotations

import pytest
from helpers import genotype, small

from snnir.analysis.counts import parameter_count
from snnir.errors import GenotypeError, SnnirError
from snnir.genotype import ast, parse, print_genotype, retarget
from snnir.ir import build
from snnir.passes import TRAINING, run_passes

SMALL = """
input image: frame[1, 8, 8]
neuron lif(tau=0.3)
cell c(a, b) { n0 = conv3x3(a) + skip(b) }
backbone trunk(image) {
  stem conv3x3(4)
  layers channels=4 { c@0 }
}
head classify(trunk, classes=2)
"""

HAND_WRITTEN = [
    ("spikedhs_cla", ["classes=100"], {"classes=10": "classes=100"}),
    ("spikedhs_cla", ["steps=2"], {"steps 6": "steps 2"}),
    ("spikedhs_cla", ["input=1x28x28"], {"frame[3, 32, 32]": "frame[1, 28, 28]"}),
    ("spikedhs_cla", ["input=events[2,34,34]"], {"frame[3, 32, 32]": "events[2, 34, 34]"}),
    ("spikedhs_cla", ["input=frame[1, 28, 28]"], {"frame[3, 32, 32]": "frame[1, 28, 28]"}),
    (
        "spikedhs_cla",
        ["neuron=lif(tau=0.25, surrogate=arctan(b=3))"],
        {
            "lif(tau=0.2, v_threshold=0.5, surrogate=dspike(b=3))": "lif(tau=0.25, "
            "surrogate=arctan(b=3))"
        },
    ),
    ("spikedhs_cla", ["neuron=if"], {"lif(tau=0.2, v_threshold=0.5, surrogate=dspike(b=3))": "if"}),
    ("spikedhs_cla", ["channels=32"], {"(144)": "(96)", "channels=48": "channels=32"}),
    ("spikedhs_cla", ["trunk.channels=96"], {"(144)": "(288)", "channels=48": "channels=96"}),
    ("cifar_space", ["channels=4"], {"(48)": "(12)", "channels=16": "channels=4"}),
    ("menu", ["channels=4"], {"(6": "(12", "channels=2": "channels=4", "x1(5)": "x1(10)"}),
    (
        "spikedhs_cla",
        ["steps=4", "channels=16", "classes=11", "input=events[2,64,64]"],
        {
            "steps 6": "steps 4",
            "(144)": "(48)",
            "channels=48": "channels=16",
            "classes=10": "classes=11",
            "frame[3, 32, 32]": "events[2, 64, 64]",
        },
    ),
    ("spikedhs_stereo", ["input=5x64x96"], {"[5, 260, 346]": "[5, 64, 96]"}),
    (
        "spikedhs_stereo",
        ["matching.channels=16"],
        {
            "conv3x3x3(24)": "conv3x3x3(48)",
            "channels=8 { match": "channels=16 { match",
            "conv1x1x1(24)": "conv1x1x1(48)",
        },
    ),
    (
        "spikedhs_stereo",
        ["feature.channels=4", "steps=3"],
        {
            "conv3x3(24": "conv3x3(12",
            "channels=8 { extract": "channels=4 { extract",
            "conv1x1(24": "conv1x1(12",
            "steps 1": "steps 3",
        },
    ),
]


@pytest.mark.parametrize(
    ("name", "settings", "edits"), HAND_WRITTEN, ids=[" ".join(row[1]) for row in HAND_WRITTEN]
)
def test_settings_make_what_one_would_write_by_hand(name, settings, edits):
    original = genotype(name)
    text = original.source.text
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    made = retarget(original, settings)
    assert made == parse(text)
    assert parse(print_genotype(made)) == made
    assert print_genotype(made) == made.source.text
    run_passes(TRAINING, build(made))


def test_no_settings_give_the_genotype_itself():
    original = genotype("hybrid")
    assert retarget(original, []) is original


def test_settings_that_change_nothing_keep_the_network():
    made = retarget(genotype("spikedhs_cla"), ["channels=48", "classes=10", "steps=6"])
    assert made == genotype("spikedhs_cla")
    assert parameter_count(build(made)) == 14_293_758


def test_classes_change_the_sizes_of_the_heads_alone():
    before = _shapes(build(genotype("spikedhs_cla")))
    after = _shapes(build(retarget(genotype("spikedhs_cla"), ["classes=100"])))
    changed = {name for name, shape in after.items() if before[name] != shape}
    assert before.keys() == after.keys()
    assert {name.split(".")[0] for name in changed} == {"head", "auxiliary"}
    for name in changed:
        assert (before[name][0], after[name][0]) == (10, 100)
        assert before[name][1:] == after[name][1:]


def _shapes(graph):
    return {n: shape for node in graph.nodes() for n, shape in node.parameter_shapes().items()}


def test_steps_are_added_after_the_inputs():
    made = retarget(small(SMALL), ["steps=5"])
    assert made.steps == 5
    assert [type(s) for s in made.statements[:3]] == [ast.Input, ast.Steps, ast.DefaultNeuron]
    assert "frame[1, 8, 8]\nsteps 5\n" in made.source.text


def test_annotations_and_neurons_survive():
    made = retarget(genotype("hybrid"), ["channels=2", "classes=3", "input=3x32x32"])
    assert made.annotations == genotype("hybrid").annotations
    assert made.cells == genotype("hybrid").cells
    run_passes(TRAINING, build(made))


def test_later_errors_point_into_the_new_text():
    made = retarget(genotype("small_stereo"), ["steps=2", "feature.channels=6"])
    name = made.source.name
    assert name.endswith("small_stereo.snn with --set steps=2 --set feature.channels=6")
    backbone = made.backbones["feature"]
    assert made.source.line(backbone.layers.span.line).strip().startswith("layers channels=6")
    with pytest.raises(GenotypeError, match=r"with --set channels=60000:\d+:\d+: found 180000"):
        retarget(genotype("spikedhs_cla"), ["channels=60000"])


def test_a_genotype_without_a_source_goes_by_its_name():
    bare = genotype("hybrid").model_copy(update={"source": None})
    assert retarget(bare, ["steps=2"]).source.name == "hybrid with --set steps=2"


REFUSED = [
    ("hybrid", "classes", "found 'classes', expected KEY=VALUE"),
    ("hybrid", "", "found '', expected KEY=VALUE"),
    ("hybrid", "classes=", "found '', expected a whole number of at least 1"),
    ("hybrid", "classes=ten", "found 'ten', expected a whole number of at least 1"),
    ("hybrid", "classes=-3", "found '-3', expected a whole number of at least 1"),
    ("hybrid", "classes=0", "found '0', expected a whole number of at least 1"),
    ("hybrid", "classes=2.5", "found '2.5', expected a whole number of at least 1"),
    ("hybrid", "steps=5000", "found '5000', expected a whole number of at most 4096"),
    ("hybrid", f"steps={'9' * 5000}", "expected a whole number of at most 4096"),
    ("hybrid", "channels=65537", "found '65537', expected a whole number of at most 65536"),
    ("hybrid", "clases=3", "did you mean 'classes'?"),
    ("hybrid", "tau=3", "expected one of channels, classes, input, neuron, steps, trunk"),
    ("hybrid", "neuron=lfi", "found unknown neuron 'lfi', expected one of"),
    ("hybrid", "neuron=lif(tau=2)", "found 2, expected a leak factor in [0, 1)"),
    ("hybrid", "neuron=lif(tau=0.1", "a neuron is written lif(tau=0.25)"),
    ("hybrid", "neuron=", "found end of file, expected a name"),
    ("hybrid", "neuron=if steps 3", "found more than one statement"),
    ("hybrid", "trnk.channels=3", "did you mean 'trunk.channels'?"),
    ("spikedhs_stereo", "classes=3", "found a disparity head, which has no classes"),
    (
        "spikedhs_stereo",
        "channels=4",
        "found 2 backbones with layers, expected feature.channels= or matching.channels=",
    ),
    ("spikedhs_stereo", "input=2x8", "found '2x8', expected CxHxW"),
    ("small_stereo", "feature.channels=4", "found conv1x1(4), which would have 5.33333 channels"),
    ("hybrid", "input=28x28", "found '28x28', expected CxHxW, frame[C, H, W] or events[C, H, W]"),
    ("hybrid", "input=1x2x3x4", "found '1x2x3x4', expected CxHxW"),
    ("hybrid", "input=image[1,2,3]", "found 'image[1,2,3]', expected CxHxW"),
    ("hybrid", "input=frame[1,2]", "found 'frame[1,2]', expected CxHxW"),
    ("hybrid", "input=1x0x28", "found '0', expected a whole number of at least 1"),
    ("hybrid", "input=frame[1,-2,28]", "found '-2', expected a whole number of at least 1"),
    ("hybrid", "input=1x28x65537", "found '65537', expected a whole number of at most 65536"),
]


@pytest.mark.parametrize(
    ("name", "setting", "message"), REFUSED, ids=[row[1][:24] for row in REFUSED]
)
def test_what_cannot_be_set_is_an_error_that_says_why(name, setting, message):
    with pytest.raises(SnnirError) as caught:
        retarget(genotype(name), [setting])
    assert str(caught.value).startswith(f"--set {setting}: ")
    assert message in str(caught.value)


def test_inputs_that_differ_are_not_set_together():
    text = "input a: frame[1, 4, 4]\ninput b: frame[1, 8, 8]\n"
    backbones = "backbone f(a) { stem conv3x3(2) }\nbackbone g(b) { stem conv3x3(2) }\n"
    with pytest.raises(SnnirError, match="found inputs a, b that differ"):
        retarget(small(text + backbones + "head classify(f, classes=2)"), ["input=1x4x4"])


def test_channels_must_stay_whole():
    with pytest.raises(SnnirError, match=r"conv3x3\(4\), which would have 2\.5 channels"):
        retarget(small(SMALL.replace("channels=4", "channels=8")), ["channels=5"])
    without = small("input x: frame[1, 4, 4]\nbackbone f(x) { stem conv3x3(2) }\n" + HEAD)
    with pytest.raises(SnnirError, match="found no backbone with layers"):
        retarget(without, ["channels=5"])


HEAD = "head classify(f, classes=2)"


@pytest.mark.parametrize("again", ["channels=4", "trunk.channels=4"])
def test_a_key_is_set_once(again):
    with pytest.raises(SnnirError, match=r"found 'trunk\.channels' twice, expected it once"):
        retarget(genotype("hybrid"), ["channels=2", again])


def test_all_errors_come_together():
    with pytest.raises(SnnirError) as caught:
        retarget(genotype("hybrid"), ["classes=ten", "steps=4", "steps=5", "chanels=3"])
    lines = str(caught.value).split("\n")
    assert [line.split(":")[0] for line in lines] == [
        "--set classes=ten",
        "--set steps=5",
        "--set chanels=3",
    ]
