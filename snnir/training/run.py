"""What `snnir train` and `snnir eval` do, as functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from snnir.data import Request, Samples, Splits, batches, open_data
from snnir.errors import SnnirError
from snnir.files import writable_folder, write_whole
from snnir.genotype import Genotype, print_genotype
from snnir.ir import build
from snnir.ir.graph import Graph
from snnir.ir.infer import infer_types
from snnir.lower import SpikingModule
from snnir.lower.initialise import initial_weights
from snnir.lower.memory import keep_freed_memory
from snnir.passes import DEPLOYMENT, TRAINING, run_passes
from snnir.training.config import Descent, TrainingConfig, configured
from snnir.training.evaluate import (
    Deployed,
    DeployedModel,
    DeployedModule,
    Evaluation,
    read_model,
)
from snnir.training.processes import Processes, joined_processes
from snnir.training.record import Record, write_curve, write_log, write_tensorboard
from snnir.training.stream import Streamed, stream
from snnir.training.tasks import Disparity, Task, task_of
from snnir.training.trainer import Progress, Trainer
from snnir.weights import Weights, read_weights

RESULTS = ("checkpoint.pt", "best.safetensors", "last.safetensors", "log.jsonl", "trials.jsonl")
"""Files by which a folder is known to hold a run."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """What a run came to."""

    folder: Path
    history: list[Record]
    chosen_on: str
    """`validation` or `test`: what `best.safetensors` is best on."""
    test: Evaluation | None
    """Of the best weights on the test set, where they were chosen on other samples."""
    first: bool = True
    """Whether this process is the first of those that torchrun started: the one that speaks."""

    @property
    def best(self) -> Record:
        """The epoch whose weights are `best.safetensors`."""
        return max(self.history, key=lambda record: record.accuracy)

    @property
    def tested(self) -> Evaluation | Record:
        """The best weights on the test set."""
        return self.test or self.best


def train_network(
    genotype: Genotype,
    data: str,
    folder: str | Path,
    config: TrainingConfig,
    *,
    weights: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    download: bool = False,
    show: Callable[[Progress], None] = lambda progress: None,
    say: Say = lambda line: None,
) -> Trained:
    """Train a network and leave in `folder`: genotype.snn, config.toml, best.safetensors and
    last.safetensors, checkpoint.pt (to resume from), log.jsonl, curve.svg and tensorboard/.

    Under torchrun every process calls this; the first one writes. `weights` are what training
    starts from, seeded initial ones when None. The process keeps what memory it frees from then on
    (`snnir.lower.memory`).

    Raises:
        SnnirError: bad genotype, data, config or checkpoint; a folder that holds another run.
        KeyboardInterrupt: interrupted, and saved.
    """
    keep_freed_memory()
    network, text, folder = _buildable(genotype), print_genotype(genotype), Path(folder)
    with joined_processes(device) as processes:
        splits = fetched_splits(network, data, config, processes, download=download)
        refuse_batch(config, len(splits.train), "training samples", processes)
        arrays = initial_weights(network, config.seed)
        if weights is not None:
            arrays |= read_fp32(network, weights)
        module = SpikingModule(run_passes(TRAINING, network).graph, arrays)
        files = {"genotype.snn": text, "config.toml": config.to_toml()}
        processes.first_alone(lambda: prepare_folder(folder, files, resume=resume))
        trainer = Trainer(
            module, splits, config, folder, processes,
            genotype=text, data=data, workers=workers, unread=arrays, show=show, say=say,
        )  # fmt: skip
        if resume:
            trainer.resume()
        for record in trainer.run():
            if processes.first:
                write_epoch(folder, trainer.history, title=f"{genotype.name} on {data}")
                say(record.line())
        return finished(trainer, network, splits, processes)


def fetched_splits(
    network: Graph, data: str, config: Descent, processes: Processes, *, download: bool
) -> Splits:
    """The data set in every process, with `download` once the first has fetched what is missing.
    Raises SnnirError."""
    if download:
        processes.first_alone(lambda: open_splits(network, data, config, download=True))
    return open_splits(network, data, config)


def open_splits(network: Graph, data: str, config: Descent, *, download: bool = False) -> Splits:
    """The data set as the network takes it. Raises SnnirError where it does not fit."""
    inputs = network.network_inputs
    output = infer_types(network)[network.outputs[0].path].shape or ()
    classifies = len(output) == 1
    kinds = [node.kind for node in inputs]
    if kinds not in ([["frame"], ["events"]] if classifies else [["events", "events"]]):
        raise SnnirError(
            f"network '{network.name}': found inputs of kind {', '.join(kinds)} and an output of "
            f"shape {output}, expected one input and `head classify(…)`, or the events of a left "
            "and a right camera and `head disparity(…)`"
        )
    request = Request(
        kind=kinds[0] if classifies else "stereo",
        shape=inputs[0].shape,  # type: ignore[arg-type]
        steps=network.steps,
        classes=output[0] if classifies else None,
        augmentation=config.augmentation,
        validation=config.validation,
        limit_train=config.limit_train,
        limit_test=config.limit_test,
        seed=config.seed,
        download=download,
    )
    return open_data(data, request)


@dataclass(frozen=True)
class NetworkOnTest:
    """A deployed network and the test samples of a data set."""

    deployed: Callable[[], Deployed]
    """It, having counted nothing yet."""
    test: Samples
    task: Task
    seed: int

    def evaluate(self, *, batch_size: int | None = None, workers: int = 0) -> Evaluation:
        """Every sample by itself, from rest; `batch_size` is 100 unless given, of stereo sequences
        1. Raises SnnirError."""
        size = batch_size or evaluation_batch(self.task)
        found = batches(self.test, size, seed=self.seed, workers=workers)
        return self.deployed().evaluate(found, self.task)

    def stream(self) -> Streamed:
        """The recordings that the samples are of, without end. Raises SnnirError where they are of
        none, or the network has no single steps."""
        return stream(self.deployed(), self.test, self.task)


def open_test(
    genotype: Genotype,
    data: str,
    *,
    weights: str | Path | None = None,
    model: str | Path | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    device: str = "auto",
    download: bool = False,
) -> NetworkOnTest:
    """A network, batch norm folded, and what to evaluate it on: in torch with `weights`, or as the
    exported `model` in onnxruntime.

    Raises:
        SnnirError: data, weights or model that do not fit the genotype.
    """
    network = _buildable(genotype)
    deployed = _deployed(genotype, network, weights, model, device)
    config = configured(TrainingConfig(), {"limit_test": limit_test, "seed": seed})
    test = open_splits(network, data, config, download=download).test
    return NetworkOnTest(deployed, test, task_of(network, diversity=config.diversity), seed)


def _deployed(
    genotype: Genotype,
    network: Graph,
    weights: str | Path | None,
    model: str | Path | None,
    device: str,
) -> Callable[[], Deployed]:
    """What makes the network, through torch or onnxruntime. Raises SnnirError."""
    if model is not None:
        if device not in ("auto", "cpu"):
            raise SnnirError(f"found device '{device}', expected cpu: onnxruntime runs the model")
        graph = run_passes(DEPLOYMENT, network).graph
        exported = read_model(model, genotype, graph)
        return partial(DeployedModel, exported, graph, name=str(model))
    if weights is None:
        raise SnnirError("found neither weights nor a model, expected one to evaluate")
    module = deploy(network, weights)
    with joined_processes(device) as processes:
        return partial(DeployedModule, module, processes.device)


def evaluation_batch(task: Task) -> int:
    """How many samples are evaluated at once where nobody says it."""
    return 1 if isinstance(task, Disparity) else 100


def deploy(network: Graph, weights: str | Path) -> SpikingModule:
    """The folded network with trained weights, evaluating, in fp32. Raises SnnirError."""
    given = initial_weights(network, 0) | read_fp32(network, weights)
    result = run_passes(DEPLOYMENT, network, given)
    return SpikingModule(result.graph, result.weights).eval()


def read_fp32(network: Graph, weights: str | Path) -> Weights:
    """Weights of the network, whatever precision the file has. Raises SnnirError."""
    arrays = read_weights(weights, network)
    return {name: array.astype("float32") for name, array in arrays.items()}


def _buildable(genotype: Genotype) -> Graph:
    """The genotype's graph. Raises SnnirError for a search space."""
    if genotype.searchable:
        raise SnnirError(
            f"network '{genotype.name}': found a search space, expected a network: every cell and "
            "level decided"
        )
    return build(genotype)


def refuse_batch(config: Descent, most: int, what: str, processes: Processes) -> None:
    """Raises SnnirError for a batch that there are not enough samples, or too many processes,
    for."""
    found = config.batch_size
    if found > most:
        raise SnnirError(
            f"batch_size: found {found}, expected at most {most}, the number of {what}"
        )
    if found < processes.count:
        expected = f"at least {processes.count}, one sample per process"
        raise SnnirError(f"batch_size: found {found}, expected {expected}")


def prepare_folder(
    folder: Path, files: Mapping[str, str], *, resume: bool, written: Sequence[str] = ()
) -> None:
    """Write the files that describe a run. Raises SnnirError where another run, or a file that it
    describes itself by or that this one will write (`written`), would be lost, or there is none to
    resume."""
    if resume:
        if not os.path.exists(folder / "checkpoint.pt"):
            raise SnnirError(f"{folder}: found no checkpoint.pt, expected a run to resume")
        return
    for name in (*RESULTS, *files, *written):
        path = folder / name
        if os.path.exists(path) and not (
            name in files and path.read_bytes() == files[name].encode()
        ):
            raise SnnirError(
                f"{folder}: found a run ({name}), expected a folder without one: --resume goes on "
                "with it, -o names another folder"
            )
    writable_folder(folder)
    for name, text in files.items():
        write_whole(folder / name, text)


def write_epoch(folder: Path, history: list[Record], *, title: str) -> None:
    """The run's epochs, for programs and for people. Raises SnnirError."""
    write_log(folder / "log.jsonl", history)
    write_tensorboard(folder / "tensorboard", history)
    write_curve(folder / "curve.svg", history, title=title)


def finished(trainer: Trainer, network: Graph, splits: Splits, processes: Processes) -> Trained:
    """What a run came to; its best weights evaluated on the test set, unless chosen on it."""
    test = None
    if splits.validation is not None and processes.first:
        module = deploy(network, trainer.folder / "best.safetensors")
        deployed = DeployedModule(module, processes.device)
        size, workers = trainer.config.batch_size, trainer.workers
        tested = batches(splits.test, size, seed=0, workers=workers)
        test = deployed.evaluate(tested, trainer.task)
    chosen_on = "test" if splits.validation is None else "validation"
    return Trained(trainer.folder, trainer.history, chosen_on, test, processes.first)
