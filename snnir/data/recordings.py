"""Data sets of event camera recordings: N-MNIST, DVS Gesture, CIFAR10-DVS."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from snnir.data.events import Events, bin_events, read_aedat2, read_aedat3, read_n_mnist
from snnir.data.folders import labelled_files, subfolders
from snnir.data.kept import Kept
from snnir.data.request import Place, Request, Sources, check_shape
from snnir.data.samples import Sample
from snnir.errors import SnnirError

GESTURES: Final = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise",
    "right arm counter clockwise", "left arm clockwise", "left arm counter clockwise", "arm roll",
    "air drums", "air guitar", "other gestures",
)  # fmt: skip
"""The classes 1 to 11 of DVS Gesture."""

CIFAR10_DVS_TRAIN = 900
"""Recordings of each class that train; CIFAR10-DVS was published without a split."""


class Item(NamedTuple):
    """A sample: a recording, or a span of one, from a first microsecond up to another."""

    path: str
    label: int
    span: tuple[int, int] | None = None


@dataclass
class Recordings:
    """Samples in recordings, kept once they were binned, 8 values in a byte."""

    items: list[Item]
    shape: tuple[int, ...]
    reader: Callable[[str], Events]
    maximum = 1

    def __post_init__(self) -> None:
        self.labels = np.array([item.label for item in self.items], np.int64)
        self._size = int(np.prod(self.shape))
        self._kept = Kept(len(self.items), -(-self._size // 8))
        self._items_of: dict[str, list[int]] = {}
        for index, item in enumerate(self.items):
            self._items_of.setdefault(item.path, []).append(index)

    def read(self, index: int, rng: np.random.Generator | None) -> Sample:
        """uint8 [T, 2, H, W] and the class number.

        Raises:
            SnnirError: an unreadable recording, or one without events on the sensor.
        """
        packed = self._kept.get(index)
        if packed is None:
            packed = self._read_recording(self.items[index].path)[index]
        bins = np.unpackbits(packed, count=self._size).reshape(self.shape)
        return bins, self.labels[index]

    def _read_recording(self, path: str) -> dict[int, np.ndarray]:
        """Every sample of a file, which takes longer to read than to bin."""
        events = self.reader(path)
        packed = {index: self._bin(self.items[index], events) for index in self._items_of[path]}
        for index, values in packed.items():
            self._kept.put(index, values)
        return packed

    def _bin(self, item: Item, events: Events) -> np.ndarray:
        steps, _, height, width = self.shape
        where = item.path
        if item.span:
            start, end = item.span
            events = events.where((start <= events.t) & (events.t < end))
            where += f", {start} to {end} µs"
        try:
            return np.packbits(bin_events(events, steps, height, width))
        except SnnirError as error:
            raise SnnirError(f"{where}: {error}") from None


def open_n_mnist(place: Place, request: Request) -> Sources:
    """PATH/Train/DIGIT/*.bin and PATH/Test/DIGIT/*.bin, 34x34 pixels."""
    shape = _sensor(place, 34, request)
    folder = place.folder()
    classes = subfolders(folder / "Train")
    train, test = (
        Recordings(_labelled(folder / part, classes, ".bin"), shape, read_n_mnist)
        for part in ("Train", "Test")
    )
    return Sources(train, test, tuple(classes))


def open_dvs_gesture(place: Place, request: Request) -> Sources:
    """PATH/trials_to_train.txt, trials_to_test.txt and the trials they name, *.aedat beside
    *_labels.csv; 128x128 pixels. Every labelled span is a sample."""
    shape = _sensor(place, 128, request)
    folder = place.folder()
    train, test = (
        Recordings(
            [item for trial in _trials(folder / name) for item in _spans(trial)], shape, read_aedat3
        )
        for name in ("trials_to_train.txt", "trials_to_test.txt")
    )
    return Sources(train, test, GESTURES)


def open_cifar10_dvs(place: Place, request: Request) -> Sources:
    """PATH/CLASS/cifar10_CLASS_NUMBER.aedat, 128x128 pixels.

    There is no published split; as usual, numbers 0 to 899 of each class train and 900 to 999 test.
    """
    shape = _sensor(place, 128, request)
    folder = place.folder()
    classes = subfolders(folder)
    train: list[Item] = []
    test: list[Item] = []
    for item in _labelled(folder, classes, ".aedat"):
        (train if _number(item.path) < CIFAR10_DVS_TRAIN else test).append(item)
    if not train or not test:
        raise SnnirError(
            f"{folder}: found {len(train)} recordings to train and {len(test)} to test, expected "
            "numbers 0 to 999 in each class"
        )
    trained, tested = (Recordings(items, shape, read_aedat2) for items in (train, test))
    return Sources(trained, tested, tuple(classes))


def _labelled(folder: Path, classes: list[str], suffix: str) -> list[Item]:
    paths, labels = labelled_files(folder, classes, (suffix,))
    return [Item(path, int(label)) for path, label in zip(paths, labels, strict=True)]


def _trials(path: Path) -> list[Path]:
    trials = [path.parent / name for name in _text(path).split()]
    if not trials:
        raise SnnirError(f"{path}: found no trials, expected the name of a recording per line")
    for trial in trials:
        if not trial.is_file():
            raise SnnirError(f"{path}: found no file {trial}, which it names")
    return trials


def _spans(trial: Path) -> list[Item]:
    """The labelled spans of a trial: lines `class,start,end` under a heading."""
    path = trial.with_name(f"{trial.stem}_labels.csv")
    items = []
    for number, line in enumerate(_text(path).rstrip().splitlines()[1:], start=2):
        match = re.fullmatch(r"(\d+),(\d+),(\d+)", line.strip())
        if match is None:
            raise SnnirError(f"{path}:{number}: found '{line}', expected class,start,end")
        label, start, end = map(int, match.groups())
        if not 1 <= label <= len(GESTURES):
            raise SnnirError(f"{path}:{number}: found class {label}, expected 1 to {len(GESTURES)}")
        items.append(Item(str(trial), label - 1, (start, end)))
    if not items:
        raise SnnirError(f"{path}: found no labelled spans, expected lines class,start,end")
    return items


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise SnnirError(f"{path}: found no readable text, expected the published file") from None


def _number(path: str) -> int:
    match = re.search(r"_(\d+)\.aedat$", path)
    if match is None:
        raise SnnirError(f"{path}: found another name, expected cifar10_CLASS_NUMBER.aedat")
    return int(match[1])


def _sensor(place: Place, side: int, request: Request) -> tuple[int, ...]:
    """[T, 2, H, W] of a square sensor, checked before anything is read."""
    check_shape(place.name, (2, side, side), request.shape)
    return (request.steps, 2, side, side)
