"""The data set `synthetic-stereo`: rendered recordings, in memory or as files in MVSEC's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import h5py
import numpy as np
from pydantic import Field

from snnir.data.events import Events
from snnir.data.kept import Kept
from snnir.data.mvsec import DEPTH, Hdf5Recording, events_of, to_disparity
from snnir.data.request import Place, Request, Sources
from snnir.data.samples import Sample
from snnir.data.stereo import HEIGHT, WIDTH, Recording, Sequences, StereoOptions, sequence_shape
from snnir.data.synthetic import Film, film
from snnir.errors import SnnirError
from snnir.files import writable_folder, write_whole

PARTS: Final = ("train", "validation", "test")
VALIDATION, TEST = 2, 3
"""Recordings that validate and that test."""

SCENES = 7
"""Seeds the generator of scenes; `snnir.data.samples`, `snnir.search` have the numbers before."""

CALIBRATION: Final = "synthetic"
SETTINGS: Final = "synthetic.json"


class SyntheticOptions(StereoOptions):
    """Also how much is recorded, and which scenes."""

    recordings: Annotated[int, Field(ge=1)] = 16
    """That train, each of a scene of its own."""
    frames: Annotated[int, Field(ge=1)] = 20
    """Of every recording, at 20 Hz."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the scenes, flights and noise."""

    def counts(self) -> dict[str, int]:
        """Recordings by part."""
        return dict(zip(PARTS, (self.recordings, VALIDATION, TEST), strict=True))

    def film(self, part: str, number: int) -> Film:
        """A recording, as it is made."""
        return film((SCENES, self.seed, PARTS.index(part), number), self.frames)


def open_synthetic_stereo(place: Place, request: Request) -> Sources:
    """Without PATH in memory; else in MVSEC's layout at PATH, written there where it is empty.

    Raises:
        SnnirError: options out of range, or a PATH that holds anything else.
    """
    options = place.configured(SyntheticOptions)
    shape = sequence_shape(place.name, request, options)
    if options.stacks > options.frames:
        raise SnnirError(
            f"{place.name}: found {options.stacks} stacks, expected at most the {options.frames} "
            "frames of a recording"
        )
    opened: Callable[[str, int], Recording]
    if place.path is None:

        def opened(part: str, number: int) -> Recording:
            return SyntheticRecording(options, part, number, shape[1])
    else:
        folder = place.path
        _write_once(folder, options)

        def opened(part: str, number: int) -> Recording:
            return Hdf5Recording([folder], _name(part, number), CALIBRATION, options, shape[1])

    def sequences(part: str) -> Sequences:
        count = options.counts()[part]
        last = range(options.stacks - 1, options.frames)
        ends = [(number, frame) for number in range(count) for frame in last]
        return Sequences([opened(part, number) for number in range(count)], ends, shape)

    train, validation, test = map(sequences, PARTS)
    return Sources(train, test, validation=validation)


@dataclass
class SyntheticRecording:
    """A recording that is made when it is first read, and kept as stacks, 8 signs in two bytes."""

    options: SyntheticOptions
    part: str
    number: int
    bins: int

    def __post_init__(self) -> None:
        self._stacks = (2, self.bins, HEIGHT, WIDTH)
        self._bits = -(-int(np.prod(self._stacks)) // 8)
        self._kept = Kept(self.frames, 2 * self._bits + 4 * HEIGHT * WIDTH)

    @property
    def frames(self) -> int:
        return self.options.frames

    def read(self, frame: int) -> Sample:
        packed = self._kept.get(frame)
        if packed is None:
            packed = self._record()[frame]
        count = int(np.prod(self._stacks))
        brighter, darker = (
            np.unpackbits(bits, count=count).view(np.int8).reshape(self._stacks)
            for bits in (packed[: self._bits], packed[self._bits : 2 * self._bits])
        )
        left, right = brighter - darker
        return left, right, packed[2 * self._bits :].view(np.float32).reshape(HEIGHT, WIDTH)

    def _record(self) -> list[np.ndarray]:
        found = self.options.film(self.part, self.number)
        packed = []
        for frame, end in enumerate(found.times):
            start = end - self.bins * self.options.bin_length
            stacks = np.stack(
                [
                    self.options.encode(view.between(start, end), int(end), self.bins)
                    for view in (found.left, found.right)
                ]
            )
            disparity = to_disparity(found.depth[frame]).ravel().view(np.uint8)
            signs = np.packbits(stacks > 0), np.packbits(stacks < 0)
            packed.append(np.concatenate([*signs, disparity]))
            self._kept.put(frame, packed[-1])
        return packed


# --- files --------------------------------------------------------------------------------------


def _write_once(folder: Path, options: SyntheticOptions) -> None:
    """Fill an empty or new folder. Raises SnnirError where it holds anything else."""
    settings = json.dumps({key: getattr(options, key) for key in ("recordings", "frames", "seed")})
    marker = folder / SETTINGS
    if marker.is_file() and marker.read_text() == settings:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "recordings of other options" if marker.exists() else "something else"
        raise SnnirError(f"{folder}: found {found}, expected an empty folder or {settings}")
    writable_folder(folder)
    for part, count in options.counts().items():
        for number in range(count):
            write_mvsec(options.film(part, number), folder, _name(part, number), CALIBRATION)
    write_whole(marker, settings.encode())  # last: what was interrupted is no data set


def _name(part: str, number: int) -> str:
    return f"{part}{number}"


def write_mvsec(recorded: Film, folder: Path, name: str, calibration: str) -> None:
    """Write NAME_data.hdf5, NAME_gt.hdf5 and the maps of rectification in MVSEC's layout; the maps
    change nothing, as the rendered cameras are rectified ones.

    Raises:
        SnnirError: they cannot be written.
    """
    views = {"left": recorded.left, "right": recorded.right}
    _write_hdf5(
        folder / f"{name}_data.hdf5", {events_of(v): _rows(events) for v, events in views.items()}
    )
    _write_hdf5(
        folder / f"{name}_gt.hdf5", {DEPTH: recorded.depth, f"{DEPTH}_ts": recorded.times * 1e-6}
    )
    for view in views:
        for axis, pixel in zip("xy", np.indices((HEIGHT, WIDTH))[::-1], strict=True):
            lines = "\n".join(" ".join(map(str, row)) for row in pixel)
            write_whole(folder / f"{calibration}_{view}_{axis}_map.txt", f"{lines}\n".encode())


def _rows(events: Events) -> np.ndarray:
    """[x, y, seconds, polarity], float64 [E, 4]."""
    polarity = np.where(events.p > 0, 1.0, -1.0)
    return np.column_stack([events.x, events.y, events.t * 1e-6, polarity])


def _write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    whole = path.with_name(f".{path.name}.part")
    try:
        with h5py.File(whole, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
        os.replace(whole, path)
    except OSError as error:
        whole.unlink(missing_ok=True)
        raise SnnirError(f"{path}: found that it cannot be written: {error}") from None
