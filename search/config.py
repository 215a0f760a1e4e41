"""How a space is searched, as data that TOML files hold; the paper's search as a preset."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from snnir.data import Augmentation
from snnir.search.architecture import Conventions
from snnir.training.config import Count, Descent, NotNegative, Positive

Method = Literal["spikedhs", "random", "evolution"]


class SearchConfig(Descent):
    """SpikeDHS's bi-level search, or a baseline with the same budget.

    The defaults are the paper's for classification (method §3, paper Algorithm 1); the paper is
    silent on the architecture's learning rate and weight decay, which are the authors' code's.
    """

    method: Method = "spikedhs"
    epochs: Count = 50
    """Passes through both halves of the training set."""
    warmup_epochs: NotNegative = 15
    """First epochs in which the architecture does not move yet."""
    architecture_learning_rate: Positive = 1e-3
    """Of Adam on alpha and beta."""
    architecture_weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    conventions: Conventions = "paper"
    """How the architecture is decoded (`snnir.search.decode`)."""
    channels: Count | None = None
    """C of the genotype that is written; None: the space's."""
    trials: Count | None = None
    """Baselines: how many architectures are trained. None: as many as the bi-level search of the
    same epochs would have cost, counted in multiply-accumulates."""
    trial_epochs: Count = 5
    """Baselines: epochs for which each architecture is trained before it is judged."""
    population: Count = 20
    """Evolution: how many of the youngest architectures are alive."""
    tournament: Count = 5
    """Evolution: how many of them are drawn for each birth; the best is the parent."""


PRESETS: Final[dict[str, SearchConfig]] = {
    "cifar": SearchConfig(augmentation=Augmentation(crop_padding=4, flip=True, cutout=16)),
    "stereo": SearchConfig(epochs=12, warmup_epochs=3, batch_size=1, learning_rate=0.002),
    "small": SearchConfig(
        epochs=8,
        warmup_epochs=2,
        batch_size=100,
        learning_rate=0.1,
        architecture_learning_rate=0.01,
        trial_epochs=2,
        population=6,
        tournament=3,
        augmentation=Augmentation(crop_padding=2, flip=True),
    ),
}
"""`cifar`, `stereo`: the paper's searches (method §3, §8). `small`: ours, for small spaces on a
machine without a GPU; alpha moves ten times as fast because there are so few steps."""
