"""MVSEC's indoor_flying recordings, as published (HDF5) and as earlier work preprocessed them.

Published (daniilidis-group.github.io/mvsec): NAME_data.hdf5 with `davis/left/events` and
`davis/right/events`, rows [x, y, seconds, polarity]; NAME_gt.hdf5 with, in metres and NaN where
unknown, `davis/left/depth_image_rect` [F, 260, 346], and `davis/left/depth_image_rect_ts`, seconds;
and maps of the rectified column and row of every pixel as text.

Preprocessed (as DDES did): per frame event0/N.npy and event1/N.npy, rows [seconds, x, y, polarity],
rectified; disparity_image/N.png, seven times the disparity, 255 where unknown; and timestamps.txt.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np

from snnir.data.events import Events
from snnir.data.folders import read_image
from snnir.data.request import Place, Request, Sources
from snnir.data.samples import Sample
from snnir.data.stereo import (
    FOCAL_BASELINE,
    HEIGHT,
    VIEWS,
    WIDTH,
    Recording,
    Sequences,
    StereoOptions,
    sequence_shape,
)
from snnir.errors import SnnirError

TRAINED: Final = {1: range(80, 1260), 2: range(160, 1580), 3: range(125, 1815)}
TESTED: Final = {1: range(140, 1201), 3: range(73, 1616)}
"""Frames of each indoor_flying that train, and that validate or test (method §8)."""

VALIDATED = 200
"""Of the tested frames, shuffled by Python's generator seeded with 0, so many validate."""

PNG_SCALE, PNG_UNKNOWN = 7, 255

DEPTH = "davis/left/depth_image_rect"


class MvsecOptions(StereoOptions):
    """Also which split."""

    split: Literal["1", "3"] = "1"
    """The recording that is tested; the other two train."""


def open_mvsec(place: Place, request: Request) -> Sources:
    """PATH of either layout: indoor_flying1_data.hdf5, indoor_flying1_gt.hdf5 and
    indoor_flying_left_x_map.txt (also in PATH/indoor_flying and PATH/indoor_flying_calib), or the
    folders indoor_flying_1 and so on.

    Raises:
        SnnirError: a file of the three recordings is missing, damaged or too short.
    """
    options = place.configured(MvsecOptions)
    shape = sequence_shape(place.name, request, options)
    folder = place.folder()
    tested = int(options.split)
    trained = [number for number in TRAINED if number != tested]
    numbers = [*trained, tested]
    recordings = [_recording(folder, number, options, shape[1]) for number in numbers]
    for number, recording in zip(numbers, recordings, strict=True):
        frames = TESTED[number] if number == tested else TRAINED[number]
        _check_frames(f"{folder}: indoor_flying{number}", frames, recording.frames, options.stacks)
    training = [(i, frame) for i, number in enumerate(trained) for frame in TRAINED[number]]
    held_out, testing = split_frames(tested)
    last = len(trained)

    def sequences(ends: Sequence[tuple[int, int]]) -> Sequences:
        return Sequences(recordings, ends, shape)

    return Sources(
        train=sequences(training),
        validation=sequences([(last, frame) for frame in held_out]),
        test=sequences([(last, frame) for frame in testing]),
    )


def split_frames(tested: int) -> tuple[list[int], list[int]]:
    """The frames of recording `tested` that validate and those that test, each in order."""
    frames = list(TESTED[tested])
    random.Random(0).shuffle(frames)
    return sorted(frames[:VALIDATED]), sorted(frames[VALIDATED:])


def _check_frames(where: str, wanted: range, found: int, stacks: int) -> None:
    if found < wanted.stop:
        raise SnnirError(
            f"{where}: found {found} frames of ground truth, expected at least {wanted.stop}, the "
            "last that the split names"
        )
    if stacks > wanted.start + 1:
        raise SnnirError(
            f"{where}: found {stacks} stacks, expected at most {wanted.start + 1}: so many frames "
            "end at the split's first"
        )


def _recording(folder: Path, number: int, options: StereoOptions, bins: int) -> Recording:
    """Whichever layout is there."""
    frames = folder / f"indoor_flying_{number}"
    if frames.is_dir():
        return FolderRecording(frames, options, bins)
    looked = [folder, folder / "indoor_flying", folder / "indoor_flying_calib"]
    return Hdf5Recording(looked, f"indoor_flying{number}", "indoor_flying", options, bins)


# --- as published -------------------------------------------------------------------------------


@dataclass
class Hdf5Recording:
    """A recording in MVSEC's HDF5 files. The times of the frames and the maps are held; events and
    depths are read as frames are asked for."""

    folders: Sequence[Path]
    """Where its files are looked for."""
    name: str
    calibration: str
    """What the rectification maps' names begin with."""
    options: StereoOptions
    bins: int

    def __post_init__(self) -> None:
        self._data, self._truth = (self._find(f"{self.name}_{x}.hdf5") for x in ("data", "gt"))
        with _opened(self._truth) as file:
            depth = _data_set(file, DEPTH, (None, HEIGHT, WIDTH))
            times = _data_set(file, f"{DEPTH}_ts", (len(depth),))
            self._times = _microseconds(np.asarray(times))
        if (np.diff(self._times) <= 0).any():
            frame = int(np.argmax(np.diff(self._times) <= 0)) + 1
            raise SnnirError(f"{self._truth}: found frame {frame} before or with the one before it")
        with _opened(self._data) as file:
            for view in VIEWS:
                _data_set(file, events_of(view), (None, 4))
        self._maps = {view: self._read_maps(view) for view in VIEWS}

    @property
    def frames(self) -> int:
        return len(self._times)

    def read(self, frame: int) -> Sample:
        end = int(self._times[frame])
        start = end - self.bins * self.options.bin_length
        with _opened(self._data) as file:
            found = [self._events(file, view, start, end) for view in VIEWS]
        stacks = [self.options.encode(events, end, self.bins) for events in found]
        with _opened(self._truth) as file:
            depth = np.asarray(file[DEPTH][frame], np.float32)
        return (*stacks, to_disparity(depth))

    def _events(self, file: h5py.File, view: str, start: int, end: int) -> Events:
        """The rectified events of `view` from microsecond `start` up to `end`."""
        rows = file[events_of(view)]

        def time(row: int) -> int:
            return int(_microseconds(rows[row, 2]))

        first, last = (bisect_left(range(len(rows)), at, key=time) for at in (start, end))
        x, y, seconds, polarity = rows[first:last].T
        t = _microseconds(seconds)
        if len(t) and ((np.diff(t) < 0).any() or t[0] < start or t[-1] >= end):
            raise SnnirError(
                f"{self._data}: found times in {events_of(view)} that go back, between rows "
                f"{first} and {last}, expected events in the order of their times"
            )
        return self._rectified(view, Events(t, x, y, polarity > 0))

    def _rectified(self, view: str, events: Events) -> Events:
        """Events at the nearest pixel of the rectified view; what leaves it is left out."""
        x, y = events.x.astype(np.int64), events.y.astype(np.int64)
        if len(x) and (min(x.min(), y.min()) < 0 or x.max() >= WIDTH or y.max() >= HEIGHT):
            raise SnnirError(
                f"{self._data}: found events of {view} outside of {HEIGHT} rows and {WIDTH} columns"
            )
        columns, rows = self._maps[view]
        x, y = columns[y, x], rows[y, x]
        seen = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
        return Events(events.t, x, y, events.p).where(seen)

    def _read_maps(self, view: str) -> tuple[np.ndarray, np.ndarray]:
        """The rectified column and row of every pixel, int64 [H, W]."""
        x, y = (
            _numbers(self._find(f"{self.calibration}_{view}_{axis}_map.txt"), (HEIGHT, WIDTH))
            for axis in "xy"
        )
        return np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)

    def _find(self, name: str) -> Path:
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        looked = " or ".join(map(str, self.folders))
        raise SnnirError(f"{name}: found no such file in {looked}, expected MVSEC as published")


def to_disparity(depth: np.ndarray) -> np.ndarray:
    """Metres to pixels, NaN where the depth is unknown."""
    known = np.isfinite(depth) & (depth > 0)
    return np.divide(FOCAL_BASELINE, depth, out=np.full_like(depth, np.nan), where=known)


def events_of(view: str) -> str:
    """The name of a view's events in NAME_data.hdf5."""
    return f"davis/{view}/events"


def _microseconds(seconds: Any) -> Any:
    return np.rint(np.asarray(seconds) * 1e6).astype(np.int64)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Opened for one read, so that worker processes never share a handle. Raises SnnirError."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise SnnirError(
            f"{path}: found a damaged or foreign file, expected HDF5: {error}"
        ) from None


def _data_set(file: h5py.File, name: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise SnnirError(f"{file.filename}: found no {name}, expected it as in MVSEC's files")
    fits = len(found.shape) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, found.shape, strict=True)
    )
    if not fits:
        expected = ", ".join("N" if size is None else str(size) for size in shape)
        raise SnnirError(f"{file.filename}: found {name} of {found.shape}, expected ({expected})")
    return found


# --- as earlier work preprocessed it ------------------------------------------------------------


@dataclass
class FolderRecording:
    """A recording as a file per frame and view."""

    folder: Path
    options: StereoOptions
    bins: int

    def __post_init__(self) -> None:
        for name in ("event0", "event1", "disparity_image"):
            if not (self.folder / name).is_dir():
                raise SnnirError(f"{self.folder}: found no folder {name}, expected both cameras'")

    @cached_property
    def _times(self) -> np.ndarray:
        return _microseconds(_numbers(self.folder / "timestamps.txt", (None, 1))[:, 0])

    @property
    def frames(self) -> int:
        return len(self._times)

    def read(self, frame: int) -> Sample:
        stacks = [self._stack(f"event{camera}/{frame:06}.npy", frame) for camera in (0, 1)]
        return (*stacks, self._disparity(self.folder / f"disparity_image/{frame:06}.png"))

    def _stack(self, name: str, frame: int) -> np.ndarray:
        path = self.folder / name
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SnnirError(f"{path}: found no readable array: {error}") from None
        rows = (
            rows.reshape(-1, 4) if rows.size == 0 else rows
        )  # of no events NumPy keeps no columns
        if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "fiu":
            raise SnnirError(f"{path}: found {rows.dtype} {rows.shape}, expected numbers (N, 4)")
        seconds, x, y, polarity = rows.T
        t = _microseconds(seconds)
        if (np.diff(t) < 0).any():
            raise SnnirError(f"{path}: found times that go back, expected events in their order")
        events = Events(t, x.astype(np.int64), y.astype(np.int64), polarity > 0)
        try:
            return self.options.encode(events, int(self._times[frame]), self.bins)
        except SnnirError as error:
            raise SnnirError(f"{path}: {error}") from None

    def _disparity(self, path: Path) -> np.ndarray:
        image = read_image(str(path))
        if image.mode != "L" or image.size != (WIDTH, HEIGHT):
            raise SnnirError(
                f"{path}: found an image of mode {image.mode}, {image.height} rows and "
                f"{image.width} columns, expected L, {HEIGHT} and {WIDTH}"
            )
        stored = np.asarray(image)
        return np.where(stored == PNG_UNKNOWN, np.nan, stored / PNG_SCALE).astype(np.float32)


def _numbers(path: Path, shape: tuple[int | None, int]) -> np.ndarray:
    """A text file of numbers. Raises SnnirError."""
    try:
        found = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise SnnirError(f"{path}: found no readable table of numbers: {error}") from None
    if any(wanted not in (None, size) for wanted, size in zip(shape, found.shape, strict=True)):
        raise SnnirError(f"{path}: found a table of {found.shape}, expected {shape}")
    return found
