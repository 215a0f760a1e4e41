"""Event recordings: bit layouts, binning, the three data sets."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snnir.data import Augmentation, Events, Request, batches, bin_events, open_data
from snnir.data.events import read_aedat2, read_aedat3, read_n_mnist
from snnir.data.recordings import GESTURES
from snnir.errors import SnnirError

N_MNIST = Request("events", (2, 34, 34), 2, steps=4)
DVS = Request("events", (2, 128, 128), 2, steps=4)


def random_events(count: int, side: int, *, seed: int = 0, duration: int = 300_000) -> Events:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(side, size=(2, count))
    return Events(np.sort(rng.integers(duration, size=count)), x, y, rng.integers(2, size=count))


def assert_same_events(found: Events, expected: Events) -> None:
    for values, others in zip(found, expected, strict=True):
        assert np.array_equal(values, others)


def n_mnist_bytes(events: Events) -> bytes:
    word = events.x << 32 | events.y << 24 | events.p << 23 | events.t
    return b"".join(int(value).to_bytes(5, "big") for value in word)


def aedat2_bytes(events: Events) -> bytes:
    address = (127 - events.y) << 1 | (127 - events.x) << 8 | (1 - events.p)
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# created: today\r\n"
    return header + np.stack([address, events.t], 1).astype(">i4").tobytes()


def aedat3_packet(events: Events, *, kind: int = 1, overflow: int = 0, valid: int = 1) -> bytes:
    count = len(events.t)
    data = events.x << 17 | events.y << 2 | events.p << 1 | valid
    header = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, count, count, count * valid)
    return header + np.stack([data, events.t], 1).astype("<u4").tobytes()


AEDAT3_HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-01-01 00:00:00 (TZ+0000)\r\n#!END-HEADER\r\n"
)


def aedat3_bytes(events: Events, packet: int = 1000) -> bytes:
    parts = [slice(first, first + packet) for first in range(0, len(events.t), packet)]
    return AEDAT3_HEADER + b"".join(aedat3_packet(events.where(part)) for part in parts)


FORMATS = [
    (read_n_mnist, n_mnist_bytes, 34),
    (read_aedat2, aedat2_bytes, 128),
    (read_aedat3, aedat3_bytes, 128),
]


def test_bins_are_of_equal_duration_and_hold_one_per_pixel_and_polarity():
    t = np.array([1000, 1009, 1010, 1019, 1019, 1020, 1039])
    events = Events(t, np.arange(7) % 5, np.arange(7) % 3, np.array([0, 1, 0, 1, 1, 0, 1]))
    frames = bin_events(events, 4, 3, 5)
    expected = np.zeros((4, 2, 3, 5), np.uint8)
    for step, event in zip([0, 0, 1, 1, 1, 2, 3], range(7), strict=True):
        expected[step, events.p[event], events.y[event], events.x[event]] = 1
    assert np.array_equal(frames, expected)
    assert frames.sum() == 7


def test_coinciding_events_are_one_and_order_does_not_matter():
    events = random_events(500, 10)
    frames = bin_events(events, 3, 10, 10)
    assert set(np.unique(frames)) == {0, 1}
    assert 200 < frames.sum() < 500
    assert np.array_equal(frames, bin_events(events.where(np.arange(500)[::-1]), 3, 10, 10))


def test_a_single_moment_falls_into_the_first_bin():
    frames = bin_events(Events(*np.array([[7, 7], [0, 1], [0, 1], [1, 1]])), 3, 2, 2)
    assert frames[0].sum() == frames.sum() == 2


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (Events(*np.zeros((4, 0), int)), "found no events"),
        (Events(*np.array([[0], [5], [0], [0]])), "up to column 5 and row 0, .* 5 rows and 5 col"),
        (Events(*np.array([[0], [0], [6], [0]])), "up to column 0 and row 6"),
    ],
)
def test_events_that_cannot_be_binned(events, message):
    with pytest.raises(SnnirError, match=message):
        bin_events(events, 2, 5, 5)


def test_the_bits_of_n_mnist(tmp_path):
    path = tmp_path / "00001.bin"
    path.write_bytes(bytes([33, 2, 0x80 | 0x01, 0x02, 0x03, 0, 31, 0x7F, 0xFF, 0xFF]))
    expected = [[0x010203, 2**23 - 1], [33, 0], [2, 31], [1, 0]]
    assert_same_events(read_n_mnist(path), Events(*np.array(expected)))


def test_a_clock_that_goes_round_in_n_mnist(tmp_path):
    path = tmp_path / "00001.bin"
    path.write_bytes(bytes([1, 2, 0, 0, 5, 0, 240, 0, 0, 0, 3, 4, 0, 0, 6]))
    expected = [[5, 8192 + 6], [1, 3], [2, 4], [0, 0]]
    assert_same_events(read_n_mnist(path), Events(*np.array(expected)))


def test_the_bits_of_aedat2(tmp_path):
    path = tmp_path / "cifar10_cat_0.aedat"
    words = [0b0_0000011_0000101_0, 9, 0b1_0000000_0000000_1, 10, 0b0_1111111_0000000_1, 2**31 - 1]
    path.write_bytes(b"#!AER-DAT2.0\r\n# more\r\n" + np.array(words, ">i4").tobytes())
    expected = [[9, 2**31 - 1], [124, 0], [122, 127], [1, 0]]
    assert_same_events(read_aedat2(path), Events(*np.array(expected)))


def test_the_packets_of_aedat3(tmp_path):
    events = random_events(30, 128)
    early, late = events.where(slice(20)), events.where(slice(20, 30))
    path = tmp_path / "user01_led.aedat"
    path.write_bytes(
        AEDAT3_HEADER
        + aedat3_packet(early)
        + aedat3_packet(early, kind=0)
        + aedat3_packet(early, valid=0)
        + aedat3_packet(late, overflow=1)
    )
    expected = events._replace(t=events.t + np.where(np.arange(30) < 20, 0, 2**31))
    assert_same_events(read_aedat3(path), expected)


@pytest.mark.parametrize(("reader", "to_bytes", "side"), FORMATS)
def test_recordings_are_read_back(tmp_path, reader, to_bytes, side):
    events = random_events(2500, side)
    (tmp_path / "recording").write_bytes(to_bytes(events))
    assert_same_events(reader(tmp_path / "recording"), events)


@pytest.mark.parametrize(("reader", "to_bytes", "side"), FORMATS)
def test_truncated_and_missing_recordings(tmp_path, reader, to_bytes, side):
    path = tmp_path / "recording"
    with pytest.raises(SnnirError, match="recording: found no readable recording: No such file"):
        reader(path)
    path.write_bytes(to_bytes(random_events(20, side))[:-3])
    with pytest.raises(SnnirError, match=r"recording: found .*truncated"):
        reader(path)


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_aedat2, aedat3_bytes(random_events(9, 9)), r"found b'#!AER-DAT3.1', expected .*2\."),
        (read_aedat3, aedat2_bytes(random_events(9, 9)), r"found b'#!AER-DAT2.0', expected .*3\."),
        (read_aedat2, b"#!AER-DAT2.0", "found a header without an end"),
        (read_aedat3, b"#!AER-DAT3.1\r\n", "found no line #!END-HEADER"),
        (read_aedat3, AEDAT3_HEADER + bytes(9), "truncated packet header at byte"),
        (
            read_aedat3,
            AEDAT3_HEADER + struct.pack("<hhiiiiii", 1, 1, 4, 4, 0, 1, 1, 1) + bytes(4),
            "found polarity events of 4 bytes, expected 8",
        ),
    ],
)
def test_other_files_than_recordings(tmp_path, reader, content, message):
    (tmp_path / "recording").write_bytes(content)
    with pytest.raises(SnnirError, match=message):
        reader(tmp_path / "recording")


def assert_neither_empty_nor_full(frames: np.ndarray) -> None:
    share = frames.mean((1, 2, 3))
    assert (share > 0.005).all(), share
    assert (share < 0.6).all(), share
    assert frames[:, 0].any()
    assert frames[:, 1].any()


def test_a_real_recording_of_n_mnist(shared):
    events = read_n_mnist(shared / "data/events/sample_nmnist.bin")
    assert len(events.t) == 21625 // 5
    assert (np.diff(events.t) >= 0).all()
    assert 290_000 < events.t[-1] - events.t[0] < 320_000, "three saccades of 100 ms"
    assert max(events.x.max(), events.y.max()) < 34
    assert 0.3 < events.p.mean() < 0.7
    frames = bin_events(events, 10, 34, 34)
    assert_neither_empty_nor_full(frames)
    assert frames[:, :, 10:24, 10:24].mean() > 2 * frames[:, :, :5].mean(), "a digit in the middle"


def event_stream(path: Path, size: int) -> Events:
    """The first `size` bytes of an Event Stream 2 file of polarity events (file type 1), but for
    those of its first moment, one on every pixel."""
    data = path.read_bytes()[:size]
    assert data[:13] == b"Event Stream\x02"
    assert data[15] == 1
    t, at, found = 0, 20, []
    while at + 5 <= size:
        if data[at] >= 0xFE:  # 0xFE resets, 0xFF says that 127 us passed without an event
            t += 127 * (data[at] & 1)
            at += 1
            continue
        t += data[at] >> 1
        x, y = struct.unpack_from("<HH", data, at + 1)
        found.append((t, x, y, data[at] & 1))
        at += 5
    events = Events(*np.array(found).T)
    return events.where(events.t > 0)


@pytest.mark.parametrize(("reader", "to_bytes", "side"), FORMATS[1:])
def test_real_events_survive_both_aedat_formats(shared, tmp_path, reader, to_bytes, side):
    events = event_stream(shared / "data/events/dvs.es", 1_000_000)
    events = events.where((events.x < side) & (events.y < side))
    assert len(events.t) > 5000
    (tmp_path / "recording").write_bytes(to_bytes(events))
    found = reader(tmp_path / "recording")
    assert_same_events(found, events)
    frames = bin_events(found, 5, side, side)
    assert_neither_empty_nor_full(frames)
    assert frames.sum() <= len(events.t)


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_n_mnist(folder: Path, count: int = 3) -> None:
    for part in ("Train", "Test"):
        for digit in (0, 1):
            for i in range(count):
                events = random_events(400, 34, seed=10 * digit + i)
                write(folder / part / str(digit) / f"{i:05}.bin", n_mnist_bytes(events))


SPANS = ((1, 0, 100_000), (11, 150_000, 200_000), (2, 200_000, 300_000))


def write_dvs_gesture(folder: Path) -> None:
    rows = "".join(f"{label},{start},{end}\n" for label, start, end in SPANS)
    for part, users in (("train", (1, 2)), ("test", (3,))):
        names = [f"user{user:02}_fluorescent" for user in users]
        for user, name in zip(users, names, strict=True):
            write(folder / f"{name}.aedat", aedat3_bytes(random_events(4000, 128, seed=user)))
            write(folder / f"{name}_labels.csv", f"class,startTime_usec,endTime_usec\n{rows}")
        write(folder / f"trials_to_{part}.txt", "".join(f"{name}.aedat\r\n" for name in names))


def write_cifar10_dvs(folder: Path) -> None:
    for name in ("airplane", "cat"):
        for i in (0, 2, 11, 899, 900, 999):
            events = random_events(2000, 128, seed=i)
            write(folder / name / f"cifar10_{name}_{i}.aedat", aedat2_bytes(events))


def test_n_mnist(tmp_path):
    write_n_mnist(tmp_path)
    splits = open_data(f"n-mnist:{tmp_path}", N_MNIST)
    (x, y), (later, _) = batches(splits.train, 4, seed=0)
    assert x.shape == (4, 4, 2, 34, 34)
    assert x.dtype == torch.float32
    assert later.shape == (4, 2, 2, 34, 34)
    assert x.unique().tolist() == [0, 1]
    assert y.tolist() == [0, 0, 0, 1]
    expected = bin_events(random_events(400, 34, seed=2), 4, 34, 34)
    assert torch.equal(x[:, 2], torch.from_numpy(expected).float())
    assert (len(splits.test), splits.classes) == (6, ("0", "1"))


def test_every_labelled_span_of_dvs_gesture_is_a_sample(tmp_path):
    write_dvs_gesture(tmp_path)
    splits = open_data(f"dvs-gesture:{tmp_path}", replace(DVS, classes=11))
    ((x, y),) = batches(splits.train, 6, seed=0)
    assert y.tolist() == [0, 10, 1] * 2
    assert splits.classes == GESTURES
    events = random_events(4000, 128, seed=2)
    span = events.where((events.t >= 150_000) & (events.t < 200_000))
    assert 500 < len(span.t) < 900
    assert torch.equal(x[:, 4], torch.from_numpy(bin_events(span, 4, 128, 128)).float())
    assert len(splits.test) == 3


def test_the_split_of_cifar10_dvs_goes_by_number(tmp_path):
    write_cifar10_dvs(tmp_path)
    splits = open_data(f"cifar10-dvs:{tmp_path}", DVS)
    assert (len(splits.train), len(splits.test)) == (8, 4)
    ((x, y),) = batches(splits.test, 4, seed=0)
    assert y.tolist() == [0, 0, 1, 1]
    expected = bin_events(random_events(2000, 128, seed=999), 4, 128, 128)
    assert torch.equal(x[:, 3], torch.from_numpy(expected).float())


@pytest.mark.parametrize("workers", [0, 1])
def test_recordings_are_read_once(tmp_path, workers):
    write_n_mnist(tmp_path)
    train = open_data(f"n-mnist:{tmp_path}", N_MNIST).train
    first = list(batches(train, 3, seed=0, workers=workers))
    for path in tmp_path.glob("Train/*/*"):
        path.write_bytes(b"")
    again = list(batches(train, 3, seed=0, workers=workers))
    assert all(torch.equal(x, x_) for (x, _), (x_, _) in zip(first, again, strict=True))
    assert first[0][0].any()


def test_what_is_too_large_to_keep_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("snnir.data.kept.LIMIT", 100)
    write_n_mnist(tmp_path)
    train = open_data(f"n-mnist:{tmp_path}", N_MNIST).train
    first, again = train.batch([0])[0], train.batch([0])[0]
    assert torch.equal(first, again)
    next(tmp_path.glob("Train/0/00000.bin")).write_bytes(b"")
    with pytest.raises(SnnirError, match="found no events"):
        train.batch([0])


def test_a_flip_mirrors_every_step(tmp_path):
    write_n_mnist(tmp_path)
    request = replace(N_MNIST, augmentation=Augmentation(flip=True))
    train = open_data(f"n-mnist:{tmp_path}", request).train
    plain = replace(train, augmentation=None).batch(range(6))[0]
    x = torch.cat([train.batch(range(6), epoch=epoch)[0] for epoch in range(4)], 1)
    plain = plain.repeat(1, 4, 1, 1, 1)
    same, mirrored = ((x == p).flatten(2).all(2).all(0) for p in (plain, plain.flip(4)))
    assert (same ^ mirrored).all()
    assert same.any()
    assert mirrored.any()


@pytest.mark.parametrize(
    ("spec", "request_", "message"),
    [
        ("digits", N_MNIST, r"digits: found data of kind frame, expected events .* n-mnist, dvs"),
        ("n-mnist", DVS, r"found samples of \[2, 34, 34\], expected \[2, 128, 128\].*=2x34x34"),
        ("dvs-gesture", N_MNIST, r"found samples of \[2, 128, 128\], expected \[2, 34, 34\]"),
        ("n-mnist", N_MNIST, r"found no folder data/n-mnist, expected n-mnist:PATH$"),
        ("n-mnist:gone", N_MNIST, r"found no folder gone, expected the data at gone$"),
        ("n-mnist:.", N_MNIST, r"Train: found no folder per class"),
        ("dvs-gesture:.", DVS, r"trials_to_train.txt: found no readable text"),
        ("cifar10-dvs:.", DVS, r"found no folder per class"),
    ],
)
def test_requests_that_cannot_be_met(spec, request_, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SnnirError, match=message):
        open_data(spec, request_)


def read_all_training_samples(spec: str, request: Request) -> None:
    train = open_data(spec, request).train
    train.batch(range(len(train)))


TRIAL = "user02_fluorescent"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("trials_to_test.txt", "\n", "trials_to_test.txt: found no trials"),
        ("trials_to_test.txt", "u.aedat", "trials_to_test.txt: found no file .*u.aedat, which it"),
        (f"{TRIAL}_labels.csv", "class,s,e\n1,0\n", "labels.csv:2: found '1,0', expected class,st"),
        (
            f"{TRIAL}_labels.csv",
            "c,s,e\n2,0,9\n12,0,1\n",
            "csv:3: found class 12, expected 1 to 11",
        ),
        (f"{TRIAL}_labels.csv", "class,s,e\n", "labels.csv: found no labelled spans, expected"),
        (f"{TRIAL}_labels.csv", "c,s,e\n1,7,7\n", f"{TRIAL}.aedat, 7 to 7 µs: found no events"),
        (f"{TRIAL}.aedat", aedat3_bytes(random_events(99, 300)), f"{TRIAL}.* up to column 29. and"),
    ],
)
def test_damaged_dvs_gesture(tmp_path, file, content, message):
    write_dvs_gesture(tmp_path)
    write(tmp_path / file, content)
    with pytest.raises(SnnirError, match=message):
        read_all_training_samples(f"dvs-gesture:{tmp_path}", replace(DVS, classes=11))


def test_damaged_cifar10_dvs(tmp_path):
    write_cifar10_dvs(tmp_path)
    odd = tmp_path / "cat" / "cat.aedat"
    write(odd, b"")
    with pytest.raises(SnnirError, match=r"cat.aedat: found another name, expected cifar10_CLASS"):
        open_data(f"cifar10-dvs:{tmp_path}", DVS)
    odd.unlink()
    for path in tmp_path.glob("*/*_9??.aedat"):
        path.unlink()
    with pytest.raises(SnnirError, match=r"found 8 recordings to train and 0 to test"):
        open_data(f"cifar10-dvs:{tmp_path}", DVS)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_recording_is_named(tmp_path, workers):
    write_n_mnist(tmp_path)
    bad = tmp_path / "Train" / "1" / "00001.bin"
    bad.write_bytes(bad.read_bytes()[:-1])
    train = open_data(f"n-mnist:{tmp_path}", N_MNIST).train
    with pytest.raises(SnnirError, match=rf"{bad}: found 1999 bytes of events") as caught:
        list(batches(train, 2, seed=0, workers=workers))
    assert "\n" not in str(caught.value)
