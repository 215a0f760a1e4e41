"""What `snnir search` does, as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnir.analysis.draw import draw
from snnir.data import Splits
from snnir.files import writable_folder, write_whole
from snnir.genotype import Genotype, parse, print_genotype
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.lower.initialise import initial_weights
from snnir.lower.memory import keep_freed_memory
from snnir.passes import TRAINING, run_passes
from snnir.search.architecture import genotype_of
from snnir.search.baselines import Trial, best, run_baseline
from snnir.search.bilevel import BilevelSearch, halve
from snnir.search.checks import check_search, widened
from snnir.search.config import SearchConfig
from snnir.search.decode import decode
from snnir.search.page import render_search
from snnir.source import Source
from snnir.training.processes import joined_processes
from snnir.training.record import Record
from snnir.training.run import fetched_splits, prepare_folder, refuse_batch, write_epoch
from snnir.training.trainer import Progress, Trainer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Searched:
    """What a search came to."""

    folder: Path
    genotype: Genotype
    """As genotype.snn of the folder has it."""
    history: Sequence[Record] = ()
    """Of the supernet, a record per epoch."""
    trials: Sequence[Trial] = ()
    """Of a baseline."""
    first: bool = True
    """Whether this process is the first of those that torchrun started: the one that speaks."""

    @property
    def seconds(self) -> float:
        if self.history:
            return self.history[-1].seconds
        return sum(trial.seconds for trial in self.trials)


@dataclass(frozen=True)
class Search:
    """A space, the data and recipe to search it with, and how its result is written."""

    space: Genotype
    data: str
    config: SearchConfig
    folder: Path

    def run(
        self,
        *,
        resume: bool = False,
        device: str = "auto",
        workers: int = 0,
        download: bool = False,
        show: Callable[[Progress], None] = lambda progress: None,
        say: Say = lambda line: None,
    ) -> Searched:
        """Search, and leave in `folder`: space.snn, config.toml, genotype.snn, search.html; the
        bi-level search also checkpoint.pt, last.safetensors (the supernet's), log.jsonl, curve.svg,
        tensorboard/ and cells/epoch-N.svg; a baseline also trials/ and trials.jsonl.

        genotype.snn is what would be decoded after the last epoch that is done, or the best trial
        so far.

        Under torchrun every process calls this.

        Raises:
            SnnirError: nothing to search, data or config that do not fit, a folder with another
                run, a baseline in several processes.
            KeyboardInterrupt: interrupted, and saved.
        """
        check_search(self.space, self.config)
        run = self._bilevel if self.config.method == "spikedhs" else self._baseline
        return run(
            resume=resume, device=device, workers=workers, download=download, show=show, say=say
        )

    def _bilevel(
        self,
        *,
        resume: bool,
        device: str,
        workers: int,
        download: bool,
        show: Callable[[Progress], None],
        say: Say,
    ) -> Searched:
        data, config, folder = self.data, self.config, self.folder
        graph = build(self.space)
        keep_freed_memory()
        with joined_processes(device) as processes:
            splits = fetched_splits(graph, data, config, processes, download=download)
            halves = halve(splits.train, config.seed)
            refuse_batch(config, len(halves.a), "samples in half of the training set", processes)
            weights = initial_weights(graph, config.seed)
            module = SpikingModule(run_passes(TRAINING, graph).graph, weights).to(processes.device)
            processes.first_alone(lambda: self._prepare(resume=resume))
            search = BilevelSearch(module, halves.b, config, processes, workers=workers)
            shown = Splits(halves.a, halves.watched, splits.test, splits.classes)
            trainer = Trainer(
                module, shown, config, folder, processes, genotype=print_genotype(self.space),
                data=data, workers=workers, unread=weights, companion=search, show=show, say=say,
            )  # fmt: skip
            if resume:
                trainer.resume()
            for record in trainer.run():
                if processes.first:
                    write_epoch(folder, trainer.history, title=f"{self.space.name}: supernet")
                    found = self._decoded(search)
                    self._write(found, f"after {record.epoch} of {config.epochs} epochs")
                    picture = writable_folder(folder / "cells") / f"epoch-{record.epoch:03}.svg"
                    write_whole(picture, draw(found))
                    say(search_line(record))
            found = self._decoded(search)
            if processes.first:
                self._write(found, f"after {trainer.epoch} of {config.epochs} epochs")
                self._write_page(found, history=trainer.history)
            return Searched(folder, found, history=trainer.history, first=processes.first)

    def _baseline(self, *, resume: bool, say: Say, **options: Any) -> Searched:
        folder, config = self.folder, self.config

        def write_best(trials: Sequence[Trial]) -> Genotype:
            chosen = best(trials)
            found = widened(parse(Source(f"trial {chosen.number}", chosen.genotype)), config)
            self._write(found, f"trial {chosen.number} of {len(trials)}")
            return found

        trials = run_baseline(
            self.space, self.data, folder, config, resume=resume, after_trial=write_best, say=say,
            **options,
        )  # fmt: skip
        found = write_best(trials)
        self._write_page(found, trials=trials)
        return Searched(folder, found, trials=trials)

    # --- results ----------------------------------------------------------------------------

    def _prepare(self, *, resume: bool) -> None:
        files = {"space.snn": print_genotype(self.space), "config.toml": self.config.to_toml()}
        prepare_folder(self.folder, files, resume=resume, written=("genotype.snn",))

    def _decoded(self, search: BilevelSearch) -> Genotype:
        conventions = self.config.conventions
        architecture = decode(self.space, search.relaxation.arrays(), conventions)
        found = genotype_of(self.space, architecture, conventions)
        return widened(found, self.config)

    def _write(self, found: Genotype, when: str) -> None:
        method, seed = self.config.method, self.config.seed
        origin = f"# Found in {self.space.name} by {method} on {self.data}, seed {seed}, {when}.\n"
        write_whole(self.folder / "genotype.snn", origin + print_genotype(found))

    def _write_page(self, found: Genotype, **results: Any) -> None:
        page = render_search(
            self.space, found, self.config, results.get("history", ()), data=self.data,
            conventions=self.config.conventions, trials=results.get("trials", ()),
        )  # fmt: skip
        write_whole(self.folder / "search.html", page)


def search_line(record: Record) -> str:
    """A record with how decided the architecture is, as one line for a terminal."""
    found = [
        f"{name.removeprefix('entropy/')} {value:.4f}"
        for name, value in sorted(record.scalars.items())
        if name.startswith("entropy/")
    ]
    return f"{record.line()}  entropy {' '.join(found)}"
