"""What networks are trained to do: to classify, or to estimate disparity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from snnir.data.stereo import FOCAL_BASELINE
from snnir.ir.graph import Graph
from snnir.ir.nodes import SoftArgmin
from snnir.lower.operations import sub_pixel

SMALLEST_DISPARITY: Final = 1e-7
"""Pixels, added to disparities before they become depths, so that 0 has a depth (as DDES does)."""


class Task(Protocol):
    """Loss and measures of one kind of network. Targets are as `Samples.batch` gives them."""

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what an evaluation measures; first the share, in 0..1, that is right."""

    def counted(self, target: Tensor) -> int:
        """How many samples or pixels the loss of a batch is a mean over."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum of their losses, from what the module gives in training."""

    def right(self, output: Tensor, target: Tensor) -> int:
        """How many of them are right, from what the module gives in training."""

    def measured(self, output: Tensor, target: Tensor) -> Tensor:
        """Measures by name, of what the module gives in evaluation: float64 [measures, M], a column
        per sample; none for a sample that cannot be measured."""


def task_of(graph: Graph, *, diversity: float) -> Task:
    """The task of a network; `diversity` is `Disparity`'s."""
    estimators = [node for node in graph.nodes() if isinstance(node, SoftArgmin)]
    return Disparity(estimators[0].support, diversity) if estimators else CLASSIFICATION


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of logits [N, classes] and class numbers [N]; a sample is right if its largest
    logit is its class's."""

    measures = ("accuracy", "loss")

    def counted(self, target: Tensor) -> int:
        return len(target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(_wide(output), target, reduction="sum")

    def right(self, output: Tensor, target: Tensor) -> int:
        return int((output.detach().argmax(1) == target).sum())

    def measured(self, output: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(_wide(output), target, reduction="none")
        return torch.stack([(output.argmax(1) == target).double(), losses.double()])


CLASSIFICATION: Final = Classification()


@dataclass(frozen=True)
class Disparity:
    """Disparity [T, N, H, W] in pixels, NaN where unknown, from a cost [T, N, D, H, W] whose index
    d means disparity 2d (method §8).

    The loss of a pixel is the cross-entropy of softmin(cost) and a Laplace distribution around its
    true disparity, discretised and normalised over the D disparities (paper eq. 30). A pixel is
    right if its error is at most one pixel. An evaluation counts the last of a sample's T maps;
    each measure is that of a map, as in DDES, and a map without a known pixel does not count.
    """

    support: int
    """Of the estimator: indices on either side of the least cost."""
    diversity: float
    """Of the Laplace distribution, in pixels."""

    measures = (
        "one_pixel_accuracy",
        "mean_depth_error_cm",
        "median_depth_error_cm",
        "mean_disparity_error_px",
    )

    def counted(self, target: Tensor) -> int:
        return int(target.isfinite().sum())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        cost = _wide(output).movedim(-3, -1)[known]
        disparities = 2 * torch.arange(cost.shape[-1], dtype=cost.dtype, device=cost.device)
        away = (disparities - target[known][:, None]).abs()
        laplace = torch.softmax(-away / self.diversity, -1)
        return -(laplace * torch.log_softmax(-cost, -1)).sum()

    def right(self, output: Tensor, target: Tensor) -> int:
        found = sub_pixel(output.detach().flatten(0, 1), self.support).view_as(target)
        return int(((found - target).abs() <= 1).sum())  # comparing with NaN is false

    def measured(self, output: Tensor, target: Tensor) -> Tensor:
        maps = [disparity_errors(*pair) for pair in zip(output[-1], target[-1], strict=True)]
        found = [values for values in maps if values is not None]
        empty = torch.empty(len(self.measures), 0, dtype=torch.float64)
        return torch.stack(found, 1) if found else empty


def disparity_errors(found: Tensor, true: Tensor) -> Tensor | None:
    """The measures of `Disparity` of one map [H, W], float64 [4]; None: nothing is known of it."""
    known = true.isfinite()
    if not known.any():
        return None
    found, true = found[known].double(), true[known].double()
    errors = (found - true).abs()
    depth_errors_cm = 100 * (depth_metres(found) - depth_metres(true)).abs()
    return torch.stack(
        [
            (errors <= 1).double().mean(),
            depth_errors_cm.mean(),
            depth_errors_cm.quantile(0.5),
            errors.mean(),
        ]
    )


def depth_metres(disparity: Tensor) -> Tensor:
    """Of disparities in pixels."""
    return FOCAL_BASELINE / (disparity + SMALLEST_DISPARITY)


def _wide(x: Tensor) -> Tensor:
    """At least fp32, where autocast has made it less."""
    return x if x.dtype == torch.float64 else x.float()
