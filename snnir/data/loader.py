"""Batches in a seeded order, the same whatever the number of workers and processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from snnir.data.samples import ORDER, Samples
from snnir.errors import SnnirError

Batch = tuple[Tensor, ...]
"""The network's inputs and then the target (`Samples.batch`)."""


def batches(
    samples: Samples,
    batch_size: int,
    *,
    seed: int,
    epoch: int = 0,
    shuffle: bool = False,
    start: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Batches:
    """The batches (inputs, …, target) of one epoch from number `start` on; `len()` says how many.

    What they hold is said at `Samples.batch`. Order and augmentation depend on the seed and the
    epoch alone. `batch_size` is that of all `world_size` processes together: process `rank` gets
    its part of every batch, empty where a last batch has fewer samples than there are processes.

    Raises:
        SnnirError: a batch size that cannot be had; while iterating, whatever reading raises.
    """
    if batch_size < world_size:
        expected = f"at least {world_size}, one per process"
        raise SnnirError(f"batch size: found {batch_size}, expected {expected}")
    if drop_last and batch_size > len(samples):
        expected = f"at most {len(samples)}, the number of samples"
        raise SnnirError(f"batch size: found {batch_size}, expected {expected}")
    order = np.arange(len(samples))
    if shuffle:
        order = np.random.default_rng((ORDER, seed, epoch)).permutation(order)
    if drop_last:
        order = order[: len(order) - len(order) % batch_size]
    firsts = range(start * batch_size, len(order), batch_size)
    parts = [
        np.array_split(order[first : first + batch_size], world_size)[rank] for first in firsts
    ]
    return Batches(_Reader(samples, seed, epoch), parts, workers)


@dataclass(frozen=True)
class Batches:
    """Batches to be read, each from the positions of its samples."""

    reader: _Reader
    parts: list[np.ndarray]
    workers: int

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self.reader,
            batch_size=None,
            sampler=self.parts,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            multiprocessing_context=_context() if self.workers else None,
            generator=torch.Generator(),  # else it draws from torch's own, and a resume differs
        )
        for batch in loader:
            if isinstance(batch, SnnirError):
                raise batch
            yield batch


@dataclass(frozen=True)
class _Reader(Dataset):
    """A batch for the positions of its samples.

    An error is handed on as a value: raised in a worker, it would bring the worker's traceback.
    """

    samples: Samples
    seed: int
    epoch: int

    def __getitem__(self, positions: np.ndarray) -> Batch | SnnirError:
        try:
            return self.samples.batch(positions, seed=self.seed, epoch=self.epoch)
        except SnnirError as error:
            return error


def _context() -> str | None:
    """Workers that share the samples kept in memory, where the system has such."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


def _as_it_is(batch: Any) -> Any:
    return batch
