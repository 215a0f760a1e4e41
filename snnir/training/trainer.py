"""The training loop: steps, epochs, checkpoints, and going on from them bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from snnir.data import Batches, Samples, Splits, batches
from snnir.data.loader import Batch
from snnir.errors import CheckFailed, SnnirError
from snnir.files import write_whole
from snnir.lower import SpikingModule, fused
from snnir.training.checkpoint import Checkpoint, Totals, read_checkpoint
from snnir.training.config import Descent
from snnir.training.evaluate import Evaluation, evaluate, torch_predictor
from snnir.training.interruption import Interruption
from snnir.training.processes import Processes
from snnir.training.record import Record
from snnir.training.tasks import task_of
from snnir.training.watch import Watch
from snnir.weights import Weights, weights_bytes

CHECKPOINT_SECONDS = 300.0
"""A long epoch is saved this often."""


class Diverged(CheckFailed):
    """The loss or a gradient is no longer finite."""


@dataclass(frozen=True)
class Progress:
    """What is shown while training."""

    epoch: int
    step: int
    steps: int
    """Steps of an epoch."""
    loss: float
    """Mean over the epoch so far, as is the accuracy."""
    accuracy: float
    firing_rate: float
    samples_per_second: float
    seconds_left: float


class Companion(Protocol):
    """What learns beside the weights, the architecture of a search say: parameters of its own, and
    a step after each of the weights'."""

    keeps_best: bool
    """Whether the module is a network whose best weights are worth a file of their own."""
    parameters: list[nn.Parameter]
    """Which the weights' optimizer leaves alone. They require gradients in the companion's own
    steps only."""

    def begin_epoch(self, trainer: Trainer) -> None:
        """An epoch begins, or goes on at `trainer.step`."""

    def after_step(self, trainer: Trainer, *batch: Tensor) -> None:
        """The weights have made a step on this batch; the trainer counts it when this returns."""

    def end_epoch(self) -> dict[str, float]:
        """Numbers for the epoch's record, by name; what they were made of starts anew."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; the parameters are in the module's own state."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave. Raises KeyError, ValueError or TypeError."""


class Trainer:
    """One run: a module, its data and config, and the folder that it fills."""

    def __init__(
        self,
        module: SpikingModule,
        splits: Splits,
        config: Descent,
        folder: Path,
        processes: Processes,
        *,
        genotype: str,
        data: str,
        unread: Weights,
        companion: Companion | None = None,
        workers: int = 0,
        show: Callable[[Progress], None] = lambda progress: None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.module = module.to(processes.device)
        self.splits, self.config, self.folder, self.processes = splits, config, folder, processes
        self.genotype, self.data, self.workers = genotype, data, workers
        self.unread = unread
        """Weights of layers that nothing reads: not in the module, but in the network's file."""
        self.show = show if processes.first else lambda progress: None
        self.say = say if processes.first else lambda line: None
        self.companion = companion
        others = {id(p) for p in companion.parameters} if companion else set()
        self.weights = [p for p in module.parameters() if id(p) not in others]
        self.parallel = processes.parallel(module)
        self.optimizer = optimizer(self.weights, config)
        self.task = task_of(module.graph, diversity=config.diversity)
        self.auxiliary_weights = [o.weight for o in module.graph.outputs if o.role == "auxiliary"]
        self.dtype = next(module.parameters()).dtype
        self.watch = Watch(module)
        self.epoch = self.step = 0
        self.totals = Totals()
        self.history: list[Record] = []
        self.seconds_before = 0.0
        self.speed = 0.0
        """Training samples per second in this epoch."""
        self._started = time.perf_counter()
        self._fused_before = False
        self.interruption = Interruption()

    # --- running ----------------------------------------------------------------------------

    def run(self) -> Iterator[Record]:
        """Train to the last epoch; gives each epoch's record, and saves when asked for the next.

        Raises:
            Diverged: the loss or a weight is not finite; the last checkpoint is from before.
            KeyboardInterrupt: after a checkpoint of where it was interrupted.
            SnnirError: a file cannot be written; older ones stay.
        """
        self._started = time.perf_counter()
        self.save()
        with self.interruption:
            while self.epoch < self.config.epochs:
                self._train_epoch()
                yield self._finish_epoch()
                self.save()

    @property
    def seconds(self) -> float:
        """Time spent, earlier parts of the run included."""
        return self.seconds_before + time.perf_counter() - self._started

    @property
    def bf16(self) -> bool:
        """Whether passes run under autocast to bf16."""
        return self.config.precision == "bf16"

    def _train_epoch(self) -> None:
        steps = self.steps_per_epoch
        epoch = self._batches(self.splits.train, train=True)
        saved = begun = time.perf_counter()
        seen = 0
        self.module.train()
        if self.companion:
            self.companion.begin_epoch(self)
        for batch in epoch:
            self._step(batch, probe=Watch.due(self.step, steps))
            if self.companion:
                self.companion.after_step(self, *batch)
            self.step += 1
            seen += self.config.batch_size
            self.speed = seen / (time.perf_counter() - begun)
            self.show(self._progress())
            self.stop_if_interrupted()
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.perf_counter()

    def _step(self, batch: Batch, *, probe: bool) -> None:
        config = self.config
        rate = config.learning_rate_at(self.epoch + self.step / self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.observer = self.watch.observe if probe else None
        if not probe and not self._fused_before:
            self._fused_before = True
            dtype = torch.bfloat16 if self.bf16 else self.dtype
            if self.module.fuses and fused.must_compile(dtype):
                self.say("compiling the training step for this processor, once: half a minute")
        loss, correct = self.loss(*batch)
        self.module.observer = None
        self.optimizer.zero_grad()
        (loss * self.processes.count).backward()  # DDP averages what is to be a sum
        norm = nn.utils.clip_grad_norm_(self.weights, config.gradient_clip or math.inf)
        if probe:
            self.watch.after_backward()
        sums = self.totalled(loss, correct, batch)
        self.refuse_infinite({"a loss": sums[0], "gradients of norm": float(norm)})
        self.optimizer.step()
        self.totals.add(*sums)

    def loss(self, *batch: Tensor, parallel: nn.Module | None = None) -> tuple[Tensor, int]:
        """This process's part of the mean loss over the batch (0 where nothing is known of it), and
        how many it has right.

        `parallel`: what runs the module in all processes, the weights' unless given.
        """
        device = self.processes.device
        *inputs, target = batch
        target = target.to(device)
        count = int(self.processes.total(self.task.counted(target))[0])
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bf16):
            found = (parallel or self.parallel)(*(x.to(device, self.dtype) for x in inputs))
        output, auxiliary = found if isinstance(found, tuple) else (found, [])
        loss = self.task.loss(output, target)
        for weight, extra in zip(self.auxiliary_weights, auxiliary, strict=True):
            loss = loss + weight * self.task.loss(extra, target)
        return loss / max(1, count), self.task.right(output, target)

    def totalled(self, loss: Tensor, correct: int, batch: Batch) -> tuple[float, float, float]:
        """What `loss` gave, over all processes, and how many samples or pixels it is of."""
        count = self.task.counted(batch[-1])
        total, right, counted = self.processes.total(float(loss.detach()), correct, count)
        return total, right, counted

    def refuse_infinite(self, numbers: dict[str, float]) -> None:
        """Raises Diverged where a number is not finite."""
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise Diverged(
                    f"epoch {self.epoch + 1}, step {self.step + 1}: found {name} {number}, "
                    "expected a finite number; the last good checkpoint is "
                    f"{self.checkpoint_path}. A smaller learning rate may help"
                )

    def _finish_epoch(self) -> Record:
        """Evaluate and record."""
        samples = self.splits.validation or self.splits.test
        found = self._evaluate(samples)
        measures = found.measures
        self.refuse_infinite({f"an evaluation with a {name} of": x for name, x in measures.items()})
        totals = self.totals
        if not totals.count:
            raise SnnirError("found no ground truth in the training samples, expected some")
        record = Record(
            epoch=self.epoch + 1,
            train_loss=totals.mean_loss,
            train_accuracy=totals.accuracy,
            accuracy=found.accuracy,
            loss=measures.get("loss"),
            errors=found.errors,
            firing_rate=found.firing_rate,
            firing_rates=found.firing_rates,
            learning_rate=self.config.learning_rate_at(self.epoch + 1),
            samples_per_second=self.speed,
            seconds=self.seconds,
            finished=time.time(),
            scalars=self.companion.end_epoch() if self.companion else {},
        )
        for line in self.watch.warnings():
            self.say(f"warning: {line}")
        best = max((r.accuracy for r in self.history), default=-1.0)
        self.history.append(record)
        self.epoch, self.step, self.totals = self.epoch + 1, 0, Totals()
        self.watch.start_epoch()
        if self.processes.first:
            weights = weights_bytes(self.unread | self.module.weights())
            if record.accuracy > best and (self.companion is None or self.companion.keeps_best):
                write_whole(self.folder / "best.safetensors", weights)
            write_whole(self.folder / "last.safetensors", weights)
        return record

    def _evaluate(self, samples: Samples) -> Evaluation:
        return evaluate(
            torch_predictor(self.module, self.processes.device, bf16=self.bf16),
            self._batches(samples, train=False),
            self.task,
            total=self.processes.total,
            after_batch=self.stop_if_interrupted,
        )

    # --- data -------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        return len(self.splits.train) // self.config.batch_size

    def _batches(self, samples: Samples, *, train: bool) -> Batches:
        return batches(
            samples,
            self.config.batch_size,
            seed=self.config.seed,
            epoch=self.epoch,
            shuffle=train,
            start=self.step if train else 0,
            drop_last=train,
            rank=self.processes.rank,
            world_size=self.processes.count,
            workers=self.workers,
        )

    def _progress(self) -> Progress:
        steps, totals = self.steps_per_epoch, self.totals
        left = (self.config.epochs - self.epoch) * steps - self.step
        rates = self.watch.firing_rates().values()
        return Progress(
            epoch=self.epoch + 1,
            step=self.step,
            steps=steps,
            loss=totals.mean_loss,
            accuracy=totals.accuracy,
            firing_rate=sum(rates) / max(1, len(rates)),
            samples_per_second=self.speed,
            seconds_left=left * self.config.batch_size / self.speed,
        )

    # --- checkpoints ------------------------------------------------------------------------

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            Diverged: a weight is not finite; as on any failure, the checkpoint before stays.
        """
        if not self.processes.first:
            return
        largest = max(float(p.detach().abs().max()) for p in self.module.parameters())
        self.refuse_infinite({"a weight of": largest})
        Checkpoint(
            genotype=self.genotype,
            data=self.data,
            config=self.config.model_dump(),
            module=self.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            totals=self.totals,
            observations=self.watch.state(),
            companion=self.companion.state() if self.companion else {},
            history=[record.model_dump() for record in self.history],
            seconds=self.seconds,
        ).write(self.checkpoint_path)

    def resume(self) -> None:
        """Go on from the folder's checkpoint.

        Raises:
            SnnirError: no readable checkpoint, or one of another genotype, data set or config.
        """
        found = read_checkpoint(self.checkpoint_path)
        config = self.config.model_dump()
        found.refuse_other_run(self.checkpoint_path, self.genotype, self.data, config)
        try:
            self.module.load_state_dict(found.module)
            self.optimizer.load_state_dict(found.optimizer)
            self.watch.restore(found.observations)
            if self.companion:
                self.companion.restore(found.companion)
            self.history = [Record.model_validate(record) for record in found.history]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            what = "found a checkpoint that does not fit this network"
            raise SnnirError(f"{self.checkpoint_path}: {what}: {error}") from None
        self.epoch, self.step, self.totals = found.epoch, found.step, found.totals
        self.seconds_before = found.seconds

    def stop_if_interrupted(self) -> None:
        """Save and raise KeyboardInterrupt if the run is to end."""
        if self.processes.any(self.interruption.noted):
            self.save()
            where = f"epoch {self.epoch + 1}, step {self.step} of {self.steps_per_epoch}"
            self.say(f"interrupted in {where}: saved in {self.folder}, --resume goes on")
            raise KeyboardInterrupt


def optimizer(weights: list[nn.Parameter], config: Descent) -> torch.optim.Optimizer:
    """What makes the steps, at the config's first learning rate."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        betas = (config.momentum, 0.999)
        return torch.optim.Adam(weights, rate, betas, weight_decay=decay, fused=True)
    return torch.optim.SGD(weights, rate, config.momentum, weight_decay=decay, fused=True)
