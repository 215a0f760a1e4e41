"""The page that a search leaves: the weights and what was kept of them, pictures, plain HTML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
from helpers import genotype, small
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pages import pictures, points, tables, well_formed

from snnir.analysis.chart import Chart, Series
from snnir.genotype import parse, print_genotype
from snnir.ir import build
from snnir.ir.nodes import Mixed
from snnir.ir.trellis import levels_after, transition_owner
from snnir.search import SearchConfig, decode, genotype_of
from snnir.search.architecture import count_architectures, searchable_cells, state_names, trellises
from snnir.search.baselines import Trial
from snnir.search.bilevel import entropies
from snnir.search.decode import softmax
from snnir.search.page import render_search
from snnir.search.sampling import random_architecture
from snnir.source import Source
from snnir.training.record import Record

CONFIG = SearchConfig(epochs=3, warmup_epochs=1, seed=7)
MANY_NODES = """
input image: frame[1, 6, 6]
steps 2
cell c(a, b) { search nodes=11 keep=2 { conv3x3 | conv3x3(b=5) | skip } }
backbone t(image) { stem conv3x3(4) layers channels=2 { c@0 } }
head classify(t, classes=3)
"""


def record(epoch: int, logits, **scalars: float) -> Record:
    weights = {
        f"weight/{owner}/{entry}": float(weight)
        for owner, values in logits.items()
        for entry, weight in enumerate(softmax(values))
    }
    known = {f"entropy/{kind}": value for kind, value in entropies(logits).items()}
    return Record(
        epoch=epoch, train_loss=2 / epoch, train_accuracy=0.2 * epoch, loss=2.5 / epoch,
        accuracy=0.15 * epoch, firing_rate=0.1 + 0.01 * epoch, firing_rates={}, learning_rate=0.1,
        samples_per_second=10, seconds=60.0 * epoch, finished=1e9 + epoch,
        scalars=scalars | known | weights,
    )  # fmt: skip


def searched(space, conventions="paper", seed=0):
    """What a search of three epochs could have left: (found, history, softmax weights)."""
    rng = np.random.default_rng(seed)
    sizes = {gate.owner: gate.size for node in build(space).of_type(Mixed) for gate in node.gates}
    undecided = {owner: np.zeros(size) for owner, size in sizes.items()}
    logits = {owner: 1.5 * rng.normal(size=size) for owner, size in sizes.items()}
    half_b = {"architecture/loss": 1.25, "architecture/accuracy": 0.375}
    history = [
        record(1, undecided),
        record(2, {owner: values / 2 for owner, values in logits.items()}, **half_b),
        record(3, logits, **half_b),
    ]
    found = genotype_of(space, decode(space, logits, conventions), conventions)
    return found, history, {owner: softmax(values) for owner, values in logits.items()}


def page_of(space, conventions="paper", seed=0, **changed):
    found, history, weights = searched(space, conventions, seed)
    data = changed.pop("data", "digits")
    config = CONFIG.model_copy(update=changed)
    page = render_search(space, found, config, history, data=data, conventions=conventions)
    return page, found, weights


# --- alpha ------------------------------------------------------------------------------------


@pytest.mark.parametrize("conventions", ["paper", "authors"])
@pytest.mark.parametrize("seed", range(3))
def test_alpha_has_every_edge_with_its_weights_and_marks_the_kept_ones(conventions, seed):
    space = genotype("small_space")
    page, found, weights = page_of(space, conventions, seed)
    cells = searchable_cells(space)
    shown = tables(page, "alpha")
    assert len(shown) == len(cells) == 2
    for (name, cell), (_, *rows) in zip(cells.items(), shown, strict=True):
        names = state_names(cell)
        edges = [(n, s) for i, n in enumerate(names[2:]) for s in names[: 2 + i]]
        kept = {
            (node.name, op.state): op for node in found.cells[name].nodes for op in node.operations
        }
        assert len(rows) == len(edges)
        for (node, state), (classes, ((_, title), (_, label), *values)) in zip(
            edges, rows, strict=True
        ):
            assert title == f"{node} ← {state}"
            expected = [f"{weight:.3f}" for weight in weights[f"cells.{name}.{node}.{state}"]]
            assert [text for _, text in values] == expected
            assert ("kept" in classes) == bool(label) == ((node, state) in kept)
            chosen = [k for k, (marks, _) in enumerate(values) if "chosen" in marks]
            if (node, state) not in kept:
                assert chosen == []
                continue
            operation = kept[node, state]
            assert label == operation.operation + (f" b{operation.b:g}" if operation.b else "")
            (number,) = chosen
            if conventions == "paper":
                assert number == int(np.argmax(weights[f"cells.{name}.{node}.{state}"]))
            candidate = cell.candidates[number]
            skipped = conventions == "authors" and candidate.operation == "skip"
            assert operation.b == candidate.b
            assert operation.operation == ("conv3x3" if skipped else candidate.operation)


def test_the_rows_of_many_nodes_stay_in_order():
    page, _, _ = page_of(small(MANY_NODES))
    ((_, *rows),) = tables(page, "alpha")
    nodes = [cells[0][1].split()[0] for _, cells in rows]
    assert list(dict.fromkeys(nodes)) == [f"n{number}" for number in range(11)]
    firsts = [node for node, (classes, _) in zip(nodes, rows, strict=True) if "group" in classes]
    assert firsts == list(dict.fromkeys(nodes))


# --- beta -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_trellis", "small_stereo_space"])
def test_beta_draws_every_transition_and_highlights_the_found_path(name):
    space = genotype(name)
    page, found, weights = page_of(space)
    drawn = pictures(page, "trellis")
    assert len(drawn) == len(trellises(space))
    for (backbone, trellis), svg in zip(trellises(space).items(), drawn, strict=True):
        expected = {
            f"layer {layer}, level {level} to {after}: {weight:.3f}"
            for layer in range(trellis.depth)
            for level in range(min(layer + 1, trellis.levels))
            for after, weight in zip(
                levels_after(level, layer, trellis),
                weights[transition_owner(backbone, layer, level)],
                strict=True,
            )
        }
        lines = svg.findall("path")
        assert {line.find("title").text for line in lines} == expected
        path = [placed.level for placed in found.backbones[backbone].layers.cells]
        steps = [
            f"layer {layer}, level {before} to {after}"
            for layer, (before, after) in enumerate(zip([0, *path], path, strict=False))
        ]
        taken = [line.find("title").text for line in lines if line.get("class") == "taken"]
        assert [text.split(":")[0] for text in taken] == steps
        dots = [dot for dot in svg.findall("circle") if dot.get("class") == "taken"]
        assert len(dots) == 1 + trellis.depth
        assert len({dot.get("cx") for dot in dots}) == 1 + trellis.depth
        assert f"levels {', '.join(map(str, path))}, of probability" in page


def test_what_is_fixed_has_no_section():
    page, _, _ = page_of(genotype("small_space"))
    assert "<h2>Alpha" in page
    assert "<h2>Beta" not in page
    assert "<h2>Trials" not in page


# --- curves -----------------------------------------------------------------------------------


def test_the_curves_show_both_halves_and_where_warm_up_ends():
    page, _, _ = page_of(genotype("small_trellis"))
    entropy, loss, accuracy, firing = pictures(page, "chart")
    for chart in (entropy, loss, accuracy, firing):
        (band,) = chart.findall("rect")
        end = float(band.get("x")) + float(band.get("width"))
        first, *_, last = points(chart, "line0")
        assert first[0] < end < last[0]
        assert len(points(chart, "line0")) == 3
    for chart in (loss, accuracy):
        (end,) = (float(r.get("x")) + float(r.get("width")) for r in chart.findall("rect"))
        assert len(points(chart, "line1")) == 2
        assert all(x > end for x, _ in points(chart, "line1"))
    assert len(points(entropy, "line1")) == 3
    for legend in ("alpha 0.", "beta 0.", "half B 1.250", "half A 60.0%", "half B 37.5%"):
        assert legend in page


def test_no_warm_up_has_no_band():
    page, _, _ = page_of(genotype("small_space"), warmup_epochs=0)
    assert all(chart.find("rect") is None for chart in pictures(page, "chart"))
    assert "shaded" not in page


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.booleans())
@example([5e-324], False)
@settings(max_examples=60, deadline=None)
def test_a_chart_has_room_for_all_values_and_a_few_labels(values, shaded):
    line = Series("line", list(enumerate(values, 1)), "")
    chart = Chart("title", (line,), "epoch", low=0, warmup=3 if shaded else 0)
    svg = ET.fromstring(chart.svg)
    _, _, width, height = map(float, svg.get("viewBox").split())
    rounding = 0.1
    grid = [path for path in svg.findall("path") if path.get("class") == "grid"]
    assert 2 <= len(grid) <= 7
    levels = [float(path.get("d").split()[2]) for path in grid]
    drawn = points(svg, "line0")
    assert len(drawn) == len(values)
    assert all(min(levels) - rounding <= y <= max(levels) + rounding for _, y in drawn)
    assert all(0 < x < width for x, _ in drawn)
    assert max(levels) < height
    for band in svg.findall("rect"):
        assert float(band.get("x")) + float(band.get("width")) <= width
    by_value = sorted(zip(values, drawn, strict=True))
    assert all(a[1][1] >= b[1][1] for a, b in pairwise(by_value))


# --- baselines --------------------------------------------------------------------------------


def test_a_baseline_shows_its_trials_by_accuracy_and_the_best_so_far():
    space, rng = genotype("small_trellis"), np.random.default_rng(0)
    accuracies = (0.25, 0.5, 0.125, 0.75, 0.75)
    trials = [
        Trial(
            number=number, data="digits", parent=number - 3 if number > 2 else None,
            genotype=print_genotype(genotype_of(space, random_architecture(space, rng))),
            accuracy=accuracy, parameters=1000 + number, firing_rate=0.1, macs=10, seconds=30.0,
        )
        for number, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    config = CONFIG.model_copy(update={"method": "evolution"})
    found = parse(Source("trial 3", trials[3].genotype))
    page = render_search(
        space, found, config, (), data="digits", conventions="paper", trials=trials
    )
    ((_, *rows),) = tables(page, "trials")
    assert [[text for _, text in cells] for _, cells in rows] == [
        ["3", "0", "75.00 %", "1,003", "10.00 %", "30.0 s"],
        ["4", "1", "75.00 %", "1,004", "10.00 %", "30.0 s"],
        ["1", "–", "50.00 %", "1,001", "10.00 %", "30.0 s"],
        ["0", "–", "25.00 %", "1,000", "10.00 %", "30.0 s"],
        ["2", "–", "12.50 %", "1,002", "10.00 %", "30.0 s"],
    ]
    assert [classes for classes, _ in rows] == [["best"], [], [], [], []]
    (chart,) = pictures(page, "chart")
    heights = [y for _, y in points(chart, "line0")]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
    spots = [dot for dot in chart.findall("circle") if dot.get("class") == "line1"]
    assert [len(spots), min(float(dot.get("cy")) for dot in spots)] == [5, heights[-1]]
    assert "2 min 30 s" in page
    assert "<h2>Alpha" not in page
    assert "<h2>Beta" not in page
    assert well_formed(page)


# --- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("conventions", ["paper", "authors"])
@pytest.mark.parametrize("name", ["small_space", "small_spike_space", "small_stereo_space"])
def test_the_page_stands_alone_and_says_what_was_found(name, conventions):
    space = genotype(name)
    page, found, _ = page_of(space, conventions)
    assert well_formed(page)
    assert "prefers-color-scheme: dark" in page
    assert f"<h1>{found.name}</h1>" in page
    assert f"found in {space.name} by spikedhs on digits" in page
    assert print_genotype(found).splitlines()[-1] in page
    assert "warmup_epochs = 1" in page
    assert "3 min 0 s" in page
    assert 'class="snnir"' in page


def test_large_spaces_are_counted_in_powers_of_ten():
    assert "<b>2.0e6</b><span>architectures" in page_of(genotype("small_space"))[0]
    assert "<b>576</b><span>architectures" in page_of(genotype("small_trellis"))[0]
    cells = "".join(
        f"cell {name}(a, b) {{ search nodes=64 keep=2 {{ conv3x3 | conv3x3(b=5) | skip }} }}\n"
        for name in "cd"
    )
    space = small(
        f"input image: frame[1, 6, 6]\nsteps 2\n{cells}backbone t(image) "
        "{ stem conv3x3(4) layers channels=1 { c@0 d@0 } }\nhead classify(t, classes=3)"
    )
    found = genotype_of(space, random_architecture(space, np.random.default_rng(0)))
    page = render_search(space, found, CONFIG, (), data="digits", conventions="paper")
    first, power = re.search(r"<b>(\d\.\d)e(\d+)</b><span>architectures", page).groups()
    exact = str(count_architectures(space))
    assert len(exact) > 400, "more than a float holds"
    assert int(power) == len(exact) - 1
    assert float(first) == pytest.approx(float(f"{exact[0]}.{exact[1:9]}"), abs=0.0501)


def test_the_page_escapes_what_users_wrote():
    page, _, _ = page_of(genotype("small_space"), data="<script>alert('1')</script>&amp;")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;" in page
    assert well_formed(page)
