"""Memory for samples that are slow to read."""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np

LIMIT: Final = 2**32
"""Bytes; a larger data set is read anew in every epoch."""


class Kept:
    """`count` samples of `size` bytes, kept once they were read.

    The memory is mapped, so it is taken only as samples come, and shared: what a worker process
    reads in one epoch is there for the workers of the next (where workers are forked).
    """

    def __init__(self, count: int, size: int) -> None:
        total = count * (size + 1)  # a sample's last byte says that it is there
        self._samples: np.ndarray | None = None
        if total <= LIMIT:
            self._samples = np.frombuffer(mmap.mmap(-1, total), np.uint8).reshape(count, size + 1)

    def get(self, index: int) -> np.ndarray | None:
        """A sample's bytes, or None."""
        if self._samples is None or not self._samples[index, -1]:
            return None
        return self._samples[index, :-1]

    def put(self, index: int, values: np.ndarray) -> None:
        if self._samples is not None:
            self._samples[index, :-1] = values
            self._samples[index, -1] = 1
