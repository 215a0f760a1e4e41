"""Tuning neurons: what DGS, TPS and HNS do to b, tau and kinds, and that they do nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small

from snnir.errors import SnnirError
from snnir.genotype import ast, parse, print_genotype
from snnir.ir import build
from snnir.ir.nodes import Mixed
from snnir.lower import SpikingModule
from snnir.lower.initialise import calibrated_weights, seeded_inputs
from snnir.passes import ANALYSIS, TRAINING, run_passes
from snnir.passes.apply_annotations import language_path
from snnir.search import dgs, hns, tps
from snnir.search.neurons import annotate, tunable
from snnir.search.relax_neurons import relaxed
from snnir.search.tune import Tune, handcrafted
from snnir.search.tune_config import TuneConfig
from snnir.training.tasks import CLASSIFICATION
from snnir.training.trainer import Trainer

DIGITS = """snn 1
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
auxiliary classify(trunk.layers[0], classes=10, weight=0.4)
"""
CONFIG = TuneConfig(
    epochs=3, warmup_epochs=1, batch_size=20, learning_rate=0.1, iterations=5, retrain_epochs=0,
    limit_train=200, limit_test=100, seed=2,
)  # fmt: skip
NEURONS = [
    "trunk.stem[0]", "trunk.layers[0].n0", "trunk.layers[0].n1", "trunk.layers[1].n0",
    "trunk.layers[1].n1", "head.neuron",
]  # fmt: skip


def tuned(folder, text=DIGITS, **changed):
    config = CONFIG.model_copy(update=changed)
    return Tune(parse(text), "digits", config, Path(folder)).run()


def annotations(genotype):
    return {a.path: a for a in genotype.annotations}


# --- which neurons ----------------------------------------------------------------------------


def test_which_neurons_are_tuned():
    network = build(parse(DIGITS))
    assert list(tunable(network, (), ("lif", "alif"))) == NEURONS
    assert list(tunable(network, (), ("alif",))) == [NEURONS[2], NEURONS[4]]
    assert list(tunable(network, ("trunk.layers[*].n0",), ("lif",))) == [NEURONS[1], NEURONS[3]]
    assert list(tunable(network, ("trunk.stem[0]", "head.neuron"), ("lif",))) == [
        NEURONS[0],
        NEURONS[5],
    ]
    with pytest.raises(SnnirError, match=r"found 'trunk.stem\[1\]', which names no neuron"):
        tunable(network, ("trunk.stem[1]",), ("lif",))
    with pytest.raises(SnnirError, match="found no neuron to tune, expected one of the kinds relu"):
        tunable(network, (), ("relu",))


def test_annotations_are_added_and_replace_what_they_override():
    text = DIGITS + "annotate { trunk.stem[0] tau=0.1\n head.neuron tau=0.5, neuron=alif }\n"
    later = [("trunk.stem[0]", 0.3), ("head.neuron", 0.6)]
    found = annotate(parse(text), [ast.Annotation(path=path, tau=tau) for path, tau in later])
    lines = [(a.path, a.tau, a.neuron and a.neuron.kind) for a in found.annotations]
    assert lines == [
        ("head.neuron", 0.5, "alif"),
        ("trunk.stem[0]", 0.3, None),
        ("head.neuron", 0.6, None),
    ]
    graph = run_passes(ANALYSIS, build(found)).graph
    assert graph["head.neuron"].tau == 0.6
    assert graph["head.neuron"].kind == "alif"
    assert graph["trunk.stem.0.neuron"].tau == 0.3
    assert parse(print_genotype(found)) == found
    assert annotate(found, []) is found


# --- TPS --------------------------------------------------------------------------------------


def test_the_gradient_of_a_is_the_papers():
    """Equations 22 and 23: dL/da_k = Σ_t dL/dy[t] · p_k · (y_k[t] - y[t]), over T = 4 steps."""
    space = small(
        "input image: frame[1, 6, 6]\nsteps 4\n"
        "cell c(a, b) { n0 = conv3x3(a) + conv3x3(b) }\n"
        "backbone t(image) { stem conv3x3(4) layers channels=3 { c@0 } }\n"
        "head classify(t, classes=3)"
    )
    network = build(space)
    path = "t.layers.0.n0.neuron"
    neuron = run_passes(ANALYSIS, network).graph[path]
    candidates = [neuron.model_copy(update={"tau": tau}) for tau in (0.1, 0.4, 0.9)]
    graph = relaxed(network, {path: candidates})
    rng = np.random.default_rng(1)
    weights = {}
    for name, shape in (graph.parameter_shapes() | graph.buffer_shapes()).items():
        value = rng.normal(0.1, 0.5, shape)
        positive = name.endswith(("running_var", "bn.weight"))
        weights[name] = np.abs(value) + 0.2 if positive else value
    module = SpikingModule(graph, weights).eval()
    seen = {}

    def observe(node, value):
        if value.data.requires_grad:
            value.data.retain_grad()
        seen[node.path] = value.data
        return value

    x = torch.from_numpy(seeded_inputs(graph, 0, 5)[0].astype(np.float64))
    logits, _ = module.run(x, observe=observe)
    (logits * torch.from_numpy(rng.normal(size=tuple(logits.shape)))).sum().backward()
    p = torch.softmax(torch.from_numpy(weights[f"{path}.logits"]), 0)
    outputs = [seen[f"{path}.{k}"].detach() for k in range(3)]
    assert all(0.02 < float(y.mean()) < 0.98 for y in outputs)
    assert not torch.equal(outputs[0], outputs[2]), "time constants that make no difference"
    mixed = sum(p_k * y for p_k, y in zip(p, outputs, strict=True))
    arriving = seen[path].grad
    expected = [
        float(p_k * (arriving * (y - mixed)).sum()) for p_k, y in zip(p, outputs, strict=True)
    ]
    assert max(map(abs, expected)) > 1e-3
    assert module.parameter(f"{path}.logits").grad.tolist() == pytest.approx(expected, abs=1e-10)


def test_every_candidate_has_its_own_membrane():
    """Each runs as if it were alone: one-hot weights give the network with that tau, exactly."""
    network = build(parse(DIGITS))
    paths = [n.path for n in run_passes(ANALYSIS, network).graph.neurons if n.kind == "lif"]
    paths = [p for p in paths if not p.startswith("auxiliary")]
    plain = run_passes(ANALYSIS, network).graph
    taus = (0.1, 0.6)
    graph = relaxed(
        network, {p: [plain[p].model_copy(update={"tau": t}) for t in taus] for p in paths}
    )
    x = torch.from_numpy(seeded_inputs(graph, 0, 4)[0])
    weights = calibrated_weights(run_passes(TRAINING, network).graph, [x], 0)
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    mixture = SpikingModule(graph, weights).double().eval()
    results = []
    for k, tau in enumerate(taus):
        lines = "\n".join(f"{language_path(p)} tau={tau}" for p in paths)
        text = DIGITS + f"annotate {{ {lines} }}"
        alone = SpikingModule(run_passes(TRAINING, build(parse(text))).graph, weights).double()
        mixing = {p: torch.eye(2, dtype=torch.float64)[k] for p in paths}
        with torch.no_grad():
            found, _ = mixture.run(x.double(), mixing=mixing)
            torch.testing.assert_close(found, alone.eval()(x.double()), rtol=0, atol=1e-12)
        results.append(found)
    assert not torch.allclose(*results)


class Stub:
    """Stands in for what steps the logits: the test decides where they are."""

    def __init__(self, paths):
        self.logits = {path: torch.nn.Parameter(torch.zeros(3)) for path in paths}
        self.restarts = 0

    def arrays(self):
        return {path: p.detach().double().numpy() for path, p in self.logits.items()}

    def restart(self):
        self.restarts += 1

    def step(self, trainer, x, target):
        pass


def test_tau_moves_to_the_largest_a_and_a_starts_again():
    network = build(parse(DIGITS))
    targets = tunable(network, (), ("lif", "alif"))
    config = CONFIG.model_copy(update={"iterations": 1, "tau_step": 0.15, "warmup_epochs": 0})
    search = tps.TemporalParameterSearch(network, targets, config)
    owners = {path: neurons[0].path for path, neurons in targets.items()}
    search._relaxation = Stub(owners.values())
    search._module = SpikingModule(search.graph)
    search._reset()
    trainer = type("T", (), {"epoch": 0})()
    logits = search._relaxation.logits

    def step(favourite):
        with torch.no_grad():
            for owner in logits:
                logits[owner][favourite] = 1.0
        search.after_step(trainer, None, None)

    lif, alif = "trunk.stem[0]", "trunk.layers[0].n1"
    step(0)  # 0.05, 0.2, 0.35: down
    assert search.taus[lif] == {"tau": 0.05}
    assert search.taus[alif] == {"tau": 0.05, "tau_a": 0.2}
    assert search._relaxation.restarts == 1
    # 0 (clamped), 0.05, 0.2 for the LIF; the ALIF moves tau_a now
    assert logits[owners[lif]].tolist() == pytest.approx([1e-3] * 3)
    step(0)
    assert search.taus[lif] == {"tau": 0.0}
    assert search.taus[alif] == {"tau": 0.05, "tau_a": 0.05}
    # 0 and 0: the second is dropped, and its softmax weight is exactly 0
    weights = torch.softmax(logits[owners[lif]].detach(), 0)
    assert weights[1] == 0
    assert weights.sum() == pytest.approx(1)
    step(2)
    assert search.taus[lif] == {"tau": 0.15}
    search.taus[lif]["tau"] = 0.95
    assert search._values(lif, "tau") == [0.8, 0.95, 0.99]
    graph = search._module.graph
    assert graph["trunk.layers.0.n1.neuron.0"].tau_a == pytest.approx(0.0)
    assert graph["trunk.layers.0.n1.neuron.0"].tau == 0.2


def test_tps_leaves_what_it_promises(tmp_path):
    found = tuned(tmp_path / "run", retrain_epochs=1)
    folder = tmp_path / "run"
    lines = annotations(found.genotype)
    assert list(lines) == NEURONS
    assert all(0 <= a.tau <= 0.99 for a in lines.values())
    assert [path for path, a in lines.items() if a.tau_a is not None] == [NEURONS[2], NEURONS[4]]
    assert any(a.tau != 0.2 for a in lines.values())
    assert parse((folder / "genotype.snn").read_text()) == found.genotype
    assert parse((folder / "base.snn").read_text()) == parse(DIGITS)
    scalars = [record.scalars for record in found.history]
    assert scalars[0]["tau/trunk.stem[0]"] == 0.2
    assert "architecture/loss" not in scalars[0]
    assert scalars[2]["architecture/loss"] > 0
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "base.snn", "genotype.snn", "config.toml", "checkpoint.pt", "last.safetensors", "log.jsonl",
        "curve.svg", "tune.html", "tensorboard", "retrain",
    }  # fmt: skip
    assert parse((folder / "retrain" / "genotype.snn").read_text()) == found.genotype
    assert found.trained is not None
    assert (folder / "retrain" / "best.safetensors").exists()
    page = (folder / "tune.html").read_text()
    assert f"<b>{found.trained.tested.accuracy:.2%}</b>".replace("%", " %") in page
    for path, annotation in lines.items():
        assert f"  {path:18}  tau={annotation.tau:g}" in page


# --- snapshots --------------------------------------------------------------------------------


def test_snapshots_are_what_was_found_by_then_trained(tmp_path):
    folder = tmp_path / "run"
    settings = {"retrain_epochs": 1, "snapshots": 2}
    found = tuned(folder, **settings)
    logged = [json.loads(line)["scalars"] for line in (folder / "log.jsonl").open()]
    assert [record.scalars for record in found.history] == logged
    assert "snapshot/accuracy" not in logged[0]
    early = parse((folder / "snapshots" / "epoch-002" / "genotype.snn").read_text())
    assert {path: a.tau for path, a in annotations(early).items()} == {
        path: logged[1][f"tau/{path}"] for path in NEURONS
    }
    assert early != found.genotype
    run = folder / "snapshots" / "epoch-002"
    alone = json.loads((run / "log.jsonl").read_text())
    assert logged[1]["snapshot/accuracy"] == alone["accuracy"]
    assert logged[1]["snapshot/firing_rate"] == alone["firing_rate"] > 0.01
    assert logged[2]["snapshot/accuracy"] == found.trained.tested.accuracy
    last = folder / "snapshots" / "epoch-003"
    assert [path.name for path in last.iterdir()] == ["genotype.snn"], "trained already"
    assert "accuracy once trained" in (folder / "tune.html").read_text()
    for path in run.iterdir():  # as if it had been killed before
        if path.name != "genotype.snn":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "log.jsonl").unlink()
    config = CONFIG.model_copy(update=settings)
    again = Tune(parse(DIGITS), "digits", config, folder).run(resume=True)
    assert [record.scalars for record in again.history] == logged
    assert [json.loads(line)["scalars"] for line in (folder / "log.jsonl").open()] == logged


# --- HNS --------------------------------------------------------------------------------------


def test_hns_chooses_kinds_and_the_network_says_so(tmp_path):
    """A layer that reads a relu multiplies: the purity report names it."""
    found = tuned(tmp_path / "run", method="hns", logits_learning_rate=0.1)
    relu = [a.path for a in found.genotype.annotations if a.neuron and a.neuron.kind == "relu"]
    assert relu
    share = found.history[-1].scalars["share/relu"]
    assert share == pytest.approx(len(relu) / len(NEURONS))
    from snnir.analysis.purity import violations
    from snnir.passes import FOLDING

    assert not violations(run_passes(FOLDING, build(parse(DIGITS))).graph)
    folded = run_passes(FOLDING, build(found.genotype)).graph
    readers = {v.path for v in violations(folded)}
    assert readers
    for path in readers:
        assert folded.type(folded.inputs(path)[0]).domain == "real"


def test_the_energy_loss_by_hand():
    """eq. 28: Σ_l w_l Σ_k softmax(a)_k · p_k, p = 1 and 4.26; by operations w_l is the share of the
    MACs that read the neuron."""
    network = build(parse(DIGITS))
    targets = tunable(network, (), ("lif", "alif"))
    config = CONFIG.model_copy(update={"method": "hns", "candidates": ("lif", "relu")})
    search = hns.HybridSearch(network, targets, config)
    search._relaxation = Stub([neurons[0].path for neurons in targets.values()])
    a = {n[0].path: torch.tensor([0.3, -0.2]) for n in targets.values()}
    search._relaxation.logits = a
    p = np.exp([0.3, -0.2]) / np.exp([0.3, -0.2]).sum()
    assert float(search.energy()) == pytest.approx(6 * (p[0] + 4.26 * p[1]), rel=1e-6)
    weights = hns.layer_weights(network, targets, by_operations=True)
    assert sum(weights.values()) == pytest.approx(6)
    # layer 0 reads the stem's 6 channels at 8x8 three times (n0's skip is a conv3x3 there), to 3
    # channels each; layer 1 once at 4x4, to 6
    stem = 3 * (3 * 6 * 9 * 64) + 6 * 6 * 9 * 16
    # n0's 3 channels: read by n1, and as half of what layer 1's n1 reads; its skip is the identity
    n0 = 3 * 3 * 9 * 64 + 6 * 3 * 9 * 16
    assert weights["trunk.stem[0]"] / weights["trunk.layers[0].n0"] == pytest.approx(stem / n0)


def test_the_energy_weight_keeps_neurons_spiking(tmp_path):
    free = tuned(tmp_path / "free", method="hns", logits_learning_rate=0.1)
    dear = tuned(tmp_path / "dear", method="hns", logits_learning_rate=0.1, energy_weight=1.0)
    assert dear.history[-1].scalars["share/relu"] == 0
    assert dear.history[-1].scalars["energy_loss"] < free.history[-1].scalars["energy_loss"]
    assert dear.genotype.annotations == [
        ast.Annotation(path=path, neuron=ast.Neuron(kind="lif"))
        for path in (NEURONS[2], NEURONS[4])
    ], "the ALIFs become the spiking candidate there is"


# --- DGS --------------------------------------------------------------------------------------


class Snapshot(dgs.SurrogateSearch):
    """Notes that a search changes b alone, and measuring nothing."""

    searches = measurements = 0

    def _search(self, trainer):
        before = dict(self.b)
        with self.unchanged(trainer):
            super()._search(trainer)
        assert all(abs(self.b[path] - b) < 0.401 for path, b in before.items())
        Snapshot.searches += 1

    def _measure_gradients(self, trainer, batch):
        before = dict(self.b)
        with self.unchanged(trainer):
            super()._measure_gradients(trainer, batch)
        assert self.b == before
        Snapshot.measurements += 1

    @contextmanager
    def unchanged(self, trainer):
        module = self._module
        state = {k: v.clone() for k, v in module.state_dict().items()}
        momentum = [
            trainer.optimizer.state[p]["momentum_buffer"].clone() for p in module.parameters()
        ]
        yield
        assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
        after = [trainer.optimizer.state[p]["momentum_buffer"] for p in module.parameters()]
        assert all(map(torch.equal, momentum, after))
        assert all(p.requires_grad for p in module.parameters())
        assert module.batch_norm_momentum > 0
        used = {language_path(n.path): n.b for n in module.graph.neurons}
        assert {path: used[path] for path in self.b} == self.b


@pytest.mark.parametrize("nodes", [("trunk.stem[0]",), ("trunk.layers[*].n1", "trunk.stem[0]")])
def test_dgs_changes_b_and_nothing_else(tmp_path, monkeypatch, nodes):
    monkeypatch.setattr("snnir.search.tune.SurrogateSearch", Snapshot)
    Snapshot.searches = Snapshot.measurements = 0
    found = tuned(tmp_path / "run", method="dgs", nodes=nodes, interval=1, iterations=3)
    assert (Snapshot.searches, Snapshot.measurements) == (2, 3)
    lines = annotations(found.genotype)
    assert len(lines) == (1 if len(nodes) == 1 else 3)
    assert any(a.surrogate.b != 3 for a in lines.values())
    assert all(a.surrogate.kind == "dspike" and 1 <= a.surrogate.b <= 6 for a in lines.values())
    scalars = [record.scalars for record in found.history]
    assert scalars[0]["b/trunk.stem[0]"] == 3
    assert scalars[2]["b/trunk.stem[0]"] == lines["trunk.stem[0]"].surrogate.b
    assert (tmp_path / "run" / "best.safetensors").exists()
    trained = build(found.genotype)
    assert not trained.of_type(Mixed)


def test_gradients_are_measured_with_b_as_it_is_and_as_it_began(tmp_path):
    """A triangle whose reset is detached is proportional to b, and so is what its node's weights
    get: the two differ by b / 3."""
    line = "neuron lif(tau=0.2, surrogate=triangle(b=3), detach_reset=true)"
    text = DIGITS.replace("neuron lif(tau=0.2, surrogate=dspike(b=3))", line)
    path = "trunk.layers[1].n0"
    found = tuned(tmp_path / "run", text, method="dgs", nodes=(path,), interval=1, iterations=3)
    moved = []
    for record in found.history:
        b, now, first = (
            record.scalars[f"{name}/{path}"] for name in ("b", "gradient", "gradient_at_first_b")
        )
        assert first > 1e-6
        assert now / first == pytest.approx(b / 3, rel=1e-5)
        moved.append(b)
    assert moved[0] == 3 != moved[2]


def test_a_surrogate_that_makes_no_difference_stays(tmp_path, monkeypatch):
    """Equal candidates weigh the same, and of equals b itself is kept."""

    class Even(dgs.SurrogateSearch):
        def _weighed(self, trainer, batch):
            return {path: torch.full((5,), 0.2) for path in self.b}

    monkeypatch.setattr("snnir.search.tune.SurrogateSearch", Even)
    found = tuned(tmp_path / "run", method="dgs", interval=1, iterations=1, epochs=2)
    assert {a.surrogate.b for a in found.genotype.annotations} == {3.0}


def gradients_of(text, path, *, linear):
    """The candidates' weights of one DGS batch."""
    network = build(parse(text))
    targets = tunable(network, (path,), ("lif",))
    config = TuneConfig(method="dgs", linear_estimate=linear, batch_size=8, epochs=1)
    search = dgs.SurrogateSearch(network, targets, config)
    graph = search.graph
    x = torch.from_numpy(seeded_inputs(graph, 3, 8)[0])
    module = SpikingModule(graph, calibrated_weights(graph, [x], 0)).double()
    from snnir.training.processes import Processes

    search.start(module, Processes(torch.device("cpu")))
    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.processes, trainer.dtype = config, search._processes, torch.float64
    trainer.auxiliary_weights, trainer.epoch, trainer.task = [], 0, CLASSIFICATION
    search._place_candidates(trainer, (x.double(), torch.arange(8) % 3))
    names = [dgs._candidate_name(name, k) for name in search._names[path] for k in range(5)]
    return {name: search._mixed.parameter(name).clone() for name in names}, search


ONE_STEP = """snn 1
network one
input image: frame[1, 6, 6]
steps {steps}
neuron lif(surrogate={surrogate}{detach})
cell c(a, b) {{ n0 = conv3x3(a) + conv3x3(b) }}
backbone t(image) {{ stem conv3x3(4) layers channels=3 {{ c@0 }} }}
head classify(t, classes=3)
"""


@pytest.mark.parametrize("surrogate", ["triangle", "arctan"])
@pytest.mark.parametrize(("steps", "detach"), [(1, ""), (4, ", detach_reset=true")])
def test_one_gradient_gives_all_candidates_of_linear_surrogates(surrogate, steps, detach):
    text = ONE_STEP.format(surrogate=f"{surrogate}(b=3)", steps=steps, detach=detach)
    repeated, _ = gradients_of(text, "t.layers[0].n0", linear=False)
    estimated, _ = gradients_of(text, "t.layers[0].n0", linear=True)
    for name, value in repeated.items():
        torch.testing.assert_close(estimated[name], value, rtol=1e-9, atol=1e-12)
    weight = "t.layers.0.n0.a.conv"
    first, last = (repeated[f"{weight}.candidate{k}.weight"] for k in (0, 4))
    assert not torch.allclose(first, last, rtol=1e-6), "candidates that do not differ"


def test_the_candidates_mixed_are_the_network_where_all_are_its_weights():
    """Equal candidates, whatever a is, give the node's own current."""
    text = ONE_STEP.format(surrogate="dspike(b=3)", steps=3, detach="")
    _, search = gradients_of(text, "t.layers[0].n0", linear=False)
    module, mixed = search._module, search._mixed
    x = torch.from_numpy(seeded_inputs(module.graph, 5, 8)[0]).double()
    with torch.no_grad():
        for name in search._names["t.layers[0].n0"]:
            for k in range(5):
                mixed.parameter(dgs._candidate_name(name, k)).copy_(module.parameter(name))
        for logits in search._logits.values():
            logits.copy_(torch.tensor([0.1, -1.0, 0.5, 0.0, 2.0]))
        module.batch_norm_momentum = 0.0
        expected = module.train()(x)
        torch.testing.assert_close(mixed.train()(x), expected, rtol=0, atol=1e-10)
    assert float(expected.abs().max()) > 0.01


# --- baselines, composition, interruption -----------------------------------------------------


@pytest.mark.parametrize("method", ["tau", "plif"])
def test_time_constants_learned_by_gradient(tmp_path, method):
    found = tuned(tmp_path / "run", method=method, retrain_epochs=1)
    lines = annotations(found.genotype)
    assert list(lines) == NEURONS
    assert all(0 <= a.tau <= 0.99 for a in lines.values())
    moved = [path for path, a in lines.items() if abs(a.tau - 0.2) > 1e-4]
    assert len(moved) > len(NEURONS) / 2, "steps of gradient descent move what has a gradient"
    assert found.history[0].scalars[f"tau/{moved[0]}"] != lines[moved[0]].tau
    assert found.trained is not None
    assert not any(n.learned for n in build(found.genotype).neurons)


@pytest.mark.parametrize("method", ["random", "if", "alif", "relu"])
def test_baselines_annotate_and_train(tmp_path, method):
    found = tuned(tmp_path / "run", method=method, retrain_epochs=2)
    lines = annotations(found.genotype)
    assert list(lines) == NEURONS
    if method == "random":
        taus = [a.tau for a in lines.values()]
        assert len(set(taus)) == 6
        assert all(0 <= tau < 1 for tau in taus)
        config = CONFIG.model_copy(update={"method": "random"})
        targets = tunable(build(parse(DIGITS)), (), ("lif", "alif"))
        assert handcrafted(targets, config) == list(lines.values())
    else:
        assert {a.neuron.kind for a in lines.values()} == {method}
    graph = run_passes(ANALYSIS, build(found.genotype)).graph
    kinds = {n.kind for n in graph.neurons if not n.path.startswith("auxiliary")}
    assert kinds == ({"lif", "alif"} if method == "random" else {method})
    first, second = found.trained.history
    assert second.train_loss < first.train_loss


def test_methods_compose(tmp_path):
    one = tuned(tmp_path / "one")
    two = tuned(
        tmp_path / "two", print_genotype(one.genotype), method="dgs", interval=1, iterations=2
    )
    three = tuned(
        tmp_path / "three", print_genotype(two.genotype), method="hns", logits_learning_rate=0.1
    )
    graph = run_passes(ANALYSIS, build(three.genotype)).graph
    taus = annotations(one.genotype)
    b = {a.path: a for a in two.genotype.annotations if a.surrogate}
    for neuron in graph.neurons:
        path = language_path(neuron.path)
        if path in NEURONS and neuron.kind != "relu":
            assert neuron.tau == taus[path].tau
            assert neuron.b == (b[path].surrogate.b if path in b else 3)
    assert any(n.kind == "relu" for n in graph.neurons)
    assert list(b) == NEURONS[:5], "the head's neuron reads no weights: there is no b to learn"


COMMAND = (
    "tune", "net.snn", "--data", "digits", "--epochs", "4", "--warmup-epochs", "1",
    "--batch-size", "20", "--learning-rate", "0.1", "--iterations", "5", "--retrain-epochs", "2",
    "--limit-train", "200", "--limit-test", "100", "--seed", "2",
)  # fmt: skip


@pytest.mark.parametrize("method", ["tps", "dgs"])
def test_a_killed_run_resumes_to_the_same(tmp_path, method):
    more = ("--method", method, "--interval", "1", "--iterations", "4")
    results = []
    for name, killed in (("whole", False), ("killed", True)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "net.snn").write_text(DIGITS)
        command = [sys.executable, "-m", "snnir", *COMMAND, *more, "-o", "run"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=folder, **pipes)
        log = folder / "run" / "log.jsonl"
        if killed:
            deadline = time.monotonic() + 120
            while not log.exists() or len(log.read_text().splitlines()) < 2:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert len(log.read_text().splitlines()) < 4
            process = subprocess.Popen([*command, "--resume"], cwd=folder, **pipes)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        last = "run/last.safetensors" if method == "dgs" else "run/retrain/last.safetensors"
        results.append(
            ((folder / "run" / "genotype.snn").read_text(), (folder / last).read_bytes())
        )
    assert results[0] == results[1]


TWENTY_STEPS = """
import gc, json, sys, torch
from pathlib import Path
from snnir.genotype import parse
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.search.tune import Tune
from snnir.search.tune_config import TuneConfig
from snnir.training.processes import joined_processes
from snnir.training.run import open_splits
from snnir.training.trainer import Trainer

torch.set_num_threads(1)
text = Path(sys.argv[1]).read_text()
genotype = parse(text)
network = build(genotype)
results = {}
with joined_processes("cpu") as processes:
    for method in sys.argv[3:]:
        config = TuneConfig(method=method, epochs=2, warmup_epochs=0, batch_size=9,
                            iterations=5, interval=1, learning_rate=0.1, logits_learning_rate=0.1,
                            energy_weight=0.01, limit_train=90, limit_test=90)
        folder = Path(sys.argv[2], method)
        folder.mkdir(exist_ok=True)
        search = Tune(genotype, "digits", config, folder)._search(network)
        module = SpikingModule(search.graph, seed=3).double()
        search.start(module, processes)
        losses = []
        trainer = Trainer(module, open_splits(network, "digits", config), config, folder, processes,
                          genotype=text, data="digits", unread={}, companion=search,
                          show=lambda progress: losses.append(progress.loss))
        for record in trainer.run():
            pass
        state = {k: v.flatten()[:5].tolist() for k, v in module.state_dict().items()}
        found = [a.model_dump(exclude={"span"}) for a in search.annotations()]
        results[method] = [losses, state, found, record.scalars, record.firing_rates]
        # no thread of the process group may outlive the interpreter
        del trainer, search, module
        gc.collect()
    if processes.first:
        Path(sys.argv[2], "found.json").write_text(json.dumps(results))
"""


def test_two_processes_tune_as_one(tmp_path):
    """Global batch 9, so unequal shares, 20 steps of the weights with 20 of the logits or a DGS
    search of 5 batches, float64: losses, weights, statistics, logits, gradients to 1e-6; the same
    b, tau and kinds.

    The head's neuron reads means of 16 spikes: at threshold 1/2 half of them would be a tie, which
    rounding decides.
    """
    methods = ("dgs", "tps", "hns")
    text = DIGITS.replace("lif(tau=0.2,", "lif(tau=0.2, v_threshold=0.4371,")
    (tmp_path / "net.snn").write_text(text)
    (tmp_path / "steps.py").write_text(TWENTY_STEPS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    results = []
    for count in ("1", "2"):
        folder = tmp_path / count
        folder.mkdir()
        done = subprocess.run(
            [*launch, count, "steps.py", "net.snn", str(folder), *methods],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads((folder / "found.json").read_text()))
    for method in methods:
        (losses, state, found, scalars, rates), other = (result[method] for result in results)
        assert len(losses) == 20
        assert np.allclose(losses, other[0], rtol=0, atol=1e-6), method
        assert state.keys() == other[1].keys()
        for name, values in state.items():
            assert np.allclose(values, other[1][name], rtol=0, atol=1e-6), (method, name)
        assert scalars.keys() == other[3].keys()
        for name, value in scalars.items():
            assert value == pytest.approx(other[3][name], rel=0, abs=1e-6), (method, name)
        assert all(0.01 < rate < 0.99 for rate in rates.values()), method
        assert found == other[2]
    found, scalars = ({method: result[k] for method, result in results[0].items()} for k in (2, 3))
    assert any(a["surrogate"]["b"] != 3 for a in found["dgs"])
    assert any(a["tau"] != 0.2 for a in found["tps"])
    assert any(a["neuron"]["kind"] == "relu" for a in found["hns"])
    assert scalars["dgs"]["gradient/trunk.stem[0]"] > 1e-5


def test_torchrun_tunes(tmp_path):
    """A search and the training after it, in two processes."""
    (tmp_path / "net.snn").write_text(DIGITS)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    options = ("--method", "hns", "--energy-weight", "0.01", "--epochs", "2", "-o", "run", "--json")
    done = subprocess.run(
        [*launch, "-m", "snnir", *COMMAND, *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weights"] == "run/retrain/best.safetensors"
    assert (tmp_path / "run" / "retrain" / "best.safetensors").exists()


def test_tune_as_typed(run, tmp_path):
    (tmp_path / "net.snn").write_text(DIGITS)
    code, out, err = run(*COMMAND, "--nodes", "trunk.layers[*].n0", "-o", "tuned", "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["genotype"] == "tuned/genotype.snn"
    text = Path(printed["genotype"]).read_text()
    assert "trunk.layers[0].n0  tau=" in text
    assert "trunk.stem[0]" not in text
    weights = printed["weights"]
    code, out, err = run(
        "eval", printed["genotype"], "--weights", weights, "--data", "digits", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["samples"] == 360
    code, out, err = run("compile", printed["genotype"], "--weights", weights, "-o", "net")
    assert code == 0, err


BAD = [
    (["--nodes", "trunk.layers[7].*"], "which names no neuron of 'digits_net'"),
    (["--method", "hns", "--energy-weight", "-1"], "energy_weight: found -1"),
    (["--method", "hns", "--candidates", "lif"], "candidates: found ['lif']"),
    (["--method", "hns", "--candidates", "lif,lfi"], "candidates.1: found 'lfi'"),
    (["--tau-step", "0"], "tau_step: found 0"),
    (["--method", "dgs", "--surrogates", "2"], "surrogates: found 2"),
    (["--batch-size", "300"], "found 300, expected at most 200"),
    (["--method", "dgs", "--snapshots", "2"], "snapshots: found 2 with dgs"),
    (["--snapshots", "2", "--retrain-epochs", "0"], "snapshots: found 2 with tps and retrain_"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message[:25] for _, message in BAD])
def test_bad_input_exits_with_2_and_writes_nothing(run, tmp_path, options, message):
    (tmp_path / "net.snn").write_text(DIGITS)
    code, _, err = run(*COMMAND, "-o", "run", *options)
    assert code == 2, err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_networks_that_cannot_be_tuned(tmp_path):
    relu = DIGITS.replace("neuron lif(tau=0.2, surrogate=dspike(b=3))", "neuron relu")
    relu = relu.replace(" : alif", "")
    with pytest.raises(SnnirError, match="found no neuron to tune, expected one of the kinds lif"):
        tuned(tmp_path / "run", relu)
    nodes = "n0 = conv3x3(a) + skip(b)\n  n1 = conv3x3(b) + conv3x3(n0) : alif"
    space = DIGITS.replace(nodes, "search nodes=2 keep=1 { conv3x3 | skip }")
    with pytest.raises(SnnirError, match="found a search space, expected a network"):
        tuned(tmp_path / "run", space)
    assert not (tmp_path / "run").exists()
