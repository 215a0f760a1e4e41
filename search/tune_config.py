"""How neurons are tuned, as data that TOML files hold; the paper's settings are the defaults."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from snnir.data import Augmentation
from snnir.genotype.ast import NeuronKind
from snnir.training.config import Count, Descent, NotNegative, Positive, TrainingConfig

TuneMethod = Literal["dgs", "tps", "hns", "tau", "plif", "random", "if", "alif", "relu"]
"""dgs, tps, hns: searches. tau, plif: time constants by gradient. random: tau drawn evenly. The
others: neurons of that kind."""


class TuneConfig(Descent):
    """A search of neurons and the retraining after it.

    The paper's where it gives a number (method §5, §6); it is silent on the search's length, the
    step of tau and the logits' learning rate.
    """

    method: TuneMethod = "tps"
    nodes: tuple[str, ...] = ()
    """Paths of the neurons to tune, as in `annotate`; none: all but auxiliary heads'."""
    epochs: Count = 20
    """Of the search; dgs searches while it trains, and has no retraining."""
    warmup_epochs: NotNegative = 5
    """First epochs in which the logits do not move yet."""
    logits_learning_rate: Positive = 0.01
    """Of Adam on the logits a."""
    iterations: Count = 100
    """TPS: steps of the logits until tau moves. DGS: batches of one search."""
    tau_step: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """TPS: how far the candidates lie from tau."""
    surrogates: Annotated[int, Field(ge=3)] = 5
    """DGS: how many candidates a surrogate has; odd, so that one is the surrogate itself."""
    b_step: Annotated[float, Field(gt=0)] = 0.2
    """DGS: how far apart their temperatures are."""
    interval: Count = 5
    """DGS: epochs from one search to the next."""
    linear_estimate: bool = False
    """DGS: one gradient for all candidates of a surrogate that is proportional to b (triangle,
    arctan): exact where the reset is detached or T = 1, and one node varies."""
    candidates: Annotated[tuple[NeuronKind, ...], Field(min_length=2)] = ("lif", "relu")
    """HNS: the kinds to choose from; the paper adds alif for stereo."""
    energy_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """HNS: lambda of the energy loss."""
    energy_by_operations: bool = False
    """HNS: whether a layer counts by the operations of what reads it; else all count alike."""
    retrain_epochs: NotNegative = 100
    """Of training from scratch, or from the given weights, afterwards; 0: none."""
    snapshots: NotNegative = 0
    """Epochs of the search from one genotype that is trained like the result to the next; 0: none
    is. Not for dgs."""

    def retraining(self) -> TrainingConfig:
        """How the tuned network is trained."""
        common = self.model_dump(include=set(Descent.model_fields))
        return TrainingConfig.model_validate(common | {"epochs": self.retrain_epochs})


PRESETS: Final[dict[str, TuneConfig]] = {
    "cifar": TuneConfig(augmentation=Augmentation(crop_padding=4, flip=True, cutout=16)),
    "stereo": TuneConfig(
        batch_size=2,
        optimizer="adam",
        learning_rate=1e-3,
        halved_at=(50, 100, 150),
        weight_decay=0,
        candidates=("lif", "alif", "relu"),
        retrain_epochs=200,
    ),
    "small": TuneConfig(
        epochs=6,
        warmup_epochs=1,
        batch_size=100,
        learning_rate=0.1,
        iterations=20,
        retrain_epochs=10,
        augmentation=Augmentation(crop_padding=2, flip=True),
    ),
}
"""`cifar`, `stereo`: the paper's (method §5, §6, §9; §8). `small`: ours, for small networks on a
machine without a GPU."""
