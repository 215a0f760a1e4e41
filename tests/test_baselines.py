"""Random search and regularised evolution: uniform draws, one change at a time, the budget of the
bi-level search, and going on to the same trials. Trained on real images (digits)."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import genotype, small

from snnir.analysis.counts import parameter_count
from snnir.errors import SnnirError
from snnir.genotype import parse, print_genotype
from snnir.ir import build
from snnir.ir.text import graph_text
from snnir.search import baselines
from snnir.search.architecture import (
    Architecture,
    Edge,
    count_architectures,
    genotype_of,
    searchable_cells,
)
from snnir.search.baselines import Proposals, Trial, best, read_trials, run_baseline, trial_recipe
from snnir.search.budget import forward_macs, search_macs, trial_macs
from snnir.search.config import SearchConfig
from snnir.search.sampling import mutated, random_architecture
from snnir.training.processes import Processes
from snnir.training.record import Record
from snnir.training.run import open_splits

SPACE = """
input image: frame[1, 8, 8]
steps 2
cell c(a, b) {{
  search nodes={nodes} keep={keep} mix=membrane {{ {candidates} }}
}}
backbone t(image) {{
  stem conv3x3(8)
  layers channels={channels} {layers}
}}
head classify(t, classes=10)
"""


def space(nodes=1, keep=1, candidates="conv3x3 | skip", layers="{ c@0 }", channels=2):
    return small(
        SPACE.format(
            nodes=nodes, keep=keep, candidates=candidates, layers=layers, channels=channels
        )
    )


CELL = space(nodes=2, channels=8)
PAIRS = space(nodes=3, keep=2, candidates="conv3x3(b=3) | conv3x3(b=5) | skip")
TRELLIS = space(nodes=1, candidates="conv3x3", layers="search depth=3 levels=3 { c }")
BOTH = space(nodes=2, keep=2, layers="search depth=4 levels=2 { c }")
SPACES = {"cell": CELL, "pairs": PAIRS, "trellis": TRELLIS, "both": BOTH}
QUICK = SearchConfig(
    method="random", epochs=2, warmup_epochs=1, batch_size=20, learning_rate=0.1, limit_train=1000,
    trials=4, trial_epochs=1, population=2, tournament=2,
)  # fmt: skip


def quick(**settings):
    return QUICK.model_copy(update=settings)


def choices(architecture: Architecture) -> tuple:
    return tuple(architecture.cells.items()), tuple(architecture.paths.items())


# --- drawing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "count"), [(CELL, 24), (space(nodes=2, keep=2), 48), (TRELLIS, 2 * 12)]
)
def test_every_architecture_is_equally_likely(space, count):
    assert count_architectures(space) == count
    rng = np.random.default_rng(0)
    expected = 150
    found = Counter(choices(random_architecture(space, rng)) for _ in range(expected * count))
    assert len(found) == count
    assert max(abs(n - expected) for n in found.values()) < 4.5 * math.sqrt(expected)


@pytest.mark.parametrize("name", ["cifar_space", "stereo_space"])
def test_drawn_architectures_are_genotypes_that_build(name):
    space = genotype(name)
    rng = np.random.default_rng(1)
    for _ in range(3):
        found = genotype_of(space, random_architecture(space, rng))
        assert parse(print_genotype(found)) == found
        assert not found.searchable
        build(found)


def differences(parent: Architecture, child: Architecture) -> list[str]:
    """What a mutation changed."""
    found = []
    for name, choice in parent.cells.items():
        for before, after in zip(choice, child.cells[name], strict=True):
            gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
            assert len(gone) == len(new) <= 1
            for old, edge in zip(gone, new, strict=True):
                found.append("operation" if old.state == edge.state else "source")
                assert (old.state == edge.state) != (old.candidate == edge.candidate)
    for name, path in parent.paths.items():
        found += ["level" for a, b in zip(path, child.paths[name], strict=True) if a != b]
    return found


@pytest.mark.parametrize("name", SPACES)
def test_a_mutation_changes_one_thing_and_stays_in_the_space(name):
    space = SPACES[name]
    rng = np.random.default_rng(2)
    architecture = random_architecture(space, rng)
    kinds = Counter()
    for _ in range(200):
        child = mutated(space, architecture, rng)
        (kind,) = differences(architecture, child)
        kinds[kind] += 1
        found = genotype_of(space, child)
        assert parse(print_genotype(found)) == found
        for cell, choice in child.cells.items():
            for node, edges in enumerate(choice):
                states = [edge.state for edge in edges]
                assert states == sorted(set(states))
                assert len(states) == searchable_cells(space)[cell].keep
                assert max(states) < 2 + node
        architecture = child
    assert (
        set(kinds)
        == {
            "cell": {"operation", "source"},
            "pairs": {"operation", "source"},
            "trellis": {"source", "level"},
            "both": {"operation", "source", "level"},
        }[name]
    )


def test_what_mutates_is_equally_likely():
    """Of two nodes with an edge each: 2 operations and 2 sources (of one other state, and of two),
    so each of the 2 ways in which n1 may read another state has half the probability."""
    parent = Architecture({"c": ((Edge(0, 0),), (Edge(1, 1),))}, {})
    rng = np.random.default_rng(3)
    found = Counter(mutated(CELL, parent, rng).cells["c"] for _ in range(4000))
    one, other = (Edge(0, 0),), (Edge(1, 1),)
    expected = {
        ((Edge(0, 1),), other): 1000,
        ((Edge(1, 0),), other): 1000,
        (one, (Edge(1, 0),)): 1000,
        (one, (Edge(0, 1),)): 500,
        (one, (Edge(2, 1),)): 500,
    }
    assert set(found) == set(expected)
    for cell, count in expected.items():
        assert abs(found[cell] - count) < 4 * math.sqrt(count)


def test_mutations_lead_to_every_path():
    rng = np.random.default_rng(4)
    architecture = random_architecture(TRELLIS, rng)
    seen = set()
    for _ in range(400):
        architecture = mutated(TRELLIS, architecture, rng)
        seen.add(architecture.paths["t"])
    assert len(seen) == 12


def test_a_space_of_one_architecture_cannot_mutate():
    one = space(keep=2, candidates="conv3x3")
    assert count_architectures(one) == 1
    rng = np.random.default_rng(0)
    with pytest.raises(SnnirError, match="'small': found a space of one architecture"):
        mutated(one, random_architecture(one, rng), rng)


# --- budget -----------------------------------------------------------------------------------

STEM = 8 * 8 * 8 * 9  # on a static frame: once
CONV3X3, CONV1X1 = 8 * 8 * 2 * 8 * 9, 8 * 8 * 2 * 8  # 8 channels to 2, at every step
HEAD = 2 * 10
ONE_CELL = space(candidates="conv3x3 | conv1x1")


def with_edge(state: int, candidate: int):
    return genotype_of(ONE_CELL, Architecture({"c": ((Edge(state, candidate),),)}, {}))


def test_the_budget_by_hand():
    config = quick(epochs=3, warmup_epochs=1, batch_size=20, trial_epochs=2)
    supernet = STEM + 2 * (2 * (CONV3X3 + CONV1X1) + HEAD)
    assert forward_macs(ONE_CELL) == supernet
    assert forward_macs(with_edge(0, 0)) == STEM + 2 * (CONV3X3 + HEAD)
    assert forward_macs(with_edge(1, 1)) == STEM + 2 * (CONV1X1 + HEAD)
    seen = 40  # of 101: half is 50, of which 2 batches
    watched = 50  # of half B, after each epoch
    steps = (3 * 3 + 2 * 2) * seen
    assert search_macs(ONE_CELL, config, 101) == (steps + 3 * watched) * supernet
    warm = quick(epochs=1, warmup_epochs=5, batch_size=20)
    assert search_macs(ONE_CELL, warm, 101) == (3 * seen + watched) * supernet
    network = STEM + 2 * (CONV3X3 + HEAD)
    assert trial_macs(with_edge(0, 0), config, 101) == 2 * (3 * seen + 50) * network


def test_a_trial_trains_on_one_half_and_is_judged_on_the_other():
    config = quick(limit_train=301)
    network = build(CELL)
    everything = open_splits(network, "digits", config)
    halves = open_splits(network, "digits", trial_recipe(config, everything))
    train, held_out = set(halves.train.indices), set(halves.validation.indices)
    assert len(train) == len(held_out) == 150
    assert not train & held_out
    assert train | held_out < set(everything.train.indices)
    assert len(halves.test) == 1


# --- what is tried ----------------------------------------------------------------------------


def pretended(space, config, count):
    """A search whose trials get accuracies from a table in the place of training."""
    proposals, trials, accuracies = Proposals(space, config), [], np.random.default_rng(9)
    found = []
    for number in range(count):
        proposal = proposals.next(trials)
        found.append(proposal)
        trials.append(
            Trial(
                number=number, data="digits", genotype=print_genotype(proposal.genotype),
                parent=proposal.parent, accuracy=accuracies.random(), parameters=1,
                firing_rate=0.1, macs=1, seconds=1.0,
            )
        )  # fmt: skip
    return found, trials


def test_evolution_mutates_the_best_of_some_of_the_youngest():
    config = quick(method="evolution", population=5, tournament=3)
    found, trials = pretended(PAIRS, config, 40)
    assert all(trial.parent is None for trial in trials[:5])
    ranks = Counter()
    for trial in trials[5:]:
        alive = trials[trial.number - 5 : trial.number]
        assert trial.parent in [other.number for other in alive]
        parent = found[trial.parent].architecture
        assert len(differences(parent, found[trial.number].architecture)) == 1
        ranks[sorted(-other.accuracy for other in alive).index(-trials[trial.parent].accuracy)] += 1
    assert ranks[0] + ranks[1] > 0.6 * 35  # 1 - (3 / 5) ** 3 of them
    _, trials = pretended(PAIRS, quick(method="evolution", population=5, tournament=60), 20)
    for trial in trials[5:]:
        assert trial.parent == best(trials[trial.number - 5 : trial.number]).number


@pytest.mark.parametrize("method", ["random", "evolution"])
def test_no_network_is_tried_twice_while_there_are_others(method):
    """Of 8 architectures 4 differ in more than a label: b says nothing where membranes are mixed,
    and a skip between other numbers of channels is a conv3x3."""
    labelled = space(candidates="conv3x3(b=3) | conv3x3(b=5) | conv5x5 | skip")
    assert count_architectures(labelled) == 8
    found, _ = pretended(labelled, quick(method=method), 6)
    networks = [graph_text(proposal.network) for proposal in found]
    assert len(set(networks[:4])) == len(set(networks)) == 4


def test_the_seed_decides_what_is_tried():
    def genotypes(seed):
        return [p.genotype for p in pretended(PAIRS, quick(seed=seed), 5)[0]]

    assert genotypes(1) == genotypes(1)
    assert genotypes(1) != genotypes(2)


# --- whole searches ---------------------------------------------------------------------------


def searched(folder, config, *, space=CELL, resume=False, show=lambda progress: None, say=None):
    return run_baseline(
        space, "digits", folder, config, resume=resume, device="cpu", workers=0, download=False,
        show=show, say=say or (lambda line: None),
    )  # fmt: skip


def timeless(trials):
    return [trial.model_copy(update={"seconds": 0.0}) for trial in trials]


@pytest.fixture(scope="module")
def random_search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "run"
    said: list[str] = []
    return searched(folder, QUICK, say=said.append), folder, said


def test_random_search_trains_and_judges(random_search):
    trials, folder, said = random_search
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert len({trial.genotype for trial in trials}) == 4
    assert said == [trial.line() for trial in trials]
    assert read_trials(folder / "trials.jsonl") == trials
    assert {path.name for path in folder.iterdir()} == {
        "space.snn", "config.toml", "trials", "trials.jsonl",
    }  # fmt: skip
    assert parse((folder / "space.snn").read_text()) == CELL
    for trial in trials:
        found = parse(trial.genotype)
        assert trial.parent is None
        assert trial.parameters == parameter_count(build(found))
        assert trial.macs == trial_macs(found, QUICK, 1000)
        assert 0 < trial.firing_rate < 1
        assert (
            folder / "trials" / f"{trial.number:03}" / "genotype.snn"
        ).read_text() == trial.genotype
    assert best(trials).accuracy > 0.2
    assert best(trials).accuracy == max(trial.accuracy for trial in trials)


def test_a_trial_is_judged_by_its_last_epoch(tmp_path):
    (trial,) = searched(tmp_path / "run", quick(trials=1, trial_epochs=3))
    log = (tmp_path / "run" / "trials" / "000" / "log.jsonl").read_text().splitlines()
    records = [Record.model_validate_json(line) for line in log]
    assert len(records) == 3
    assert trial.accuracy == records[-1].accuracy
    assert trial.firing_rate == records[-1].firing_rate


@pytest.mark.parametrize("when", ["between trials", "in a trial"])
def test_an_interrupted_search_goes_on_to_the_same_trials(random_search, tmp_path, when):
    expected, _, _ = random_search
    folder, said, steps = tmp_path / "run", [], []

    def stop_after_a_trial(line):
        said.append(line)
        if when == "between trials" and line.startswith("trial   1"):
            raise KeyboardInterrupt

    def stop_in_a_trial(progress):
        steps.append(progress.step)
        if when == "in a trial" and len(steps) == 25 + 2:  # of 25 each
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        searched(folder, QUICK, show=stop_in_a_trial, say=stop_after_a_trial)
    finished = read_trials(folder / "trials.jsonl")
    assert len(finished) == (2 if when == "between trials" else 1)
    if when == "in a trial":
        assert said[-1] == f"interrupted in trial 1: saved in {folder}, --resume goes on"
    del said[:]
    when, steps[:] = "later", []
    trials = searched(folder, QUICK, resume=True, show=stop_in_a_trial, say=said.append)
    assert trials[: len(finished)] == finished
    assert said == [trial.line() for trial in trials[len(finished) :]]
    assert len(steps) == (2 * 25 if len(finished) == 2 else 23 + 2 * 25)
    assert timeless(trials) == timeless(expected)
    assert timeless(read_trials(folder / "trials.jsonl")) == timeless(expected)


def test_evolution_goes_on_to_the_same_trials(tmp_path):
    config = quick(method="evolution")
    trials = searched(tmp_path / "whole", config)
    assert [trial.parent is None for trial in trials] == [True, True, False, False]
    assert all(trial.parent in (trial.number - 1, trial.number - 2) for trial in trials[2:])
    assert len({trial.genotype for trial in trials}) == 4

    def stop(line):
        if line.startswith("trial   2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "parts", config, say=stop)
    resumed = searched(tmp_path / "parts", config, resume=True)
    assert timeless(resumed) == timeless(trials)
    assert searched(tmp_path / "parts", config, resume=True) == resumed


@pytest.fixture
def untrained(monkeypatch):
    """Trials cost no time: their networks are not trained."""
    record = SimpleNamespace(accuracy=0.5, firing_rate=0.1, seconds=1.0)
    trained = SimpleNamespace(history=[record])
    monkeypatch.setattr(baselines, "train_network", lambda *arguments, **options: trained)


@pytest.mark.parametrize("method", ["random", "evolution"])
@pytest.mark.usefixtures("untrained")
def test_without_a_number_of_trials_the_bilevel_searchs_cost_is_the_budget(tmp_path, method):
    config = quick(method=method, trials=None, epochs=3)
    trials = searched(tmp_path / "run", config, space=PAIRS)
    spent, budget = sum(trial.macs for trial in trials), search_macs(PAIRS, config, 1000)
    assert len(trials) > 10
    proposals = Proposals(PAIRS, config)
    following = [proposals.next(trials[:n]) for n in range(len(trials) + 1)][-1]
    assert spent <= budget < spent + trial_macs(following.genotype, config, 1000)


@pytest.mark.usefixtures("untrained")
def test_one_trial_is_always_run(tmp_path):
    config, one = quick(trials=None, epochs=1, trial_epochs=2), space(candidates="conv3x3")
    (trial,) = searched(tmp_path / "run", config, space=one)
    assert trial.macs > search_macs(one, config, 1000)


def test_a_network_that_diverges_counts_as_accuracy_0(tmp_path):
    said: list[str] = []
    config = quick(trials=2, learning_rate=1e38, gradient_clip=0.0)
    trials = searched(tmp_path / "run", config, say=said.append)
    assert [trial.accuracy for trial in trials] == [0, 0]
    assert said[0].startswith("warning: trial 000 counts as accuracy 0: epoch 1, step 2: ")
    assert read_trials(tmp_path / "run" / "trials.jsonl") == trials


# --- what can go wrong ------------------------------------------------------------------------


def test_a_run_is_neither_overwritten_nor_mixed_with_another(random_search):
    _, folder, _ = random_search
    before = (folder / "trials.jsonl").read_bytes()
    with pytest.raises(
        SnnirError, match=r"found a run \(trials.jsonl\), expected a folder without"
    ):
        searched(folder, QUICK)
    with pytest.raises(SnnirError, match="found a run with seed 0, expected seed 1"):
        searched(folder, quick(seed=1), resume=True)
    with pytest.raises(SnnirError, match=r"trials.jsonl:1: found a trial of another run.*genotype"):
        searched(folder, QUICK, space=PAIRS, resume=True)
    assert (folder / "trials.jsonl").read_bytes() == before


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(SnnirError, match=r"trials.jsonl: found no readable file"):
        searched(tmp_path / "run", QUICK, resume=True)


@pytest.mark.parametrize("damage", ["half a line", "another number", "not a text"])
def test_damaged_trials_are_refused(random_search, tmp_path, damage):
    _, folder, _ = random_search
    lines = (folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
    damaged, message = {
        "half a line": ([lines[0], lines[1][:70]], r"trials.jsonl:2: found .*, expected a trial"),
        "another number": ([lines[0], lines[2]], r"trials.jsonl:2: found a trial of another run"),
        "not a text": ([b"\xff\xfe"], r"trials.jsonl: found no readable file"),
    }[damage]
    (tmp_path / "config.toml").write_text(QUICK.to_toml())
    (tmp_path / "trials.jsonl").write_bytes(b"".join(damaged))
    with pytest.raises(SnnirError, match=message):
        searched(tmp_path, QUICK, resume=True)


def test_too_large_a_batch(tmp_path):
    with pytest.raises(SnnirError, match="batch_size: found 501, expected at most 500, the number"):
        searched(tmp_path / "run", quick(batch_size=501))
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(tmp_path, monkeypatch):
    @contextmanager
    def two(device):
        yield Processes(torch.device(device), count=2)

    monkeypatch.setattr(baselines, "joined_processes", two)
    with pytest.raises(SnnirError, match="found 2 processes, expected one"):
        searched(tmp_path / "run", QUICK)
