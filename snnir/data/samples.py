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


class Source(Protocol):
    """Labelled samples as a data set stores them."""

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, int64 [N]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: a frame's [C, H, W], or [T, C, H, W] of events."""

    @property
    def maximum(self) -> int:
        """The stored value that becomes 1."""

    def read(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        """A sample, uint8. `rng` draws what its reader varies in training; None: evaluation.

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
    ) -> tuple[Tensor, Tensor]:
        """x float32 in [0, 1]: frames [N, C, H, W] or events [T, N, C, H, W]; y int64 [N].

        What is random in a sample depends on the seed, the epoch and its number in the source.
        """
        indices = self.indices[np.asarray(positions, np.int64)]
        stored = np.empty((len(indices), *self.source.shape), np.uint8)
        for i, index in enumerate(indices):
            stored[i] = self._sample(int(index), seed, epoch)
        x = torch.from_numpy(stored)
        if x.ndim == 5:
            x = x.transpose(0, 1).contiguous()
        return x.float().div_(self.source.maximum), torch.from_numpy(self.source.labels[indices])

    def _sample(self, index: int, seed: int, epoch: int) -> np.ndarray:
        if self.augmentation is None:
            return self.source.read(index, None)
        rng = np.random.default_rng((SAMPLE, seed, epoch, index))
        return augment(self.source.read(index, rng), self.augmentation, rng)
