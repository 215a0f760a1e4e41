"""How a network is trained, as data that TOML files hold; the paper's recipes as presets."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snnir.data import Augmentation
from snnir.errors import SnnirError, did_you_mean, explain
from snnir.genotype import Genotype, ast

Count = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Descent(BaseModel):
    """Stochastic gradient descent over `epochs` passes through the training set.

    The loss is the task's (`snnir.training.tasks`), each auxiliary head's added with the weight
    that the genotype gives it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: Count
    batch_size: Count = 50
    """Samples of one step, of all processes together."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 0.025
    """At the start; it falls to 0 as half a cosine, step by step."""
    halved_at: tuple[Count, ...] = ()
    """Epochs at which the learning rate is halved; it then does not fall as half a cosine."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd; adam's first beta, whose second is 0.999."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3e-4
    gradient_clip: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Largest norm of all gradients together; 0: not clipped."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: convolutions, batch norm and membranes in bfloat16 (autocast), weights in fp32."""
    augmentation: Augmentation = Augmentation()
    validation: NotNegative = 0
    """Training samples held out; the best weights are chosen on them, or else on the test set."""
    limit_train: Count | None = None
    limit_test: Count | None = None
    """At most so many samples, drawn at random."""
    diversity: Positive = 1.0
    """Of the Laplace distribution around a true disparity, in pixels (stereo)."""
    seed: NotNegative = 0
    """Of the initial weights, the order of the samples, what is held out, the augmentation."""

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate after `progress` epochs."""
        return self._decayed(progress, 0)

    def _decayed(self, progress: float, start: float) -> float:
        """The learning rate after `progress` epochs, where half a cosine begins at `start`."""
        if self.halved_at:
            return self.learning_rate * 0.5 ** sum(progress >= epoch for epoch in self.halved_at)
        return self.learning_rate * _half_cosine((progress - start) / (self.epochs - start))

    def to_toml(self) -> str:
        """A TOML text that `read_config` reads back."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


class TrainingConfig(Descent):
    """How a network is trained. The defaults are the paper's for CIFAR where it gives one
    (method §9)."""

    epochs: Count = 100
    warmup_epochs: NotNegative = 0
    """Epochs over which the learning rate first rises linearly from 0; at most half of all."""

    def learning_rate_at(self, progress: float) -> float:
        warmup = min(self.warmup_epochs, self.epochs / 2)
        if progress < warmup:
            return self.learning_rate * progress / warmup
        return self._decayed(progress, warmup)


def _half_cosine(fraction: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))


D = TypeVar("D", bound=Descent)


PRESETS: Final[dict[str, TrainingConfig]] = {
    "cifar": TrainingConfig(augmentation=Augmentation(crop_padding=4, flip=True, cutout=16)),
    "imagenet": TrainingConfig(batch_size=160),
    "small": TrainingConfig(
        epochs=15,
        batch_size=100,
        learning_rate=0.1,
        warmup_epochs=1,
        augmentation=Augmentation(crop_padding=2, flip=True),
    ),
    "stereo": TrainingConfig(
        epochs=200,
        batch_size=2,
        optimizer="adam",
        learning_rate=1e-3,
        halved_at=(50, 100, 150),
        weight_decay=0,
    ),
}
"""`cifar`, `imagenet`, `stereo`: the paper's retraining (method §9 and §8; the data set `imagenet`
crops and mirrors by itself). `small`: ours, for small networks on a machine without a GPU; it
mirrors and shifts, which suits photographs and clothes, not digits."""


def default_recipe(genotype: Genotype) -> TrainingConfig:
    """The paper's for what a network does."""
    classifies = isinstance(genotype.head.task, ast.Classify)
    return TrainingConfig() if classifies else PRESETS["stereo"]


def preset(name: str, presets: Mapping[str, D]) -> D:
    """A preset by name. Raises SnnirError for an unknown one."""
    if name not in presets:
        hint = did_you_mean(name, presets)
        expected = ", ".join(presets)
        raise SnnirError(f"found preset '{name}', expected one of {expected} {hint}".rstrip())
    return presets[name]


def read_config(path: str | Path, default: D) -> D:
    """A config file; what it leaves out is as in `default`.

    Raises:
        SnnirError: unreadable file, unknown keys, values out of range.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SnnirError(f"{path}: found no readable TOML file: {error}") from None
    return configured(default, data, where=f"{path}: ")


def configured(config: D, settings: dict[str, Any], *, where: str = "") -> D:
    """`config` with settings in the place of its own; None changes nothing.

    Raises:
        SnnirError: for each setting that is unknown or out of range.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        return type(config).model_validate(config.model_dump() | given)
    except ValidationError as error:
        known = list(type(config).model_fields)
        lines = [where + explain(detail, known, "the recipe") for detail in error.errors()]
        raise SnnirError("\n".join(lines)) from None
