"""Baselines of the bi-level search with its space, data and budget: random search, and regularised
evolution (Real et al. 2019). Each trains architectures from scratch, one after another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from snnir.analysis.counts import parameter_count
from snnir.data.request import Splits
from snnir.errors import SnnirError
from snnir.files import write_whole
from snnir.genotype import Genotype, print_genotype
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.ir.text import graph_text
from snnir.search.architecture import Architecture, genotype_of
from snnir.search.budget import search_macs, trial_macs
from snnir.search.config import SearchConfig
from snnir.search.sampling import mutated, random_architecture
from snnir.training.config import Descent, TrainingConfig, read_config
from snnir.training.processes import joined_processes
from snnir.training.run import open_splits, prepare_folder, refuse_batch, train_network
from snnir.training.trainer import Diverged, Progress

TRIALS = 5
"""Seeds the generator of a trial; `snnir.data.samples` and `bilevel` have the numbers before."""

DRAWS = 100
"""At most so many architectures are drawn until one is new."""


class Trial(BaseModel):
    """One architecture, trained and judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int
    """From 0; its run is `trials/NUMBER`, of three digits."""
    data: str
    """The data set."""
    genotype: str
    """Text."""
    parent: int | None
    """Number of the trial that it is a mutation of."""
    accuracy: float
    """In 0..1, on the held-out samples after the last epoch. The best epoch's would be chosen on
    the samples that judge it. 0: the training diverged."""
    parameters: int
    firing_rate: float
    """Mean over the layers of the spikes per value."""
    macs: int
    """Multiply-accumulates of its training."""
    seconds: float
    """Time that its training took."""

    def line(self) -> str:
        """One line for a terminal."""
        origin = "" if self.parent is None else f"  from trial {self.parent}"
        return (
            f"trial {self.number:3}  accuracy {self.accuracy:6.2%}  "
            f"firing {self.firing_rate:.3f}  {self.parameters:,} parameters{origin}"
        )


def best(trials: Sequence[Trial]) -> Trial:
    """The most accurate trial; of equals the first."""
    return max(trials, key=lambda trial: trial.accuracy)


def run_baseline(
    space: Genotype,
    data: str,
    folder: Path,
    config: SearchConfig,
    *,
    resume: bool,
    device: str,
    workers: int,
    download: bool,
    show: Callable[[Progress], None],
    say: Callable[[str], None],
    after_trial: Callable[[Sequence[Trial]], object] = lambda trials: None,
) -> list[Trial]:
    """Try architectures while the budget lasts, at least one; leaves in `folder`: space.snn,
    config.toml, trials.jsonl and a run per trial in trials/.

    The budget is `config.trials`, or else what the bi-level search would cost; a trial that would
    exceed it ends the search.

    Raises:
        SnnirError: data or config that do not fit, a folder that holds another run, a damaged
            trials.jsonl, several processes.
        KeyboardInterrupt: interrupted, and saved.
    """
    with joined_processes(device) as processes:
        if processes.count > 1:
            raise SnnirError(
                f"found {processes.count} processes, expected one: method {config.method} does not "
                "run under torchrun"
            )
        splits = open_splits(build(space), data, config, download=download)
        samples = len(splits.train)
        refuse_batch(config, samples // 2, "samples in half of the training set", processes)
    finished = _prepare(folder, space, config, resume=resume)
    recipe, budget = trial_recipe(config, splits), search_macs(space, config, samples)
    proposals, trials = Proposals(space, config), list[Trial]()
    while True:
        proposal, number = proposals.next(trials), len(trials)
        known: dict[str, Any] = {
            "number": number,
            "data": data,
            "genotype": print_genotype(proposal.genotype),
            "parent": proposal.parent,
            "parameters": parameter_count(proposal.network),
            "macs": trial_macs(proposal.genotype, config, samples),
        }
        if not _affordable(config, trials, known["macs"], budget):
            return trials
        if number < len(finished):
            _refuse_other_trial(finished[number], known, _trials_path(folder))
            trials.append(finished[number])
            continue
        own = folder / "trials" / f"{number:03}"
        try:
            judged = _judged(
                proposal.genotype, data, own, recipe, device=device, workers=workers, show=show,
                say=say,
            )  # fmt: skip
        except KeyboardInterrupt:
            say(f"interrupted in trial {number}: saved in {folder}, --resume goes on")
            raise
        trials.append(Trial.model_validate(known | judged))
        write_trials(_trials_path(folder), trials)
        after_trial(trials)
        say(trials[-1].line())


def trial_recipe(config: SearchConfig, splits: Splits) -> TrainingConfig:
    """How an architecture is trained: on half of the samples, as many as a search learns weights
    on, and judged on the other half, or on what the data set itself holds out.

    Of the test set, on which a training run ends, no more than one sample is touched, and its
    result is not read: a search must not know it.
    """
    half = len(splits.train) // 2
    held_out = half if splits.validation is None else 0
    common = config.model_dump(include=set(Descent.model_fields))
    sizes = {"validation": held_out, "limit_train": half, "limit_test": 1}
    own = {"epochs": config.trial_epochs, **sizes}
    return TrainingConfig.model_validate(common | own)


def _judged(
    genotype: Genotype,
    data: str,
    folder: Path,
    recipe: TrainingConfig,
    *,
    device: str,
    workers: int,
    show: Callable[[Progress], None],
    say: Callable[[str], None],
) -> dict[str, float]:
    """What training the network, or going on with it, comes to."""
    started = time.perf_counter()
    try:
        last = train_network(
            genotype, data, folder, recipe, resume=(folder / "checkpoint.pt").exists(),
            device=device, workers=workers, show=show,
        ).history[-1]  # fmt: skip
    except Diverged as error:
        say(f"warning: trial {folder.name} counts as accuracy 0: {error}")
        return {"accuracy": 0.0, "firing_rate": 0.0, "seconds": time.perf_counter() - started}
    names = ("accuracy", "firing_rate", "seconds")
    return {name: getattr(last, name) for name in names}


# --- what is tried ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proposal:
    """An architecture to try."""

    architecture: Architecture
    parent: int | None
    """Number of the trial that it is a mutation of."""
    genotype: Genotype
    network: Graph


class Proposals:
    """What to try, trial by trial. The seed and the trials before decide; no generator has state to
    keep."""

    def __init__(self, space: Genotype, config: SearchConfig):
        assert config.method != "spikedhs"
        self.space, self.config = space, config
        self._architectures: list[Architecture] = []
        self._networks: set[str] = set()

    def next(self, trials: Sequence[Trial]) -> Proposal:
        """For the trial after `trials`, one more than there were at the call before.

        Drawn again while its network, labels aside, has been tried; where that does not help (a
        space with hardly any others), what was drawn last.
        """
        rng = np.random.default_rng((TRIALS, self.config.seed, len(trials)))
        for _ in range(DRAWS):
            proposal = self._drawn(trials, rng)
            network = graph_text(proposal.network)
            if network not in self._networks:
                break
        self._architectures.append(proposal.architecture)
        self._networks.add(network)
        return proposal

    def _drawn(self, trials: Sequence[Trial], rng: np.random.Generator) -> Proposal:
        population, parent = self.config.population, None
        if self.config.method == "random" or len(trials) < population:
            architecture = random_architecture(self.space, rng)
        else:
            oldest = len(trials) - population
            drawn = rng.integers(oldest, len(trials), size=self.config.tournament).tolist()
            parent = max(drawn, key=lambda number: trials[number].accuracy)
            architecture = mutated(self.space, self._architectures[parent], rng)
        genotype = genotype_of(self.space, architecture, self.config.conventions)
        return Proposal(architecture, parent, genotype, build(genotype))


def _affordable(config: SearchConfig, trials: Sequence[Trial], cost: int, budget: int) -> bool:
    if config.trials is not None:
        return len(trials) < config.trials
    return not trials or sum(trial.macs for trial in trials) + cost <= budget


# --- files --------------------------------------------------------------------------------------


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """All trials, a line of JSON each. Raises SnnirError."""
    write_whole(path, "".join(trial.model_dump_json() + "\n" for trial in trials))


def read_trials(path: Path) -> list[Trial]:
    """Raises SnnirError where there is no such file, or a line that is no trial."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        expected = "expected the trials of a baseline's run to resume"
        raise SnnirError(f"{path}: found no readable file ({reason}), {expected}") from None
    trials = []
    for number, line in enumerate(lines, 1):
        try:
            trials.append(Trial.model_validate_json(line))
        except ValidationError:
            raise SnnirError(
                f"{path}:{number}: found {line[:40]!r}, expected a trial as one line of JSON"
            ) from None
    return trials


def _trials_path(folder: Path) -> Path:
    return folder / "trials.jsonl"


def _prepare(folder: Path, space: Genotype, config: SearchConfig, *, resume: bool) -> list[Trial]:
    """The finished trials of the run to resume, or the files that describe a new one. Raises
    SnnirError where another run would be lost or mixed with this one."""
    path = _trials_path(folder)
    if resume:
        finished = read_trials(path)
        _refuse_other_config(folder / "config.toml", config)
        return finished
    files = {"space.snn": print_genotype(space), "config.toml": config.to_toml()}
    prepare_folder(folder, files, resume=False, written=("genotype.snn",))
    write_trials(path, [])
    return []


def _refuse_other_trial(found: Trial, known: dict[str, Any], path: Path) -> None:
    """Raises SnnirError for a trial that this run would not have had: the seed and those before
    decide everything but what training finds."""
    different = [key for key, value in known.items() if getattr(found, key) != value]
    if different:
        number = known["number"]
        raise SnnirError(
            f"{path}:{number + 1}: found a trial of another run, expected trial {number} of this "
            f"one; different: {', '.join(different)}"
        )


def _refuse_other_config(path: Path, config: SearchConfig) -> None:
    found, expected = (c.model_dump() for c in (read_config(path, SearchConfig()), config))
    different = [key for key in expected if found[key] != expected[key] and key != "trials"]
    if different:
        raise SnnirError(
            f"{path}: found a run with {', '.join(f'{key} {found[key]}' for key in different)}, "
            f"expected {', '.join(f'{key} {expected[key]}' for key in different)}"
        )
