"""What a run's records hold, as lines of charts over its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from snnir.analysis.chart import Chart, Series
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


def training_charts(history: Sequence[Record], *, warmup: int = 0) -> list[Chart]:
    """Accuracy, loss and firing rate; none of no epochs."""
    if not history:
        return []
    series = partial(over_epochs, history)
    accuracies = (
        series("training", [r.train_accuracy for r in history], ".1%"),
        series("evaluation", [r.accuracy for r in history], ".1%"),
    )
    losses = (
        series("training", [r.train_loss for r in history]),
        series("evaluation", [r.loss for r in history]),
    )
    rates = (series("all layers", [r.firing_rate for r in history], ".1%"),)
    return [
        Chart("accuracy", accuracies, "epoch", percent=True, warmup=warmup),
        Chart("loss", [line for line in losses if line.points], "epoch", warmup=warmup),
        Chart("mean firing rate", rates, "epoch", low=0, percent=True, warmup=warmup),
    ]
