"""What a run's records hold, as lines of charts over its epochs."""

from __future__ import annotations

from collections.abc import Sequence

from snnir.analysis.chart import Series
from snnir.training.record import Record


def over_epochs(
    history: Sequence[Record],
    name: str,
    values: Sequence[float | None],
    form: str = ".3f",
    *,
    colour: str = "",
) -> Series:
    """A value per record, None where it has none; the last one is written in the legend."""
    points = [
        (record.epoch, value)
        for record, value in zip(history, values, strict=True)
        if value is not None
    ]
    return Series(name, points, f"{points[-1][1]:{form}}" if points else "", colour=colour)


def scalars(history: Sequence[Record], name: str) -> list[float | None]:
    """A scalar over the epochs."""
    return [record.scalars.get(name) for record in history]
