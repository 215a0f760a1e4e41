"""A stereo pair of event cameras that flies past textured surfaces: events and true depth.

Surfaces are planes: a back wall, a floor, and rectangles in front of them, each with a picture of
overlapping patches (dead leaves). Every `STEP` microseconds both views are rendered in log
intensity; a pixel emits an event whenever that has moved by its contrast threshold since its last
event, at the time that linear interpolation gives. Thresholds differ between pixels, and pixels
emit events of their own accord (noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snnir.data.events import Events
from snnir.data.stereo import FOCAL_BASELINE, HEIGHT, WIDTH

FOCAL: Final = 200.0
"""Pixels."""
BASELINE: Final = FOCAL_BASELINE / FOCAL
"""Metres: the rig of MVSEC's indoor_flying."""

FRAME: Final = 50_000
"""Microseconds from one ground truth to the next: 20 Hz, as MVSEC's LIDAR."""
STEP: Final = 5_000
"""Microseconds from one rendering to the next."""

THRESHOLD, THRESHOLD_SPREAD, SMALLEST_THRESHOLD = 0.25, 0.05, 0.1
"""Of log intensity: mean over the pixels, standard deviation, least."""
NOISE_HZ: Final = 1.0
"""Events that a pixel emits of its own accord."""

TEXELS_PER_METRE: Final = 100
TEXTURE: Final = 512
"""Texels of a picture's side, which is mirrored beyond."""

LINES, RETURNS = 4, 0.7
"""LIDAR: every so many rows have ground truth, and there so large a share of the pixels."""
UNSEEN: Final = 30
"""Rows at the top that the LIDAR does not reach."""


class Film(NamedTuple):
    """What a rig has recorded, and what it flew past."""

    left: Events
    right: Events
    times: np.ndarray
    """Of the frames of ground truth, microseconds, int64 [F]."""
    depth: np.ndarray
    """Metres from the left camera, float32 [F, H, W], NaN where the LIDAR had no return."""


@dataclass(frozen=True)
class Plane:
    """A rectangle with a picture. Axes: x to the right, y down, z ahead, in metres."""

    centre: np.ndarray
    across: np.ndarray
    """Unit vector along its rows."""
    down: np.ndarray
    half_width: float
    half_height: float
    picture: Tensor
    """Log intensity [1, 1, TEXTURE, TEXTURE]."""


@dataclass(frozen=True)
class Path:
    """A smooth flight: offsets in metres and turns in radians that swing about 0."""

    amplitude: np.ndarray
    """[6]: along x, y, z; about x, y, z."""
    frequency: np.ndarray
    """[6], in Hz."""
    phase: np.ndarray

    def pose(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """The left camera's place [3] and orientation [3, 3]: camera to world."""
        swing = np.sin(2 * np.pi * self.frequency * seconds + self.phase)
        offset = self.amplitude * swing
        return offset[:3], _rotation(*offset[3:])


def film(seed: tuple[int, ...], frames: int) -> Film:
    """Record `frames` frames of a scene that the seed decides."""
    rng = np.random.default_rng(seed)
    planes, path = _scene(rng), _flight(rng)
    cameras = [_EventCamera(np.random.default_rng((*seed, view))) for view in (0, 1)]
    lidar = np.random.default_rng((*seed, 2))
    depths = []
    for t in range(0, frames * FRAME + 1, STEP):
        place, turn = path.pose(t * 1e-6)
        right = place + turn @ np.array([BASELINE, 0, 0])
        for camera, at in zip(cameras, (place, right), strict=True):
            intensity, depth = _render(planes, at, turn)
            camera.see(intensity, t)
            if camera is cameras[0] and t and t % FRAME == 0:
                depths.append(_scan(depth, lidar))
    times = np.arange(1, frames + 1, dtype=np.int64) * FRAME
    return Film(cameras[0].events(), cameras[1].events(), times, np.stack(depths))


def _scan(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a LIDAR would know of it."""
    seen = rng.random((HEIGHT, WIDTH)) < RETURNS
    seen[:UNSEEN] = False
    rows = np.arange(HEIGHT) % LINES == rng.integers(LINES)
    seen &= rows[:, None] & np.isfinite(depth)
    return np.where(seen, depth, np.nan).astype(np.float32)


# --- the scene ----------------------------------------------------------------------------------


def _scene(rng: np.random.Generator) -> list[Plane]:
    wall = _plane(rng, [0, 0, rng.uniform(3, 5)], 30, 30, tilt=0.25)
    floor_y = rng.uniform(0.8, 1.3)
    floor = Plane(
        np.array([0, floor_y, 3.0]), np.array([1.0, 0, 0]), np.array([0, 0, 1.0]), 30, 30,
        _picture(rng),
    )  # fmt: skip
    planes = [wall, floor]
    for _ in range(rng.integers(3, 7)):
        z = rng.uniform(0.8, 2.8)
        x, y = z * rng.uniform(-0.8, 0.8), min(z * rng.uniform(-0.6, 0.5), floor_y - 0.2)
        sides = z * rng.uniform(0.1, 0.35, 2)
        planes.append(_plane(rng, [x, y, z], sides[0], sides[1], tilt=0.5))
    return planes


def _plane(
    rng: np.random.Generator, centre: list[float], width: float, height: float, *, tilt: float
) -> Plane:
    turn = _rotation(*rng.uniform(-tilt, tilt, 3))
    return Plane(np.array(centre), turn[:, 0], turn[:, 1], width, height, _picture(rng))


def _picture(rng: np.random.Generator) -> Tensor:
    """Patches over patches, the large ones below, slightly blurred."""
    picture = np.full((TEXTURE, TEXTURE), rng.uniform(0.3, 0.7), np.float32)
    count = 1500
    sides = np.sort(rng.uniform(2, 12, (count, 2)) ** 1.6, axis=0)[::-1].astype(int) + 2
    corners = rng.integers(-20, TEXTURE, (count, 2))
    greys = rng.uniform(0.08, 1, count)
    for (height, width), (top, left), grey in zip(sides, corners, greys, strict=True):
        rows = slice(max(top, 0), max(top + height, 0))
        picture[rows, max(left, 0) : max(left + width, 0)] = grey
    blurred = F.avg_pool2d(torch.from_numpy(picture)[None, None], 3, 1, 1, count_include_pad=False)
    return blurred.log()


def _flight(rng: np.random.Generator) -> Path:
    amplitude = rng.uniform(
        [0.1, 0.05, 0.05, 0.005, 0.01, 0.005], [0.3, 0.15, 0.2, 0.02, 0.04, 0.02]
    )
    return Path(amplitude, rng.uniform(0.3, 0.8, 6), rng.uniform(0, 2 * np.pi, 6))


def _rotation(about_x: float, about_y: float, about_z: float) -> np.ndarray:
    (sx, sy, sz), (cx, cy, cz) = (f([about_x, about_y, about_z]) for f in (np.sin, np.cos))
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return z @ y @ x


# --- rendering ----------------------------------------------------------------------------------

COLUMNS: Final = (torch.arange(WIDTH, dtype=torch.float32) - (WIDTH - 1) / 2) / FOCAL
ROWS: Final = (torch.arange(HEIGHT, dtype=torch.float32) - (HEIGHT - 1) / 2)[:, None] / FOCAL
"""The ray through a pixel is (column, row, 1): what it meets at depth z is z times it away."""


def _render(
    planes: list[Plane], place: np.ndarray, turn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log intensity and depth, float32 [H, W], seen from `place`; depth is infinite at nothing."""
    nearness = torch.zeros(HEIGHT, WIDTH)
    intensity = torch.full((HEIGHT, WIDTH), -0.7)
    for plane in planes:
        box = _box(plane, place, turn)
        if box is not None:
            _draw(plane, place, turn, box, nearness, intensity)
    return intensity.numpy(), (1 / nearness).numpy()


def _draw(
    plane: Plane,
    place: np.ndarray,
    turn: np.ndarray,
    box: tuple[slice, slice],
    nearness: Tensor,
    intensity: Tensor,
) -> None:
    """Draw what is nearer than what is there, within a box of rows and columns."""
    rows, columns = ROWS[box[0]], COLUMNS[box[1]]

    def along(axis: np.ndarray) -> Tensor:
        """The ray's part in the direction of a world axis, [h, w]."""
        x, y, z = (float(value) for value in turn.T @ axis)
        return columns * x + (rows * y + z)

    normal = np.cross(plane.across, plane.down)
    away = plane.centre - place
    near = along(normal) / float(normal @ away)  # 1 / depth
    u = along(plane.across) / near - float(plane.across @ away)
    v = along(plane.down) / near - float(plane.down @ away)
    old = nearness[box]
    shown = (near > old) & (u.abs() < plane.half_width) & (v.abs() < plane.half_height)
    texels = torch.stack((u, v), -1).mul_(2 * TEXELS_PER_METRE / TEXTURE)
    seen = F.grid_sample(
        plane.picture, texels[None], padding_mode="reflection", align_corners=False
    )[0, 0]
    nearness[box] = torch.where(shown, near, old)
    intensity[box] = torch.where(shown, seen, intensity[box])


def _box(plane: Plane, place: np.ndarray, turn: np.ndarray) -> tuple[slice, slice] | None:
    """The rows and columns that a plane can be seen in; None: it is out of sight."""
    corners = [
        plane.centre + i * plane.half_width * plane.across + j * plane.half_height * plane.down
        for i in (-1, 1)
        for j in (-1, 1)
    ]
    x, y, z = turn.T @ (np.stack(corners) - place).T
    if (z < 0.05).all():
        return None
    if (z < 0.05).any():  # it reaches behind the camera: anywhere
        return slice(0, HEIGHT), slice(0, WIDTH)
    ends = []
    for values, size in ((y / z, HEIGHT), (x / z, WIDTH)):
        pixels = values * FOCAL + (size - 1) / 2
        first, last = max(0, int(pixels.min())), min(size, int(pixels.max()) + 2)
        if first >= last:
            return None
        ends.append(slice(first, last))
    return ends[0], ends[1]


# --- the event camera ---------------------------------------------------------------------------


class _EventCamera:
    """Turns what it sees, one log intensity after another, into events."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        spread = rng.normal(THRESHOLD, THRESHOLD_SPREAD, HEIGHT * WIDTH)
        self._threshold = np.maximum(spread, SMALLEST_THRESHOLD).astype(np.float32)
        self._before: np.ndarray | None = None
        self._reference = np.zeros(HEIGHT * WIDTH, np.float32)
        """What each pixel's last event was at."""
        self._found: list[Events] = []

    def see(self, intensity: np.ndarray, t: int) -> None:
        """The log intensity [H, W] at microsecond t, `STEP` after the one before."""
        now = intensity.ravel()
        if self._before is None:
            # a pixel's last event was anywhere within its threshold
            offset = self._rng.uniform(-1, 1, now.shape).astype(np.float32)
            self._before, self._reference = now, now + offset * self._threshold
            return
        pixels, instants, signs = self._crossed(self._before, now)
        noise = self._rng.poisson(NOISE_HZ * STEP * 1e-6 * len(now))
        pixels = np.concatenate([pixels, self._rng.integers(len(now), size=noise)])
        instants = np.concatenate([instants, self._rng.random(noise)])
        signs = np.concatenate([signs, self._rng.integers(2, size=noise)])
        times = t - STEP + np.minimum((instants * STEP).astype(np.int64), STEP - 1)
        order = np.argsort(times, kind="stable")
        rows, columns = np.divmod(pixels[order], WIDTH)
        self._found.append(
            Events(times[order], columns.astype(np.int16), rows.astype(np.int16),
                   signs[order].astype(np.uint8))
        )  # fmt: skip
        self._before = now

    def _crossed(
        self, before: np.ndarray, now: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixel, fraction of the step and sign (1 brighter) of every threshold that was crossed."""
        levels = ((now - self._reference) / self._threshold).astype(np.int32)
        pixels = np.flatnonzero(levels)
        counts = np.abs(levels[pixels])
        directions = np.sign(levels[pixels])
        event = np.repeat(np.arange(len(pixels)), counts)
        nth = np.arange(len(event)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        reached = self._reference[pixels][event] + (
            nth * directions[event] * self._threshold[pixels][event]
        )
        moved = (now[pixels] - before[pixels])[event]
        fraction = (reached - before[pixels][event]) / np.where(moved == 0, 1, moved)
        self._reference[pixels] += levels[pixels] * self._threshold[pixels]
        return pixels[event], np.clip(fraction, 0, 1), directions[event] > 0

    def events(self) -> Events:
        """All of them, in the order of their times."""
        return Events(*(np.concatenate(values) for values in zip(*self._found, strict=True)))
