"""Samples by number, and batches of them as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from snnir.data.augmentation import Augmentation, augment

ORDER, SAMPLE, SPLIT = 1, 2, 3
"""What random numbers are for: the first of the numbers that seed a generator."""


Sample = tuple[np.ndarray, ...]
"""What a network takes, an array per input, and then what it is to say: the target."""


class Source(Protocol):
    """Samples as a data set stores them."""

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, int64 [N]; of stereo sequences, the numbers of their recordings."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's input: a frame's [C, H, W], or [T, C, H, W] of events."""

    @property
    def maximum(self) -> int:
        """The stored value that becomes 1."""

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        """A sample: inputs, uint8 or int8, and the target: a class number, int64, or disparities in
        pixels, float32 [T, H, W], NaN where unknown. `rng` draws what its reader varies in
        training; None: evaluation.

        Raises:
            SnnirError: naming the file that is unreadable or of another shape.
        """


@dataclass(frozen=True)
class Samples:
    """The samples of a source that one split has; augmented unless `augmentation` is None."""

    source: Source
    indices: np.ndarray
    augmentation: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, int64 [N]."""
        return self.source.labels[self.indices]

    def batch(
        self, positions: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0
    ) -> tuple[Tensor, ...]:
        """The network's inputs and then the target.

        Inputs are float32 in [0, 1] (stereo: in [-1, 1]), frames [N, C, H, W] or events
        [T, N, C, H, W]; the target is int64 [N], or disparities float32 [T, N, H, W].

        What is random in a sample depends on the seed, the epoch and its number in the source.
        """
        indices = self.indices[np.asarray(positions, np.int64)]
        shaping = indices if len(indices) else self.indices[:1]  # no samples have a shape too
        read = [self._sample(int(index), seed, epoch) for index in shaping]
        *inputs, target = (
            torch.from_numpy(np.stack(values)[: len(indices)]) for values in zip(*read, strict=True)
        )
        xs = [_steps_first(x, 5).float().div_(self.source.maximum) for x in inputs]
        return (*xs, _steps_first(target, 4))

    def _sample(self, index: int, seed: int, epoch: int) -> Sample:
        if self.augmentation is None:
            return self.source.read(index, None)
        rng = np.random.default_rng((SAMPLE, seed, epoch, index))
        x, *rest = self.source.read(index, rng)
        return (augment(x, self.augmentation, rng), *rest)


def _steps_first(x: Tensor, stepped: int) -> Tensor:
    """[N, T, …] as [T, N, …], where x has the `stepped` axes of what has steps."""
    return x.transpose(0, 1).contiguous() if x.ndim == stepped else x
