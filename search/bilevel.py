"""The architecture's half of the bi-level search: steps on alpha and beta between the weights'.

Paper Algorithm 1, first order: after each step of the weights on half A of the training set, and
after the warm-up epochs, one step of the architecture on half B.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from snnir.data import Samples, batches
from snnir.data.loader import Batch
from snnir.ir.trellis import is_transition
from snnir.lower import SpikingModule
from snnir.search.config import SearchConfig
from snnir.search.decode import softmax
from snnir.search.relaxation import Relaxation
from snnir.training.processes import Processes
from snnir.training.trainer import Trainer

WATCHED = 1000
"""Samples of half B on which the supernet's accuracy is followed."""

HALVES = 4
"""Seeds the generator that halves the training set; `snnir.data.samples` has the numbers before."""


@dataclass(frozen=True)
class Halves:
    """The training set in two: A for the weights, B for the architecture, of equal size."""

    a: Samples
    b: Samples
    watched: Samples
    """Some of B, drawn at random, not augmented."""


def halve(samples: Samples, seed: int) -> Halves:
    """Two disjoint halves, drawn at random; of an odd number one sample is left out."""
    shuffled = np.random.default_rng((HALVES, seed)).permutation(samples.indices)
    size = len(shuffled) // 2
    first, second = shuffled[:size], shuffled[size : 2 * size]
    source, augmentation = samples.source, samples.augmentation
    return Halves(
        Samples(source, np.sort(first), augmentation),
        Samples(source, np.sort(second), augmentation),
        Samples(source, np.sort(second[:WATCHED])),
    )


class BilevelSearch:
    """alpha and beta of a supernet, which step on half B, and what they have come to."""

    keeps_best = False

    def __init__(
        self,
        module: SpikingModule,
        samples: Samples,
        config: SearchConfig,
        processes: Processes,
        *,
        workers: int = 0,
    ):
        self.samples, self.config = samples, config
        self.processes, self.workers = processes, workers
        self.relaxation = Relaxation(
            module,
            processes,
            learning_rate=config.architecture_learning_rate,
            weight_decay=config.architecture_weight_decay,
        )
        self.parameters = self.relaxation.parameters
        self._batches: Iterator[Batch] = iter(())

    def begin_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch < self.config.warmup_epochs:
            return
        self._batches = iter(
            batches(
                self.samples,
                self.config.batch_size,
                seed=self.config.seed,
                epoch=trainer.epoch,
                shuffle=True,
                start=trainer.step,
                drop_last=True,
                rank=self.processes.rank,
                world_size=self.processes.count,
                workers=self.workers,
            )
        )

    def after_step(self, trainer: Trainer, *batch: Tensor) -> None:
        """One step of alpha and beta, on a batch of half B."""
        if trainer.epoch >= self.config.warmup_epochs:
            self.relaxation.step(trainer, *next(self._batches))

    def end_epoch(self) -> dict[str, float]:
        """Entropy in 0..1, the loss on half B, and every softmax weight."""
        found = entropies(self.relaxation.arrays())
        scalars = {f"entropy/{name}": entropy for name, entropy in found.items()}
        return scalars | self.relaxation.scalars()

    def state(self) -> dict[str, Any]:
        return self.relaxation.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.relaxation.restore(state)


def entropies(logits: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean entropy of the softmaxes over the largest there can be, 1 undecided to 0 decided: of
    `alpha` (a cell's edges) and `beta` (the transitions of a trellis), where there are any."""
    found: dict[str, list[float]] = {}
    for owner, values in logits.items():
        if len(values) > 1:
            weights = softmax(values)
            entropy = -float((weights * np.log(np.maximum(weights, 1e-300))).sum())
            kind = "beta" if is_transition(owner) else "alpha"
            found.setdefault(kind, []).append(entropy / float(np.log(len(values))))
    return {kind: sum(values) / len(values) for kind, values in found.items()}
