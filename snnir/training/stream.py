"""Stereo recordings without end: one stack per step, the state kept from one to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snnir.data import Samples
from snnir.data.loader import Batch
from snnir.data.stereo import Sequences
from snnir.errors import SnnirError
from snnir.training.evaluate import Deployed, Evaluation, evaluate
from snnir.training.tasks import Task


@dataclass(frozen=True)
class Streamed:
    """Of a network that recordings were fed to."""

    evaluation: Evaluation
    """On the frames that are samples."""
    frames: int
    """All that were fed."""
    seconds: float
    """That the network took for them; reading them is not counted."""


def stream(network: Deployed, samples: Samples, task: Task) -> Streamed:
    """Feed every recording that has samples, from the first of them to the last, also the frames
    between that are none; the network starts at rest with each recording.

    Raises:
        SnnirError: samples that are no sequences; reading fails.
    """
    if not isinstance(samples.source, Sequences):
        raise SnnirError("found data without recordings to stream, expected stereo sequences")
    feed = _Feed(network, samples.source, samples.indices)
    found = network.counted(evaluate(feed.predict, feed.batches(), task))
    return Streamed(found, feed.frames, feed.seconds)


class _Feed:
    """Frames in their order, one step each."""

    def __init__(self, network: Deployed, source: Sequences, indices: np.ndarray):
        self._network, self._source = network, source
        self._wanted: dict[int, set[int]] = {}
        for index in indices:
            recording, frame = source.ends[index]
            self._wanted.setdefault(recording, set()).add(frame)
        self.frames = 0
        self.seconds = 0.0

    def batches(self) -> Iterator[Batch]:
        """One frame each, T = N = 1; nothing is known of a frame that is no sample."""
        for recording, wanted in self._wanted.items():
            self._network.reset()
            for frame in range(min(wanted), max(wanted) + 1):
                read = self._source.frames(recording, range(frame, frame + 1))
                *views, disparity = (torch.from_numpy(values)[:, None] for values in read)
                if frame not in wanted:
                    disparity = torch.full_like(disparity, torch.nan)
                yield (*(view.float() for view in views), disparity)

    def predict(self, *inputs: Tensor) -> tuple[Tensor, dict[str, float]]:
        start = time.perf_counter()
        output = self._network.step(*(x[0] for x in inputs))
        self.seconds += time.perf_counter() - start
        self.frames += 1
        return output[None], {}
