"""NIR: what is written, read back, equals the network; what cannot be said is named."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    GENOTYPES,
    as_float64,
    calibrated,
    genotype,
    run_recorded,
    small,
)

from snnir import models
from snnir.errors import SnnirError
from snnir.export.nir import DT, export_nir, nir_bytes, refuse_inexpressible
from snnir.export.nir_parity import check_nir
from snnir.export.refusal import ExportError
from snnir.importers.nir import read_nir
from snnir.ir import build
from snnir.ir.nodes import Concat, Conv, Resize
from snnir.lower import SpikingModule
from snnir.passes import (
    FOLDING,
    LEGALISING_FOR_NIR,
    NIR_DEPLOYMENT,
    ROUNDING_WITH_LEAKS,
    WHOLE_NUMBERS,
    run_passes,
)
from snnir.passes.quantise_images import eight_bit
from snnir.weights import read_weights

nir = pytest.importorskip("nir")
h5py = pytest.importorskip("h5py")

NETWORKS = ("fashion_small", "layered", "spikes")


def network(name):
    """A graph as built, weights and inputs."""
    if name == "fashion_small":
        graph = build(models.load(name))
        images, _ = models.fashion_mnist_sample()
        return graph, read_weights(models.trained_weights(name), graph), (images[:3],)
    return calibrated(name)


def exported(name, **options):
    graph, weights, inputs = network(name)
    legal = run_passes(NIR_DEPLOYMENT, graph, weights)
    folded = run_passes(FOLDING, graph, weights)
    return export_nir(legal.graph, legal.weights, **options), folded, inputs


def written(tmp_path, graph, name="network.nir") -> Path:
    path = tmp_path / name
    path.write_bytes(graph if isinstance(graph, bytes) else nir_bytes(graph))
    return path


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_read_back_is_the_network(name):
    """Every current, spike and output, end to end in float64; every layer fires."""
    model, folded, inputs = exported(name)
    parity = check_nir(model, folded.graph, folded.weights, inputs)
    assert parity.passed, parity.failures
    assert [layer.path for layer in parity.layers] == [n.path for n in folded.graph.neurons]
    assert parity.spikes_compared > 1000
    assert parity.spike_mismatch_rate == 0
    assert parity.max_abs_diff < 1e-9
    for layer in parity.layers:
        assert 0.005 < layer.firing_rate < 0.995, layer


def test_the_graph_has_the_shape_that_all_clients_take():
    model, folded, _ = exported("layered")
    kinds = {type(node).__name__ for node in model.nodes.values()}
    assert kinds == {"Input", "Conv2d", "CubaLIF", "AvgPool2d", "Flatten", "Affine", "Output"}
    assert len([edge for edge in model.edges if edge[1] == "logits"]) == 1
    readers = {source for source, _ in model.edges}
    assert readers == set(model.nodes) - {"logits"}  # no dead node, of which NIR makes outputs
    for path, node in model.nodes.items():
        if isinstance(node, nir.Conv2d):
            assert node.groups == 1
        if isinstance(node, nir.CubaLIF):
            shape = tuple(node.input_type["input"])
            assert all(getattr(node, f).shape == shape for f in ("tau_mem", "v_threshold")), path
    halved = model.nodes["trunk.layers.1.n0.prev_prev.conv"]
    assert (halved.stride, halved.dilation, halved.padding) == ((2, 2), (2, 2), (2, 2))
    assert any(isinstance(node, Concat) for node in folded.graph.nodes())
    assert any(isinstance(node, Resize) for node in folded.graph.nodes())


def test_one_part_of_a_split_convolution_has_the_bias():
    model, _, _ = exported("fashion_small")
    parts = [model.nodes[f"trunk.layers.2.n0.prev.conv.{number}"] for number in range(3)]
    assert [bool(np.abs(part.bias).max() > 0) for part in parts] == [True, False, False]
    edges = [edge for edge in model.edges if edge[1] == "trunk.layers.2.n0.neuron"]
    assert len(edges) == 6


def test_a_neuron_is_a_synapse_without_memory_and_its_threshold_is_the_clients():
    at, _, _ = exported("layered", client="spikingjelly")
    above, _, _ = exported("layered", client="snntorch")
    path = "trunk.layers.1.n0.neuron"
    neuron = at.nodes[path]
    assert {float(x) for x in neuron.tau_syn.flat} == {DT}
    assert 1 - DT / neuron.tau_mem[0, 0, 0] == pytest.approx(0.6, abs=1e-15)
    threshold = np.float32(0.7)
    assert np.float32(above.nodes[path].v_threshold[0, 0, 0]) == threshold
    assert np.float32(neuron.v_threshold[0, 0, 0]) == np.nextafter(threshold, np.float32(1))


def test_if_neurons_are_integrators(tmp_path):
    text = """
input image: frame[1, 6, 6]
steps 4
neuron if(v_threshold=1.5)
backbone trunk(image) { stem conv3x3(4) }
head classify(trunk, classes=3)
"""
    graph = build(small(text))
    legal = run_passes(NIR_DEPLOYMENT, graph, {})
    weights = SpikingModule(legal.graph, seed=1).weights()
    model = export_nir(legal.graph, weights)
    assert isinstance(model.nodes["trunk.stem.0.neuron"], nir.IF)
    read, read_weights = read_nir(written(tmp_path, model))
    x = (np.random.default_rng(0).random((3, 1, 6, 6)).astype(np.float32) * 6,)
    expected, spikes = run_recorded(legal.graph, as_float64(weights), x)
    found, found_spikes = run_recorded(read, as_float64(read_weights), x)
    assert torch.equal(found, expected)
    for path, fired in spikes.items():
        assert torch.equal(fired, found_spikes[path])
    assert 0.01 < spikes["trunk.stem.0.neuron"].mean() < 0.99


def test_export_is_deterministic_and_says_where_it_comes_from(tmp_path):
    model, folded, _ = exported("layered")
    assert nir_bytes(model) == nir_bytes(exported("layered")[0])
    metadata = nir.read(written(tmp_path, model)).metadata
    assert metadata["client"] == "spikingjelly"
    assert metadata["steps"] == folded.graph.steps
    assert metadata["genotype"] == folded.graph.source.text


CORRUPTIONS = {
    "a deep weight": ("trunk.layers.3.n1.n0.conv", "weight", 1.02),
    "a bias": ("trunk.layers.1.n0.prev_prev.conv", "bias", 1.1),
    "the readout": ("head.linear.1", "weight", 1.001),
    "a threshold": ("trunk.layers.1.n0.neuron", "v_threshold", 1.02),
    "a time constant": ("trunk.layers.0.n0.neuron", "tau_mem", 1.1),
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_a_corrupted_file_is_caught(what):
    model, folded, inputs = exported("layered")
    path, field, factor = CORRUPTIONS[what]
    setattr(model.nodes[path], field, getattr(model.nodes[path], field) * factor)
    assert not check_nir(model, folded.graph, folded.weights, inputs).passed


def test_a_lost_edge_is_caught():
    model, folded, inputs = exported("layered")
    model.edges.remove(("trunk.layers.0.n0.neuron", "trunk.layers.1.prev.resize.identity.0"))
    model.nodes["trunk.layers.1.prev.resize.identity.0"].input_type = None
    with pytest.raises(SnnirError, match=r"identity\.0 \(Conv2d\).*found 0 edges into it"):
        check_nir(model, folded.graph, folded.weights, inputs)
    model, folded, inputs = exported("layered")
    model.edges.remove(("trunk.layers.2.n0.prev.conv.0", "trunk.layers.2.n0.neuron"))
    assert not check_nir(model, folded.graph, folded.weights, inputs).passed


# --- what cannot be said ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hybrid", r"trunk\.layers\.0\.n1\.neuron \(neuron\).*no neuron 'alif'"),
        ("hybrid", r"trunk\.layers\.2\.n1\.neuron \(neuron\).*no neuron 'relu'"),
        ("menu", r"menu\.snn:11:32: trunk\.layers\.0\.n0\.prev\.pool \(pool\).*max pooling"),
        ("menu", r"nearest resizing from \(6, 6\) to \(3, 3\)"),
        ("small_stereo", r"right \(input\).*one input only"),
    ],
)
def test_nodes_without_a_nir_form_are_named(name, found):
    graph = run_passes(NIR_DEPLOYMENT, build(genotype(name))).graph
    with pytest.raises(ExportError, match=found):
        refuse_inexpressible(graph)


SIZES = """
input image: frame[1, {size}, {size}]
steps 2
cell c(a, b) {{ n0 = conv3x3(a) + conv3x3(b) }}
backbone trunk(image) {{ stem conv3x3(4) layers channels=4 {{ {cells} }} }}
head classify(trunk, classes=3)
"""


@pytest.mark.parametrize(
    ("size", "cells", "found"),
    [
        (7, "c@0 c@1", r"resizing from \(7, 7\) to \(4, 4\)"),
        (8, "c@0 c@1 c@0", r"resizing from \(4, 4\) to \(8, 8\)"),
    ],
)
def test_odd_and_upward_resizing_is_refused_before_anything_is_written(run, size, cells, found):
    text = SIZES.format(size=size, cells=cells)
    Path("f.snn").write_text(f"snn 1\nnetwork small\n{text}")
    code, _, err = run("compile", "f.snn", "--target", "nir", "-o", "out")
    assert code == 2
    assert "(resize) cannot be exported to NIR" in err
    assert found.replace("\\", "") in err
    assert not Path("out").exists()


def test_names_that_clients_cannot_tell_apart_are_refused():
    text = """
input image: frame[1, 4, 4]
steps 2
cell c(a, b) mix=spike { n0 = conv3x3(a)  n0_a = conv3x3(b) }
backbone trunk(image) { stem conv3x3(4) layers channels=4 { c@0 } }
head classify(trunk, classes=3)
"""
    graph = run_passes(NIR_DEPLOYMENT, build(small(text))).graph
    with pytest.raises(ExportError, match=r"n0_a\.neuron \(neuron\).*'trunk\.layers\.0\.n0\.a\."):
        refuse_inexpressible(graph)


def test_a_factor_of_four_is_said():
    graph = build(small(SIZES.format(size=8, cells="c@0 c@1 c@2")))
    legal = run_passes(NIR_DEPLOYMENT, graph).graph
    refuse_inexpressible(legal)
    strides = {conv.stride for conv in legal.of_type(Conv)}
    assert strides == {(1, 1), (2, 2), (4, 4)}


# --- the commands -------------------------------------------------------------------------------


def test_compile_for_nir_and_import_again(run, tmp_path):
    code, out, err = run("compile", GENOTYPES / "layered.snn", "--target", "nir", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["parity"]["passed"]
    assert report["parity"]["spike_mismatch_rate"] == 0
    assert report["target"] == "nir"
    folder = tmp_path / "layered"
    assert {"network.nir", "graph.json", "graph.safetensors", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert "NIR computes the torch network" in (folder / "report.html").read_text()
    code, out, err = run("import", "nir", folder / "network.nir", "-o", "again", "--json")
    assert code == 0, err
    imported = json.loads(out)
    assert imported["parity"]["passed"]
    assert imported["steps"] == 4
    assert all(layer["firing_rate"] > 0.005 for layer in imported["parity"]["layers"])
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "network.onnx", "graph.json", "graph.safetensors", "report.json",
    }  # fmt: skip


def test_compile_for_nir_in_exact_mode(run, tmp_path):
    command = (
        "compile", GENOTYPES / "layered.snn", "--set", "input=2x8x8",
        "--target", "nir", "--precision", "exact",
    )  # fmt: skip
    code, out, err = run(*command, "--json")
    assert code == 0, err
    assert "leak factor 0.2 is now 0.25" in err
    report = json.loads(out)
    assert report["certificate"]["holds"]
    assert report["certificate"]["ties"] == []
    assert report["certificate"]["steps"] == 4
    assert report["parity"]["passed"]
    assert report["parity"]["max_abs_diff"] == 0  # fp32 here, float64 from the file
    assert report["parity"]["end_to_end"]["mismatches"] == 0
    assert all(0.005 < layer["firing_rate"] < 0.995 for layer in report["parity"]["layers"])
    found = nir.read(tmp_path / "layered" / "network.nir")
    assert found.metadata["client"] == "any"
    assert not any("quantise" in path for path in found.nodes)
    page = (tmp_path / "layered" / "report.html").read_text()
    assert "half a step" in page


@pytest.mark.parametrize("what", ["a deep weight", "a threshold", "a time constant"])
def test_a_corrupted_exact_file_is_caught(what):
    graph, weights, inputs = calibrated("layered", 3, "input=2x8x8")
    passes = (*FOLDING, *WHOLE_NUMBERS, *ROUNDING_WITH_LEAKS)
    rounded = run_passes(passes, graph, weights)
    legal = run_passes(LEGALISING_FOR_NIR, rounded.graph, rounded.weights)
    images = [eight_bit(x) for x in inputs]
    fine = export_nir(legal.graph, legal.weights, client="any")
    arguments = (rounded.graph, rounded.weights, images)
    assert check_nir(fine, *arguments, dtype=torch.float32).passed
    path, field, factor = CORRUPTIONS[what]
    setattr(fine.nodes[path], field, getattr(fine.nodes[path], field) * factor)
    assert not check_nir(fine, *arguments, dtype=torch.float32).passed


def test_a_kernel_that_is_not_square_is_refused(run):
    """The pool over a map of 2x3 is a convolution in exact mode."""
    code, _, err = run(
        "compile", GENOTYPES / "layered.snn", "--target", "nir", "--precision", "exact", "-o", "out"
    )
    assert code == 2
    assert "head.pool.0 (conv) cannot be exported to NIR: a kernel of (2, 3), only square" in err
    assert not Path("out").exists()


def test_the_step_form_is_onnx_alone(run):
    code, _, err = run("compile", GENOTYPES / "layered.snn", "--target", "nir", "--form", "step")
    assert code == 2
    assert "found form 'step'" in err
    assert not Path("layered").exists()


def test_without_the_package_the_extra_is_named(monkeypatch):
    import sys

    graph, weights, _ = network("layered")
    legal = run_passes(NIR_DEPLOYMENT, graph, weights)
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(SnnirError, match=r"pip install 'snnir\[nir\]'"):
        export_nir(legal.graph, legal.weights)


# --- what is read -------------------------------------------------------------------------------


def chain(*nodes, shape=(2, 6, 6)):
    """A NIR graph of an input, nodes in a row and an output."""
    names = ["input", *(f"n{number}" for number in range(len(nodes))), "output"]
    ends = nir.Input(np.array(shape)), nir.Output(np.array([1]))
    every = dict(zip(names, [ends[0], *nodes, ends[1]], strict=True))
    return nir.NIRGraph(every, list(pairwise(names)), type_check=False)


def conv(**changes):
    node = nir.Conv2d(
        input_shape=(6, 6), weight=np.ones((3, 2, 3, 3), np.float32), bias=np.zeros(3, np.float32),
        stride=np.array([1, 1]), padding=np.array([1, 1]), dilation=np.array([1, 1]), groups=1,
    )  # fmt: skip
    for name, value in changes.items():  # which NIR's own checks would refuse
        setattr(node, name, value)
    return node


def lif(shape=(2, 6, 6), **changes):
    fields = {"tau": 2 * DT, "r": 2.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changes
    return nir.LIF(**{name: np.broadcast_to(x, shape).copy() for name, x in fields.items()})


def read(tmp_path, graph, **options):
    return read_nir(written(tmp_path, graph), **{"steps": 3, "client": "snntorch"} | options)


def test_gain_leak_and_threshold_of_a_lif(tmp_path):
    graph, _ = read(tmp_path, chain(lif(r=1.0)))  # SpikingJelly's decay_input: v += (x - v)/tau
    (neuron,) = graph.neurons
    assert (neuron.kind, neuron.tau, neuron.v_threshold) == ("lif", 0.5, 2.0)
    graph, _ = read(tmp_path, chain(lif()), client="spikingjelly")
    below = np.nextafter(np.float32(1), np.float32(0))
    assert graph.neurons[0].v_threshold == float(below)


def test_fp32_time_constants_stand_for_fp32_leaks(tmp_path):
    beta = np.float32(0.9)
    tau = (DT / (1 - np.full((2, 6, 6), beta))).astype(np.float32)
    graph, _ = read(tmp_path, chain(lif(tau=tau, r=tau / np.float32(DT))))
    assert graph.neurons[0].tau == float(beta)


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": np.array([2, 2]), "dilation": np.array([2, 2]), "padding": np.array([2, 2])},
        {"padding": "same", "dilation": np.array([2, 2])},
        {"padding": "valid", "stride": 2},
        {"groups": 2, "weight": np.ones((4, 1, 3, 3), np.float32), "bias": np.ones(4, np.float32)},
    ],
)
def test_convolutions_are_torchs(tmp_path, changes):
    node = conv(**changes)
    rng = np.random.default_rng(0)
    node.weight = rng.normal(size=node.weight.shape).astype(np.float32)
    graph, weights = read(tmp_path, chain(node))
    x = torch.from_numpy(rng.random((2, 2, 6, 6), dtype=np.float32))
    padding, stride, dilation = (
        x if isinstance(x, str) else tuple(np.broadcast_to(x, 2).tolist())
        for x in (node.padding, node.stride, node.dilation)
    )
    expected = torch.nn.functional.conv2d(
        x, torch.from_numpy(node.weight), torch.from_numpy(node.bias),
        stride, padding, dilation, node.groups,
    )  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(SpikingModule(graph, weights).eval()(x), expected)


def test_a_flat_input_is_a_map_of_single_pixels(tmp_path):
    weight = np.eye(5, 7, dtype=np.float32)
    graph, weights = read(tmp_path, chain(nir.Linear(weight=weight), shape=(7,)))
    x = torch.rand(2, 7, 1, 1)
    with torch.no_grad():
        found = SpikingModule(graph, weights).eval()(x)
    torch.testing.assert_close(found, x[:, :5, 0, 0])


SHAPE = (2, 6, 6)
REFUSED = {
    "a delay": (chain(nir.Delay(np.ones(SHAPE))), r"n0 \(Delay\) cannot be imported: expected"),
    "a subgraph": (chain(chain(lif())), r"n0 \(NIRGraph\)"),
    "a reset": (chain(lif(v_reset=0.1)), r"n0 \(LIF\).*v_reset other than 0"),
    "several taus": (
        chain(lif(tau=np.linspace(2, 3, 72).reshape(SHAPE) * DT)), r"n0 \(LIF\).*several values"
    ),
    "a short tau": (chain(lif(tau=DT / 2)), r"n0 \(LIF\).*at least a step"),
    "a bad threshold": (chain(lif(v_threshold=0.0)), r"n0 \(LIF\).*threshold of 0"),
    "no number": (chain(lif(r=np.nan)), r"n0 \(LIF\).*not finite"),
    "a slow synapse": (
        chain(
            nir.CubaLIF(
                **{k: np.full(SHAPE, 2 * DT) for k in ("tau_syn", "tau_mem")},
                **{k: np.ones(SHAPE) for k in ("r", "v_leak", "v_threshold")},
            )
        ),
        r"n0 \(CubaLIF\).*synapse that remembers",
    ),
    "another shape": (chain(lif((3, 6, 6))), r"n0 \(LIF\).*found tau of shape \(3, 6, 6\)|found r"),
    "uneven dilation": (chain(conv(dilation=np.array([1, 2]))), r"n0 \(Conv2d\).*dilation"),
    "a stride of 0": (chain(conv(stride=np.array([0, 1]))), r"n0 \(Conv2d\).*whole numbers from 1"),
    "other channels": (chain(conv(), conv()), r"n1 \(Conv2d\).*found 3 channels, expected 2"),
    "a part flattened": (
        chain(nir.Flatten({"input": np.array(SHAPE)}, 1, -1)), r"n0 \(Flatten\).*expected all 3"
    ),
    "a matrix on maps": (
        chain(nir.Linear(np.ones((2, 72), np.float32))), r"n0 \(Linear\).*found shape \(2, 6, 6\)"
    ),
    "a long bias": (chain(conv(bias=np.zeros(4, np.float32))), r"n0\.bias: found shape \(4,\)"),
    "NaN": (chain(conv(bias=np.full(3, np.nan, np.float32))), r"n0\.bias: found NaN"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_beyond_us_is_refused_by_node(tmp_path, what):
    graph, message = REFUSED[what]
    with pytest.raises(SnnirError, match=message):
        read(tmp_path, graph)


def test_recurrence_is_refused_by_node(tmp_path):
    graph = chain(conv(weight=np.ones((2, 2, 3, 3), np.float32), bias=np.zeros(2)), lif())
    graph.edges.append(("n1", "n0"))
    with pytest.raises(SnnirError, match=r"n[01] \(.*\) cannot be imported: found a recurrent"):
        read(tmp_path, graph)


def test_names_that_no_module_can_have_are_refused(tmp_path):
    graph = chain(conv())
    graph.nodes = {"forward" if name == "n0" else name: n for name, n in graph.nodes.items()}
    graph.edges = [("input", "forward"), ("forward", "output")]
    with pytest.raises(SnnirError, match=r"node name that no module can have.*forward"):
        read(tmp_path, graph)


def test_steps_and_client_are_needed_where_the_file_has_none(tmp_path):
    path = written(tmp_path, chain(lif()))
    with pytest.raises(SnnirError, match="no number of steps"):
        read_nir(path, client="snntorch")
    with pytest.raises(SnnirError, match=r"no client.*spikingjelly"):
        read_nir(path, steps=3)


# --- files that cannot be trusted ---------------------------------------------------------------


def test_files_that_are_no_nir_are_refused(run, tmp_path):
    whole = nir_bytes(chain(lif()))
    files = {
        "short.nir": whole[: len(whole) // 2],
        "text.nir": b"not HDF5",
        "empty.nir": b"",
    }
    for name, content in files.items():
        written(tmp_path, content, name)
        code, _, err = run("import", "nir", name, "--steps", "2", "--client", "norse", "-o", "out")
        assert code == 2
        assert f"{name}: found no readable HDF5 file" in err
    with h5py.File(tmp_path / "other.nir", "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(SnnirError, match="without a NIRGraph"):
        read_nir(tmp_path / "other.nir", steps=1, client="norse")
    with pytest.raises(SnnirError, match="no such file"):
        read_nir(tmp_path / "missing.nir", steps=1, client="norse")
    assert not Path("out").exists()


def changed(tmp_path, change) -> Path:
    path = written(tmp_path, chain(lif()))
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def point_outside(file):
    (outside := Path(file.filename).with_name("outside.h5")).unlink(missing_ok=True)
    with h5py.File(outside, "w") as other:
        other["tau"] = np.full((2, 6, 6), 2e-4)
    del file["node/nodes/n0/tau"]
    file["node/nodes/n0/tau"] = h5py.ExternalLink(outside.name, "tau")


def read_a_raw_file(file):
    raw = Path(file.filename).with_name("raw.bin")
    raw.write_bytes(bytes(8 * 72))
    del file["node/nodes/n0/tau"]
    file.create_dataset(
        "node/nodes/n0/tau", (2, 6, 6), "f8", external=[(str(raw), 0, h5py.h5f.UNLIMITED)]
    )


def grow(file):
    file.create_dataset("node/nodes/n0/bomb", (2**40,), "u1", chunks=(2**20,), compression=9)


def loop(file):
    file["node/nodes/n0/again"] = file["node"]


def forget(file):
    del file["node/nodes/n0/tau"]


def misconnect(file):
    del file["node/edges"]
    file["node/edges"] = np.array([[b"input", b"n7"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (point_outside, "'tau' is a link"),
        (read_a_raw_file, "lies in another file"),
        (grow, "more than 2147483648 bytes"),
        (loop, "nested more than 8 deep"),
        (forget, r"n0 \(LIF\) cannot be imported: found no field 'tau'"),
        (misconnect, "found an edge from 'input' to 'n7'"),
    ],
)
def test_what_a_file_makes_up_is_refused(tmp_path, change, message):
    path = changed(tmp_path, change)
    with pytest.raises(SnnirError, match=message):
        read_nir(path, steps=2, client="snntorch")
