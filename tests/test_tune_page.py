"""The page that a search of neurons leaves: what was found, by layer and by epoch."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import genotype
from pages import pictures, points, tables, well_formed

from snnir.genotype import ast, parse, print_genotype
from snnir.ir import build
from snnir.lower.surrogates import SURROGATES
from snnir.search.neurons import KINDS, annotate, tunable
from snnir.search.tune_config import TuneConfig
from snnir.search.tune_page import render_tune
from snnir.training.record import Record
from snnir.training.run import Trained

BASE = """snn 1
network digits_net
input image: frame[1, 8, 8]
steps 3
neuron lif(tau=0.2, surrogate=dspike(b=3))
cell normal(a, b) {
  n0 = conv3x3(a) + skip(b)
  n1 = conv3x3(b) + conv3x3(n0) : alif
}
backbone trunk(image) { stem conv3x3(6) layers channels=3 { normal@0 normal@1 } }
head classify(trunk, classes=10)
"""
LAYERS = {
    "trunk.stem[0]": "trunk.stem.0.neuron",
    "trunk.layers[0].n0": "trunk.layers.0.n0.neuron",
    "trunk.layers[0].n1": "trunk.layers.0.n1.neuron",
    "trunk.layers[1].n0": "trunk.layers.1.n0.neuron",
    "trunk.layers[1].n1": "trunk.layers.1.n1.neuron",
    "head.neuron": "head.neuron",
}
ALIFS = ["trunk.layers[0].n1", "trunk.layers[1].n1"]


def record(epoch: int, rates: dict[str, float], **scalars: float) -> Record:
    return Record(
        epoch=epoch, train_loss=2 / epoch, train_accuracy=0.2 * epoch, loss=2.5 / epoch,
        accuracy=0.15 * epoch, firing_rate=0.1 + 0.01 * epoch, firing_rates=rates,
        learning_rate=0.1, samples_per_second=10, seconds=60.0 * epoch, finished=1e9 + epoch,
        scalars=scalars,
    )  # fmt: skip


def plain_rates(epoch: int) -> dict[str, float]:
    return {path: 0.05 * epoch + 0.02 * n for n, path in enumerate(LAYERS.values())}


def weights_of(p: tuple[float, ...]) -> dict[str, float]:
    return {f"weight/{own}/{k}": x for own in LAYERS.values() for k, x in enumerate(p)}


def tps(epochs: int = 3):
    """tau falls by 0.01 a layer and epoch; the ALIFs' tau_a rises."""
    history = []
    for epoch in range(1, epochs + 1):
        taus = {f"tau/{path}": 0.2 - 0.01 * n * epoch for n, path in enumerate(LAYERS)}
        adaptive = {f"tau_a/{path}": 0.2 + 0.1 * epoch for path in ALIFS}
        rates = {
            f"{path}.{k}": rate + 0.1 * k
            for path, rate in plain_rates(epoch).items()
            for k in range(3)
        }
        scalars = taus | adaptive | weights_of((0.5, 0.25, 0.25))
        history.append(record(epoch, rates, **scalars))
    last = history[-1].scalars
    found = [
        ast.Annotation(path=p, tau=round(last[f"tau/{p}"], 6), tau_a=last.get(f"tau_a/{p}"))
        for p in LAYERS
    ]
    return found, history, {"method": "tps"}


def hns():
    """The relu gets heavier from layer to layer: it wins in the second half."""
    kinds = ("lif", "alif", "relu")
    history = []
    for epoch in range(1, 4):
        scalars = {"energy_loss": 8.0 + epoch, "share/relu": 0.5}
        for number, path in enumerate(LAYERS):
            relu = 0.2 + 0.1 * number
            p = {"lif": 0.9 - relu, "alif": 0.1, "relu": relu}
            scalars |= {f"{kind}/{path}": x for kind, x in p.items()}
            scalars |= {f"weight/{LAYERS[path]}/{k}": p[kind] for k, kind in enumerate(kinds)}
        rates = {f"{path}.{k}": 0.1 + 0.3 * k for path in LAYERS.values() for k in range(2)}
        history.append(record(epoch, rates, **scalars))
    found = [ast.Annotation(path=path, neuron=ast.Neuron(kind="relu")) for path in list(LAYERS)[3:]]
    return found, history, {"method": "hns", "candidates": kinds}


def dgs():
    """Of two nodes; the first keeps its b."""
    tuned = {"trunk.stem[0]": 3.0, "trunk.layers[0].n0": 4.2}
    history = []
    for epoch in range(1, 4):
        scalars = {f"b/{path}": 3 + (b - 3) * (epoch - 1) / 2 for path, b in tuned.items()}
        scalars |= {f"gradient/{path}": 1e-3 * epoch for path in tuned}
        scalars |= {f"gradient_at_first_b/{path}": 1e-3 for path in tuned}
        history.append(record(epoch, plain_rates(epoch), **scalars))
    found = [
        ast.Annotation(path=path, surrogate=ast.Surrogate(kind="dspike", b=b))
        for path, b in tuned.items()
    ]
    return found, history, {"method": "dgs"}


def page_of(search, *, base=BASE, data="digits", trained=None, **changed):
    annotations, history, settings = search
    config = TuneConfig(epochs=3, warmup_epochs=1, seed=7, **settings).model_copy(update=changed)
    network = parse(base)
    found = annotate(network, annotations)
    page = render_tune(network, found, config, history, data=data, trained=trained)
    return page, found


def chart(page: str, title: str):
    (found,) = (svg for svg in pictures(page, "chart") if svg.get("aria-label") == title)
    return found


def lines(svg) -> dict[str, list[tuple[float, float]]]:
    """A chart's lines by the names in their tooltips."""
    drawn = [path for path in svg.findall("path") if path.get("class") != "grid"]
    return {path.find("title").text: points(svg, path.get("class")) for path in drawn}


def titles(page: str) -> list[str]:
    return [svg.get("aria-label") for svg in pictures(page, "chart")]


def rows(page: str) -> dict[str, list[str]]:
    ((_, *found),) = tables(page, "layers")
    texts = [[text for _, text in cells] for _, cells in found]
    assert [number for number, *_ in texts] == [str(n) for n in range(1, len(texts) + 1)]
    return {path: values for _, path, *values in texts}


# --- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [tps, hns, dgs], ids=lambda search: search.__name__)
def test_the_page_stands_alone_and_says_what_was_found(search):
    page, found = page_of(search())
    assert well_formed(page)
    assert "prefers-color-scheme: dark" in page
    assert "<h1>digits_net</h1>" in page
    assert f"neurons tuned by {search.__name__} on digits" in page
    block = print_genotype(found).partition("\nannotate {")[2]
    assert block.count("\n") > 2
    assert page.count("annotate {" + block) == 2, "by itself, and in the genotype"
    assert "warmup_epochs = 1" in page
    assert "<b>3 of 3</b><span>epochs" in page
    assert "3 min 0 s" in page
    assert 'class="snnir"' in page
    assert list(rows(page)) == list(LAYERS)


def test_the_page_escapes_what_users_wrote():
    page, _ = page_of(tps(), data="<script>alert('1')</script>&amp;")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;" in page
    assert well_formed(page)


def test_a_page_after_one_epoch_has_one_rate_per_layer():
    page, _ = page_of(tps(epochs=1))
    assert list(lines(chart(page, "firing rate by layer"))) == ["epoch 1"]
    assert "<b>1 of 3</b>" in page
    assert well_formed(page)


def test_nothing_found_is_said():
    page, found = page_of(([], hns()[1], hns()[2]))
    assert found == parse(BASE)
    assert "none: every neuron stays as it was" in page


def test_the_accuracy_is_the_trained_networks_once_there_is_one(tmp_path):
    assert "<b>45.00 %</b><span>accuracy in the search" in page_of(tps())[0]
    trained = Trained(tmp_path, [record(n, plain_rates(1)) for n in (1, 5)], "test", None)
    page, _ = page_of(tps(), trained=trained)
    assert "<b>75.00 %</b><span>test accuracy, trained by itself" in page
    assert "45.00 %" not in page


# --- by layer ---------------------------------------------------------------------------------


def test_time_constants_have_a_line_per_layer_in_the_tables_colours():
    page, _ = page_of(tps())
    tau, tau_a = chart(page, "leak factor tau"), chart(page, "threshold decay tau_a")
    assert list(lines(tau)) == list(LAYERS)
    assert list(lines(tau_a)) == ALIFS
    assert all(len(line) == 3 for line in (lines(tau) | lines(tau_a)).values())
    levels = [line[-1][1] for line in lines(tau).values()]
    assert levels == sorted(levels), "the lower a tau, the further down"
    assert len(set(levels)) == 6
    keys = dict(re.findall(r'style="--key: ([^"]+)"></span><code>([^<]+)</code>', page))
    shown = {path: colour for colour, path in keys.items()}
    assert list(shown) == list(LAYERS)
    for svg in (tau, tau_a):
        for path in svg.findall("path"):
            if path.get("class") != "grid":
                assert path.get("style") == f"--key: {shown[path.find('title').text]}"
    for svg in (tau, tau_a, chart(page, "accuracy")):
        (band,) = svg.findall("rect")
        end = float(band.get("x")) + float(band.get("width"))
        first, second, _ = next(iter(lines(svg).values()))
        assert first[0] < end < second[0]
    values = rows(page)
    assert values["trunk.stem[0]"][:3] == ["lif", "0.2", "–"]
    assert values["trunk.layers[0].n1"][:3] == ["alif", "0.2 → 0.14", "0.2 → 0.5"]


def test_kinds_have_their_weights_and_the_table_says_what_became_of_each():
    page, _ = page_of(hns())
    assert list(lines(chart(page, "weight of relu"))) == list(LAYERS)
    assert list(lines(chart(page, "weight of alif"))) == list(LAYERS)
    assert "weight of lif" not in titles(page), "it is the rest"
    assert {"energy loss", "neurons that are a relu"} < set(titles(page))
    kinds = [kind for kind, *_ in rows(page).values()]
    assert kinds == ["lif", "lif", "alif", "lif → relu", "alif → relu", "lif → relu"]
    assert rows(page)["head.neuron"][1:5] == ["–"] * 4, "a relu has no tau and no surrogate"
    two, _ = page_of(([], hns()[1], {"method": "hns"}))
    assert [title for title in titles(two) if title.startswith("weight")] == ["weight of relu"]


def test_rates_of_candidates_are_those_of_their_mixture():
    """Shares 1/2, 1/4, 1/4 of rates r, r + 0.1, r + 0.2: r + 0.075. A relu has no rate: shares 0.7
    and 0.1 of rates 0.1 and 0.4."""
    page, _ = page_of(tps())
    shown = {path: values[-2:] for path, values in rows(page).items()}
    for number, path in enumerate(LAYERS):
        expected = [f"{100 * (0.05 * epoch + 0.02 * number + 0.075):.2f} %" for epoch in (1, 3)]
        assert shown[path] == expected
    drawn = lines(chart(page, "firing rate by layer"))
    assert list(drawn) == ["epoch 1", "epoch 3"]
    assert all(len(line) == 6 for line in drawn.values())
    mean = (0.7 * 0.1 + 0.1 * 0.4) / 0.8
    assert rows(page_of(hns())[0])["trunk.stem[0]"][-1] == f"{100 * mean:.2f} %"


def test_a_backbone_applied_twice_is_one_layer():
    """Its rate is the mean over both applications."""
    base = genotype("small_stereo")
    targets = tunable(build(base), (), KINDS)
    path, twice = next((path, own) for path, own in targets.items() if len(own) == 2)
    rates = {neuron.path: 0.1 + 0.2 * n for n, neuron in enumerate(twice)}
    found = [ast.Annotation(path=path, tau=0.3)]
    history = [record(1, rates, **{f"tau/{path}": 0.3})]
    page, _ = page_of((found, history, {"method": "tau"}), base=print_genotype(base))
    assert rows(page)[path] == ["lif", "0.2 → 0.3", "–", "dspike", "3", "20.00 %", "20.00 %"]


# --- surrogates and snapshots -----------------------------------------------------------------


def test_the_surrogates_shapes_and_the_stems_gradient():
    page, _ = page_of(dgs())
    assert list(lines(chart(page, "temperature b"))) == list(LAYERS)[:2]
    shapes = lines(chart(page, "dspike"))
    assert list(shapes) == ["b = 3", "b = 4.2"]
    assert "b = 3 at first" in page
    at = torch.tensor([0.0, 0.25], dtype=torch.float64)
    for b, line in zip((3, 4.2), shapes.values(), strict=True):
        bottom = max(y for _, y in line)
        peak, side = (bottom - line[k][1] for k in (120, 140))
        expected = SURROGATES["dspike"](at.clone(), b)
        assert side / peak == pytest.approx(float(expected[1] / expected[0]), abs=0.01)
        assert {bottom - y for x, y in line[:80]} == {0}
    gradient = lines(chart(page, "mean |gradient|, trunk.stem[0]"))
    assert list(gradient) == ["b at first", "b as found"]
    assert gradient["b at first"][0] == gradient["b as found"][0]
    assert gradient["b at first"][2][1] > gradient["b as found"][2][1], "smaller, so further down"
    assert all(svg.find("rect") is None for svg in pictures(page, "chart")), "no warm-up"
    assert [values[4] for values in rows(page).values()] == ["3", "3 → 4.2", "3", "3", "3", "3"]
    assert "<h2>Surrogates" not in page_of(tps())[0]


def test_each_kind_of_surrogate_has_its_own_chart():
    text = BASE + "annotate { trunk.stem[0] surrogate=triangle(b=2) }\n"
    found, history, settings = dgs()
    found[0] = ast.Annotation(path="trunk.stem[0]", surrogate=ast.Surrogate(kind="triangle", b=2.2))
    page, _ = page_of((found, history, settings), base=text)
    assert list(lines(chart(page, "triangle"))) == ["b = 2", "b = 2.2"]
    assert list(lines(chart(page, "dspike"))) == ["b = 3", "b = 4.2"]


def test_snapshots_are_drawn_where_there_are_any():
    found, history, settings = tps()
    assert "<h2>Snapshots" not in page_of((found, history, settings))[0]
    for number in (0, 2):
        results = {"snapshot/accuracy": 0.5 + 0.1 * number, "snapshot/firing_rate": 0.2}
        update = {"scalars": history[number].scalars | results}
        history[number] = history[number].model_copy(update=update)
    page, _ = page_of((found, history, settings), snapshots=2, retrain_epochs=9)
    (line,) = lines(chart(page, "accuracy once trained")).values()
    assert len(line) == 2
    assert line[0][1] > line[1][1]
    assert "test 70.00%" in page
    assert "each trained by itself for 9\nepochs" in page
