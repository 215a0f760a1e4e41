"""Imported SpikeDHS networks equal the ones they were trained as, spike for spike in float64."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_fire, record

import snnir
from snnir import models
from snnir.errors import SnnirError
from snnir.genotype import parse, print_genotype, retarget
from snnir.genotype.ast import Annotate
from snnir.importers.spikedhs import read_cell, read_spikedhs
from snnir.search.architecture import Edge
from snnir.weights import weights_bytes

HUAWEI, CHEKAIWEI, JELLY = "Huawei-BIC/SpikeDHS", "CheKaiWei/SpikeDHS", "SpikingJelly"
LEAK = {HUAWEI: 0.2, CHEKAIWEI: 0.8, JELLY: 0.2}
PUBLISHED = [[1, 1], [0, 1], [3, 2], [2, 1], [7, 1], [8, 1]]
FOUR_NODES = [[1, 2], [0, 0], [4, 1], [2, 0], [8, 0], [5, 2], [13, 1], [10, 0]]
STEPS = 5


class Trained:
    """A network as one of the code bases would have trained it: drawn layer by layer, so that every
    layer fires on `x`, under that code base's names; with what it computes by the method (§1, §3),
    in float64."""

    def __init__(self, code, rows, levels, *, channels=2, size=(8, 8), classes=3):
        self.draw = torch.Generator().manual_seed(len(code) + len(rows))
        self.code, self.leak = code, LEAK[code]
        self.state, self.spikes = {}, {}
        nodes = len(rows) // 2
        self.x = torch.rand(2, 2, *size, generator=self.draw, dtype=torch.float64)
        names = {
            HUAWEI: ("feature.stem0.snn_optimal.conv1", "feature.stem0.snn_optimal.bn"),
            CHEKAIWEI: ("feature.stem0.conv", "feature.stem0.bn"),
            JELLY: ("feature.stem0.conv_m", "feature.stem0.bn_m"),
        }
        repeated = self.x.expand(STEPS, *self.x.shape)
        current = self.layer(repeated, *names[code], (channels * nodes, 2, 3, 3))
        stem = self.neuron("trunk.stem.0", current)
        outputs = [stem, stem]
        for cell, level in enumerate(levels):
            at = size
            for _ in range(level):
                at = tuple((side + 1) // 2 for side in at)
            outputs.append(self.cell(cell, rows, outputs[-2:], channels * 2**level, at))
        pooled = self.neuron("head", outputs[-1].mean((3, 4)))
        names = {HUAWEI: ("classifier.fc1", "classifier.bn")}
        names = names.get(code, ("classifier.linear", "classifier.bn.0"))
        self.logits = self.layer(pooled, *names, (classes, pooled.shape[2])).mean(0)
        self.add_what_inference_leaves_out()

    def cell(self, number, rows, inputs, channels, size):
        states = [resized(x, size) for x in inputs]
        offsets = [0, 2, 5, 9]  # of the edges of nodes 0 to 3
        edges = sorted(edge for edge, _ in rows)
        for node in range(len(rows) // 2):
            total = 0
            for row in (2 * node, 2 * node + 1):
                x = states[edges[row] - offsets[node]]
                shape = (channels, x.shape[2], 3, 3)
                total = total + self.layer(x, *self.edge_names(number, row), shape)
            states.append(self.neuron(f"trunk.layers.{number}.n{node}", total))
        return torch.cat(states[2:], 2)

    def edge_names(self, cell, row):
        ops = f"feature.cells.{cell}._ops"
        if self.code == HUAWEI:
            return f"{ops}.{row}.conv1", f"{ops}.{row}.bn"
        if self.code == CHEKAIWEI:
            return f"{ops}.{row}", None
        pair = f"{ops}.{row // 2}"
        return f"{pair}.conv{row % 2 + 1}_m", f"{pair}.bn{row % 2 + 1}_m"

    def layer(self, x, weights, norm, shape):
        """Currents [T, N, …] of a new convolution or linear layer, normalised."""
        weight, bias = self.normal(*shape), self.normal(shape[0])
        y = apply(x, weight, bias)
        if norm is None:
            scale = 0.5 / y.std()
            weight, bias = ((scale * array).float().double() for array in (weight, bias))
            y = apply(x, weight, bias)
        self.state |= {f"{weights}.weight": weight, f"{weights}.bias": bias}
        if norm is None:
            return y
        over = [axis for axis in range(y.dim()) if axis != 2]
        statistics = {
            "running_mean": y.mean(over).float().double(),
            "running_var": y.var(over).float().double(),
            "weight": 1 + 0.2 * self.normal(shape[0]).abs().float().double(),
            "bias": 0.4 * self.normal(shape[0]).float().double(),
        }
        statistics = {name: array.float().double() for name, array in statistics.items()}
        self.state |= {f"{norm}.{name}": array for name, array in statistics.items()}
        self.state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(y.flatten(0, 1), **statistics).unflatten(0, y.shape[:2])

    def neuron(self, path, current):
        u, spikes = torch.zeros_like(current[0]), []
        for now in current:
            u = self.leak * u + now
            spikes.append((u > 0.5 if self.code == HUAWEI else u >= 0.5).double())
            u = u * (1 - spikes[-1])
        self.spikes[f"{path}.neuron"] = torch.stack(spikes)
        return self.spikes[f"{path}.neuron"]

    def add_what_inference_leaves_out(self):
        left_out = {
            HUAWEI: (
                "feature.stem0.alpha_diffb",
                "feature.stem0.snn_8.conv1.weight",
                "feature.stem0.snn_12.bn.running_mean",
                "feature.auxiliary_head.conv1.conv1.weight",
                "feature.auxiliary_head.classifier.fc1.bias",
            ),
            CHEKAIWEI: (
                "feature.stem0_original.alpha_diffb",
                "feature.stem0_original.snn_optimal.conv1.weight",
                "feature.auxiliary_head.conv2.conv.weight",
            ),
            JELLY: (
                "feature.stem0.dgs_alpha",
                "feature.stem0.conv_b.weight",
                "feature.cells.0._ops.0.dgs_alpha",
                "feature.cells.0._ops.1.conv2_s.bias",
                "feature.cells.0._ops.1.bn1_b.running_var",
                "feature.auxiliary_head.classifier.bn.0.bias",
            ),
        }
        self.state |= {key: self.normal(4) for key in left_out[self.code]}

    def normal(self, *shape):
        return torch.randn(shape, generator=self.draw).double()

    def saved(self):
        """The state_dict as torch would save it."""
        return {
            key: array.float() if array.is_floating_point() else array
            for key, array in self.state.items()
        }


def apply(x, weight, bias):
    flat = x.flatten(0, 1)
    y = F.linear(flat, weight, bias) if weight.dim() == 2 else F.conv2d(flat, weight, bias, 1, 1)
    return y.unflatten(0, x.shape[:2])


def resized(x, size):
    return F.interpolate(x.flatten(0, 1), size, mode="nearest").unflatten(0, x.shape[:2])


NETWORKS = {
    "huawei": (HUAWEI, PUBLISHED, [0, 1, 1, 2], (8, 8)),
    "four_nodes_odd_size_and_up_again": (HUAWEI, FOUR_NODES, [1, 0, 1, 2], (9, 7)),
    "chekaiwei": (CHEKAIWEI, PUBLISHED, [0, 0, 1], (8, 8)),
    "spikingjelly": (JELLY, PUBLISHED, [0, 1, 2], (8, 8)),
}


@pytest.fixture(scope="module", params=NETWORKS, ids=str)
def trained(request):
    code, rows, levels, size = NETWORKS[request.param]
    return Trained(code, rows, levels, size=size), np.array(rows), np.array(levels, np.uint8)


def settings(size):
    return [f"steps={STEPS}", f"input=2x{size[0]}x{size[1]}"]


def options(size):
    return [argument for setting in settings(size) for argument in ("--set", setting)]


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_an_imported_network_equals_the_trained_one(trained, suffix, run, tmp_path):
    network, rows, levels = trained
    file = tmp_path / f"checkpoint{suffix}"
    if suffix == ".pth":
        torch.save({f"module.{key}": array for key, array in network.saved().items()}, file)
    else:
        np.savez(file, **{key: array.numpy() for key, array in network.saved().items()})
    np.save("cell.npy", rows)
    np.save("path.npy", levels)
    size = network.x.shape[2:]
    code, _, error = run(
        "import", "spikedhs", file, "--cell", "cell.npy", "--path", "path.npy", *options(size),
        "-o", "out.snn", "--weights", "out.safetensors",
    )  # fmt: skip
    assert code == 0, error
    assert network.code in error
    module = snnir.load(tmp_path / "out.snn", tmp_path / "out.safetensors").double().eval()
    logits, spikes = record(module, network.x)
    assert_all_fire(network.spikes, least=0.02)
    assert spikes.keys() == network.spikes.keys()
    for path, expected in network.spikes.items():
        assert torch.equal(spikes[path].reshape(expected.shape), expected), path
    torch.testing.assert_close(logits, network.logits, rtol=0, atol=1e-9)


def test_the_levels_are_read_from_the_weights(trained, tmp_path):
    network, rows, levels = trained
    torch.save(network.saved(), tmp_path / "w.pt")
    np.save(tmp_path / "cell.npy", rows)
    genotype, _ = read_spikedhs(tmp_path / "w.pt", tmp_path / "cell.npy")
    cells = genotype.backbones["trunk"].layers.cells
    assert [placed.level for placed in cells] == levels.tolist()


def test_what_is_written_checks_prints_and_compiles(run, tmp_path):
    network = Trained(*NETWORKS["spikingjelly"][:3])
    torch.save(network.saved(), tmp_path / "w.pth")
    code, out, error = run("import", "spikedhs", "w.pth", *options((8, 8)), "--json")
    assert code == 0, error
    written = json.loads(out)
    assert written["genotype"] == "spikedhs.snn"
    assert written["weights"] == "spikedhs.safetensors"
    code, out, error = run("check", "spikedhs.snn", "--json")
    assert code == 0, error
    assert json.loads(out)["spike_pure"]
    assert json.loads(out)["parameters"] == written["parameters"]
    assert run("fmt", "--check", "spikedhs.snn")[0] == 0
    text = (tmp_path / "spikedhs.snn").read_text()
    assert print_genotype(parse(text)) == text
    code, out, error = run(
        "compile", "spikedhs.snn", "--weights", "spikedhs.safetensors", "-o", "out", "--json"
    )
    assert code == 0, error
    report = json.loads(out)
    assert report["parity"]["passed"]
    assert report["parity"]["spikes_compared"] > 0
    assert report["parity"]["folding"]["passed"]


def test_the_published_cell_is_the_box_s(tmp_path):
    network = Trained(*NETWORKS["huawei"][:3])
    torch.save(network.saved(), tmp_path / "w.pth")
    genotype, _ = read_spikedhs(tmp_path / "w.pth")
    assert genotype.cells == models.load("spikedhs_cla").cells


@pytest.mark.parametrize(
    ("name", "neuron"),
    [
        ("huawei", "lif(tau=0.2, v_threshold=0.5, surrogate=dspike(b=3))"),
        ("chekaiwei", "lif(tau=0.8, v_threshold=0.5, surrogate=dspike(b=3), detach_reset=true)"),
        ("spikingjelly", "lif(tau=0.2, v_threshold=0.5, surrogate=dspike(b=3), detach_reset=true)"),
    ],
)
def test_the_neuron_is_the_code_base_s(name, neuron, tmp_path):
    torch.save(Trained(*NETWORKS[name][:3]).saved(), tmp_path / "w.pth")
    said = []
    genotype, _ = read_spikedhs(tmp_path / "w.pth", say=said.append)
    assert f"\nneuron {neuron}\n" in print_genotype(genotype)
    assert any("neuron after the classifier" in line for line in said) == (name == "chekaiwei")
    genotype, _ = read_spikedhs(tmp_path / "w.pth", tau=0.35)
    assert f"\nneuron {neuron.replace(neuron[8:11], '0.35')}\n" in print_genotype(genotype)


@pytest.mark.parametrize("name", ["chekaiwei", "spikingjelly"])
def test_spikingjelly_s_neurons_fire_at_the_threshold_too(name, tmp_path):
    code, rows, levels, size = NETWORKS[name]
    network = Trained(code, rows, levels, size=size)
    torch.save(network.saved(), tmp_path / "w.pth")
    genotype, weights = read_spikedhs(tmp_path / "w.pth")
    genotype = retarget(genotype, settings(size))
    (tmp_path / "w.safetensors").write_bytes(weights_bytes(weights))
    kept = tuple(s for s in genotype.statements if not isinstance(s, Annotate))
    strict = genotype.model_copy(update={"statements": kept})
    for read, equal in ((genotype, True), (strict, False)):
        module = snnir.load(read, tmp_path / "w.safetensors").double().eval()
        _, spikes = record(module, network.x)
        head = spikes.pop("head.neuron").flatten()
        assert torch.equal(head, network.spikes["head.neuron"].flatten()) == equal
        assert all(
            torch.equal(spikes[path].reshape(network.spikes[path].shape), network.spikes[path])
            for path in spikes
        )


# --- the golden network -------------------------------------------------------------------------


def our_name(neuron):
    """SpikingJelly's name of a neuron in ours."""
    path = neuron.removeprefix("feature.").removesuffix(".spike_m")
    if path == "global_pooling.spike":
        return "head.neuron"
    return (
        f"trunk.{path}.neuron".replace("stem0", "stem.0")
        .replace("cells", "layers")
        .replace("_ops.", "n")
    )


@pytest.fixture
def golden_network(shared):
    file = shared / "golden" / "spikedhs_spikingjelly_c4.npz"
    with np.load(file) as arrays:
        return file, dict(arrays)


def test_the_golden_network_is_imported_exactly(golden_network, run, tmp_path):
    file, golden = golden_network
    code, _, error = run("import", "spikedhs", file, "-o", "g.snn", "--weights", "g.safetensors")
    assert code == 0, error
    module = snnir.load(tmp_path / "g.snn", tmp_path / "g.safetensors").double().eval()
    logits, spikes = record(module, torch.from_numpy(golden["x"]).double())
    assert np.abs(logits.numpy() - golden["logits"]).max() <= 1e-9
    rates = {our_name(k[5:]): float(v) for k, v in golden.items() if k.startswith("rate/")}
    assert rates.keys() == spikes.keys()
    for path, rate in rates.items():
        assert 0.01 < rate == pytest.approx(float(spikes[path].mean()), abs=1e-12), path
    recorded = {our_name(k[4:]): v for k, v in golden.items() if k.startswith("spk/")}
    assert len(recorded) == 4
    for path, packed in recorded.items():
        assert np.array_equal(np.packbits(spikes[path].numpy().astype(bool)), packed), path


def test_arrays_paired_wrongly_would_be_seen(golden_network, tmp_path):
    _, golden = golden_network
    state = {key[3:]: array for key, array in golden.items() if key.startswith("sd/")}
    one, other = (f"feature.cells.7._ops.2.{layer}_m.weight" for layer in ("conv1", "conv2"))
    state[one], state[other] = state[other], state[one]
    np.savez(tmp_path / "swapped.npz", **state)
    genotype, weights = read_spikedhs(tmp_path / "swapped.npz")
    (tmp_path / "w.safetensors").write_bytes(weights_bytes(weights))
    module = snnir.load(genotype, tmp_path / "w.safetensors").double().eval()
    logits, spikes = record(module, torch.from_numpy(golden["x"]).double())
    assert np.abs(logits.numpy() - golden["logits"]).max() > 1e-3
    last = np.packbits(spikes["trunk.layers.7.n2.neuron"].numpy().astype(bool))
    assert not np.array_equal(last, golden["spk/feature.cells.7._ops.2.spike_m"])


# --- genotype arrays ----------------------------------------------------------------------------


def test_the_two_readings_of_the_published_cell():
    rows = np.array(PUBLISHED)
    assert read_cell(rows, "paper") == (
        (Edge(0, 1), Edge(1, 1)),
        (Edge(0, 1), Edge(1, 2)),
        (Edge(2, 1), Edge(3, 1)),
    )
    # edges 0 1 2 3 7 8, operations 1 1 1 1 1 2
    assert read_cell(rows, "authors") == (
        (Edge(0, 1), Edge(1, 1)),
        (Edge(0, 1), Edge(1, 1)),
        (Edge(2, 1), Edge(3, 2)),
    )


def test_the_two_readings_of_the_published_matching_cell():
    rows = np.array([[0, 1], [1, 2], [4, 2], [3, 2], [8, 1], [6, 1]])
    assert read_cell(rows, "paper") == (
        (Edge(0, 1), Edge(1, 2)),
        (Edge(1, 2), Edge(2, 2)),
        (Edge(1, 1), Edge(3, 1)),
    )
    # edges 0 1 3 4 6 8, operations 1 1 1 2 2 2
    assert read_cell(rows, "authors") == (
        (Edge(0, 1), Edge(1, 1)),
        (Edge(1, 1), Edge(2, 2)),
        (Edge(1, 2), Edge(3, 2)),
    )


def test_the_two_readings_of_four_nodes():
    rows = np.array(FOUR_NODES)
    # node 0: edges 0, 1; node 1: 2 to 4; node 2: 5 to 8; node 3: 9 to 13
    assert read_cell(rows, "paper") == (
        (Edge(0, 0), Edge(1, 2)),
        (Edge(0, 0), Edge(2, 1)),
        (Edge(0, 2), Edge(3, 0)),
        (Edge(1, 0), Edge(4, 1)),
    )
    # edges 0 1 2 4 5 8 10 13, operations 0 0 0 0 1 1 2 2
    assert read_cell(rows, "authors") == (
        (Edge(0, 0), Edge(1, 0)),
        (Edge(0, 0), Edge(2, 0)),
        (Edge(0, 1), Edge(3, 1)),
        (Edge(1, 2), Edge(4, 2)),
    )


def test_the_readings_label_operations_and_move_no_weights(tmp_path):
    network = Trained(*NETWORKS["huawei"][:3])
    torch.save(network.saved(), tmp_path / "w.pth")
    paper, weights = read_spikedhs(tmp_path / "w.pth")
    authors, same = read_spikedhs(tmp_path / "w.pth", conventions="authors")
    assert "n1 = conv3x3(prev_prev) + conv3x3(prev, b=5)\n" in print_genotype(paper)
    assert "n1 = conv3x3(prev_prev) + conv3x3(prev)\n" in print_genotype(authors)
    assert "n2 = conv3x3(n0) + conv3x3(n1, b=5)\n" in print_genotype(authors)
    assert weights.keys() == same.keys()
    assert all(np.array_equal(weights[key], same[key]) for key in weights)


# --- bad input ----------------------------------------------------------------------------------

EDGE = "feature.cells.1._ops.3"


def removed(state):
    del state[f"{EDGE}.conv1.bias"]


def renamed(state):
    state[f"{EDGE}.conv1.wieght"] = state.pop(f"{EDGE}.conv1.weight")


def wider(state):
    state[f"{EDGE}.bn.running_mean"] = torch.zeros(5)


def flat(state):
    state["classifier.fc1.weight"] = state["classifier.fc1.weight"].flatten()


def whole_numbers(state):
    state[f"{EDGE}.conv1.bias"] = torch.zeros(4, dtype=torch.int32)


def not_a_number(state):
    state[f"{EDGE}.conv1.bias"][1] = torch.nan


def too_large(state):
    state[f"{EDGE}.conv1.bias"] = torch.full((4,), 1e300, dtype=torch.float64)


def nested(state):
    state["optimizer"] = {"lr": 0.1}


def sparse(state):
    state[f"{EDGE}.conv1.bias"] = torch.zeros(4).to_sparse()


def no_stem(state):
    del state["feature.stem0.snn_optimal.conv1.weight"]


def no_cell(state):
    for key in [key for key in state if key.startswith("feature.cells.0.")]:
        del state[key]


def odd_width(state):
    state["feature.cells.0._ops.0.conv1.weight"] = torch.zeros(3, 6, 3, 3)


def empty(state):
    state["classifier.fc1.weight"] = torch.zeros(0, 24)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (removed, f"{EDGE}.conv1.bias: found nothing"),
        (renamed, f"{EDGE}.conv1.wieght: found a weight that network"),
        (wider, f"{EDGE}.bn.running_mean: found shape (5,), expected (4,)"),
        (flat, "classifier.fc1.weight: found shape"),
        (whole_numbers, f"{EDGE}.conv1.bias: found int32"),
        (not_a_number, f"{EDGE}.conv1.bias: found NaN"),
        (too_large, f"{EDGE}.conv1.bias: found NaN or infinity"),
        (nested, "optimizer: found a dict"),
        (sparse, f"{EDGE}.conv1.bias: found a tensor that is no plain array"),
        (no_stem, "expected feature.stem0.snn_optimal.conv1.weight or feature.stem0.conv.weight"),
        (no_cell, "feature.cells.0._ops.0.conv1.weight: found nothing"),
        (odd_width, "feature.cells.0._ops.0.conv1.weight: found 3 channels"),
        (empty, "classifier.fc1.weight: found shape (0, 24)"),
    ],
)
def test_a_wrong_array_is_named_and_nothing_written(change, expected, run, tmp_path):
    state = Trained(HUAWEI, PUBLISHED, [0, 1]).saved()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    code, out, error = run("import", "spikedhs", "w.pth")
    assert code == 2
    assert expected in error
    assert out == ""
    assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]


class Planted:
    def __reduce__(self):
        return (open, ("planted", "w"))


def test_no_file_from_elsewhere_runs_code(run, tmp_path):
    state = Trained(HUAWEI, PUBLISHED, [0, 1]).saved()
    torch.save(state | {"feature.extra": Planted()}, tmp_path / "w.pth")
    np.savez("w.npz", **{key: array.numpy() for key, array in state.items()},
             **{"feature.extra": np.array([Planted()], object)})  # fmt: skip
    np.save("cell.npy", np.array([Planted()], object))
    code, _, error = run("import", "spikedhs", "w.pth")
    assert code == 2
    assert "w.pth: found pickled objects" in error
    code, _, error = run("import", "spikedhs", "w.npz")
    assert code == 2
    assert "feature.extra: found pickled objects" in error
    code, _, error = run("import", "spikedhs", "w.npz", "--cell", "cell.npy")
    assert code == 2
    assert not (tmp_path / "planted").exists()
    assert not list(tmp_path.glob("spikedhs.*"))


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (None, "missing.pth", "no such checkpoint"),
        (None, "missing.npz", "no such checkpoint"),
        (b"", "empty.pth", "found pickled objects or a damaged file"),
        (b"PK\3\4 truncated", "broken.npz", "found no readable .npz file"),
        (b"", "w.onnx", "found suffix '.onnx'"),
    ],
)
def test_files_that_are_no_checkpoint(content, name, expected, run, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, error = run("import", "spikedhs", name)
    assert code == 2
    assert expected in error


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.array(PUBLISHED, np.float32), "found float32"),
        (np.array(PUBLISHED).ravel(), "found shape (12,)"),
        (np.array(PUBLISHED)[:5], "found shape (5, 2)"),
        (np.array(PUBLISHED)[:, :1], "found shape (6, 1)"),
        (np.add(PUBLISHED, [1, 0]), "row 5: found edge 9"),
        (np.subtract(PUBLISHED, [1, 0]), "row 1: found edge -1"),
        (np.add(PUBLISHED, [0, 1]), "row 2: found edge 3, operation 3"),
        (np.array([[0, 1], [0, 1]]), "node 0: found states [0, 0]"),
        (np.array([[0, 1], [1, 1], [2, 1], [3, 1], [4, 1], [5, 1]]), "node 1: found states"),
    ],
)
def test_arrays_that_are_no_cell(rows, expected, run, tmp_path):
    torch.save(Trained(HUAWEI, PUBLISHED, [0, 1]).saved(), tmp_path / "w.pth")
    np.save(tmp_path / "cell.npy", rows)
    code, _, error = run("import", "spikedhs", "w.pth", "--cell", "cell.npy")
    assert code == 2
    assert error.splitlines()[-1].startswith("cell.npy: ")
    assert expected in error
    assert not list(tmp_path.glob("spikedhs.*"))


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([0, -1]), "found levels [0, -1]"),
        (np.array([0, 99]), "found levels [0, 99]"),
        (np.array([0.0, 1.0]), "found float64"),
        (np.zeros((2, 4, 3), int), "found shape (2, 4, 3)"),
        (np.array([0, 2]), "found level 2 after level 0"),
        (np.array([0, 0]), "feature.cells.1._ops.0.conv1.weight: found shape (4, 6, 3, 3)"),
        (np.array([0]), "feature.cells.1._ops.0.bn.bias: found a weight that network"),
        (np.array([0, 1, 1]), "feature.cells.2._ops.0.conv1.weight: found nothing"),
    ],
)
def test_arrays_that_are_no_path(levels, expected, run, tmp_path):
    torch.save(Trained(HUAWEI, PUBLISHED, [0, 1]).saved(), tmp_path / "w.pth")
    np.save(tmp_path / "path.npy", levels)
    code, _, error = run("import", "spikedhs", "w.pth", "--path", "path.npy")
    assert code == 2
    assert expected in error
    assert not list(tmp_path.glob("spikedhs.*"))


def test_a_cell_of_another_number_of_nodes(tmp_path):
    torch.save(Trained(HUAWEI, FOUR_NODES, [0]).saved(), tmp_path / "w.pth")
    with pytest.raises(SnnirError, match="found 8 channels, expected a multiple of the 3 nodes"):
        read_spikedhs(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tau", "1.5"], "tau"),
        (["-o", "out.txt"], "out.txt: expected a file whose name ends in .snn"),
        (["--weights", "out.npz"], "out.npz: expected a file whose name ends in .safetensors"),
        (["--set", "classes=4"], "head.linear.weight: found shape (3,"),
    ],
)
def test_wrong_options(arguments, expected, run, tmp_path):
    torch.save(Trained(HUAWEI, PUBLISHED, [0, 1]).saved(), tmp_path / "w.pth")
    code, _, error = run("import", "spikedhs", "w.pth", *arguments)
    assert code == 2
    assert expected in error
    assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]


# --- SpikingJelly itself ------------------------------------------------------------------------


@pytest.mark.peers
def test_spikingjelly_s_own_network_is_imported_exactly(tmp_path):
    dhs = pytest.importorskip("spikingjelly.activation_based.model.spike_dhs")
    from spikingjelly.activation_based import functional

    torch.manual_seed(0)
    channels, classes = 4, 10
    sizes = SimpleNamespace(
        fea_num_layers=8, fea_step=3, fea_block_multiplier=3, fea_filter_multiplier=channels
    )
    peer = dhs.SpikeDHS(args=sizes)  # whose heads are made for channels = 48
    peer.classifier = dhs.SpikingLinear(12 * channels, classes, spiking=False)
    peer.feature.auxiliary_head = dhs.AuxiliaryHeadCIFAR(12 * channels, classes)
    functional.set_step_mode(peer, "m")
    x = torch.rand(2, 3, 32, 32)
    calibrate(peer, x)
    torch.save(peer.state_dict(), tmp_path / "w.pth")
    expected = {}

    def keep(name):
        return lambda module, inputs, output: expected.update({our_name(name): output})

    for name, module in peer.named_modules():
        if name.endswith((".spike_m", "global_pooling.spike")):
            module.register_forward_hook(keep(name))
    peer.double().eval()
    functional.reset_net(peer)
    with torch.no_grad():
        peer_logits, _ = peer(x.double())
    genotype, weights = read_spikedhs(tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(weights_bytes(weights))
    module = snnir.load(genotype, tmp_path / "w.safetensors").double().eval()
    logits, spikes = record(module, x.double())
    assert_all_fire(expected, least=0.02)
    assert expected.keys() == spikes.keys()
    for path, theirs in expected.items():
        assert torch.equal(spikes[path].reshape(theirs.shape), theirs), path
    torch.testing.assert_close(logits, peer_logits, rtol=0, atol=1e-9)
    print({path: round(float(theirs.mean()), 3) for path, theirs in expected.items()})


def calibrate(peer, x):
    """Shift the batch norms of a SpikingJelly network and take their statistics from x."""
    from spikingjelly.activation_based import functional

    for module in peer.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            torch.nn.init.normal_(module.bias, 0.2, 0.5)
    peer.train()
    functional.reset_net(peer)
    with torch.no_grad():
        peer(x)
