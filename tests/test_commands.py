"""The commands as a user types them: files, keys, exit codes, bad input."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import GENOTYPES, as_float64, calibrated, genotype
from onnx import numpy_helper

import snnir
from snnir import models
from snnir.compiler import compile_network
from snnir.errors import SnnirError
from snnir.ir.serialize import read_graph
from snnir.weights import read_weights, weights_bytes

FILES = {
    "network.onnx",
    "graph.json",
    "graph.safetensors",
    "weights.safetensors",
    "report.json",
    "report.html",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """fashion_small compiled once on real images."""
    folder = tmp_path_factory.mktemp("compiled") / "out"
    images, _ = models.fashion_mnist_sample()
    return snnir.compile("fashion_small", folder, inputs=[images]), folder


# --- compile ----------------------------------------------------------------------------------


def test_compile_writes_what_it_promises(compiled):
    result, folder = compiled
    assert {path.name for path in folder.iterdir()} == FILES
    assert result.passed
    report = json.loads((folder / "report.json").read_text())
    for key in ("parameters", "steps", "layers", "macs", "spike_pure", "violations", "energy"):
        assert key in report, key
    assert {"path", "op", "shape", "macs", "domain"} <= set(report["layers"][0])
    assert {"max_abs_diff", "spike_mismatch_rate", "samples"} <= set(report["parity"])
    assert report["parameters"] == 128_142
    assert report["steps"] == 4
    assert report["macs"] == sum(layer["macs"] for layer in report["layers"])
    assert report["spike_pure"] is True
    assert report["violations"] == []
    assert 0 < report["energy"]["45nm"] < 1
    assert report["silent"] == []
    assert all(layer["firing_rate"] > 0.005 for layer in report["parity"]["layers"])
    assert report["parity"]["folding"]["spike_mismatches"] == 0


def test_the_energy_is_the_papers_formula(compiled):
    """fr·T·A additions at 0.9 pJ, the encoder once at 4.6 pJ per MAC (method §7)."""
    report = compiled[0].report
    encoder = next(layer for layer in report["layers"] if layer["path"] == "trunk.stem.0.conv")
    assert encoder["runs_per_sample"] == 1
    assert encoder["reads"] == "real"
    additions = sum(
        layer["macs"] * layer["input_rate"] * 4
        for layer in report["layers"]
        if "input_rate" in layer
    )
    expected = (additions * 0.9 + encoder["macs"] * 4.6) / 1e9
    assert report["energy"]["45nm"] == pytest.approx(expected)


def test_the_written_parts_fit_together(compiled):
    result, folder = compiled
    graph = read_graph(folder / "graph.json")
    assert graph == result.graph
    folded = read_weights(folder / "graph.safetensors", graph)
    images, _ = models.fashion_mnist_sample()
    x = torch.from_numpy(images[:50])
    module = snnir.load("fashion_small", folder / "weights.safetensors").double().eval()
    again = snnir.lower.SpikingModule(graph, as_float64(folded)).eval()
    with torch.no_grad():
        difference = (module(x.double()) - again(x.double())).abs()
    # weights were folded in fp32, so a spike may flip here and there, but no class may
    assert float(difference.median()) < 1e-3
    run = onnxruntime.InferenceSession(str(folder / "network.onnx"))
    (logits,) = run.run(None, {"image": images[:50]})
    assert (logits.argmax(1) == module(x.double()).detach().numpy().argmax(1)).mean() > 0.95


def test_compiling_again_gives_the_same_bytes(compiled, tmp_path):
    _, folder = compiled
    images, _ = models.fashion_mnist_sample()
    snnir.compile("fashion_small", tmp_path, inputs=[images])
    for name in ("graph.json", "weights.safetensors", "network.onnx"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_compile_command_says_that_the_weights_are_not_trained(run, tmp_path):
    code, out, err = run("compile", GENOTYPES / "hybrid.snn", "--seed", "3")
    assert code == 0
    assert "no weights given: seeded ones (seed 3)" in err
    assert "seeded, calibrated" in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("  page"))
    assert {path.name for path in (tmp_path / "hybrid").iterdir()} == FILES
    assert "Not a trained network" in (tmp_path / "hybrid" / "report.html").read_text()


def test_compile_with_weights_and_inputs_in_step_form(run, tmp_path):
    _, weights, inputs = calibrated("hybrid")
    (tmp_path / "w.safetensors").write_bytes(weights_bytes(weights))
    np.savez(tmp_path / "x.npz", image=inputs[0])
    code, out, err = run(
        "compile", GENOTYPES / "hybrid.snn", "-o", "out", "--weights", "w.safetensors",
        "--inputs", "x.npz", "--form", "step", "--json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["weights"]["source"] == "w.safetensors"
    assert report["weights"]["seed"] is None
    assert report["parity"]["form"] == "step"
    stored = read_weights(tmp_path / "out" / "weights.safetensors")
    assert all(np.array_equal(stored[name], weights[name]) for name in weights)
    assert "Not a trained network" not in (tmp_path / "out" / "report.html").read_text()


def test_a_failed_proof_exits_with_1_and_marks_the_model(run, tmp_path, monkeypatch):
    from snnir import deployment

    honest = deployment.export_onnx

    def corrupted(graph, weights, *, form):
        model = honest(graph, weights, form=form)
        weight = next(i for i in model.graph.initializer if i.name.endswith("head.linear.weight"))
        array = numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
        return model

    code, _, _ = run("compile", GENOTYPES / "hybrid.snn", "-o", "out")
    assert code == 0
    monkeypatch.setattr(deployment, "export_onnx", corrupted)
    code, out, err = run("compile", GENOTYPES / "hybrid.snn", "-o", "out")
    assert code == 1
    assert "NOT PROVED" in out
    assert "the proof failed" in err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "network.unproven.onnx" in names
    assert "network.onnx" not in names
    assert json.loads((tmp_path / "out" / "report.json").read_text())["parity"]["passed"] is False
    assert "NOT PROVED" in (tmp_path / "out" / "report.html").read_text()


def test_silent_layers_are_named_not_hidden(run, tmp_path):
    """Weights that never fire make every comparison empty: the report says so."""
    _, weights, _ = calibrated("hybrid")
    quiet = {k: np.full_like(v, -9) if k.endswith("bn.bias") else v for k, v in weights.items()}
    (tmp_path / "w.safetensors").write_bytes(weights_bytes(quiet))
    code, out, _ = run(
        "compile", GENOTYPES / "hybrid.snn", "-o", "out", "--weights", "w.safetensors"
    )
    assert code == 0
    assert "silent layer, so nothing is proved about it: trunk.layers.0.n0.neuron" in out
    assert "Silent layers" in (tmp_path / "out" / "report.html").read_text()


def test_a_hybrid_network_reports_its_violations(run):
    text = (
        (GENOTYPES / "hybrid.snn")
        .read_text()
        .replace("layers[2].n1  neuron", "layers[0].n0  neuron")
    )
    Path("relu.snn").write_text(text.replace("trunk.layers[0].n0  tau=0.35\n", "\n"))
    code, out, _ = run("compile", "relu.snn", "-o", "out", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["spike_pure"] is False
    assert "trunk.layers.0.n1.n0.conv" in {v["path"] for v in report["violations"]}
    _, out, _ = run("check", "relu.snn")
    assert "not purely spiking" in out
    assert "trunk.layers.0.n1.n0.conv reads real values from trunk.layers.0.n0.neuron" in out


# --- the other commands -----------------------------------------------------------------------


def test_check_counts(run):
    code, out, _ = run("check", "spikedhs_cla")
    assert code == 0
    assert "14,293,758 parameters" in out
    assert "1,999,951,488 MACs" in out
    code, out, _ = run("check", "stereo_space", "--json")
    assert json.loads(out)["searchable"] is True


def test_fmt_writes_checks_and_keeps_the_mode(run, tmp_path):
    path = tmp_path / "a.snn"
    path.write_text(
        "snn 1\nnetwork   a\ninput x:frame[1,4,4]\n"
        "backbone t(x){stem conv3x3(2)}\nhead classify(t,classes=2)\n"
    )
    path.chmod(0o640)
    assert run("fmt", path, "--check")[0] == 1
    assert "network   a" in path.read_text()
    assert run("fmt", path)[0] == 0
    assert "network a" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert run("fmt", path, "--check")[0] == 0


def test_fmt_changes_nothing_when_one_file_is_wrong(run, tmp_path):
    good, bad = tmp_path / "good.snn", tmp_path / "bad.snn"
    good.write_text((GENOTYPES / "hybrid.snn").read_text().replace("steps 4", "steps   4"))
    bad.write_text("snn 1\nnetwork x y")
    before = good.read_text()
    code, _, err = run("fmt", good, bad)
    assert code == 2
    assert "bad.snn:2:12: found end of file" in err
    assert good.read_text() == before


@pytest.mark.parametrize("name", sorted(path.stem for path in GENOTYPES.glob("*.snn")))
def test_draw_makes_a_well_formed_picture(run, tmp_path, name):
    code, _out, _ = run("draw", GENOTYPES / f"{name}.snn", "-o", "picture.svg")
    assert code == 0
    root = ET.fromstring((tmp_path / "picture.svg").read_text())
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for cell in genotype(name).cells.values():
        assert f"cell {cell.name}({', '.join(cell.states)})" in texts
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.get("x", 0)) + float(box.get("width")) <= width + 0.5
        assert float(box.get("y", 0)) + float(box.get("height")) <= height + 0.5


def test_models_lists_the_box(run):
    code, out, _ = run("models", "--json")
    assert code == 0
    listed = {m["name"]: m for m in json.loads(out)["models"]}
    assert set(listed) == {
        "cifar_space", "cifar_two_cell_space", "fashion_searched", "fashion_small",
        "fashion_space", "spikedhs_cla", "spikedhs_cla_large", "spikedhs_stereo",
        "stereo_space",
    }  # fmt: skip
    assert listed["spikedhs_stereo"]["parameters"] == 868_824
    assert listed["stereo_space"]["searchable"] is True
    code, out, _ = run("models")
    assert "14,293,758 parameters" in out


def test_the_large_model_is_nearest_to_58_million():
    """No other width of the same layout comes nearer to the paper's 58M."""
    from snnir.analysis.counts import parameter_count
    from snnir.genotype import parse
    from snnir.ir import build

    text = models.source("spikedhs_cla_large").text

    def count(channels):
        changed = text.replace("channels=48", f"channels={channels}")
        changed = changed.replace("conv3x3(144,", f"conv3x3({3 * channels},")
        return parameter_count(
            build(parse(changed.replace("conv3x3(72,", f"conv3x3({3 * channels // 2},")))
        )

    assert count(48) == 58_186_776
    assert min(range(44, 53), key=lambda c: abs(count(c) - 58e6)) == 48


def test_every_model_of_the_box_is_formatted_and_commented():
    from snnir.genotype import format_source

    for name in models.names():
        source = models.source(name)
        assert format_source(source) == source.text, name
        assert source.text.startswith("#"), name


def test_version_and_help(run):
    assert run("--version")[1] == f"snnir {snnir.__version__}\n"
    code, out, _ = run("compile", "--help")
    assert code == 0
    assert "network.unproven.onnx" in out


# --- the page ---------------------------------------------------------------------------------


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found += [v for k, v in attrs if k in ("src", "href", "action") and v]
        if tag not in ("meta", "link", "br", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_page_needs_no_network_and_shows_the_numbers(compiled):
    _, folder = compiled
    page = (folder / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert links.open == []
    assert [link for link in links.found if not link.startswith("data:")] == []
    assert "url(" not in page
    assert "@import" not in page
    for text in ("128,142", "purely spiking", "proved", "trunk.layers.3.n2.neuron", "<svg"):
        assert text in page


def test_the_page_escapes_what_users_wrote(tmp_path):
    result = compile_network(genotype("spikes"))
    result.write(tmp_path, command="snnir compile '<script>alert(1)</script>'")
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


# --- bad input: exit 2, a message with a place, nothing written -------------------------------


def good_text():
    return (GENOTYPES / "hybrid.snn").read_text()


def write(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


BAD = {
    "a missing file": (lambda: None, ["missing.snn"], r"missing\.snn: no such file"),
    "a folder": (lambda: Path("f.snn").mkdir(), ["f.snn"], r"f\.snn: cannot be read"),
    "an unknown model": (lambda: None, ["fashion_smal"], "did you mean 'fashion_small'"),
    "an empty file": (lambda: write("f.snn", ""), ["f.snn"], r"f\.snn:1:1: found end of file"),
    "a binary file": (
        lambda: write("f.snn", b"\x89PNG\r\n\0"),
        ["f.snn"],
        r"f\.snn:1: found byte 0x89",
    ),
    "a syntax error": (
        lambda: write("f.snn", good_text().replace("network hybrid", "network")),
        ["f.snn"],
        r"f\.snn:\d+:\d+: found",
    ),
    "an unknown annotation path": (
        lambda: write("f.snn", good_text().replace("layers[2].n1", "layers[9].n1")),
        ["f.snn"],
        r"f\.snn:31:3: found 'trunk\.layers\[9\]\.n1'",
    ),
    "a cycle": (
        lambda: write("f.snn", good_text().replace("skip(n0)", "skip(n1)")),
        ["f.snn"],
        r"f\.snn:17:24: found 'n1' reading itself",
    ),
    "a level below one pixel": (
        lambda: write("f.snn", good_text().replace("28, 28", "1, 1")),
        ["f.snn"],
        r"f\.snn:22:32: found level 1, which halves a side of one pixel",
    ),
    "a huge integer": (
        lambda: write("f.snn", good_text().replace("steps 4", "steps 99999999999999999999")),
        ["f.snn"],
        r"f\.snn:6:7: found 99999999999999999999, expected a whole",
    ),
    "a search space": (lambda: None, ["cifar_space"], "a search space is to be decoded first"),
    "missing weights": (
        lambda: None,
        ["fashion_small", "--weights", "no.safetensors"],
        "no such weights file",
    ),
    "weights that are none": (
        lambda: write("w.safetensors", b"\x80\x04pickled"),
        ["fashion_small", "--weights", "w.safetensors"],
        "found no readable safetensors file",
    ),
    "truncated weights": (
        lambda: write("w.safetensors", weights_bytes(calibrated("hybrid")[1])[:-100]),
        ["fashion_small", "--weights", "w.safetensors"],
        "found no readable safetensors file",
    ),
    "weights of another network": (
        lambda: write("w.safetensors", weights_bytes(calibrated("hybrid")[1])),
        ["fashion_small", "--weights", "w.safetensors"],
        "not weights of network 'fashion_small'",
    ),
    "weights of another shape": (
        lambda: write(
            "w.safetensors",
            weights_bytes(
                {
                    k: v[:-1] if k == "head.linear.bias" else v
                    for k, v in calibrated("hybrid")[1].items()
                }
            ),
        ),
        [str(GENOTYPES / "hybrid.snn"), "--weights", "w.safetensors"],
        r"head\.linear\.bias: found shape \(9,\), expected \(10,\)",
    ),
    "weights with NaN": (
        lambda: write(
            "w.safetensors",
            weights_bytes(
                {
                    k: v * np.nan if k == "head.linear.bias" else v
                    for k, v in calibrated("hybrid")[1].items()
                }
            ),
        ),
        [str(GENOTYPES / "hybrid.snn"), "--weights", "w.safetensors"],
        "found NaN or infinity",
    ),
    "inputs that are none": (
        lambda: write("x.npz", b"no zip"),
        ["fashion_small", "--inputs", "x.npz"],
        "no readable .npz",
    ),
    "inputs of another name": (
        lambda: np.savez("x.npz", img=np.zeros((1, 1, 28, 28))),
        ["fashion_small", "--inputs", "x.npz"],
        "found arrays img, expected image",
    ),
    "inputs of another shape": (
        lambda: np.savez("x.npz", image=np.zeros((2, 3, 28, 28))),
        ["fashion_small", "--inputs", "x.npz"],
        r"found shape \[2, 3, 28, 28\]",
    ),
    "no inputs": (
        lambda: np.savez("x.npz", image=np.zeros((0, 1, 28, 28))),
        ["fashion_small", "--inputs", "x.npz"],
        r"found shape \[0, 1, 28, 28\]",
    ),
    "a file for a folder": (
        lambda: write("file", "x"),
        ["fashion_small", "-o", "file/out"],
        "found no writable folder",
    ),
    "a name that no file can have": (
        lambda: None,
        ["fashion_small", "-o", "a" * 300],
        "found no writable folder, expected one: File name too long",
    ),
    "a link to nowhere for a folder": (
        lambda: Path("out").symlink_to("nowhere"),
        ["fashion_small", "-o", "out"],
        "found no writable folder",
    ),
    "a network larger than an ONNX file": (
        lambda: write("f.snn", good_text().replace("channels=8", "channels=9000")),
        ["f.snn"],
        r"network 'hybrid': found [\d.]+ GiB of weights, expected at most 2\.0 GiB",
    ),
    "a network larger than memory": (
        lambda: write("f.snn", good_text().replace("28, 28", "28000, 28000")),
        ["f.snn"],
        r"f\.snn:\d+:\d+: trunk\.stem\.0\.conv: found \d+\.\d GiB for one sample",
    ),
    "a layer that nothing can make fire": (
        lambda: write(
            "f.snn",
            "snn 1\nnetwork f\ninput x: events[3, 8, 8]\nhead classify(x, classes=3)\n",
        ),
        ["f.snn"],
        r"head\.neuron: found a layer that seeded weights cannot make fire",
    ),
    "an unknown form": (lambda: None, ["fashion_small", "--form", "loop"], "sequence"),
    "a negative seed": (
        lambda: None,
        ["fashion_small", "--seed", "-1"],
        "greater than or equal to 0",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_to_compile(run, tmp_path, what):
    prepare, arguments, message = BAD[what]
    prepare()
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = run("compile", *arguments)
    assert code == 2
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_unwritable_folder_keeps_what_was_there(run, tmp_path, monkeypatch):
    """Nothing half-written: a failure while writing leaves the old files alone."""
    code, _, _ = run("compile", GENOTYPES / "spikes.snn", "-o", "out")
    assert code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    original = Path.write_bytes

    def full_disk(self, data):
        if self.name == "report.html":
            raise OSError(28, "No space left on device")
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    code, _, err = run("compile", GENOTYPES / "spikes.snn", "-o", "out", "--seed", "9")
    assert code == 2
    assert "cannot be written: No space left on device" in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = run("compile", "fashion_small", "-o", "locked/out")
    assert code == 2
    assert "found no writable folder" in err


def test_interruption_exits_with_130(run, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("snnir.models.resolve", interrupted)
    assert run("check", "fashion_small")[0] == 130


# --- Python -----------------------------------------------------------------------------------


def test_the_python_interface(tmp_path):
    module = snnir.load("fashion_small")
    assert module(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    g = snnir.parse((GENOTYPES / "hybrid.snn").read_text(), "hybrid.snn")
    assert snnir.load(g)(torch.rand(4, 2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(SnnirError, match=r"text\.snn:1:1"):
        snnir.parse("nothing", "text.snn")
    assert torch.equal(
        snnir.load(g, seed=4).parameter("head.linear.weight"),
        snnir.load(g, seed=4).parameter("head.linear.weight"),
    )
    assert models.load("fashion_small").name == "fashion_small"


def test_check_and_fmt_never_load_torch(tmp_path):
    path = tmp_path / "a.snn"
    path.write_text(good_text())
    for command in (
        ["check", str(path)],
        ["fmt", str(path)],
        ["draw", str(path), "-o", str(tmp_path / "a.svg")],
    ):
        code = (
            "import sys; from snnir import cli; sys.argv = ['snnir', *sys.argv[1:]]\n"
            "try: cli.main()\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True)
