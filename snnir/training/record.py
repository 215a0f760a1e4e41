"""What a run leaves to look at: a record per epoch, as lines of JSON, TensorBoard and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from snnir.errors import SnnirError
from snnir.files import writable_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Record(BaseModel):
    """One epoch. Losses are means, in training with the auxiliary heads' added."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epoch: int
    """From 1."""
    train_loss: float
    train_accuracy: float
    """In 0..1, on the augmented samples while the weights still moved."""
    loss: float | None = None
    """On the held-out samples or else the test set; None where only training has a loss."""
    accuracy: float
    """In 0..1, on the same samples: the share of them, or of their pixels, that is right."""
    errors: dict[str, float] = {}
    """What else was measured on them, by name."""
    firing_rate: float
    """Mean over the layers of the spikes per value."""
    firing_rates: dict[str, float]
    """By neuron path."""
    learning_rate: float
    """At the epoch's end."""
    samples_per_second: float
    """Of the training part."""
    seconds: float
    """Since the run began, time in which it did not run left out."""
    finished: float
    """When the epoch was done, in seconds since 1970."""
    scalars: dict[str, float] = {}
    """Of what learns beside the weights, by name."""

    def line(self) -> str:
        """One line for a terminal."""
        errors = "".join(f"  {name} {value:.3f}" for name, value in self.errors.items())
        return (
            f"epoch {self.epoch:3}  loss {self.train_loss:.4f}  train {self.train_accuracy:6.2%}  "
            f"accuracy {self.accuracy:6.2%}  firing {self.firing_rate:.3f}  "
            f"{speed(self.samples_per_second)}/s{errors}"
        )


def speed(number: float) -> str:
    """`1,234`, or `0.27`: with digits after the point where there are few before it."""
    return f"{number:,.{0 if number >= 10 else 2}f}"


def write_log(path: Path, history: Sequence[Record]) -> None:
    """All epochs, a line of JSON each. Raises SnnirError."""
    write_whole(path, "".join(record.model_dump_json() + "\n" for record in history))


def read_log(path: Path) -> list[Record]:
    """The epochs that `write_log` wrote. Raises SnnirError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SnnirError(f"{path}: found no readable log of a run: {error}") from None
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            history.append(Record.model_validate_json(line))
        except ValidationError:
            found = line if len(line) <= 60 else f"{line[:60]}…"
            raise SnnirError(
                f"{path}:{number}: found '{found}', expected the record of an epoch"
            ) from None
    return history


def write_tensorboard(folder: Path, history: Sequence[Record]) -> None:
    """All epochs as TensorBoard scalars, in one file that appears whole. Raises SnnirError."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    content = io.BytesIO()
    writer = RecordWriter(content)
    version = Event(wall_time=history[0].finished, file_version="brain.Event:2")
    writer.write(version.SerializeToString())
    for record in history:
        values = [Summary.Value(tag=tag, simple_value=x) for tag, x in _scalars(record).items()]
        event = Event(wall_time=record.finished, step=record.epoch, summary=Summary(value=values))
        writer.write(event.SerializeToString())
    write_whole(writable_folder(folder) / "events.out.tfevents.snnir", content.getvalue())


def _scalars(record: Record) -> dict[str, float]:
    names = ("train_loss", "train_accuracy", "loss", "accuracy", "learning_rate")
    scalars = {name: getattr(record, name) for name in (*names, "samples_per_second")}
    found = {name: value for name, value in scalars.items() if value is not None} | record.errors
    rates = {f"firing_rate/{path}": rate for path, rate in record.firing_rates.items()}
    return found | {"firing_rate/mean": record.firing_rate} | rates | record.scalars


def write_curve(path: Path, history: Sequence[Record], *, title: str) -> None:
    """Accuracy, loss and firing rate over the epochs as an SVG picture. Raises SnnirError."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [record.epoch for record in history]
    figure = Figure(figsize=(11, 3.2), layout="tight")
    accuracy, loss, firing = figure.subplots(1, 3)
    accuracy.plot(epochs, [r.train_accuracy for r in history], label="training")
    accuracy.plot(epochs, [r.accuracy for r in history], label="evaluation")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.legend(frameon=False)
    loss.plot(epochs, [r.train_loss for r in history], label="training")
    if all(r.loss is not None for r in history):
        loss.plot(epochs, [r.loss for r in history], label="evaluation")
    firing.plot(epochs, [r.firing_rate for r in history], color="tab:green")
    firing.set_ylim(0, 1.1 * max(r.firing_rate for r in history) or 1)
    for axes, name in ((accuracy, "accuracy"), (loss, "loss"), (firing, "mean firing rate")):
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    write_figure(path, figure, title=title)


def write_figure(path: Path, figure: Figure, *, title: str) -> None:
    """A figure as an SVG picture, the same bytes for the same figure. Raises SnnirError."""
    import matplotlib

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "snnir"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    write_whole(path, picture.getvalue())
