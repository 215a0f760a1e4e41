"""Sequences of stereo recordings: K consecutive stacks of each view, K maps of disparity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from snnir.data.augmentation import Augmentation
from snnir.data.events import Events, stack_events
from snnir.data.request import Request
from snnir.data.samples import Sample
from snnir.errors import SnnirError

HEIGHT: Final = 260
WIDTH: Final = 346
"""Pixels of a DAVIS346."""

FOCAL_BASELINE: Final = 19.941772
"""Focal length times baseline of MVSEC's indoor_flying in pixels · metres: disparity times depth
(method §8)."""

VIEWS: Final = ("left", "right")


class StereoOptions(BaseModel):
    """How a stereo recording becomes samples (method §8)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    stacks: Annotated[int, Field(ge=1)] = 5
    """Consecutive stacks of a sample, over which the network keeps its state: K."""
    bin_ms: Annotated[float, Field(ge=0.001, allow_inf_nan=False)] = 10.0
    """Duration of a bin in milliseconds; the network's channels are their number."""
    order: Literal["newest", "oldest"] = "newest"
    """Which bin is channel 0."""

    def encode(self, events: Events, end: int, bins: int) -> np.ndarray:
        """The stack that ends at microsecond `end`: int8 [bins, H, W]. Raises SnnirError."""
        return stack_events(
            events, end, bins=bins, length=self.bin_length, height=HEIGHT, width=WIDTH,
            newest_first=self.order == "newest",
        )  # fmt: skip

    @property
    def bin_length(self) -> int:
        """Microseconds."""
        return round(self.bin_ms * 1000)


class Recording(Protocol):
    """A recording of a stereo rig, frame by frame of its ground truth."""

    @property
    def frames(self) -> int:
        """How many."""

    def read(self, frame: int) -> Sample:
        """Stacks of the left and the right view, int8 [bins, 260, 346], that end at the frame's
        time, and its disparity in pixels of the left view, float32 [260, 346], NaN where unknown.

        Raises:
            SnnirError: naming the file that is unreadable, or in which times go back.
        """


@dataclass
class Sequences:
    """Samples of K consecutive frames, each known by its last: (number of the recording, frame).

    Where the network's input is smaller than the sensor, both views are cut to the same window: at
    random in training, else in the middle.
    """

    recordings: Sequence[Recording]
    ends: Sequence[tuple[int, int]]
    shape: tuple[int, ...]
    """[K, bins, H, W]."""
    maximum = 1

    def __post_init__(self) -> None:
        self.labels = np.array([recording for recording, _ in self.ends], np.int64)

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        """Left and right, int8 [K, bins, H, W]; disparity in pixels, float32 [K, H, W], NaN where
        unknown. Raises SnnirError."""
        recording, last = self.ends[index]
        return self.frames(recording, range(last + 1 - self.shape[0], last + 1), rng)

    def frames(
        self, recording: int, wanted: range, rng: np.random.Generator | None = None
    ) -> Sample:
        """Some frames of a recording, as `read` gives a sample's. Raises SnnirError."""
        read = [self.recordings[recording].read(frame) for frame in wanted]
        whole = [np.stack(values) for values in zip(*read, strict=True)]
        free = [n - m for n, m in zip(whole[0].shape[-2:], self.shape[-2:], strict=True)]
        top, left = [n // 2 for n in free] if rng is None else rng.integers(np.add(free, 1))
        rows = slice(int(top), int(top) + self.shape[-2])
        columns = slice(int(left), int(left) + self.shape[-1])
        return tuple(values[..., rows, columns] for values in whole)


def sequence_shape(name: str, request: Request, options: StereoOptions) -> tuple[int, ...]:
    """[K, bins, H, W] of the samples that a network takes.

    Raises:
        SnnirError: the network's input is larger than the sensor, or samples are to be augmented.
    """
    bins, height, width = request.shape
    if height > HEIGHT or width > WIDTH:
        raise SnnirError(
            f"{name}: found a sensor of {HEIGHT} rows and {WIDTH} columns, expected at least "
            f"{height} and {width} as the network takes"
        )
    if request.augmentation != Augmentation():
        raise SnnirError(
            f"{name}: found an augmentation, expected none: shifting or mirroring the left view "
            "alone would change the disparities"
        )
    return (options.stacks, bins, height, width)
