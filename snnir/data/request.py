"""What a network takes and a user allows; the splits that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from snnir.data.augmentation import Augmentation
from snnir.data.samples import SPLIT, Samples, Source
from snnir.errors import SnnirError, did_you_mean

Kind = Literal["frame", "events", "stereo"]
"""What a network takes: frames, events, or the events of a left and a right camera."""
M = TypeVar("M", bound=BaseModel)
DOWNLOADABLE = ("cifar10", "cifar100", "fashion-mnist")
"""Data sets that torchvision can fetch."""


@dataclass(frozen=True)
class Request:
    """What the network takes, and the user's limits."""

    kind: Kind
    shape: tuple[int, int, int]
    """[C, H, W] of a frame, or of the events of one step."""
    classes: int | None
    """None: disparity is estimated."""
    steps: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    validation: int = 0
    """Samples that are held out of the training set."""
    limit_train: int | None = None
    """At most so many training samples, drawn at random so that classes stay mixed."""
    limit_test: int | None = None
    seed: int = 0
    """Of the held-out and the limited samples."""
    download: bool = False


@dataclass(frozen=True)
class Place:
    """Where a data set is looked for: at `path`, or else at the usual places."""

    name: str
    path: Path | None
    options: Mapping[str, str] = field(default_factory=dict)
    """What `NAME:PATH,KEY=VALUE` sets."""

    def configured(self, model: type[M]) -> M:
        """The options as a `model`. Raises SnnirError for one that is unknown or out of range."""
        try:
            return model.model_validate(dict(self.options))
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(map(str, detail["loc"]))
            if detail["type"] == "extra_forbidden":
                known = list(model.model_fields)
                expected = f"expected one of {', '.join(known)} {did_you_mean(key, known)}".rstrip()
                raise SnnirError(f"{self.name}: found option {key}, {expected}") from None
            expected = detail["msg"].replace("Input should be", "expected a value")
            raise SnnirError(f"{self.name}: found {key}={detail['input']}, {expected}") from None

    def folder(self, *usual: Path, download: bool = False) -> Path:
        """The first folder that exists, or the one to download to.

        Raises:
            SnnirError: none exists, and nothing is to be downloaded.
        """
        folders = [self.path] if self.path else [*usual, Path("data", self.name)]
        for folder in folders:
            if folder.is_dir():
                return folder
        if download:
            return folders[-1]
        looked = " or ".join(map(str, folders))
        raise SnnirError(f"{self.name}: found no folder {looked}, expected {self.remedy}")

    @property
    def remedy(self) -> str:
        """How to get the data."""
        given = f"the data at {self.path}" if self.path else f"{self.name}:PATH"
        return given + (", or --download" if self.name in DOWNLOADABLE else "")


@dataclass(frozen=True)
class Sources:
    """A data set as it is stored."""

    train: Source
    test: Source
    classes: tuple[str, ...] = ()
    """Their names; none where disparity is to be estimated."""
    validation: Source | None = None
    """Samples that the data set itself holds out."""


@dataclass(frozen=True)
class Splits:
    """What a network is trained on, chosen by, and tested on; the names of the classes, if any."""

    train: Samples
    validation: Samples | None
    test: Samples
    classes: tuple[str, ...]


def check_request(request: Request) -> None:
    """Raises SnnirError for numbers out of range, and augmentation that blanks an image."""
    for name, least in (("limit_train", 1), ("limit_test", 1), ("validation", 0), ("seed", 0)):
        number = getattr(request, name)
        if number is not None and number < least:
            raise SnnirError(f"{name}: found {number}, expected at least {least}")
    side = min(request.shape[1:])
    for name in ("crop_padding", "cutout"):
        length = getattr(request.augmentation, name)
        if length >= side:
            raise SnnirError(f"{name}: found {length}, expected less than {side}, the image's side")


def check_sources(name: str, sources: Sources, request: Request) -> None:
    """Raises SnnirError for samples of another shape or number of classes than the network's."""
    check_shape(name, sources.train.shape[-3:], request.shape)
    if request.classes is None:
        return
    classes = len(sources.classes)
    if classes != request.classes:
        raise SnnirError(
            f"{name}: found {classes} classes, expected {request.classes} as the network has "
            f"(--set classes={classes} changes it)"
        )
    for source in (sources.train, sources.test):
        wrong = source.labels[(source.labels < 0) | (source.labels >= classes)]
        if len(wrong):
            raise SnnirError(f"{name}: found label {wrong[0]}, expected 0 to {classes - 1}")


def check_shape(where: str | Path, found: Sequence[int], expected: Sequence[int]) -> None:
    """Raises SnnirError where [C, H, W] of a sample are not the network's."""
    if list(found) != list(expected):
        retarget = "x".join(map(str, found))
        raise SnnirError(
            f"{where}: found samples of {list(found)}, expected {list(expected)} as the network "
            f"takes (--set input={retarget} changes it)"
        )


def split(name: str, sources: Sources, request: Request) -> Splits:
    """Hold out and limit by one seeded shuffle: held-out samples are never training samples, and a
    larger limit keeps what a smaller one has.

    Raises:
        SnnirError: nothing is left to train on.
    """
    count, held_out = len(sources.train.labels), request.validation
    if sources.validation is not None and held_out:
        own = len(sources.validation.labels)
        raise SnnirError(
            f"{name}: found validation {held_out}, expected 0: the data set holds out {own} samples"
        )
    if held_out >= count:
        raise SnnirError(
            f"{name}: found {count} training samples, expected more than the {held_out} to hold out"
        )
    shuffled = np.random.default_rng((SPLIT, request.seed)).permutation(count)
    train = shuffled[held_out:][: request.limit_train]
    tested = np.random.default_rng((SPLIT, request.seed)).permutation(len(sources.test.labels))
    validation = Samples(sources.train, np.sort(shuffled[:held_out])) if held_out else None
    if sources.validation is not None:
        validation = Samples(sources.validation, np.arange(len(sources.validation.labels)))
    return Splits(
        Samples(sources.train, np.sort(train), request.augmentation),
        validation,
        Samples(sources.test, np.sort(tested[: request.limit_test])),
        sources.classes,
    )
