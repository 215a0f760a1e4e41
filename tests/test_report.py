"""What a report counts, against plain counting; cost models; comparison; the page in a browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import tomllib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import calibrated, small

import snnir
from snnir.analysis.compare import compare, to_csv
from snnir.analysis.counts import layers
from snnir.analysis.energy import arithmetic_pj, cost_model, cost_models, energy
from snnir.analysis.operations import LayerOperations, Operations, count_operations
from snnir.analysis.page import energy as shown_energy
from snnir.errors import SnnirError
from snnir.export.counting import COUNTS, add_counters
from snnir.export.onnx import export_onnx
from snnir.export.parity import session
from snnir.genotype import retarget
from snnir.ir import build
from snnir.ir.nodes import Conv, Linear, Neuron
from snnir.lower import SpikingModule
from snnir.lower.behaviour import observe_behaviour
from snnir.lower.counting import count_spikes
from snnir.passes import DEPLOYMENT, FOLDING, run_passes

NETWORKS = ("menu", "spikes", "hybrid", "small_stereo")
"""Every operation of the language between them; 2-D and 3-D, frames and events."""


def counted(name: str):
    """(folded graph, its operations by the deployed one's spikes, that one's values, counts)."""
    graph, weights, inputs = calibrated(name)
    deployed = run_passes(DEPLOYMENT, graph, weights)
    folded = run_passes(FOLDING, graph, weights)
    counts = count_spikes(deployed.graph, deployed.weights, list(inputs))
    values: dict[str, torch.Tensor] = {}

    def keep(node, value):
        values[node.path] = value.data.clone()
        return value

    # what layers read has one name in both; in fp32 a run of the folded graph flips some spikes
    with torch.no_grad():
        module = SpikingModule(deployed.graph, deployed.weights).eval()
        module.run(*map(torch.from_numpy, inputs), observe=keep)
    return folded.graph, count_operations(folded.graph, counts), values, counts


@pytest.mark.parametrize("name", NETWORKS)
def test_synops_are_the_products_that_spikes_go_into(name):
    """A convolution with ones counts, for each output, the spikes that it reads."""
    graph, found, values, counts = counted(name)
    compared = 0
    for one in found:
        node, (source,) = graph[one.layer.path], graph.inputs(one.layer.path)[:1]
        if not isinstance(node, Conv | Linear) or one.layer.reads.multiplies:
            continue
        spikes = (values[source] != 0).double()
        assert spikes.any(), source
        if isinstance(node, Linear):
            expected = spikes.sum() * node.out_features
        else:
            convolve = F.conv2d if len(node.kernel) == 2 else F.conv3d
            shape = (node.out_channels, node.in_channels // node.groups, *node.kernel)
            ones = torch.ones(shape, dtype=torch.float64)
            made = convolve(
                spikes, ones, stride=node.stride, padding=node.padding, groups=node.groups
            )
            expected = made.sum()
        assert one.operations.synops == pytest.approx(float(expected) / counts.samples)
        share = spikes.mean()
        assert one.operations.synops_by_rate == pytest.approx(
            float(share) * one.layer.macs * one.runs
        )
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_macs_are_those_that_read_a_value(name):
    graph, _, _ = calibrated(name)
    folded = run_passes(FOLDING, graph).graph
    smaller = 0
    for layer in layers(folded):
        node = folded[layer.path]
        if not isinstance(node, Conv):
            continue
        convolve = F.conv2d if len(node.kernel) == 2 else F.conv3d
        (shape,) = folded.input_shapes(layer.path)
        ones = torch.ones((node.out_channels, node.in_channels // node.groups, *node.kernel))
        made = convolve(
            torch.ones((1, *shape)), ones, stride=node.stride, padding=node.padding,
            groups=node.groups,
        )  # fmt: skip
        assert layer.macs_exact == int(made.sum())
        assert layer.macs_exact <= layer.macs
        smaller += layer.macs_exact < layer.macs
    assert smaller


def test_what_reads_a_relu_multiplies_and_a_chip_cannot():
    report = snnir.compile(
        small(
            """
input x: frame[1, 6, 6]
steps 3
neuron lif
backbone b(x) { stem conv3x3(4), conv3x3(4), conv3x3(4) }
head classify(b, classes=2)
annotate { b.stem[1] neuron=relu }
"""
        )
    ).report
    layers = {layer["path"]: layer for layer in report["layers"]}
    spiking, multiplying = (layers[f"b.stem.{k}.conv"]["operations"] for k in (1, 2))
    assert spiking["synops"] > 0
    assert set(multiplying) == {"macs", "macs_exact"}
    assert multiplying["macs"] == 3 * layers["b.stem.2.conv"]["macs"] == 3 * 36 * 4 * 4 * 9
    assert multiplying["macs_exact"] == 3 * 16 * 16 * 4 * 4  # 2 + 3 + 3 + 3 + 3 + 2 taps an axis
    assert [violation["path"] for violation in report["violations"]] == ["b.stem.2.conv"]
    unpriced = {name: parts["unpriced_macs"] for name, parts in report["energy_parts"].items()}
    assert unpriced["loihi"] == unpriced["truenorth"] == report["operations"]["macs"]
    assert unpriced["45nm"] == unpriced["memory"] == 0


def test_a_skip_adds_its_spikes():
    network = small(
        """
input x: frame[1, 6, 6]
steps 3
neuron lif
cell c(prev_prev, prev) { n = conv3x3(prev) + skip(prev_prev) }
backbone b(x) { stem conv3x3(4), conv3x3(4)  layers channels=4 { c@0 c@0 } }
head classify(b, classes=2)
"""
    )
    graph = build(network)
    compiled = snnir.compile(network)
    report = {layer["path"]: layer for layer in compiled.report["layers"]}
    counts_of = {path: one["operations"].get("spikes", 0) for path, one in report.items()}
    assert report["b.layers.1.n.sum"]["operations"]["additions"] == pytest.approx(
        counts_of["b.stem.1.neuron"]
    )
    assert counts_of["b.stem.1.neuron"] > 0
    assert graph.steps == 3


def test_rates_by_step_silent_and_saturated_neurons():
    graph, weights, inputs = calibrated("spikes")
    deployed = run_passes(DEPLOYMENT, graph, weights)
    counts = count_spikes(deployed.graph, deployed.weights, list(inputs))
    seen: dict[str, torch.Tensor] = {}

    def keep(node, value):
        if isinstance(node, Neuron):
            steps = graph.steps if value.stepped else 1
            seen[node.path] = value.data.unflatten(0, (steps, -1)).clone()
        return value

    with torch.no_grad():
        module = SpikingModule(deployed.graph, deployed.weights).eval()
        module.run(*map(torch.from_numpy, inputs), observe=keep)
    assert len(seen) > 3
    for path, spikes in seen.items():
        fired = (spikes != 0).double()
        assert counts.rate(path) == pytest.approx(float(fired.mean()))
        by_step = fired.flatten(1).mean(1).tolist()
        assert counts.by_step(path) == pytest.approx(by_step)
        per_neuron = fired.mean((0, 1))
        assert counts.silent(path) == pytest.approx(float((per_neuron == 0).double().mean()))
        assert counts.saturated(path) == pytest.approx(float((per_neuron == 1).double().mean()))


@pytest.mark.parametrize("name", ["spikes", "menu"])
def test_membranes_above_threshold_are_the_spikes(name):
    graph, weights, inputs = calibrated(name)
    deployed = run_passes(DEPLOYMENT, graph, weights)
    seen = observe_behaviour(deployed.graph, deployed.weights, list(inputs))
    counts = count_spikes(deployed.graph, deployed.weights, list(inputs))
    assert set(seen) == {n.path for n in deployed.graph.neurons if n.spiking}
    for path, found in seen.items():
        edges = np.linspace(found.low, found.high, len(found.membranes) + 1)
        assert sum(found.membranes) == pytest.approx(1)
        surely = sum(np.array(found.membranes)[edges[:-1] > 1 + 1e-6])  # at 1, none fires
        possibly = sum(np.array(found.membranes)[edges[1:] > 1])
        assert surely - 1e-5 <= counts.rate(path) <= possibly + 1e-5, path
        assert 0 < possibly < 1
        fired = sum(map(len, found.raster))
        assert fired <= len(found.raster) * graph.steps
    assert any(found.raster and any(found.raster) for found in seen.values())


def test_sequences_of_another_length_are_counted_step_by_step():
    """A stereo network of one step per estimate, run on three."""
    graph, weights, inputs = calibrated("small_stereo")
    deployed = run_passes(DEPLOYMENT, graph, weights)
    longer = [np.concatenate([x, x[:1]]) for x in inputs]
    steps = len(longer[0])
    assert steps == graph.steps + 1
    counts = count_spikes(deployed.graph, deployed.weights, longer)
    assert counts.steps == steps
    assert counts.samples == longer[0].shape[1]
    short = count_spikes(deployed.graph, deployed.weights, list(inputs))
    for neuron in deployed.graph.neurons:
        assert counts.by_step(neuron.path)[:-1] == pytest.approx(short.by_step(neuron.path))
    found = count_operations(run_passes(FOLDING, graph).graph, counts)
    assert {one.runs for one in found if one.operations.synops} == {steps}


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_counts_what_torch_counts(name):
    """With weights on a coarse grid every sum is exact, so both make the same spikes."""
    graph, weights, inputs = calibrated(name)
    deployed = run_passes(DEPLOYMENT, graph, weights)
    coarse = {key: np.round(value * 16) / 16 for key, value in deployed.weights.items()}
    grid = [np.round(x * 16).astype(np.float32) / 16 for x in inputs]
    ours = count_spikes(deployed.graph, coarse, grid)
    model = export_onnx(deployed.graph, coarse)
    paths = add_counters(model, deployed.graph)
    assert set(paths) == set(ours.by_path)
    names = [node.path for node in deployed.graph.network_inputs]
    found = session(model).run(
        [f"{path}{COUNTS}" for path in paths], dict(zip(names, grid, strict=True))
    )
    fired = [path for path in paths if ours.by_path[path].any()]
    assert len(fired) > 0.8 * len(paths)
    for path, theirs in zip(paths, found, strict=True):
        assert np.array_equal(theirs, ours.by_path[path]), path


# --- cost models --------------------------------------------------------------------------------


def test_golden_energies():
    """method §7: 29654M MAC -> 136.4 mJ; 37917M -> 174.4; 7414M adds -> 6.7; 5973M + 19M -> 5.5."""
    for additions, macs, expected in (
        (0, 29654e6, 136.4),
        (0, 37917e6, 174.4),
        (7414e6, 0, 6.7),
        (5973e6, 19e6, 5.5),
    ):
        operations = Operations(synops_by_rate=additions, macs=macs)
        found = arithmetic_pj(operations, cost_model("45nm")) / 1e9
        assert found == pytest.approx(expected, abs=0.05)


def test_every_model_of_the_box_has_a_source():
    found = cost_models()
    assert [model.name for model in found] == ["45nm", "memory", "loihi", "truenorth"]
    assert all(len(model.source) > 20 and len(model.about) > 10 for model in found)


def test_memory_traffic_by_hand():
    """A 3x3 convolution of 2 to 4 channels on 8x8, reading 100 spikes, without borders."""
    model = cost_model("memory")
    (layer,) = [
        one for one in layers(run_passes(FOLDING, calibrated("spikes")[0]).graph)
        if one.macs and not one.reads.multiplies
    ][:1]  # fmt: skip
    one = LayerOperations(
        layer, Operations(synops=3600.0), events=100.0, parameters=72, values=256, inputs=128,
        runs=4,
    )  # fmt: skip
    weight, membrane, fifo = 10 * 72 * 4 / 8192, 10 * 256 * 4 / 8192, 10 * 4000 / 8192
    expected = 3600 * (weight + 2 * membrane) + 100 * fifo + 3600 * 0.1 + 200 * 3.2
    found = energy([one], model)
    assert found.memory_mj * 1e9 == pytest.approx(expected)
    assert found.arithmetic_mj * 1e9 == pytest.approx(3600 * 0.1)


OWN = """
name = "mine"
about = "what my chip measures"
source = "my notebook"
[energy_pj]
synop = 2.0
mac = 5.0
"""


def test_a_users_own_model(tmp_path, run):
    (tmp_path / "mine.toml").write_text(OWN)
    code, out, _ = run("report", "fashion_small", "--cost-model", "mine.toml", "--json")
    assert code == 0
    report = json.loads(out)
    did = report["operations"]
    expected = (2.0 * did["synops"] + 5.0 * did["macs_exact"]) / 1e9
    assert report["energy"] == {"mine": pytest.approx(expected)}
    assert "my notebook" in (tmp_path / "fashion_small" / "report.html").read_text()


@pytest.mark.parametrize(
    ("millijoules", "shown"),
    [(1550.0, "1.55 J"), (7.14, "7.14 mJ"), (0.02, "20 µJ"), (4e-9, "4 pJ")],
)
def test_energy_is_shown_in_the_unit_that_suits_it(millijoules, shown):
    assert shown_energy(millijoules) == shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("synop = 2.0", "synop = -2.0"), "energy_pj.synop: found -2.0, expected .*greater than"),
        (("synop = 2.0", "synops = 2.0"), "found an unknown setting.*did you mean 'synop'"),
        (('source = "my notebook"', ""), "source: found nothing"),
        (('name = "mine"', 'name = "mine'), "found no readable TOML"),
        (("mac = 5.0", 'mac = "cheap"'), "energy_pj.mac: found 'cheap'"),
        (("mac = 5.0", "mac = inf"), "energy_pj.mac: found inf"),
        (("mac = 5.0", "mac = true"), "energy_pj.mac: found True"),
    ],
)
def test_bad_cost_models_are_explained(tmp_path, run, change, message):
    (tmp_path / "mine.toml").write_text(OWN.replace(*change))
    with pytest.raises(SnnirError, match=f"mine.toml.*{message}"):
        cost_model(str(tmp_path / "mine.toml"))
    code, out, err = run("report", "fashion_small", "--cost-model", "mine.toml")
    assert (code, out) == (2, "")
    assert "mine.toml" in err
    assert not (tmp_path / "fashion_small").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cost-model", "45mm"), "expected one of 45nm, .*did you mean '45nm'"),
        (("--cost-model", "nowhere.toml"), "nowhere.toml: found no readable file"),
        (("--cost-model", "45nm", "--cost-model", "45nm"), "two models of one name"),
        (("--data", "cifar10:nowhere"), "nowhere"),
        (("--data", "digits"), r"expected|found"),
        (("--weights", "a", "--weights", "b"), "found 2, expected one for each of 1"),
        (("--limit-test", "3"), "--limit-test: found no --data, expected test samples"),
        (("--runtime", "onnx"), "--runtime: found no --data, expected test samples"),
        (("-o", "/dev/null/out"), "/dev/null/out: found no writable folder, expected one: "),
        (("--csv", "/dev/null/x.csv"), "/dev/null: found no writable folder, expected one: "),
    ],
)
def test_bad_input_to_report(tmp_path, run, arguments, message):
    code, out, err = run("report", "fashion_small", *arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert not (tmp_path / "fashion_small").exists()


# --- side by side -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports():
    network = small(
        """
input x: frame[1, 8, 8]
steps 2
neuron lif
cell c(prev_prev, prev) { n = conv3x3(prev) + conv3x3(prev_prev) }
backbone b(x) { stem conv3x3(4)  layers channels=4 { c@0 c@1 } }
head classify(b, classes=3)
"""
    )
    other = retarget(network, ["steps=3"])
    return [snnir.compile(network).report, snnir.compile(other).report]


def test_a_comparison_has_every_layer_and_the_difference(reports):
    found = compare(reports)
    assert found["networks"] == ["small (1)", "small (2)"]
    totals = {row["name"]: row for row in found["totals"]}
    assert totals["steps"]["values"] == [2, 3]
    assert totals["steps"]["difference"] == 1
    synops = totals["sample_synops"]
    assert synops["difference"] == synops["values"][1] - synops["values"][0] != 0
    by_path = {layer["path"]: layer for layer in found["layers"]}
    layer = by_path["b.layers.1.n.prev.conv"]
    a, b = layer["values"]["sample_synops"]
    assert layer["difference"]["sample_synops"] == b - a
    assert sum(
        own["values"]["sample_synops"][0] or 0
        for own in by_path.values()
        if "sample_synops" in own["values"]
    ) == pytest.approx(synops["values"][0])


def test_csv_has_a_line_per_layer(reports):
    rows = list(csv.DictReader(to_csv(reports).splitlines()))
    assert len(rows) == sum(len(report["layers"]) for report in reports)
    synops = [float(r["sample_synops"]) for r in rows if r["network"] == "small (2)"
              and r["sample_synops"]]  # fmt: skip
    assert sum(synops) == pytest.approx(reports[1]["operations"]["synops"])


WEE = """snn 1
network wee
input x: frame[1, 8, 8]
steps 2
neuron lif
backbone b(x) { stem conv3x3(4) }
head classify(b, classes=10)
"""


def test_two_networks_on_the_command_line(tmp_path, run):
    (tmp_path / "wee.snn").write_text(WEE)
    (tmp_path / "larger.snn").write_text(WEE.replace("(4)", "(8)").replace("wee", "larger"))
    code, out, _ = run(
        "report", "wee.snn", "larger.snn", "--data", "digits", "--limit-test", "50",
        "--csv", "all.csv",
    )  # fmt: skip
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    for name in ("compare.json", "compare.html", "wee/report.html", "larger/report.json"):
        assert (tmp_path / "report" / name).exists()
    assert (tmp_path / "all.csv").read_text().startswith("network,path,op,")
    code, out, _ = run("report", "wee.snn", "larger.snn", "--json")
    found = json.loads(out)
    assert found["networks"] == ["wee", "larger"]
    assert len(found["reports"]) == 2


def test_a_report_on_data_through_both_runtimes(tmp_path, run):
    (tmp_path / "wee.snn").write_text(WEE)
    found = {}
    for runtime in ("torch", "onnx"):
        code, out, _ = run("report", "wee.snn", "--data", "digits", "--runtime", runtime, "--json")
        assert code == 0
        found[runtime] = json.loads(out)
    ours, theirs = found["torch"], found["onnx"]
    assert ours["measured_samples"] == theirs["measured_samples"] > 300
    assert theirs["operations"]["synops"] == pytest.approx(ours["operations"]["synops"], rel=1e-3)
    assert ours["firing_rate"] > 0.02


def test_a_runs_folder_is_reported_where_it_lies(tmp_path, run):
    (tmp_path / "wee.snn").write_text(WEE)
    code, _, _ = run(
        "train", "wee.snn", "--data", "digits", "--epochs", "2", "--limit-train", "200",
        "--limit-test", "50", "--batch-size", "50", "-o", "run",
    )  # fmt: skip
    assert code == 0
    first = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Training</h2>" in first
    code, out, _ = run("report", "run", "--data", "digits", "--limit-test", "50", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["weights"]["source"] == "best.safetensors"
    assert report["measures"]["accuracy"] == report["accuracy"] > 0
    assert "<h2>Training</h2>" in (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "log.jsonl").write_text("no json")
    code, _, err = run("report", "run", "--data", "digits")
    assert code == 2
    assert "log.jsonl:1: found 'no json', expected the record of an epoch" in err


def test_names_are_text_and_no_markup(tmp_path, run):
    (tmp_path / "wee.snn").write_text(WEE)
    (tmp_path / "mine.toml").write_text(OWN.replace('"mine"', '"[/red]mine"'))
    code, out, err = run("report", "wee.snn", "--cost-model", "mine.toml", "-o", "a[b]c")
    assert (code, "Traceback" in err) == (0, False)
    assert "a[b]c/report.html" in out
    assert "[/red]mine" in out


def test_other_weights_leave_a_runs_report_alone(tmp_path, run):
    (tmp_path / "wee.snn").write_text(WEE)
    train = ("train", "wee.snn", "--data", "digits", "--epochs", "1", "--limit-train", "100")
    assert run(*train, "--batch-size", "50", "--limit-test", "50", "-o", "run")[0] == 0
    before = (tmp_path / "run" / "report.html").read_bytes()
    assert run("report", "run", "--set", "steps=3")[0] == 0
    assert (tmp_path / "run" / "report.html").read_bytes() == before
    assert "<h2>Training</h2>" not in (tmp_path / "wee" / "report.html").read_text()


def test_a_failed_proof_is_reported_and_exits_with_1(tmp_path, run, monkeypatch):
    from snnir import deployment

    honest = deployment.export_onnx

    def corrupted(graph, weights, *, form):
        wrong = {name: array * np.float32(1.01) for name, array in weights.items()}
        return honest(graph, wrong, form=form)

    monkeypatch.setattr(deployment, "export_onnx", corrupted)
    (tmp_path / "wee.snn").write_text(WEE)
    code, out, err = run("report", "wee.snn")
    assert code == 1
    assert "NOT PROVED" in out
    assert "the proof failed" in err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 1, 8, 8), np.nan, np.float32), "NaN or infinity"),
        (np.full((2, 1, 8, 8), "x"), "values of <U1"),
        (np.zeros((2, 1, 8, 8), complex), "values of complex128"),
    ],
)
def test_inputs_that_are_no_finite_numbers_are_refused(tmp_path, run, array, message):
    (tmp_path / "wee.snn").write_text(WEE)
    np.savez(tmp_path / "x.npz", x=array)
    code, _, err = run("compile", "wee.snn", "--inputs", "x.npz", "-o", "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_many_steps_are_proved(tmp_path, run):
    (tmp_path / "wee.snn").write_text(WEE.replace("steps 2", "steps 300"))
    assert run("compile", "wee.snn", "-o", "out")[0] == 0


# --- the page -----------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("page", ["report.html", "compare.html"])
def test_the_page_opens_without_a_complaint(tmp_path, run, page):
    """Tables sort, no error is logged, nothing is fetched."""
    if page == "report.html":
        assert run("report", "fashion_small", "-o", "out")[0] == 0
    else:
        names = ("fashion_small", "fashion_small")
        assert run("report", *names, "-o", "out")[0] == 0
    html = (tmp_path / "out" / page).read_text()
    for outside in ("http://", "https://", "src="):
        assert outside not in html.replace("http://www.w3.org/2000/svg", "")
    probe = """
<script>
window.onerror = message => document.title = "ERROR " + message;
const click = document.querySelector("table.sortable th button"); click.click();
const first = document.querySelector("table.sortable tbody tr code").textContent;
click.click();
const last = document.querySelector("table.sortable tbody tr code").textContent;
document.title = first !== last ? "SORTED" : "NOT SORTED " + first;
</script>
</body>"""
    probed = tmp_path / "probed.html"
    probed.write_text(html.replace("</body>", probe))
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
            "--virtual-time-budget=2000", "--dump-dom", f"file://{probed}",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "<title>SORTED</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_the_cost_models_are_plain_data():
    from importlib import resources

    folder = resources.files("snnir.analysis") / "cost_models"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["45nm.toml", "loihi.toml", "memory.toml", "truenorth.toml"]
    for name in names:
        assert tomllib.loads((folder / name).read_text("utf-8"))["name"] + ".toml" == name
