"""Gradient steps on the logits of a relaxed graph, between those of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnir.lower import SpikingModule
from snnir.search.decode import softmax
from snnir.training.checkpoint import Totals
from snnir.training.processes import Processes
from snnir.training.trainer import Trainer

SUFFIX = ".logits"


def logits_of(module: SpikingModule) -> dict[str, nn.Parameter]:
    """What the candidates of a relaxed graph are mixed by, before their softmax, by owner."""
    return {
        name.removesuffix(SUFFIX): parameter
        for name, parameter in module.named_parameters()
        if name.endswith(SUFFIX)
    }


class Relaxation:
    """The logits of a module, and Adam that steps them with all weights frozen.

    Where nothing steps, the weights require gradients and the logits do not, so that no work is
    done for what the other side's step needs.
    """

    def __init__(
        self,
        module: SpikingModule,
        processes: Processes,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
    ):
        self.logits = logits_of(module)
        self.parameters = list(self.logits.values())
        own = {id(p) for p in self.parameters}
        self._weights = [p for p in module.parameters() if id(p) not in own]
        self._processes = processes
        _require_gradients(self._weights, False)
        self._parallel = processes.parallel(module)
        self._step_logits(False)
        self._learning_rate, self._weight_decay = learning_rate, weight_decay
        self.restart()
        self.totals = Totals()

    def restart(self) -> None:
        """Forget what Adam has seen."""
        self._optimizer = torch.optim.Adam(
            self.parameters, lr=self._learning_rate, weight_decay=self._weight_decay
        )

    def step(
        self,
        trainer: Trainer,
        *batch: Tensor,
        penalty: Callable[[], Tensor] | None = None,
    ) -> None:
        """One step on a batch: down the gradient of the loss, and of the penalty where there is
        one. Raises Diverged."""
        self._step_logits(True)
        loss, correct = trainer.loss(*batch, parallel=self._parallel)
        self._optimizer.zero_grad()
        goal = loss * self._processes.count  # DDP averages what is to be a sum
        (goal if penalty is None else goal + penalty()).backward()
        self._step_logits(False)
        sums = trainer.totalled(loss, correct, batch)
        trainer.refuse_infinite({"a loss of the architecture's step": sums[0]})
        self._optimizer.step()
        self.totals.add(*sums)

    def _step_logits(self, stepping: bool) -> None:
        _require_gradients(self._weights, not stepping)
        _require_gradients(self.parameters, stepping)

    def arrays(self) -> dict[str, np.ndarray]:
        """The logits as they are now, by owner."""
        return {owner: p.detach().cpu().double().numpy() for owner, p in self.logits.items()}

    def scalars(self) -> dict[str, float]:
        """Of the epoch: these steps' loss and accuracy, summed anew; every softmax weight."""
        found = {}
        if self.totals.count:
            found["architecture/loss"] = self.totals.mean_loss
            found["architecture/accuracy"] = self.totals.accuracy
        self.totals = Totals()
        for owner, logits in self.arrays().items():
            for entry, weight in enumerate(softmax(logits)):
                found[f"weight/{owner}/{entry}"] = float(weight)
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the module's own state."""
        return {"optimizer": self._optimizer.state_dict(), "totals": vars(self.totals)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave. Raises KeyError, ValueError or TypeError."""
        self._optimizer.load_state_dict(state["optimizer"])
        self.totals = Totals(**state["totals"])


def _require_gradients(parameters: list[nn.Parameter], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)
