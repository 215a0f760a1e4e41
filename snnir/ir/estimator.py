"""What the disparity estimator computes with: interpolation, and exponentials in exact mode.

Exact mode (docs/exact.md): costs are rounded to a grid, interpolated by fractions of
`FRACTION_BITS` bits and rounded again after each axis; exp(-x) is a whole number of 4096ths, looked
up for x rounded to 64ths. Then everything is exact but the last division, which rounds once.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np

FRACTION_BITS: Final = 10
"""Of an interpolation's fractions in exact mode."""

COST_BITS: Final = 13
"""Of a cost's worst case in exact mode, one less than the fractions leave of fp32's 24."""

STEPS_PER_UNIT: Final = 64
"""Of x in the table of exp(-x)."""

UNIT: Final = 4096
"""Its exp(0)."""


def interpolation_matrix(old: int, new: int, *, exact: bool = False) -> np.ndarray:
    """[old, new]: linear interpolation between pixel centres, torch's align_corners=False, its
    fractions rounded in exact mode."""
    import numpy as np

    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, None)
    low = np.minimum(position.astype(np.int64), old - 1)
    high = np.minimum(low + 1, old - 1)
    fraction = position - low
    if exact:
        fraction = np.ldexp(np.rint(np.ldexp(fraction, FRACTION_BITS)), -FRACTION_BITS)
    matrix = np.zeros((old, new))
    np.add.at(matrix, (low, np.arange(new)), 1 - fraction)
    np.add.at(matrix, (high, np.arange(new)), fraction)
    return matrix.astype(np.float32)


@cache
def exponentials() -> np.ndarray:
    """exp(-x) in 4096ths, whole numbers in fp32, for x = 0, 1/64, …; the last is 0, as all that
    follow."""
    import numpy as np

    x = np.arange(int(np.log(2 * UNIT) * STEPS_PER_UNIT) + 2) / STEPS_PER_UNIT
    return np.rint(UNIT * np.exp(-x)).astype(np.float32)
