"""The architecture's half of the bi-level search: steps on alpha and beta between the weights'.

Paper Algorithm 1, first order: after each step of the weights on half A of the training set, and
after the warm-up epochs, one step of the architecture on half B.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnir.data import Samples, batches
from snnir.lower import SpikingModule
from snnir.search.config import SearchConfig
from snnir.search.decode import softmax
from snnir.training.checkpoint import Totals
from snnir.training.processes import Processes
from snnir.training.trainer import Trainer

HALVES = 4
"""Seeds the generator that halves the training set; `snnir.data.samples` has the numbers before."""

SUFFIX = ".logits"


@dataclass(frozen=True)
class Halves:
    """The training set in two: A for the weights, B for the architecture, of equal size."""

    a: Samples
    b: Samples


def halve(samples: Samples, seed: int) -> Halves:
    """Two disjoint halves, drawn at random; of an odd number one sample is left out."""
    shuffled = np.random.default_rng((HALVES, seed)).permutation(samples.indices)
    size = len(shuffled) // 2
    first, second = np.sort(shuffled[:size]), np.sort(shuffled[size : 2 * size])
    augmentation = samples.augmentation
    return Halves(
        Samples(samples.source, first, augmentation), Samples(samples.source, second, augmentation)
    )


def logits_of(module: SpikingModule) -> dict[str, nn.Parameter]:
    """alpha and beta before their softmax, by owner."""
    return {
        name.removesuffix(SUFFIX): parameter
        for name, parameter in module.named_parameters()
        if name.endswith(SUFFIX)
    }


class BilevelSearch:
    """alpha and beta of a supernet, Adam that steps them on half B, and what they have come to."""

    def __init__(
        self,
        module: SpikingModule,
        samples: Samples,
        config: SearchConfig,
        processes: Processes,
        *,
        workers: int = 0,
    ):
        self.module, self.samples, self.config = module, samples, config
        self.processes, self.workers = processes, workers
        self.logits = logits_of(module)
        self.parameters = list(self.logits.values())
        own = {id(p) for p in self.parameters}
        self._weights = [p for p in module.parameters() if id(p) not in own]
        _require_gradients(self._weights, False)
        self._parallel = processes.parallel(module)
        self._require_own_gradients(False)
        self._optimizer = torch.optim.Adam(
            self.parameters,
            lr=config.architecture_learning_rate,
            weight_decay=config.architecture_weight_decay,
        )
        self._totals = Totals()
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())

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

    def after_step(self, trainer: Trainer) -> None:
        """One step of alpha and beta; the weights get no gradients, and no work is done for any."""
        if trainer.epoch < self.config.warmup_epochs:
            return
        x, target = next(self._batches)
        self._require_own_gradients(True)
        loss, correct = trainer.loss(x, target, self._parallel)
        self._optimizer.zero_grad()
        (loss * self.processes.count).backward()  # DDP averages what is to be a sum
        self._require_own_gradients(False)
        total, right, samples = self.processes.total(float(loss.detach()), correct, len(target))
        trainer.refuse_infinite({"a loss of the architecture's step": total})
        self._optimizer.step()
        self._totals.loss += total * int(samples)
        self._totals.correct += int(right)
        self._totals.samples += int(samples)

    def _require_own_gradients(self, own: bool) -> None:
        _require_gradients(self._weights, not own)
        _require_gradients(self.parameters, own)

    # --- what is recorded -----------------------------------------------------------------------

    def end_epoch(self) -> dict[str, float]:
        """Entropy in 0..1, the loss on half B, and every softmax weight."""
        scalars = {}
        for name, entropy in entropies(self.arrays()).items():
            scalars[f"entropy/{name}"] = entropy
        if self._totals.samples:
            scalars["architecture/loss"] = self._totals.loss / self._totals.samples
            scalars["architecture/accuracy"] = self._totals.correct / self._totals.samples
        self._totals = Totals()
        for owner, logits in self.arrays().items():
            for entry, weight in enumerate(softmax(logits)):
                scalars[f"weight/{owner}/{entry}"] = float(weight)
        return scalars

    def arrays(self) -> dict[str, np.ndarray]:
        """The logits as they are now."""
        return {owner: p.detach().cpu().double().numpy() for owner, p in self.logits.items()}

    def state(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict(), "totals": vars(self._totals)}

    def restore(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self._totals = Totals(**state["totals"])


def entropies(logits: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean entropy of the softmaxes over the largest there can be, 1 undecided to 0 decided: of
    `alpha` (a cell's edges) and `beta` (the transitions of a trellis), where there are any."""
    found: dict[str, list[float]] = {}
    for owner, values in logits.items():
        if len(values) > 1:
            weights = softmax(values)
            entropy = -float((weights * np.log(np.maximum(weights, 1e-300))).sum())
            kind = "alpha" if owner.startswith("cells.") else "beta"
            found.setdefault(kind, []).append(entropy / float(np.log(len(values))))
    return {kind: sum(values) / len(values) for kind, values in found.items()}


def _require_gradients(parameters: list[nn.Parameter], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)
