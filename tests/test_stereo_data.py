"""Stereo data: stacking events, MVSEC in both layouts, rendered recordings, and what is refused."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from snnir import models
from snnir.data import Augmentation, Events, Request, Samples, open_data, stack_events
from snnir.data import synthetic as rendering
from snnir.data.mvsec import Hdf5Recording
from snnir.data.stereo import FOCAL_BASELINE, HEIGHT, WIDTH, Sequences, StereoOptions
from snnir.errors import SnnirError
from snnir.training import open_test

FULL = Request("stereo", (5, HEIGHT, WIDTH), None)
CROP = Request("stereo", (5, 48, 64), None)
START = 1_504_645_177.0
"""Seconds of the first frame in the written files: times as large as the published ones."""
FRAMES = {1: 1260, 2: 1580, 3: 1815}


def events(*rows: tuple[int, int, int, int]) -> Events:
    """From (t, x, y, p) each."""
    return Events(*np.array(rows, np.int64).reshape(-1, 4).T)


def stacked(found: Events, **options) -> np.ndarray:
    shape = {"bins": 3, "length": 10, "height": 2, "width": 4}
    return stack_events(found, 100, **shape | options)


# --- stacking based on time ---------------------------------------------------------------------


def test_bins_end_at_the_frame_and_the_newest_is_first():
    found = stacked(events((99, 0, 0, 1), (90, 1, 0, 0), (89, 2, 0, 1), (70, 3, 1, 0)))
    expected = np.zeros((3, 2, 4), np.int8)
    expected[0, 0, 0], expected[0, 0, 1], expected[1, 0, 2], expected[2, 1, 3] = 1, -1, 1, -1
    assert found.dtype == np.int8
    assert np.array_equal(found, expected)
    reverse = stacked(events((99, 0, 0, 1), (90, 1, 0, 0), (89, 2, 0, 1), (70, 3, 1, 0)),
                      newest_first=False)  # fmt: skip
    assert np.array_equal(reverse, expected[::-1])


def test_what_lies_outside_of_the_bins_is_left_out():
    assert not stacked(events((100, 0, 0, 1), (69, 0, 0, 1))).any()


def test_a_value_is_the_sign_of_the_sum_of_polarities():
    found = stacked(events((95, 0, 0, 1), (95, 0, 0, 1), (96, 0, 0, 0),
                           (95, 1, 0, 1), (96, 1, 0, 0), (95, 2, 0, 0)))  # fmt: skip
    assert found[0, 0].tolist() == [1, 0, -1, 0]


def test_no_events_are_empty_bins():
    assert stacked(events()).shape == (3, 2, 4)
    assert not stacked(events()).any()


def test_stacking_is_the_plain_loop():
    rng = np.random.default_rng(0)
    t, x, y, p = rng.integers([0, 0, 0, 0], [130, 7, 5, 2], (4000, 4)).T
    for bins, length, newest in ((5, 10, True), (4, 25, False), (1, 1, True)):
        total = np.zeros((bins, 5, 7))
        for i in range(len(t)):
            for b in range(bins):
                place = b if newest else bins - 1 - b
                if 120 - (b + 1) * length <= t[i] < 120 - b * length:
                    total[place, y[i], x[i]] += 1 if p[i] else -1
        found = stack_events(Events(t, x, y, p), 120, bins=bins, length=length, height=5, width=7,
                             newest_first=newest)  # fmt: skip
        assert np.array_equal(found, np.sign(total))
        assert set(np.unique(found)) <= {-1, 0, 1}
        assert 0.1 < np.abs(found).mean() <= 1


@pytest.mark.parametrize(
    ("event", "message"),
    [((95, 4, 0, 1), "up to column 4"), ((95, 0, 2, 1), "row 2"), ((95, -1, 0, 1), "negative")],
)
def test_events_outside_of_the_sensor(event, message):
    with pytest.raises(SnnirError, match=message):
        stacked(events(event))


# --- MVSEC --------------------------------------------------------------------------------------


def depth_of(frame: int) -> np.ndarray:
    """Metres: disparities that are whole sevenths of a pixel, unknown in the upper half."""
    sevenths = 30 + (np.arange(WIDTH)[None] + np.arange(HEIGHT)[:, None] + frame) % 200
    depth = FOCAL_BASELINE * 7 / sevenths
    depth[: HEIGHT // 2] = np.nan
    return depth.astype(np.float32)


def recorded(frames: list[int], seed: int) -> np.ndarray:
    """Rows [x, y, seconds, polarity] in the 50 ms before each of some frames."""
    rng = np.random.default_rng(seed)
    rows = []
    for frame in frames:
        t = np.sort(rng.integers(-50_000, 0, 3000)) * 1e-6 + START + frame * 0.05
        x, y = rng.integers(0, WIDTH, 3000), rng.integers(0, HEIGHT, 3000)
        rows.append(np.column_stack([x, y, t, rng.integers(0, 2, 3000) * 2.0 - 1]))
    return np.concatenate(rows)


def write_published(folder: Path, *, shift: int = 0, seen: tuple[int, ...] = (72, 73, 159, 160)):
    """The three recordings in the published layout, with events and depths at a few frames; the
    maps of the right camera shift its columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in FRAMES.items():
        with h5py.File(folder / f"indoor_flying{number}_data.hdf5", "w") as file:
            for side, view in enumerate(("left", "right")):
                rows = recorded(list(seen), 10 * number + side)
                file.create_dataset(f"davis/{view}/events", data=rows, compression="gzip")
        with h5py.File(folder / f"indoor_flying{number}_gt.hdf5", "w") as file:
            depth = file.create_dataset(
                "davis/left/depth_image_rect", (count, HEIGHT, WIDTH), "f4",
                chunks=(1, HEIGHT, WIDTH), fillvalue=np.nan,
            )  # fmt: skip
            for frame in seen:
                depth[frame] = depth_of(frame)
            file["davis/left/depth_image_rect_ts"] = START + 0.05 * np.arange(count)
    rows, columns = np.indices((HEIGHT, WIDTH))
    for view, moved in (("left", 0), ("right", shift)):
        np.savetxt(folder / f"indoor_flying_{view}_x_map.txt", columns + moved + 0.2, fmt="%.2f")
        np.savetxt(folder / f"indoor_flying_{view}_y_map.txt", rows - 0.3, fmt="%.2f")


def write_preprocessed(folder: Path, seen: tuple[int, ...]) -> None:
    """The same in the layout of earlier work."""
    for number, count in FRAMES.items():
        inside = folder / f"indoor_flying_{number}"
        for name in ("event0", "event1", "disparity_image"):
            (inside / name).mkdir(parents=True)
        times = START + 0.05 * np.arange(count)
        np.savetxt(inside / "timestamps.txt", times, fmt="%f", header="timestamp")
        for frame in seen:
            for side in (0, 1):
                rows = recorded(list(seen), 10 * number + side)
                begin = START + (frame - 1) * 0.05 - 1e-7
                inside_frame = (rows[:, 2] > begin) & (rows[:, 2] < begin + 0.05)
                x, y, t, p = rows[inside_frame].T
                np.save(inside / f"event{side}/{frame:06}.npy", np.column_stack([t, x, y, p]))
            sevenths = np.rint(7 * FOCAL_BASELINE / depth_of(frame))
            pixels = np.where(np.isnan(sevenths), 255, sevenths).astype(np.uint8)
            Image.fromarray(pixels).save(inside / f"disparity_image/{frame:06}.png")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mvsec")
    write_published(folder)
    return folder


@pytest.mark.parametrize(
    ("split", "trained", "first", "tested"),
    [("1", 3110, (0, 160), range(140, 1201)), ("3", 2600, (0, 80), range(73, 1616))],
)
def test_the_splits_have_their_exact_frames(published, split, trained, first, tested):
    splits = open_data(f"mvsec:{published},split={split}", FULL)
    assert len(splits.train) == trained
    assert splits.train.source.ends[0] == first
    frames = list(tested)
    random.seed(0)
    random.shuffle(frames)
    for samples, expected in ((splits.validation, frames[:200]), (splits.test, frames[200:])):
        found = [samples.source.ends[index] for index in samples.indices]
        assert found == [(2, frame) for frame in sorted(expected)]
    names = [recording.name for recording in splits.train.source.recordings]
    order = {"1": (2, 3, 1), "3": (1, 2, 3)}[split]
    assert names == [f"indoor_flying{number}" for number in order]
    if split == "1":
        last = [frame for number, frame in splits.train.source.ends if number == 1]
        assert (last[0], last[-1], len(last)) == (125, 1814, 1690)


def test_a_frame_is_what_the_published_file_says(published):
    splits = open_data(f"mvsec:{published},stacks=2", FULL)
    left, right, disparity = splits.train.batch([0])  # recording 2, frames 159 and 160
    assert left.shape == right.shape == (2, 1, 5, HEIGHT, WIDTH)
    assert disparity.shape == (2, 1, HEIGHT, WIDTH)
    for step, frame in enumerate((159, 160)):
        for side, view in enumerate((left, right)):
            x, y, t, p = recorded([72, 73, 159, 160], 20 + side).T
            end = START + frame * 0.05
            total = np.zeros((5, HEIGHT, WIDTH))
            age = np.rint((end - t) * 1e6)
            inside = (age > 0) & (age <= 50_000)
            place = ((age[inside] - 1) // 10_000).astype(int)
            np.add.at(total, (place, y[inside].astype(int), x[inside].astype(int)), p[inside])
            assert np.array_equal(view[step, 0].numpy(), np.sign(total))
            assert 0.004 < np.abs(total).mean() < 0.1
        expected = FOCAL_BASELINE / depth_of(frame)
        assert np.allclose(disparity[step, 0], expected, rtol=1e-6, equal_nan=True)
        assert disparity[step, 0].isfinite().float().mean() == 0.5


def test_rectification_moves_events_and_drops_what_leaves_the_view(tmp_path, published):
    write_published(tmp_path, shift=7)
    plain, moved = (open_data(f"mvsec:{f},stacks=1", FULL).train for f in (published, tmp_path))
    (left, right, _), (same, shifted, _) = plain.batch([0]), moved.batch([0])
    assert torch.equal(left, same)
    assert torch.equal(shifted[..., 7:], right[..., :-7])
    assert not shifted[..., :7].any()
    assert right[..., -7:].any()


def test_both_layouts_give_the_same(tmp_path, published):
    write_preprocessed(tmp_path, (72, 73, 159, 160))
    ours, theirs = (open_data(f"mvsec:{f},stacks=2", FULL) for f in (published, tmp_path))
    assert len(theirs.test) == len(ours.test) == 861
    for a, b in zip(ours.train.batch([0]), theirs.train.batch([0]), strict=True):
        assert torch.allclose(a, b, atol=2e-6, equal_nan=True)
        assert a.nan_to_num().any()


def test_a_file_without_events_is_an_empty_stack(tmp_path):
    write_preprocessed(tmp_path, (159, 160))
    np.save(tmp_path / "indoor_flying_2/event0/000160.npy", np.array([]))
    left, right, _ = open_data(f"mvsec:{tmp_path},stacks=2", FULL).train.batch([0])
    assert not left[1].any()
    assert right[1].any()


def test_a_stack_before_any_event_is_empty(published):
    left, right, disparity = open_data(f"mvsec:{published},stacks=2", FULL).train.batch([9])
    assert not left.any()
    assert not right.any()
    assert disparity.isnan().all()


def test_reading_takes_the_memory_of_a_frame(tmp_path):
    """Of a million events, 32 MB, those of one frame are read."""
    write_published(tmp_path)
    count = 1_000_000
    rows = np.zeros((count, 4))
    rows[:, 2] = START + np.arange(count) * 1e-4
    with h5py.File(tmp_path / "indoor_flying2_data.hdf5", "w") as file:
        for view in ("left", "right"):
            file.create_dataset(f"davis/{view}/events", data=rows, chunks=(4096, 4))
    del rows
    train = open_data(f"mvsec:{tmp_path},stacks=1", CROP).train
    train.batch([0])
    tracemalloc.start()
    train.batch([500])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6


def edit(folder: Path, name: str, change) -> None:
    with h5py.File(folder / name, "r+") as file:
        change(file)


def backwards(folder: Path) -> None:
    def change(file):
        file["davis/left/events"][9500:9700, 2] = file["davis/left/events"][9500:9700, 2][::-1]

    edit(folder, "indoor_flying2_data.hdf5", change)


def without(name: str):
    def change(folder: Path) -> None:
        edit(folder, "indoor_flying2_data.hdf5", lambda file: file.pop(name))

    return change


def smaller(folder: Path) -> None:
    def change(file):
        times = file["davis/left/depth_image_rect_ts"][:]
        del file["davis/left/depth_image_rect"]
        file.create_dataset("davis/left/depth_image_rect", (len(times), 180, 240), "f4")

    edit(folder, "indoor_flying2_gt.hdf5", change)


def outside(folder: Path) -> None:
    def change(file):
        file["davis/right/events"][9500, 0] = 400

    edit(folder, "indoor_flying2_data.hdf5", change)


def truncated(folder: Path) -> None:
    path = folder / "indoor_flying2_data.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def frames_backwards(folder: Path) -> None:
    def change(file):
        file["davis/left/depth_image_rect_ts"][20] = START

    edit(folder, "indoor_flying2_gt.hdf5", change)


def short(folder: Path) -> None:
    def change(file):
        del file["davis/left/depth_image_rect"], file["davis/left/depth_image_rect_ts"]
        file.create_dataset("davis/left/depth_image_rect", (9, HEIGHT, WIDTH), "f4")
        file["davis/left/depth_image_rect_ts"] = START + np.arange(9)

    edit(folder, "indoor_flying2_gt.hdf5", change)


def small_map(folder: Path) -> None:
    np.savetxt(folder / "indoor_flying_right_x_map.txt", np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (backwards, "indoor_flying2_data.hdf5: found times in davis/left/events that go back"),
        (without("davis/right/events"), "indoor_flying2_data.hdf5: found no davis/right/events"),
        (smaller, r"found davis/left/depth_image_rect of \(1580, 180, 240\), expected \(N, 260"),
        (outside, "found events of right outside of 260 rows and 346 columns"),
        (truncated, "indoor_flying2_data.hdf5: found a damaged or foreign file, expected HDF5"),
        (frames_backwards, "indoor_flying2_gt.hdf5: found frame 20 before or with the one before"),
        (short, "indoor_flying2: found 9 frames of ground truth, expected at least 1580"),
        (small_map, r"indoor_flying_right_x_map.txt: found a table of \(3, 4\), expected \(260"),
        (
            lambda folder: (folder / "indoor_flying2_gt.hdf5").unlink(),
            "expected MVSEC as published",
        ),
        (
            lambda folder: (folder / "indoor_flying_left_y_map.txt").unlink(),
            "left_y_map.txt: found",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    write_published(tmp_path)
    damage(tmp_path)
    with pytest.raises(SnnirError, match=message):
        open_data(f"mvsec:{tmp_path},stacks=1", FULL).train.batch([0])


def pickled(folder: Path) -> None:
    np.save(folder / "indoor_flying_2/event0/000160.npy", np.array([{}], object))


def narrow(folder: Path) -> None:
    np.save(folder / "indoor_flying_2/event0/000160.npy", np.zeros((5, 3)))


def unsorted(folder: Path) -> None:
    np.save(folder / "indoor_flying_2/event0/000160.npy", np.array([[2.0, 1, 1, 1], [1, 1, 1, 1]]))


def small_image(folder: Path) -> None:
    path = folder / "indoor_flying_2/disparity_image/000160.png"
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled, "000160.npy: found no readable array"),
        (narrow, r"000160.npy: found float64 \(5, 3\), expected numbers \(N, 4\)"),
        (unsorted, "000160.npy: found times that go back"),
        (small_image, "000160.png: found an image of mode L, 4 rows and 6 columns"),
        (lambda f: (f / "indoor_flying_2/event1").rename(f / "x"), "found no folder event1"),
        (lambda f: (f / "indoor_flying_2/timestamps.txt").write_text("a"), "no readable table"),
    ],
)
def test_damaged_preprocessed_files_are_named(tmp_path, damage, message):
    write_preprocessed(tmp_path, (160,))
    damage(tmp_path)
    with pytest.raises(SnnirError, match=message):
        open_data(f"mvsec:{tmp_path},stacks=1", FULL).train.batch([0])


# --- rendered recordings ------------------------------------------------------------------------

SMALL = "recordings=1,frames=3,stacks=2"


@pytest.fixture(scope="module")
def rendered():
    splits = open_data(f"synthetic-stereo,{SMALL}", FULL)
    return splits, splits.train.batch([0, 1])


def test_rendered_samples_look_like_a_recording(rendered):
    splits, (left, right, disparity) = rendered
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 4, 6)
    assert left.shape == right.shape == (2, 2, 5, HEIGHT, WIDTH)
    assert set(left.unique().tolist()) == {-1, 0, 1}
    for view in (left, right):
        assert 0.02 < (view != 0).float().mean() < 0.4
    known = disparity.isfinite()
    assert 0.05 < known.float().mean() < 0.3
    assert not known[..., : rendering.UNSEEN, :].any()
    assert 2 < disparity[known].min() < disparity[known].max() < 40
    assert disparity[known].std() > 0.5


def test_the_trained_model_of_the_box_sees_depth():
    """92.5 % of the pixels of three scenes within one (docs/stereo.md); here a view of each."""
    opened = open_test(
        models.load("spikedhs_stereo"), "synthetic-stereo,recordings=1,frames=2,stacks=2",
        weights=models.trained_weights("spikedhs_stereo"),
    )  # fmt: skip
    found = opened.evaluate()
    assert found.samples == 3
    assert found.accuracy > 0.85
    assert found.measures["mean_disparity_error_px"] < 1
    assert min(found.firing_rates.values()) > 0.05


def test_the_seed_decides_what_is_rendered(rendered):
    again = open_data(f"synthetic-stereo,{SMALL}", FULL).train.batch([0, 1])
    other = open_data(f"synthetic-stereo,{SMALL},seed=1", FULL).train.batch([0, 1])
    for a, b, c in zip(rendered[1], again, other, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
        assert not torch.equal(a.nan_to_num(), c.nan_to_num())


def test_a_surface_is_seen_where_its_disparity_says():
    """The right view at x - d shows what the left view shows at x, but for what is hidden there."""
    rng = np.random.default_rng(4)
    planes, path = rendering._scene(rng), rendering._flight(rng)
    place, turn = path.pose(0.3)
    left, depth = rendering._render(planes, place, turn)
    right, _ = rendering._render(planes, place + turn @ [rendering.BASELINE, 0, 0], turn)
    columns = np.arange(WIDTH) - FOCAL_BASELINE / depth
    every = np.arange(WIDTH)
    matched = np.stack([np.interp(columns[y], every, right[y]) for y in range(HEIGHT)])
    inside = columns >= 0
    assert np.median(np.abs(matched - left)[inside]) < 0.02
    assert (np.abs(matched - left)[inside] < 0.1).mean() > 0.8
    assert np.median(np.abs(right - left)[inside]) > 0.1  # without disparity they differ


def test_events_are_threshold_crossings_at_their_times(monkeypatch):
    for name, value in (("NOISE_HZ", 0), ("THRESHOLD", 0.25), ("THRESHOLD_SPREAD", 0)):
        monkeypatch.setattr(rendering, name, value)
    camera = rendering._EventCamera(np.random.default_rng(0))
    dark = np.zeros((HEIGHT, WIDTH), np.float32)
    camera.see(dark, 0)
    camera._reference[:] = 0
    bright = dark.copy()
    bright[3, 7], bright[5, 9] = 0.6, -0.3
    camera.see(bright, 5000)
    found = camera.events()
    assert found.t.tolist() == [2083, 4166, 4166]  # 0.25 / 0.6 and 0.5 / 0.6, 0.25 / 0.3 of 5 ms
    assert sorted(zip(found.x, found.y, found.p, strict=True)) == [(7, 3, 1), (7, 3, 1), (9, 5, 0)]
    bright[3, 7] = 0.74  # 0.24 above its last event's 0.5
    camera.see(bright, 10_000)
    assert len(camera.events().t) == 3
    bright[3, 7] = 0.76
    camera.see(bright, 15_000)
    assert len(camera.events().t) == 4


def test_pixels_emit_noise(monkeypatch):
    monkeypatch.setattr(rendering, "NOISE_HZ", 10)
    camera = rendering._EventCamera(np.random.default_rng(0))
    for step in range(11):
        camera.see(np.zeros((HEIGHT, WIDTH), np.float32), step * rendering.STEP)
    expected = 10 * HEIGHT * WIDTH * 0.05
    assert 0.95 * expected < len(camera.events().t) < 1.05 * expected


def test_written_recordings_are_read_back_as_they_were_rendered(tmp_path, rendered, monkeypatch):
    folder = tmp_path / "files"
    for part in ("VALIDATION", "TEST"):
        monkeypatch.setattr(f"snnir.data.synthetic_stereo.{part}", 1)
    splits = open_data(f"synthetic-stereo:{folder},{SMALL}", FULL)
    assert isinstance(splits.train.source.recordings[0], Hdf5Recording)
    for a, b in zip(rendered[1], splits.train.batch([0, 1]), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())

    def no_film(*arguments):
        raise AssertionError("rendered again")

    monkeypatch.setattr("snnir.data.synthetic_stereo.film", no_film)
    assert len(open_data(f"synthetic-stereo:{folder},{SMALL}", FULL).test) == 2
    with pytest.raises(SnnirError, match="found recordings of other options"):
        open_data(f"synthetic-stereo:{folder},recordings=2", FULL)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(SnnirError, match="found something else, expected an empty folder"):
        open_data(f"synthetic-stereo:{tmp_path}", FULL)


class Ramp:
    """A recording of one frame whose values say where they are."""

    frames = 1

    def read(self, frame):
        rows, columns = np.indices((HEIGHT, WIDTH))
        views = ((rows + columns) % 3 - 1, (rows + 2 * columns) % 3 - 1)
        left, right = (np.broadcast_to(v.astype(np.int8), (5, HEIGHT, WIDTH)) for v in views)
        return left, right, (1000 * rows + columns).astype(np.float32)


def test_views_and_truth_are_cut_to_one_window():
    samples = Samples(Sequences([Ramp()], [(0, 0)], (1, 5, 48, 64)), np.arange(1), Augmentation())
    corners = set()
    for epoch in range(5):
        left, right, disparity = samples.batch([0], epoch=epoch)
        rows, columns = disparity[0, 0] // 1000, disparity[0, 0] % 1000
        assert torch.equal(rows, (rows[0, 0] + torch.arange(48.0))[:, None].expand(48, 64))
        assert torch.equal(columns, (columns[0, 0] + torch.arange(64.0)).expand(48, 64))
        assert torch.equal(left[0, 0, 3], (rows + columns) % 3 - 1)
        assert torch.equal(right[0, 0, 3], (rows + 2 * columns) % 3 - 1)
        corners.add(int(disparity[0, 0, 0, 0]))
    assert len(corners) > 3
    (_, _, middle) = replace(samples, augmentation=None).batch([0], epoch=9)
    assert middle[0, 0, 0, 0] == 1000 * 106 + 141


@pytest.mark.parametrize(
    ("spec", "request_", "message"),
    [
        ("mvsec", FULL, "found no folder data/mvsec, expected mvsec:PATH"),
        ("mvsec:x,split=2", FULL, "mvsec: found split=2, expected a value '1' or '3'"),
        ("mvsec:x,splt=1", FULL, "mvsec: found option splt, expected one of .* did you mean"),
        ("synthetic-stereo,bin_ms=0", FULL, "found bin_ms=0, expected"),
        ("synthetic-stereo,order=up", FULL, "found order=up, expected a value 'newest'"),
        ("synthetic-stereo,stacks=30", FULL, "found 30 stacks, expected at most the 20 frames"),
        ("synthetic-stereo", Request("stereo", (5, 300, 400), None), "found a sensor of 260 rows"),
        ("synthetic-stereo", Request("stereo", (5, 48, 64), None, validation=3),
         "found validation 3, expected 0: the data set holds out 32 samples"),
        ("synthetic-stereo",
         Request("stereo", (5, 48, 64), None, augmentation=Augmentation(flip=True)),
         "found an augmentation, expected none"),
        ("synthetic-stereo", Request("frame", (1, 8, 8), 10), "found data of kind stereo"),
        ("digits,stacks=3", Request("frame", (1, 8, 8), 10), "digits: found option stacks"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met(spec, request_, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SnnirError, match=message):
        open_data(spec, request_)


def test_more_stacks_than_frames_before_the_split(published):
    with pytest.raises(SnnirError, match="found 142 stacks, expected at most 126"):
        open_data(f"mvsec:{published},stacks=142", FULL)


def test_bins_of_another_length_and_order():
    options = StereoOptions(bin_ms=2, order="oldest")
    found = options.encode(events((9_999, 3, 2, 1), (1_000, 5, 4, 0)), 10_000, 5)
    assert (found[4, 2, 3], found[0, 4, 5]) == (1, -1)
    assert np.abs(found).sum() == 2
