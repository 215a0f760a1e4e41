"""Architecture search: decoding, the relaxed space against its decoded networks, gradients of
alpha, the bi-level loop, the command."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GENOTYPES, as_float64, calibrated, genotype, run_recorded, small
from hypothesis import given, settings
from hypothesis import strategies as st

from snnir.data import Samples
from snnir.errors import SnnirError
from snnir.genotype import ast, parse, print_genotype
from snnir.genotype.vocabulary import candidate_label
from snnir.ir import build
from snnir.ir.build import edge_owner
from snnir.ir.nodes import Mixed, Neuron
from snnir.ir.trellis import levels_after, transition_owner
from snnir.lower import SpikingModule
from snnir.lower.initialise import calibrated_weights, seeded_inputs
from snnir.lower.surrogates import SURROGATES
from snnir.passes import ANALYSIS, SIMPLIFICATION, TRAINING, run_passes
from snnir.search import Architecture, Edge, Search, SearchConfig, decode, genotype_of
from snnir.search.architecture import count_architectures, count_paths, state_names
from snnir.search.bilevel import BilevelSearch, entropies, halve
from snnir.search.decode import most_probable_path, softmax, transition_probabilities
from snnir.search.sampling import random_architecture

SPACE_NAMES = ("small_space", "small_spike_space", "small_trellis", "small_stereo_space")


def random_logits(space, rng, scale=1.0):
    """Logits of every gate that the space's graph names."""
    sizes = {gate.owner: gate.size for node in build(space).of_type(Mixed) for gate in node.gates}
    return {owner: scale * rng.normal(size=size) for owner, size in sizes.items()}


# --- decoding ---------------------------------------------------------------------------------


def trellis(depth, levels):
    return ast.Trellis(channels=2, depth=depth, levels=levels, cell="c")


def all_paths(shape):
    """Every sequence of levels that the trellis allows, by trying all."""
    for path in itertools.product(range(shape.levels), repeat=shape.depth):
        steps = zip((0, *path), path, strict=False)
        if all(abs(a - b) <= 1 for a, b in steps):
            yield path


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_decoded_path_is_the_most_probable_of_all(depth, levels, seed):
    shape, rng = trellis(depth, levels), np.random.default_rng(seed)
    logits = {
        transition_owner("t", layer, level): 3
        * rng.normal(size=len(levels_after(level, layer, shape)))
        for layer in range(depth)
        for level in range(min(layer + 1, levels))
    }
    layers = transition_probabilities("t", shape, logits)
    for layer in layers:
        for level in {a for a, _ in layer}:
            assert sum(p for (a, _), p in layer.items() if a == level) == pytest.approx(1)
    paths = list(all_paths(shape))
    assert len(paths) == count_paths(shape)

    def probability(path):
        return math.prod(
            layers[i][a, b] for i, (a, b) in enumerate(zip((0, *path), path, strict=False))
        )

    found = most_probable_path(layers)
    assert found in paths
    assert probability(found) == pytest.approx(max(map(probability, paths)))
    assert sum(map(probability, paths)) == pytest.approx(1)


@given(st.integers(1, 4), st.integers(1, 2), st.integers(2, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_node_keeps_its_strongest_distinct_edges(nodes, keep, candidates, seed):
    names = ["conv3x3", "skip", "conv1x1", "maxpool3x3"][:candidates]
    space = cell_space(f"search nodes={nodes} keep={keep} {{ {' | '.join(names)} }}")
    rng = np.random.default_rng(seed)
    logits = random_logits(space, rng)
    choice = decode(space, logits).cells["c"]
    states = state_names(space.cells["c"])
    assert len(choice) == nodes
    for number, edges in enumerate(choice):
        assert len(edges) == len({e.state for e in edges}) == keep
        weights = {
            i: softmax(logits[edge_owner("c", f"n{number}", states[i])]) for i in range(2 + number)
        }
        kept = {e.state for e in edges}
        weakest = min(weights[i].max() for i in kept)
        assert all(weights[i].max() <= weakest for i in set(weights) - kept)
        assert all(weights[e.state].argmax() == e.candidate for e in edges)
    found = genotype_of(space, decode(space, logits))
    assert parse(print_genotype(found)) == found
    assert not found.searchable


def cell_space(search, *, steps=2, layers="c@0"):
    return small(
        f"input image: frame[1, 6, 6]\nsteps {steps}\ncell c(a, b) {{ {search} }}\n"
        f"backbone t(image) {{ stem conv3x3(4) layers channels=2 {{ {layers} }} }}\n"
        "head classify(t, classes=3)"
    )


def test_the_authors_conventions():
    """Operation 0 does not count for an edge's strength; the columns are sorted separately, each
    over the whole cell; a kept skip becomes the convolution that their retraining makes of it."""
    space = cell_space("search nodes=2 keep=2 { skip | conv3x3(b=3) | conv3x3(b=5) }")
    rows = {
        "n0.a": (0.2, 0.2, 0.6), "n0.b": (0.2, 0.6, 0.2),
        "n1.a": (0.9, 0.06, 0.04), "n1.b": (0.4, 0.25, 0.35), "n1.n0": (0.5, 0.3, 0.2),
    }  # fmt: skip
    logits = {f"cells.c.{name}": np.log(row) for name, row in rows.items()}
    ours = decode(space, logits).cells["c"]
    assert ours == ((Edge(0, 2), Edge(1, 1)), (Edge(0, 0), Edge(2, 0)))
    theirs = decode(space, logits, "authors")
    # kept rows (edge, op) in their order: [0, 2], [1, 1], [3, 0], [4, 0]; ops sorted: 0, 0, 1, 2
    assert theirs.cells["c"] == ((Edge(0, 0), Edge(1, 0)), (Edge(1, 1), Edge(2, 2)))
    text = print_genotype(genotype_of(space, theirs, "authors"))
    assert "n0 = conv3x3(a) + conv3x3(b)\n" in text
    assert "n1 = conv3x3(b, b=3) + conv3x3(n0, b=5)" in text


def test_the_authors_border_weights_can_change_the_path():
    """True softmax: 0.7 down then 0.4 down beats staying; weighed 2/3 at the border it does not."""
    space = genotype("small_trellis")
    logits = {
        owner: np.zeros_like(x)
        for owner, x in random_logits(space, np.random.default_rng()).items()
    }
    owner = transition_owner("trunk", 1, 1)
    logits[owner] = np.log([0.3, 0.3, 0.4])
    logits[transition_owner("trunk", 0, 0)] = np.log([0.45, 0.55])
    ours, theirs = decode(space, logits).paths, decode(space, logits, "authors").paths
    shape = space.backbones["trunk"].layers
    plain = transition_probabilities("trunk", shape, logits)
    scaled = transition_probabilities("trunk", shape, logits, "authors")
    assert scaled[1][0, 1] == pytest.approx(plain[1][0, 1] * 2 / 3)
    assert scaled[2][2, 1] == pytest.approx(plain[2][2, 1] * 2 / 3)
    assert scaled[1][1, 2] == plain[1][1, 2]
    assert (ours["trunk"], theirs["trunk"]) == (
        most_probable_path(plain),
        most_probable_path(scaled),
    )
    assert ours != theirs


@pytest.mark.parametrize("name", SPACE_NAMES)
def test_what_is_decoded_is_a_network(name):
    space = genotype(name)
    rng = np.random.default_rng(3)
    for _ in range(5):
        found = genotype_of(space, decode(space, random_logits(space, rng)))
        assert parse(print_genotype(found)) == found
        graph = build(found)
        assert not graph.of_type(Mixed)
        run_passes(TRAINING, graph)


def test_a_count_of_architectures():
    assert count_architectures(genotype("small_trellis")) == 4 * (3 * 4) * 12
    shape = genotype("small_trellis").backbones["trunk"].layers
    assert len(list(all_paths(shape))) == 12


# --- the relaxed space is its decoded networks ----------------------------------------------------


def one_hot(space, architecture):
    """Mixing weights: 1 for what the architecture keeps, 0 for everything else."""
    mixing = {
        owner: np.zeros_like(x)
        for owner, x in random_logits(space, np.random.default_rng()).items()
    }
    for cell, choice in architecture.cells.items():
        states = state_names(space.cells[cell])
        for number, edges in enumerate(choice):
            for edge in edges:
                mixing[edge_owner(cell, f"n{number}", states[edge.state])][edge.candidate] = 1
    for backbone, path in architecture.paths.items():
        shape = space.backbones[backbone].layers
        for layer, (before, level) in enumerate(zip((0, *path), path, strict=False)):
            entry = levels_after(before, layer, shape).index(level)
            mixing[transition_owner(backbone, layer, before)][entry] = 1
    return {owner: torch.from_numpy(x) for owner, x in mixing.items()}


def inherited(space, architecture, found, weights):
    """The supernet's weights under the names of the decoded network."""
    result = {}
    network = build(found)
    for name in (*network.parameter_shapes(), *network.buffer_shapes()):
        result[name] = weights[supernet_name(space, architecture, name)]
    return result


def supernet_name(space, architecture, name):
    root, *rest = name.split(".")
    backbone = space.backbones.get(root)
    searched = backbone is not None and isinstance(backbone.layers, ast.Trellis)
    if rest[0] == "layers":
        index, node, state, *leaf = rest[1:]
        placed = None if searched else backbone.layers.cells[int(index)].cell
        cell = space.cells[placed or backbone.layers.cell]
        number = int(node[1:])
        states = state_names(cell)
        edge = next(e for e in architecture.cells[cell.name][number] if states[e.state] == state)
        candidate = cell.candidates[edge.candidate]
        label = candidate_label(candidate.operation, candidate.b)
        here = [index]
        if searched:
            path = (0, *architecture.paths[root])
            level, before = path[int(index) + 1], path[int(index)]
            here += [f"level{level}", f"from{before}"]
        return ".".join([root, "layers", *here, node, state, label, *leaf])
    trellises = {b for b in space.backbones if isinstance(space.backbones[b].layers, ast.Trellis)}
    if searched and rest[:2] == ["out", "0"]:
        return ".".join([root, "out", "0", f"level{architecture.paths[root][-1]}", *rest[2:]])
    if root == "head" and trellises and rest[0] == "linear":
        return ".".join([root, f"level{architecture.paths[min(trellises)][-1]}", *rest])
    return name


def architectures(name):
    """Some of a space, on the path along level 0 where levels are searched: on others, states that
    a decoded network has are absent from the supernet."""
    space, rng = genotype(name), np.random.default_rng(5)
    for _ in range(3):
        drawn = random_architecture(space, rng)
        paths = {name: (0,) * len(path) for name, path in drawn.paths.items()}
        yield Architecture(drawn.cells, paths)


def decoded_outputs(space, graph, weights, inputs, chosen):
    """Of each decoded network, after the supernet has been held against it: alpha and beta one-hot,
    unkept edges masked, float64, layers that fire."""
    supernet = SpikingModule(run_passes(TRAINING, graph).graph, weights).eval()
    x = [torch.from_numpy(array.astype(np.float64)) for array in inputs]
    outputs = []
    for architecture in chosen:
        found = genotype_of(space, architecture)
        own = inherited(space, architecture, found, weights)
        network = run_passes((*ANALYSIS, *SIMPLIFICATION), build(found), own)
        expected, spikes = run_recorded(network.graph, network.weights, inputs)
        with torch.no_grad():
            output, _ = supernet.run(*x, mixing=one_hot(space, architecture))
        assert_some_fire(spikes)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
        outputs.append(expected.numpy().tobytes())
    return outputs


@pytest.mark.parametrize("name", SPACE_NAMES)
def test_decoded_networks_compute_what_the_supernet_does(name):
    graph, weights, inputs = calibrated(name)
    chosen = architectures(name)
    outputs = decoded_outputs(genotype(name), graph, as_float64(weights), inputs, chosen)
    assert len(set(outputs)) == 3, "architectures that differ compute the same"


def test_every_path_of_a_trellis_computes_what_the_supernet_does():
    """Where nodes read prev and nodes alone: prev_prev is another, away from level 0."""
    text = (GENOTYPES / "small_trellis.snn").read_text().replace("keep=2", "keep=1")
    space = parse(text)
    cells = {"normal": ((Edge(1, 0),), (Edge(2, 0),))}
    paths = all_paths(space.backbones["trunk"].layers)
    chosen = [Architecture(cells, {"trunk": path}) for path in paths]
    outputs = decoded_outputs(space, *calibrated_space(space), chosen)
    assert len(set(outputs)) == len(chosen) == 12


def calibrated_space(space):
    graph = build(space)
    inputs = tuple(seeded_inputs(graph, 1, 3))
    training = run_passes(TRAINING, graph).graph
    weights = calibrated_weights(training, [torch.from_numpy(x) for x in inputs], 1)
    return graph, as_float64(weights), inputs


def assert_some_fire(spikes):
    """The weights were calibrated for the whole supernet; its parts fire less evenly."""
    rates = [float(x.mean()) for x in spikes.values()]
    firing = [rate for rate in rates if 0.005 < rate < 0.995]
    assert len(firing) > 0.7 * len(rates), rates
    assert np.mean(rates) > 0.05


@pytest.mark.parametrize("name", SPACE_NAMES)
def test_the_supernet_that_trains_computes_the_plain_one(name):
    """Candidates stacked, gates in batch norm: every spike and the output, in float64."""
    graph, weights, inputs = calibrated(name)
    weights = as_float64(weights)
    rng = np.random.default_rng(2)
    weights |= {f"{k}.logits": x for k, x in random_logits(genotype(name), rng).items()}
    plain = run_passes((*ANALYSIS, *SIMPLIFICATION), graph, weights)
    fast = run_passes(TRAINING, graph, weights)
    output, spikes = run_recorded(plain.graph, plain.weights, inputs)
    found, found_spikes = run_recorded(fast.graph, fast.weights, inputs)
    assert_some_fire(found_spikes)
    assert all(torch.equal(found_spikes[path], spikes[path]) for path in found_spikes)
    torch.testing.assert_close(found, output, rtol=0, atol=1e-10)


# --- gradients of alpha -----------------------------------------------------------------------

ONE_EDGE = """search nodes=1 keep=1 mix={mix} {{ conv3x3(b=2) | conv3x3(b=4) | conv1x1 }}"""


@pytest.mark.parametrize("mix", ["membrane", "spike"])
def test_alpha_gradients_are_the_papers(mix):
    """T = 1. Membrane, eq. 17: dL/da_k = sum dL/dy · g(u) · p_k · (I_k - I). Spike, eq. 15: the
    same with y_k for I_k: p_k = softmax(a)_k, I and y the mixes. g is the node's surrogate."""
    space = cell_space(ONE_EDGE.format(mix=mix), steps=1)
    graph = build(space)
    rng = np.random.default_rng(4)
    weights = {}
    for name, shape in (graph.parameter_shapes() | graph.buffer_shapes()).items():
        value = rng.normal(0.2 if mix == "membrane" else 0.0, 0.6, shape)
        positive = name.endswith(("running_var", "bn.weight"))
        weights[name] = np.abs(value) + 0.3 if positive else value
    plain = run_passes((*ANALYSIS, *SIMPLIFICATION), graph, weights)
    seen = {}

    def observe(node, value):
        if value.data.requires_grad:
            value.data.retain_grad()
        seen[node.path] = value.data
        return value

    x = torch.from_numpy(seeded_inputs(graph, 0, 6)[0].astype(np.float64))
    module = SpikingModule(plain.graph, plain.weights).eval()
    logits, _ = module.run(x, observe=observe)
    factor = torch.from_numpy(rng.normal(size=tuple(logits.shape)))
    (logits * factor).sum().backward()
    module_fast = SpikingModule(run_passes(TRAINING, graph).graph, weights).eval()
    (module_fast(x) * factor).sum().backward()

    node: Neuron = plain.graph["t.layers.0.n0.neuron"]
    distance = seen["t.layers.0.n0.sum"].detach() - node.v_threshold
    slope = SURROGATES[node.surrogate](distance, node.b)
    arriving = seen[node.path].grad * slope
    assert 0.05 < float(seen[node.path].detach().mean()) < 0.95
    assert float(arriving.abs().sum()) > 0
    for state in ("a", "b"):
        edge = f"t.layers.0.n0.{state}"
        labels = ["conv3x3_b2", "conv3x3_b4", "conv1x1"]
        last = ".neuron" if mix == "spike" else ".bn"
        candidates = [seen[f"{edge}.{label}{last}"].detach() for label in labels]
        if mix == "spike":
            rates = [float(y.mean()) for y in candidates]
            assert all(0.02 < rate < 0.98 for rate in rates), rates
        owner = f"cells.c.n0.{state}.logits"
        p = softmax(weights[owner])
        mixed = sum(float(p_k) * x_k for p_k, x_k in zip(p, candidates, strict=True))
        expected = [
            float(p_k * (arriving * (x_k - mixed)).sum())
            for p_k, x_k in zip(p, candidates, strict=True)
        ]
        assert max(map(abs, expected)) > 1e-3
        for found in (module, module_fast):
            assert found.parameter(owner).grad.tolist() == pytest.approx(expected, abs=1e-10)


# --- the bi-level loop ------------------------------------------------------------------------


DIGITS_SPACE = """snn 1
network digits_space
input image: frame[1, 8, 8]
steps 2
cell normal(a, b) { search nodes=2 keep=2 mix=membrane { conv3x3(b=3) | conv3x3(b=5) | skip } }
cell reduce(a, b) { search nodes=2 keep=1 { conv3x3 | maxpool3x3 } }
backbone trunk(image) { stem conv3x3(6) layers channels=3 { normal@0 reduce@1 } }
head classify(trunk, classes=10)
auxiliary classify(trunk.layers[0], classes=10, weight=0.4)
"""
CONFIG = SearchConfig(
    epochs=4, warmup_epochs=1, batch_size=20, learning_rate=0.1, architecture_learning_rate=0.05,
    limit_train=400, seed=3,
)  # fmt: skip


def digits_search(folder, config=CONFIG, **changed):
    config = config.model_copy(update=changed)
    return Search(parse(DIGITS_SPACE), "digits", config, folder)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    lines = []
    folder = tmp_path_factory.mktemp("search") / "run"
    return digits_search(folder).run(say=lines.append), lines


def test_a_search_leaves_what_it_promises(searched):
    found, lines = searched
    folder = found.folder
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "space.snn", "config.toml", "genotype.snn", "search.html", "checkpoint.pt",
        "last.safetensors", "log.jsonl", "curve.svg", "tensorboard", "cells",
    }  # fmt: skip
    assert parse((folder / "space.snn").read_text()) == parse(DIGITS_SPACE)
    text = (folder / "genotype.snn").read_text()
    assert text.startswith("# Found in digits_space by spikedhs on digits, seed 3, after 4 of 4")
    assert parse(text) == found.genotype
    assert found.genotype.name == "digits_searched"
    assert not found.genotype.searchable
    assert len(list((folder / "cells").glob("epoch-*.svg"))) == 4
    assert "digits_searched" in (folder / "cells" / "epoch-004.svg").read_text()
    assert len([line for line in lines if line.startswith("epoch")]) == 4
    assert "entropy alpha 1.0000" in lines[0]


def test_the_architecture_learns_after_the_warm_up(searched):
    found, _ = searched
    scalars = [record.scalars for record in found.history]
    assert "architecture/loss" not in scalars[0]
    assert scalars[0]["entropy/alpha"] == pytest.approx(1)
    entropy = [s["entropy/alpha"] for s in scalars]
    assert entropy[0] > entropy[1] > entropy[2] > entropy[3]
    assert scalars[3]["architecture/loss"] < scalars[1]["architecture/loss"]
    assert scalars[3]["architecture/accuracy"] > 0.3
    weights = [value for name, value in scalars[3].items() if name.startswith("weight/")]
    assert len(weights) == 3 * 2 + 3 * 3 + 2 * 2 + 2 * 3
    edges = {name.rsplit("/", 1)[0] for name in scalars[3] if name.startswith("weight/")}
    for edge in edges:
        row = [value for name, value in scalars[3].items() if name.rsplit("/", 1)[0] == edge]
        assert sum(row) == pytest.approx(1)


def test_the_halves_are_disjoint_equal_and_seeded():
    from snnir.training.run import open_splits

    splits = open_splits(build(parse(DIGITS_SPACE)), "digits", CONFIG)
    halves = halve(splits.train, 0)
    assert len(halves.a) == len(halves.b) == 200
    assert not set(halves.a.indices) & set(halves.b.indices)
    assert set(halves.a.indices) | set(halves.b.indices) == set(splits.train.indices)
    assert set(halves.watched.indices) <= set(halves.b.indices)
    assert halves.watched.augmentation is None
    assert set(halve(splits.train, 1).a.indices) != set(halves.a.indices)
    assert list(halve(splits.train, 0).a.indices) == list(halves.a.indices)


def test_the_watched_samples_are_of_all_classes():
    """Also where the data set lies sorted by class."""

    class Sorted:
        labels = np.repeat(np.arange(10), 500)

    halves = halve(Samples(Sorted(), np.arange(5000)), 0)
    assert len(halves.watched) == 1000
    counts = np.bincount(halves.watched.labels, minlength=10)
    assert counts.min() > 60, counts


class Steps(BilevelSearch):
    """Notes what each half of a bi-level step changes."""

    def after_step(self, trainer, x, target):
        weights = [p for n, p in trainer.module.named_parameters() if not n.endswith(".logits")]
        before = [p.detach().clone() for p in weights]
        logits = [p.detach().clone() for p in self.parameters]
        momentum = [trainer.optimizer.state[p]["momentum_buffer"].clone() for p in weights]
        super().after_step(trainer, x, target)
        assert all(map(torch.equal, before, weights)), "the architecture's step moved weights"
        after = [trainer.optimizer.state[p]["momentum_buffer"] for p in weights]
        assert all(map(torch.equal, momentum, after))
        moved = any(not torch.equal(a, b) for a, b in zip(logits, self.parameters, strict=True))
        assert moved == (trainer.epoch >= self.config.warmup_epochs)
        if hasattr(self, "last"):
            assert all(map(torch.equal, self.last, logits)), "a step of the weights moved alpha"
        self.last = [p.detach().clone() for p in self.parameters]
        Steps.count += 1


def test_each_step_moves_its_own_parameters_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("snnir.search.run.BilevelSearch", Steps)
    Steps.count = 0
    config = CONFIG.model_copy(update={"epochs": 2})
    digits_search(tmp_path / "run", config).run()
    assert Steps.count == 20


def test_entropies():
    even = {"cells.c.n0.a": np.zeros(3), "t.transitions.0.level0": np.array([50.0, 0.0])}
    assert entropies(even) == pytest.approx({"alpha": 1.0, "beta": 0.0}, abs=1e-9)


def trellis_of_digits(layers):
    text = DIGITS_SPACE.replace("{ normal@0 reduce@1 }", layers)
    text = text.replace("auxiliary classify(trunk.layers[0], classes=10, weight=0.4)\n", "")
    return "".join(line for line in text.splitlines(keepends=True) if "cell reduce" not in line)


def test_a_trellis_is_searched(tmp_path):
    space = parse(trellis_of_digits("search depth=2 levels=3 { normal }"))
    config = CONFIG.model_copy(update={"epochs": 2, "limit_train": 200, "channels": 6})
    found = Search(space, "digits", config, tmp_path / "run").run()
    layers = found.genotype.backbones["trunk"].layers
    assert layers.channels == 6
    assert [placed.cell for placed in layers.cells] == ["normal", "normal"]
    assert 0 < found.history[1].scalars["entropy/beta"] < 1
    assert 0 < found.history[1].scalars["entropy/alpha"] < 1
    build(found.genotype)


def test_bf16_searches_too(tmp_path):
    config = CONFIG.model_copy(update={"epochs": 2, "precision": "bf16"})
    found = digits_search(tmp_path / "run", config).run()
    assert found.history[1].scalars["entropy/alpha"] < 1


@pytest.mark.parametrize("method", ["random", "evolution"])
def test_a_baseline_writes_what_a_search_does(tmp_path, method):
    fields = {"method": method, "trials": 3, "trial_epochs": 1, "population": 2, "tournament": 2}
    config = CONFIG.model_copy(update=fields)
    found = digits_search(tmp_path / "run", config, channels=4).run()
    folder = tmp_path / "run"
    best = max(found.trials, key=lambda trial: trial.accuracy)
    text = (folder / "genotype.snn").read_text()
    assert text.startswith(f"# Found in digits_space by {method} on digits, seed 3, trial ")
    assert parse(text) == found.genotype
    assert found.genotype.cells == parse(best.genotype).cells
    assert found.genotype.backbones["trunk"].layers.channels == 4
    assert "<table" in (folder / "search.html").read_text()
    assert len((folder / "trials.jsonl").read_text().splitlines()) == 3


# --- interruption -----------------------------------------------------------------------------

COMMAND = (
    "search", "space.snn", "--data", "digits", "--epochs", "4", "--warmup-epochs", "1",
    "--batch-size", "20", "--learning-rate", "0.1", "--architecture-learning-rate", "0.05",
    "--limit-train", "400", "--seed", "3",
)  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen:
    (folder / "space.snn").write_text(DIGITS_SPACE)
    command = [sys.executable, "-m", "snnir", *COMMAND, "-o", "run", *more]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def epochs_done(folder: Path) -> int:
    log = folder / "run" / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_search_resumes_to_the_same_genotype(searched, tmp_path, how):
    whole, _ = searched
    process = start(tmp_path)
    deadline = time.monotonic() + 120
    while epochs_done(tmp_path) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, how)
    process.wait(60)
    if how == signal.SIGINT:
        assert process.returncode == 130
    assert 2 <= epochs_done(tmp_path) < 4, "it was to be stopped halfway"
    done = start(tmp_path, "--resume")
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    assert (tmp_path / "run" / "genotype.snn").read_text() == (
        whole.folder / "genotype.snn"
    ).read_text()
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run", whole.folder)
    ]
    times = ("seconds", "samples_per_second", "finished")
    for one, other in zip(*logs, strict=True):
        for name in one.keys() - set(times):
            assert one[name] == other[name], name


# --- several processes ------------------------------------------------------------------------

TWENTY_STEPS = """
import gc, json, sys, torch
from pathlib import Path
from snnir.data import Splits
from snnir.genotype import parse
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.passes import TRAINING, run_passes
from snnir.search import SearchConfig
from snnir.search.bilevel import BilevelSearch, halve
from snnir.training.processes import joined_processes
from snnir.training.run import open_splits
from snnir.training.trainer import Trainer

torch.set_num_threads(1)
text = Path(sys.argv[1]).read_text()
graph = build(parse(text))
config = SearchConfig(epochs=2, warmup_epochs=1, batch_size=9, learning_rate=0.1,
                      architecture_learning_rate=0.05, limit_train=360)
splits = open_splits(graph, "digits", config)
halves = halve(splits.train, 0)
module = SpikingModule(run_passes(TRAINING, graph).graph, seed=3).double()
losses = []
with joined_processes("cpu") as processes:
    search = BilevelSearch(module, halves.b, config, processes)
    def note(progress):
        losses.append([progress.loss, search.relaxation.totals.loss])
    trainer = Trainer(module, Splits(halves.a, None, halves.b, splits.classes), config,
                      Path(sys.argv[2]), processes, genotype=text, data="digits", unread={},
                      companion=search, show=note)
    for record in trainer.run():
        pass
    if processes.first:
        state = {k: v.flatten()[:5].tolist() for k, v in module.state_dict().items()}
        rates = record.firing_rates
        Path(sys.argv[2], "found.json").write_text(json.dumps([losses, state, rates]))
# no thread of the process group may outlive the interpreter
del trainer, search
gc.collect()
"""


def test_two_processes_search_as_one(tmp_path):
    """Global batch 9, so unequal shares, 40 steps of the weights and 20 of alpha, float64: losses,
    alpha, weights and batch statistics to 1e-6."""
    (tmp_path / "space.snn").write_text(DIGITS_SPACE)
    (tmp_path / "steps.py").write_text(TWENTY_STEPS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    found = []
    for count in ("1", "2"):
        folder = tmp_path / count
        folder.mkdir()
        done = subprocess.run(
            [*launch, count, "steps.py", "space.snn", str(folder)],
            cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(json.loads((folder / "found.json").read_text()))
    (losses, state, rates), (other_losses, other_state, _) = found
    assert len(losses) == 40
    assert np.allclose(losses, other_losses, rtol=0, atol=1e-6)
    assert losses[-1][1] > 0
    assert all(0.01 < rate < 0.99 for rate in rates.values())
    for name, values in state.items():
        assert np.allclose(values, other_state[name], rtol=0, atol=1e-6), name
    alphas = [values for name, values in state.items() if name.endswith(".logits")]
    assert any(abs(x - 1e-3) > 0.01 for values in alphas for x in values), "alpha did not move"


# --- the command, and bad input -----------------------------------------------------------------


def test_search_then_train_and_compile_as_typed(run, tmp_path):
    (tmp_path / "space.snn").write_text(DIGITS_SPACE)
    code, out, err = run(*COMMAND, "-o", "found", "--channels", 4, "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["genotype"] == "found/genotype.snn"
    assert 0 < printed["entropy_alpha"] < 1
    text = (tmp_path / "found" / "genotype.snn").read_text()
    assert "layers channels=4 " in text
    assert "stem conv3x3(8)" in text
    genotype = "found/genotype.snn"
    assert run("check", genotype)[0] == 0
    assert run("draw", genotype, "-o", "cell.svg")[0] == 0
    code, out, err = run(
        "train", genotype, "--data", "digits", "--epochs", 1, "--learning-rate", 0.1,
        "--limit-test", 50, "-o", "trained", "--json",
    )  # fmt: skip
    assert code == 0, err
    weights = "trained/best.safetensors"
    code, out, err = run("compile", genotype, "--weights", weights, "-o", "net", "--json")
    assert code == 0, err
    assert json.loads(out)["parity"]["spike_mismatch_rate"] == 0


def test_it_does_not_overwrite_another_search(searched):
    found, _ = searched
    with pytest.raises(SnnirError, match=r"found a run \(checkpoint\.pt\)"):
        digits_search(found.folder).run()
    with pytest.raises(SnnirError, match="found a run with seed 3, expected seed 4"):
        digits_search(found.folder, seed=4).run(resume=True)
    with pytest.raises(SnnirError, match="found a run with channels None, expected channels 6"):
        digits_search(found.folder, channels=6).run(resume=True)


def test_other_files_are_not_overwritten(tmp_path):
    baseline = {"method": "random", "trials": 1, "trial_epochs": 1}
    digits_search(tmp_path / "run", **baseline).run()
    text = (tmp_path / "run" / "genotype.snn").read_text()
    with pytest.raises(SnnirError, match=r"found a run \(trials\.jsonl\)"):
        digits_search(tmp_path / "run").run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "genotype.snn").write_text(text)
    for fields in ({}, baseline):
        with pytest.raises(SnnirError, match=r"found a run \(genotype\.snn\)"):
            digits_search(tmp_path / "mine", **fields).run()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["genotype.snn"]


def test_backbones_of_different_channels_are_not_set_to_one(tmp_path):
    space = parse(
        DIGITS_SPACE.replace("backbone trunk(image)", "backbone first(image)")
        .replace("trunk", "second(first)")
        .replace("auxiliary classify(second(first).layers[0], classes=10, weight=0.4)\n", "")
        + "backbone second(x) { stem conv3x3(4) layers channels=2 { normal@0 } }\n"
    )
    config = CONFIG.model_copy(update={"channels": 6})
    with pytest.raises(SnnirError, match=r"backbones of different channels \(first 3, second 2\)"):
        Search(space, "digits", config, tmp_path / "run").run()


ONE = "search nodes=1 keep=2 { conv3x3 }"
SPARE = "cell spare(a, b) { search nodes=1 keep=1 { conv3x3 | skip } }"
NORMAL = "cell normal(a, b) { search nodes=2"
ANNOTATED = "annotate { head.neuron tau=0.1 }"
BAD = [
    (DIGITS_SPACE, ["--epochs", "15"], "warmup_epochs: found 15 of 15 epochs, expected fewer"),
    (
        DIGITS_SPACE.replace("conv3x3(6)", "conv3x3(7)"),
        ["--channels", "4"],
        "which would have 9.33333 channels",
    ),
    (DIGITS_SPACE, ["--channels", "99999999"], "expected a whole number of at most"),
    (f"{DIGITS_SPACE}{SPARE}", [], "found cell 'spare' to search, which no layers use"),
    (f"{DIGITS_SPACE}annotate {{ trunk.layers[0].n7 tau=0.1 }}", [], "matches no neuron"),
    (DIGITS_SPACE.replace(NORMAL, NORMAL.replace("a, b", "n0, b")), [], "found state 'n0'"),
    (DIGITS_SPACE.replace(NORMAL, NORMAL.replace("a, b", "a, a")), [], "found state 'a' twice"),
    (DIGITS_SPACE.replace("b=5", "b=3.0000001"), [], "found the same candidate twice"),
    (
        DIGITS_SPACE.replace(
            "nodes=2 keep=1 { conv3x3 | maxpool3x3 }", "nodes=2 keep=1 { conv3x3 }"
        ),
        [],
        "cell 'reduce': found one candidate per edge",
    ),
    (
        DIGITS_SPACE,
        ["--method", "evolution", "--trials", "5"],
        "found 20 of 5 trials, expected fewer",
    ),
    ("fashion_small", [], "found nothing to search"),
    (DIGITS_SPACE.replace("keep=2", "keep=3"), [], "found keep=3, expected at most 2"),
    (DIGITS_SPACE, ["--batch-size", "201"], "found 201, expected at most 200, the number of sampl"),
    (DIGITS_SPACE, ["--warmup-epochs", "-1"], "warmup_epochs: found -1"),
    (DIGITS_SPACE, ["--preset", "cifra"], "did you mean 'cifar'"),
    (DIGITS_SPACE, ["--set", "input=3x8x8"], "expected [3, 8, 8] as the network takes"),
    (
        trellis_of_digits("search depth=6 levels=5 { normal }"),
        [],
        "which halves a side of one pixel",
    ),
    (
        trellis_of_digits("search depth=2 levels=2 { normal }")
        + "annotate { head.neuron tau=0.1 }",
        [],
        "found annotations in a space whose levels are searched",
    ),
    (
        DIGITS_SPACE.replace("{ normal@0 reduce@1 }", "search depth=2 levels=2 { normal }"),
        [],
        "whose layers are to be searched: which will be there is not known yet",
    ),
]


@pytest.mark.parametrize(("space", "options", "message"), BAD, ids=[m[:30] for *_, m in BAD])
def test_bad_input_exits_with_2_and_writes_nothing(run, tmp_path, space, options, message):
    if "\n" in space:
        (tmp_path / "space.snn").write_text(space)
        space = "space.snn"
    defaults = {"--limit-train": "400"}
    if "--epochs" not in options:
        defaults["--warmup-epochs"] = "1"
    limits = [x for key, value in defaults.items() if key not in options for x in (key, value)]
    code, out, err = run("search", space, "--data", "digits", "-o", "run", *options, *limits)
    assert code == 2, err
    assert out == ""
    assert message in err
    assert not (tmp_path / "run").exists()


def test_spaces_of_one_architecture_and_of_one_candidate(tmp_path):
    for search, message in (
        ("search nodes=1 keep=2 { conv3x3 }", "found a space of one architecture"),
        ("search nodes=2 keep=2 { conv3x3 }", "found one candidate per edge"),
    ):
        space = cell_space(search)
        with pytest.raises(SnnirError, match=message):
            Search(space, "digits", CONFIG, tmp_path / "run").run()


def test_a_loss_that_is_not_finite_stops_the_search(tmp_path):
    config = CONFIG.model_copy(update={"learning_rate": 1e30})
    from snnir.training import Diverged

    with pytest.raises(Diverged, match="expected a finite number"):
        digits_search(tmp_path / "run", config).run()
