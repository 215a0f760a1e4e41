"""The language: examples, round trips, formatting, and errors with their places."""

from __future__ import annotations

import pytest
from helpers import EXAMPLES, GENOTYPES, TESTS, genotype
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snnir.errors import GenotypeError, SnnirError
from snnir.genotype import ast, format_source, parse, print_genotype
from snnir.genotype import vocabulary as words
from snnir.source import Source, read_source

ALL = sorted(path.stem for path in GENOTYPES.glob("*.snn"))
ERRORS = sorted((TESTS / "golden" / "errors").glob("*.snn"))


@pytest.mark.parametrize("name", ALL)
def test_printing_and_parsing_gives_the_genotype_back(name):
    g = genotype(name)
    assert parse(print_genotype(g)) == g
    assert print_genotype(parse(print_genotype(g))) == print_genotype(g)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_formatted_as_they_are_written(name):
    source = read_source(GENOTYPES / f"{name}.snn")
    assert format_source(source) == source.text


@pytest.mark.parametrize("name", EXAMPLES)
def test_our_copies_are_the_shared_examples(name, shared):
    theirs = (shared / "examples" / f"{name}.snn").read_text()
    assert (GENOTYPES / f"{name}.snn").read_text() == theirs


def test_examples_mean_what_they_say():
    g = genotype("hybrid")
    assert g.steps == 4
    assert g.inputs[0].shape == (1, 28, 28)
    normal = g.cells["normal"]
    assert [op.operation for op in normal.nodes[0].operations] == ["conv3x3", "skip"]
    assert normal.nodes[1].neuron == ast.Neuron(kind="alif", tau=0.2, tau_a=0.2, beta=0.2)
    assert [a.path for a in g.annotations][-1] == "trunk.layers[2].n1"
    assert g.annotations[-1].neuron == ast.Neuron(kind="relu")
    assert genotype("cifar_space").searchable
    assert not genotype("spikedhs_cla").searchable


def test_equality_ignores_spans_and_comments():
    text = (GENOTYPES / "hybrid.snn").read_text()
    moved = text.replace("steps 4", "# four\n\n\nsteps   4")
    assert parse(text) == parse(moved)
    assert hash(parse(text)) == hash(parse(moved))
    assert parse(text) != parse(text.replace("tau=0.35", "tau=0.36"))


MESSY = """# first
snn 1
network   messy   # the name


input b: frame[1,8,8]   # a view
input image: frame[1, 8,  8]
# about the steps
# in two lines
steps 2
cell c(x, y) {
  # a node
  n0 = conv3x3(x)+skip( y )   # sums
  # the end of the cell
}
backbone trunk(image) { stem conv3x3(4)
  layers channels=4 { c@0
    c@0 # twice
  } }

head classify(trunk, classes=2)
annotate { trunk.stem[0] tau=0.5 trunk.layers[0].n0 tau=.25, surrogate=arctan } # done
# last
"""


def test_formatting_keeps_every_comment_and_is_stable():
    source = Source("messy", MESSY)
    once = format_source(source)
    assert format_source(Source("again", once)) == once
    assert parse(once) == parse(MESSY)
    comments = [line.split("#", 1)[1] for line in MESSY.splitlines() if "#" in line]
    for comment in comments:
        assert once.count(f"#{comment}") == 1, comment
    assert "  # a node\n  n0 = conv3x3(x) + skip(y)  # sums\n  # the end of the cell\n}" in once
    assert once.endswith("# last\n")


NAMES = st.sampled_from(["alpha", "beta2", "c_c", "prev", "neuron_x"])


@st.composite
def surrogates(draw):
    b = draw(st.none() | st.floats(0.1, 9, allow_nan=False))
    return ast.Surrogate(kind=draw(st.sampled_from(words.SURROGATES)), b=b)


@st.composite
def neurons(draw):
    kind = draw(st.sampled_from(list(words.NEURON_ARGUMENTS)))
    values = {
        "tau": st.none() | st.floats(0, 0.99),
        "v_threshold": st.none() | st.floats(0.01, 5),
        "tau_a": st.none() | st.floats(0, 0.99),
        "beta": st.none() | st.floats(0, 5),
        "surrogate": st.none() | surrogates(),
        "detach_reset": st.none() | st.booleans(),
    }
    return ast.Neuron(kind=kind, **{k: draw(values[k]) for k in words.NEURON_ARGUMENTS[kind]})


@st.composite
def cells(draw, name):
    states = ("before", "last")
    nodes, known = [], list(states)
    for index in range(draw(st.integers(1, 4))):
        read = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        operations = tuple(
            ast.CellOperation(
                operation=draw(st.sampled_from(["conv1x1", "conv3x3", "sepconv3x3", "skip"])),
                state=state,
                b=draw(st.none() | st.floats(0.5, 8)),
            )
            for state in read
        )
        neuron = draw(st.none() | neurons())
        nodes.append(ast.CellNode(name=f"n{index}", operations=operations, neuron=neuron))
        known.append(f"n{index}")
    mix = draw(st.none() | st.sampled_from(words.MIXES))
    return ast.Cell(name=name, states=states, nodes=tuple(nodes), mix=mix)


@st.composite
def genotypes(draw):
    levels = [0]
    for _ in range(draw(st.integers(0, 5))):
        levels.append(max(0, levels[-1] + draw(st.sampled_from([-1, 0, 1]))))
    stem = ast.LayerOperation(
        operation="conv3x3",
        channels=draw(st.integers(1, 64)),
        stride=draw(st.none() | st.integers(1, 3)),
        bn=draw(st.none() | st.booleans()),
        spike=draw(st.none() | st.booleans()),
    )
    layers = ast.Layers(
        channels=draw(st.integers(1, 64)),
        cells=tuple(ast.PlacedCell(cell="only", level=level) for level in levels),
    )
    classify = ast.Classify(value=ast.Reference(name="trunk"), classes=draw(st.integers(1, 1000)))
    statements = [
        ast.Input(name="image", kind="frame", shape=(3, 64, 64)),
        ast.Steps(count=draw(st.integers(1, 9))),
        ast.DefaultNeuron(neuron=draw(neurons())),
        draw(cells("only")),
        ast.Backbone(name="trunk", parameter="image", stem=(stem,), layers=layers),
        ast.Head(task=classify),
        ast.Annotate(
            annotations=(
                ast.Annotation(
                    path="trunk.layers[*].n0", tau=draw(st.floats(0, 0.9)), neuron=draw(neurons())
                ),
                ast.Annotation(path="trunk.stem[0]", surrogate=draw(surrogates())),
            )
        ),
    ]
    return ast.Genotype(name="made", statements=tuple(draw(st.permutations(statements))))


@given(genotypes())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_genotype_survives_printing(g):
    text = print_genotype(g)
    assert parse(text) == g
    assert format_source(Source("made", text)) == text


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: path.stem)
def test_errors_say_where_what_and_what_instead(path, golden):
    """golden/errors/NAME.snn must fail with exactly the text of NAME.txt."""
    from snnir.ir import build
    from snnir.passes import ANALYSIS, run_passes

    source = Source(path.name, path.read_text())
    with pytest.raises(GenotypeError) as caught:
        run_passes(ANALYSIS, build(parse(source)))
    message = str(caught.value)
    golden(path.with_suffix(".txt"), message + "\n")
    assert message.startswith(path.name)


def test_several_errors_are_reported_together():
    text = (TESTS / "golden" / "errors" / "syntax_many.snn").read_text()
    with pytest.raises(GenotypeError) as caught:
        parse(text)
    assert len(caught.value.diagnostics) >= 3


@pytest.mark.parametrize("content", [b"", b"   \n# nothing\n"])
def test_an_empty_file_is_an_error_with_its_place(tmp_path, content):
    path = tmp_path / "empty.snn"
    path.write_bytes(content)
    with pytest.raises(
        GenotypeError, match=r"empty\.snn:\d:\d+: found end of file, expected 'snn'"
    ):
        parse(read_source(path))


@pytest.mark.parametrize("content", [b"\x80\x02snn", b"snn 1\nnetwork \0 x"])
def test_a_binary_file_is_refused(tmp_path, content):
    path = tmp_path / "binary.snn"
    path.write_bytes(content)
    with pytest.raises(SnnirError, match="expected UTF-8 text"):
        read_source(path)


def test_deep_nesting_is_an_error_not_a_crash():
    text = "snn 1\nnetwork x\nv = " + "f(" * 20000 + "a" + ")" * 20000
    with pytest.raises(GenotypeError, match="nested too deeply"):
        parse(text)
