"""Recordings of event cameras: three file formats, and two ways to bin them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snnir.errors import SnnirError


class Events(NamedTuple):
    """Events as arrays [E], in the order of the file; rows count from the top."""

    t: np.ndarray
    """Times in microseconds, int64."""
    x: np.ndarray
    """Columns."""
    y: np.ndarray
    """Rows."""
    p: np.ndarray
    """Polarities: 1 where it became brighter, else 0."""

    def where(self, chosen: np.ndarray) -> Events:
        """Some of the events."""
        return Events(*(values[chosen] for values in self))

    def between(self, start: int, end: int) -> Events:
        """Those from microsecond `start` up to `end`; events are in the order of their times."""
        first, last = np.searchsorted(self.t, [start, end])
        return Events(*(values[first:last] for values in self))


def bin_events(events: Events, steps: int, height: int, width: int) -> np.ndarray:
    """Frames uint8 [T, 2, H, W], T = `steps` of equal duration from the first to the last event.

    A value is 1 where at least one event of its polarity (channel 0: darker, 1: brighter) fell on
    its pixel in its time, else 0.

    Raises:
        SnnirError: no events, or events outside `height` x `width`.
    """
    if not len(events.t):
        raise SnnirError("found no events, expected at least one")
    _check_sensor(events, height, width)
    first, last = int(events.t.min()), int(events.t.max())
    step = (events.t - first) * steps // (last - first + 1)
    frames = np.zeros((steps, 2, height, width), np.uint8)
    frames[step, events.p, events.y, events.x] = 1
    return frames


def stack_events(
    events: Events,
    end: int,
    *,
    bins: int,
    length: int,
    height: int,
    width: int,
    newest_first: bool = True,
) -> np.ndarray:
    """Stacking based on time (SBT, method §8): int8 [bins, H, W], the sign of the sum of polarities
    (1 brighter, -1 darker) of each pixel and bin.

    The bins, of `length` microseconds each, end at microsecond `end`, which is no longer part of
    them; bin 0 is the newest unless `newest_first` is false. Other events are left out, and a bin
    without events is 0. The order of the events plays no part.

    Raises:
        SnnirError: events outside `height` x `width`.
    """
    if len(events.t):
        _check_sensor(events, height, width)
    number = (end - 1 - events.t) // length
    inside = (number >= 0) & (number < bins)
    _, x, y, p = events.where(inside)
    number = number[inside] if newest_first else bins - 1 - number[inside]
    place = (number * height + y) * width + x
    total = np.bincount(place, weights=np.where(p > 0, 1, -1), minlength=bins * height * width)
    return np.sign(total).astype(np.int8).reshape(bins, height, width)


def _check_sensor(events: Events, height: int, width: int) -> None:
    """Raises SnnirError for events outside of the sensor."""
    column, row = int(events.x.max()), int(events.y.max())
    if column >= width or row >= height:
        raise SnnirError(
            f"found events up to column {column} and row {row}, expected a sensor of "
            f"{height} rows and {width} columns"
        )
    if min(int(events.x.min()), int(events.y.min())) < 0:
        raise SnnirError("found events of a negative column or row, expected them to count from 0")


def read_n_mnist(path: str | Path) -> Events:
    """A recording of N-MNIST, 5 bytes per event.

    Layout, big-endian: column (8 bits), row (8), polarity (1: brighter), microseconds (23). Row 240
    is no event but a clock that went round, which adds 2^13 microseconds to what follows (as in the
    authors' own reader).

    Raises:
        SnnirError: unreadable or truncated.
    """
    data = _content(path)
    _check_multiple(path, len(data), 5)
    columns = np.frombuffer(data, np.uint8).reshape(-1, 5).T.astype(np.int64)
    x, y, high, middle, low = columns
    overflow = y == 240
    t = (high & 0x7F) << 16 | middle << 8 | low
    t += np.cumsum(overflow) << 13
    return Events(t, x, y, high >> 7).where(~overflow)


def read_aedat2(path: str | Path) -> Events:
    """An AEDAT 2.0 file of a DVS128, in the orientation usual for CIFAR10-DVS.

    Layout: header lines that start with `#`; then per event, big-endian, a 32-bit address and a
    32-bit time in microseconds. Address bits: 0 polarity, 1 to 7 x, 8 to 14 y, 15 special events,
    which are left out. As in jAER, polarity 0 is brighter and x counts from the right, y from the
    bottom. The camera of CIFAR10-DVS lay on its side, so x and y are exchanged, as the widespread
    reader of SpikingJelly does.

    Raises:
        SnnirError: unreadable, of another version, or truncated.
    """
    data = _content(path)
    start = 0
    while data[start : start + 1] == b"#":
        start = _line_end(path, data, start)
    _check_version(path, data, b"#!AER-DAT2.")
    _check_multiple(path, len(data) - start, 8)
    address, t = np.frombuffer(data, ">i4", offset=start).reshape(-1, 2).T.astype(np.int64)
    events = Events(t, 127 - (address >> 8 & 0x7F), 127 - (address >> 1 & 0x7F), 1 - (address & 1))
    return events.where((address & 0x8000) == 0)


PACKET = struct.Struct("<hhiiiiii")
"""Of an AEDAT 3.1 packet's header: type, source, event size, offset of the time in an event, how
often the 31-bit time overflowed, capacity, number of events, number of valid ones."""

POLARITY_EVENT = 1


def read_aedat3(path: str | Path) -> Events:
    """The polarity events of an AEDAT 3.1 file.

    Layout: header lines up to `#!END-HEADER`; then packets, little-endian, a header (`PACKET`) and
    its events. A polarity event is 32 bits of data and a 32-bit time in microseconds. Data bits: 0
    valid, 1 polarity (1: brighter), 2 to 16 row, 17 to 31 column.

    Raises:
        SnnirError: unreadable, of another version, or truncated.
    """
    data = _content(path)
    _check_version(path, data, b"#!AER-DAT3.")
    end = data.find(b"#!END-HEADER")
    if end < 0:
        raise SnnirError(f"{path}: found no line #!END-HEADER, expected one before the events")
    packets, times = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
    for overflow, packet in _polarity_packets(path, data, _line_end(path, data, end)):
        packets.append(packet[:, 0])
        times.append(packet[:, 1] + (np.int64(overflow) << 31))
    bits = np.concatenate(packets)
    events = Events(np.concatenate(times), bits >> 17, bits >> 2 & 0x7FFF, bits >> 1 & 1)
    return events.where(bits & 1 == 1)


def _polarity_packets(
    path: str | Path, data: bytes, start: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Of every packet of polarity events from byte `start` on: how often the time overflowed, and
    the events uint32 [E, 2]."""
    while start < len(data):
        if len(data) < start + PACKET.size:
            raise SnnirError(f"{path}: found a truncated packet header at byte {start}")
        kind, _, size, _, overflow, _, number, _ = PACKET.unpack_from(data, start)
        start += PACKET.size
        if min(size, number) < 0 or len(data) < start + size * number:
            raise SnnirError(f"{path}: found a truncated packet of events at byte {start}")
        if kind == POLARITY_EVENT:
            if size != 8:
                raise SnnirError(f"{path}: found polarity events of {size} bytes, expected 8")
            yield overflow, np.frombuffer(data, "<u4", 2 * number, start).reshape(-1, 2)
        start += size * number


def _content(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SnnirError(f"{path}: found no readable recording: {error.strerror}") from None


def _line_end(path: str | Path, data: bytes, start: int) -> int:
    end = data.find(b"\n", start)
    if end < 0:
        raise SnnirError(f"{path}: found a header without an end, expected events after it")
    return end + 1


def _check_version(path: str | Path, data: bytes, expected: bytes) -> None:
    if not data.startswith(expected):
        raise SnnirError(f"{path}: found {data[:12]!r}, expected {expected.decode()}…")


def _check_multiple(path: str | Path, found: int, size: int) -> None:
    if found % size:
        raise SnnirError(
            f"{path}: found {found} bytes of events, expected a multiple of {size}: truncated?"
        )
