"""What a run leaves to look at: a record per epoch, as lines of JSON, TensorBoard and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from snnir.files import write_whole


class Record(BaseModel):
    """One epoch. Losses are mean cross-entropy, in training with the auxiliary heads' added."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epoch: int
    """From 1."""
    train_loss: float
    train_accuracy: float
    """In 0..1, on the augmented samples while the weights still moved."""
    loss: float
    accuracy: float
    """In 0..1, on the held-out samples or else the test set."""
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

    def line(self) -> str:
        """One line for a terminal."""
        return (
            f"epoch {self.epoch:3}  loss {self.train_loss:.4f}  train {self.train_accuracy:6.2%}  "
            f"accuracy {self.accuracy:6.2%}  firing {self.firing_rate:.3f}  "
            f"{self.samples_per_second:,.0f}/s"
        )


def write_log(path: Path, history: Sequence[Record]) -> None:
    """All epochs, a line of JSON each. Raises SnnirError."""
    write_whole(path, "".join(record.model_dump_json() + "\n" for record in history))


def write_tensorboard(folder: Path, record: Record) -> None:
    """The epoch's numbers as TensorBoard scalars."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name in ("train_loss", "train_accuracy", "loss", "accuracy", "learning_rate"):
            writer.add_scalar(name, getattr(record, name), record.epoch)
        writer.add_scalar("samples_per_second", record.samples_per_second, record.epoch)
        writer.add_scalar("firing_rate/mean", record.firing_rate, record.epoch)
        for path, rate in record.firing_rates.items():
            writer.add_scalar(f"firing_rate/{path}", rate, record.epoch)


def write_curve(path: Path, history: Sequence[Record], *, title: str) -> None:
    """Accuracy, loss and firing rate over the epochs as an SVG picture. Raises SnnirError."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    epochs = [record.epoch for record in history]
    figure, (accuracy, loss, firing) = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="tight")
    accuracy.plot(epochs, [r.train_accuracy for r in history], label="training")
    accuracy.plot(epochs, [r.accuracy for r in history], label="evaluation")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.legend(frameon=False)
    loss.plot(epochs, [r.train_loss for r in history], label="training")
    loss.plot(epochs, [r.loss for r in history], label="evaluation")
    firing.plot(epochs, [r.firing_rate for r in history], color="tab:green")
    firing.set_ylim(bottom=0)
    for axes, name in ((accuracy, "accuracy"), (loss, "loss"), (firing, "mean firing rate")):
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    picture = io.BytesIO()
    with pyplot.rc_context({"svg.hashsalt": "snnir"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    write_whole(path, picture.getvalue())
