"""Everything a training run needs to go on as if it had not stopped, in one file."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnir.errors import SnnirError
from snnir.files import write_whole

FORMAT = "snnir-checkpoint/1"


@dataclass
class Totals:
    """Sums over the part of an epoch that is done."""

    loss: float = 0.0
    correct: int = 0
    count: int = 0
    """Of samples, or of pixels with a known disparity."""

    def add(self, loss: float, correct: float, count: float) -> None:
        """Another batch, its loss a mean over `count`."""
        self.loss += loss * int(count)
        self.correct += int(correct)
        self.count += int(count)

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.count)

    @property
    def accuracy(self) -> float:
        """In 0..1."""
        return self.correct / max(1, self.count)


@dataclass
class Checkpoint:
    """The state between two steps. Order, augmentation and learning rate follow from the position
    and the config's seed, so no random generator has state to keep."""

    genotype: str
    """Text, as the run trains it."""
    data: str
    config: dict[str, Any]
    module: dict[str, Tensor]
    optimizer: dict[str, Any]
    epoch: int = 0
    """Epochs that are finished."""
    step: int = 0
    """Steps done of the next one."""
    totals: Totals = field(default_factory=Totals)
    observations: dict[str, Any] = field(default_factory=dict)
    """What `Watch` has seen in the unfinished epoch."""
    companion: dict[str, Any] = field(default_factory=dict)
    """What learns beside the weights (`trainer.Companion`)."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A record per finished epoch."""
    seconds: float = 0.0
    """Time spent so far."""

    def write(self, path: str | Path) -> None:
        """Raises SnnirError when it cannot be written; an older file then stays as it was."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **self.__dict__, "totals": asdict(self.totals)}, buffer)
        write_whole(path, buffer.getvalue())

    def refuse_other_run(
        self, path: Path, genotype: str, data: str, config: dict[str, Any]
    ) -> None:
        """Raises SnnirError where the checkpoint is of another genotype, data set or config."""
        if self.genotype != genotype:
            raise SnnirError(f"{path}: found a checkpoint of another genotype, expected this one")
        if self.data != data:
            raise SnnirError(f"{path}: found a run on {self.data}, expected {data}")
        different = [key for key in config if config[key] != self.config.get(key)]
        if different:
            found = ", ".join(f"{key} {self.config.get(key)}" for key in different)
            expected = ", ".join(f"{key} {config[key]}" for key in different)
            raise SnnirError(f"{path}: found a run with {found}, expected {expected}")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read with torch's weights-only loader: a file from elsewhere runs no code.

    Raises:
        SnnirError: no such file, or one that is truncated or no checkpoint.
    """
    expected = f"expected a checkpoint ({FORMAT})"
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise SnnirError(f"{path}: found no such file, {expected} to resume from") from None
    except Exception:  # the loader raises many kinds for what is no checkpoint
        raise SnnirError(f"{path}: found a damaged or foreign file, {expected}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise SnnirError(f"{path}: found another kind of file, {expected}")
    try:
        return Checkpoint(**content | {"totals": Totals(**content["totals"])})
    except (KeyError, TypeError):
        raise SnnirError(f"{path}: found an incomplete checkpoint, {expected}") from None
