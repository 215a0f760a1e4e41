"""What `snnir tune` does, as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from snnir.errors import SnnirError
from snnir.files import writable_folder, write_whole
from snnir.genotype import Genotype, ast, parse, print_genotype
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.lower import SpikingModule
from snnir.lower.initialise import initial_weights
from snnir.lower.memory import keep_freed_memory
from snnir.lower.operations import LARGEST_LEAK
from snnir.search.dgs import SurrogateSearch, learning
from snnir.search.hns import HybridSearch
from snnir.search.learned_tau import LearnedTau
from snnir.search.neurons import KINDS, LEAKY, SPIKING, Targets, annotate, tunable
from snnir.search.tps import TemporalParameterSearch
from snnir.search.tune_config import TuneConfig
from snnir.search.tune_page import render_tune
from snnir.source import read_source
from snnir.training.processes import Processes, joined_processes
from snnir.training.record import Record
from snnir.training.run import (
    Trained,
    fetched_splits,
    finished,
    prepare_folder,
    read_fp32,
    refuse_batch,
    train_network,
    write_epoch,
)
from snnir.training.trainer import Companion, Progress, Trainer

RETRAINED = ("tps", "hns", "tau", "plif")
SEARCHES = ("dgs", *RETRAINED)

RANDOM_TAU = 6
"""Seeds the generator of random time constants; `snnir.data.samples`, `bilevel` and `baselines`
have the numbers before."""

Say = Callable[[str], None]


class NeuronSearch(Companion, Protocol):
    """A search over the neurons of a network."""

    @property
    def graph(self) -> Graph:
        """The network with its neurons' candidates."""

    def start(self, module: SpikingModule, processes: Processes) -> None:
        """Begin with a module of `graph`."""

    def annotations(self) -> list[ast.Annotation]:
        """What has been found, in the language."""


@dataclass(frozen=True)
class Tuned:
    """What tuning came to."""

    folder: Path
    genotype: Genotype
    """As genotype.snn of the folder has it."""
    history: Sequence[Record] = ()
    """Of the search, a record per epoch."""
    trained: Trained | None = None
    """The run that trained the genotype: the retraining, or DGS's own."""
    first: bool = True
    """Whether this process is the first of those that torchrun started: the one that speaks."""


@dataclass(frozen=True)
class Tune:
    """A network whose neurons are tuned, the data and recipe, and where the result goes."""

    genotype: Genotype
    data: str
    config: TuneConfig
    folder: Path

    def run(
        self,
        *,
        weights: str | Path | None = None,
        resume: bool = False,
        device: str = "auto",
        workers: int = 0,
        download: bool = False,
        show: Callable[[Progress], None] = lambda progress: None,
        say: Say = lambda line: None,
    ) -> Tuned:
        """Tune, and leave in `folder`: genotype.snn, the genotype with what was found so far in its
        `annotate` block; base.snn, config.toml, and in `retrain` the run that trains it (see
        `snnir.training.train_network`); of a search also checkpoint.pt, log.jsonl, tune.html,
        curve.svg, tensorboard/, last.safetensors (with the candidates' logits) and, where asked
        for, runs like `retrain` in snapshots/epoch-N/.

        `weights`: what the search and the retraining start from, seeded initial ones when None.

        Raises:
            SnnirError: nothing to tune, data, weights or config that do not fit, snapshots of
                what has none, another run's folder.
            KeyboardInterrupt: interrupted, and saved.
        """
        if self.genotype.searchable:
            raise SnnirError(
                f"network '{self.genotype.name}': found a search space, expected a network: "
                "`snnir search` decides its cells and levels"
            )
        method, retrained = self.config.method, self.config.retrain_epochs > 0
        if self.config.snapshots and not (method in RETRAINED and retrained):
            raise SnnirError(
                f"snapshots: found {self.config.snapshots} with {method} and retrain_epochs "
                f"{self.config.retrain_epochs}, expected 0, or {', '.join(RETRAINED)} and training "
                "after it"
            )
        options: dict[str, Any] = {
            "resume": resume, "device": device, "workers": workers, "show": show, "say": say,
            "weights": weights, "download": download,
        }  # fmt: skip
        with joined_processes(device) as processes:  # once: a group cannot be joined again
            tuned = self._searched(**options) if method in SEARCHES else self._annotated(processes)
            if method != "dgs" and retrained:
                trained = self._trained(tuned.genotype, self.folder / "retrain", options)
                tuned = replace(tuned, trained=trained)
                if self.config.snapshots:
                    tuned = self._with_snapshots(tuned, options)
            if tuned.first and tuned.history:
                self._write_page(tuned)
            return tuned

    def _searched(
        self,
        *,
        weights: str | Path | None,
        resume: bool,
        device: str,
        workers: int,
        download: bool,
        show: Callable[[Progress], None],
        say: Say,
    ) -> Tuned:
        data, config, folder = self.data, self.config, self.folder
        network = build(self.genotype)
        search = self._search(network)
        graph = search.graph
        keep_freed_memory()
        with joined_processes(device) as processes:
            splits = fetched_splits(network, data, config, processes, download=download)
            refuse_batch(config, len(splits.train), "training samples", processes)
            arrays = initial_weights(graph, config.seed)
            if weights is not None:
                arrays |= read_fp32(network, weights)
            module = SpikingModule(graph, arrays).to(processes.device)
            search.start(module, processes)
            processes.first_alone(lambda: self._prepare(resume=resume))
            trainer = Trainer(
                module, splits, config, folder, processes,
                genotype=print_genotype(self.genotype), data=data, workers=workers, unread={},
                companion=search, show=show, say=say,
            )  # fmt: skip
            if resume:
                trainer.resume()
            for record in trainer.run():
                if processes.first:
                    found = annotate(self.genotype, search.annotations())
                    self._write(found)
                    if self._has_snapshot(record):
                        text = print_genotype(found)
                        write_whole(writable_folder(self._snapshot(record)) / "genotype.snn", text)
                    self._write_epoch(trainer.history)
                    self._write_page(Tuned(folder, found, trainer.history))
                    say(record.line())
            found = annotate(self.genotype, search.annotations())
            trained = finished(trainer, network, splits, processes) if search.keeps_best else None
            return Tuned(folder, found, trainer.history, trained, processes.first)

    def _search(self, network: Graph) -> NeuronSearch:
        config = self.config
        if config.method == "dgs":
            targets = learning(network, tunable(network, config.nodes, SPIKING))
            return SurrogateSearch(network, targets, config)
        if config.method in ("tau", "plif"):
            return LearnedTau(network, tunable(network, config.nodes, LEAKY), config.method)
        if config.method == "tps":
            targets = tunable(network, config.nodes, LEAKY)
            return TemporalParameterSearch(network, targets, config)
        return HybridSearch(network, tunable(network, config.nodes, KINDS), config)

    def _trained(self, genotype: Genotype, folder: Path, options: dict[str, Any]) -> Trained:
        resume = (folder / "checkpoint.pt").exists()
        recipe = self.config.retraining()
        return train_network(genotype, self.data, folder, recipe, **options | {"resume": resume})

    # --- snapshots (paper Figure 5) ---------------------------------------------------------

    def _has_snapshot(self, record: Record) -> bool:
        every = self.config.snapshots
        return every > 0 and (record.epoch % every == 0 or record.epoch == self.config.epochs)

    def _snapshot(self, record: Record) -> Path:
        return self.folder / "snapshots" / f"epoch-{record.epoch:03}"

    def _with_snapshots(self, tuned: Tuned, options: dict[str, Any]) -> Tuned:
        """With what every snapshot comes to in its epoch's record. Equal genotypes, the result's
        among them, train once."""
        history = list(tuned.history)
        assert tuned.trained is not None
        known = {print_genotype(tuned.genotype): tuned.trained}
        for number, record in enumerate(history):
            if not self._has_snapshot(record):
                continue
            source = read_source(self._snapshot(record) / "genotype.snn")
            if source.text not in known:
                options["say"](f"snapshot of epoch {record.epoch}:")
                found = self._trained(parse(source), self._snapshot(record), options)
                known[source.text] = found
            tested = known[source.text].tested
            results = {
                "snapshot/accuracy": tested.accuracy,
                "snapshot/firing_rate": tested.firing_rate,
            }
            history[number] = record.model_copy(update={"scalars": record.scalars | results})
            if tuned.first:
                self._write_epoch(history)
        return replace(tuned, history=history)

    # --- baselines --------------------------------------------------------------------------

    def _annotated(self, processes: Processes) -> Tuned:
        """The baselines that only annotate."""
        config = self.config
        kinds = LEAKY if config.method == "random" else SPIKING
        targets = tunable(build(self.genotype), config.nodes, kinds)
        found = annotate(self.genotype, handcrafted(targets, config))
        processes.first_alone(lambda: self._write_annotated(found))
        return Tuned(self.folder, found, first=processes.first)

    def _write_annotated(self, found: Genotype) -> None:
        begun = (self.folder / "base.snn").exists()
        written = () if begun else ("genotype.snn",)
        prepare_folder(self.folder, self._files(), resume=False, written=written)
        self._write(found)

    # --- files ------------------------------------------------------------------------------

    def _prepare(self, *, resume: bool) -> None:
        prepare_folder(self.folder, self._files(), resume=resume, written=("genotype.snn",))

    def _files(self) -> dict[str, str]:
        """What describes the run."""
        return {"base.snn": print_genotype(self.genotype), "config.toml": self.config.to_toml()}

    def _write(self, found: Genotype) -> None:
        write_whole(self.folder / "genotype.snn", print_genotype(found))

    def _write_epoch(self, history: list[Record]) -> None:
        write_epoch(self.folder, history, title=f"{self.genotype.name}: {self.config.method}")

    def _write_page(self, tuned: Tuned) -> None:
        page = render_tune(
            self.genotype, tuned.genotype, self.config, tuned.history, data=self.data,
            trained=tuned.trained,
        )  # fmt: skip
        write_whole(self.folder / "tune.html", page)


def handcrafted(targets: Targets, config: TuneConfig) -> list[ast.Annotation]:
    """The annotations of a baseline: neurons of one kind, or time constants drawn evenly."""
    if config.method != "random":
        neuron = ast.Neuron(kind=config.method)  # type: ignore[arg-type]
        return [ast.Annotation(path=path, neuron=neuron) for path in targets]
    rng = np.random.default_rng((RANDOM_TAU, config.seed))
    found = []
    for path, neurons in targets.items():
        tau, tau_a = (round(float(x), 6) for x in rng.uniform(0, LARGEST_LEAK, 2))
        adaptive = neurons[0].kind == "alif"
        found.append(ast.Annotation(path=path, tau=tau, tau_a=tau_a if adaptive else None))
    return found
