"""Does the stereo network find depth? Beside one disparity everywhere, and block matching.

    python benchmarks/stereo_evidence.py -o evidence

`spikedhs_stereo` at full width learns on crops of `synthetic-stereo`, one thread, and is tested on
whole views, in stacks from rest, and as a stream of the exported step models in onnxruntime. Both
baselines see the same events. Left behind: OUT/stereo.json (the run's result), OUT/errors.json,
OUT/stereo.md (the table), OUT/stereo.svg (events, estimate, truth and error of two frames, as the
paper's Figure 4) and OUT/rates.svg (firing rates over a recording, Figures 7c and 7d). Stopped, the
training goes on where it was; see `evidence.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from evidence import Run
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

import snnir
from snnir import models
from snnir.analysis.counts import parameter_count
from snnir.analysis.energy import cost_model
from snnir.analysis.energy import energy as price
from snnir.analysis.firing import SpikeCounts
from snnir.analysis.operations import count_operations
from snnir.compiler import Compiled
from snnir.data import Request, Splits, open_data
from snnir.data.loader import batches
from snnir.data.stereo import Sequences
from snnir.genotype import parse
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.passes import FOLDING, run_passes
from snnir.training import TrainingConfig
from snnir.training.evaluate import Deployed, DeployedModel, DeployedModule
from snnir.training.record import write_figure
from snnir.training.run import deploy
from snnir.training.stream import stream
from snnir.training.tasks import Disparity, disparity_errors

CPU: Final = torch.device("cpu")
Rates = dict[str, float]
"""Shares of values that are not 0, by path, of neurons and of the inputs."""

NETWORK: Final = "spikedhs_stereo"
DATA: Final = "synthetic-stereo,stacks=2,recordings=32"
SETTINGS: Final = (
    "input=5x64x96",
    "neuron=lif(tau=0.2, v_threshold=0.5, surrogate=arctan(b=3))",
)
"""Crops; and a surrogate that is nowhere 0, with which it learns faster (docs/stereo.md)."""
RECIPE: Final = TrainingConfig(
    epochs=30,
    warmup_epochs=1,
    batch_size=2,
    optimizer="adam",
    learning_rate=4e-3,
    weight_decay=0,
    precision="bf16",
)

DISPARITIES: Final = range(40)
"""Of block matching: a few pixels more than any surface of the recordings has."""
WINDOWS: Final = (15, 21, 31, 41)
"""Pixels of a block's side; the best on the validation recordings is used."""

MEASURES: Final = Disparity.measures
TITLES: Final = ("1PA [%]", "MDE [cm]", "median depth error [cm]", "mean disparity error [px]")


def block_matching(left: Tensor, right: Tensor, window: int) -> Tensor:
    """Disparities [N, H, W] of stacks [N, bins, H, W]: where the sum over a block of |left[x] -
    right[x - d]| is least, refined by a parabola through its neighbours."""
    costs = []
    for d in DISPARITIES:
        moved = F.pad(right, (d, 0))[..., : right.shape[-1]]
        difference = (left - moved).abs().sum(1, keepdim=True)
        for side in ((window, 1), (1, window)):
            padding = (side[0] // 2, side[1] // 2)
            difference = F.avg_pool2d(difference, side, 1, padding, count_include_pad=False)
        costs.append(difference)
    cost = torch.cat(costs, 1)
    best = cost.argmin(1, keepdim=True).clamp(1, cost.shape[1] - 2)
    before, at, after = (cost.gather(1, best + i) for i in (-1, 0, 1))
    bend = (before - 2 * at + after).clamp(min=1e-6)
    return (best + ((before - after) / (2 * bend)).clamp(-0.5, 0.5))[:, 0]


def best_window(splits: Splits) -> int:
    """Of block matching, by the share of pixels within one."""
    assert splits.validation is not None
    chosen = np.linspace(0, len(splits.validation) - 1, 6).astype(int)
    left, right, truths = splits.validation.batch(chosen)

    def accuracy(window: int) -> float:
        maps = block_matching(left[-1], right[-1], window)
        return mean_errors(maps, truths[-1])[MEASURES[0]]

    return max(WINDOWS, key=accuracy)


def constant(splits: Splits) -> float:
    """The median of the known disparities of some training samples."""
    chosen = np.linspace(0, len(splits.train) - 1, 24).astype(int)
    known = splits.train.batch(chosen)[-1]
    return float(known[known.isfinite()].median())


def mean_errors(maps: Tensor, truths: Tensor) -> dict[str, float]:
    """The measures by name, means over maps [N, H, W]."""
    found = [disparity_errors(*pair) for pair in zip(maps, truths, strict=True)]
    errors = torch.stack([values for values in found if values is not None]).mean(0)
    return dict(zip(MEASURES, errors.tolist(), strict=True))


def energy(network: Deployed) -> dict[str, float]:
    """Parameters, mean firing rate, operations and energy of one estimate, of all that it saw."""
    graph = build(parse(models.source(NETWORK)))
    rates = [network.counts.rate(neuron.path) for neuron in network.graph.neurons]
    found = count_operations(run_passes(FOLDING, graph).graph, network.counts)
    return {
        "parameters": parameter_count(graph),
        "mean_firing_rate": sum(rates) / len(rates),
        "macs": sum(layer.operations.macs for layer in found),
        "synops": sum(layer.operations.synops for layer in found),
        "energy_mj": price(found, cost_model("45nm")).total_mj,
    }


def record(network: DeployedModel, source: Sequences, number: int) -> tuple[Tensor, list[Rates]]:
    """A whole recording as a stream: disparities [T, H, W], and the rates at every frame."""
    network.reset()
    maps, rates = [], []
    for frame in range(source.recordings[number].frames):
        network.counts = SpikeCounts()
        left, right, _ = source.frames(number, range(frame, frame + 1))
        maps.append(network.step(*(torch.from_numpy(view).float() for view in (left, right)))[0])
        rates.append({path: network.counts.rate(path) for path in network.counts.by_path})
    return torch.stack(maps), rates


def differences(step: Compiled, source: Sequences, number: int, maps: Tensor) -> Tensor:
    """|torch - maps| of the same recording, through torch."""
    network = DeployedModule(SpikingModule(step.graph, step.folded_weights).eval(), CPU)
    found = []
    for frame in range(len(maps)):
        left, right, _ = source.frames(number, range(frame, frame + 1))
        found.append(network.step(*(torch.from_numpy(view).float() for view in (left, right)))[0])
    return (torch.stack(found) - maps).abs()


def write_rates(path: Path, rates: list[Rates]) -> None:
    """Firing rates over a recording, a line per layer, and the density of events below them."""
    figure = Figure(figsize=(13, 5.5), layout="tight")
    axes = figure.subplots(1, 2)
    for axis, net in zip(axes, ("feature", "matching"), strict=True):
        layers = [p for p in rates[0] if p.startswith(net) and not p.startswith("feature(right)")]
        for number, layer in enumerate(layers):
            colour = colormaps["viridis"](number / max(1, len(layers) - 1))
            name = layer.removesuffix(".neuron").split(".", 1)[1]
            axis.plot([r[layer] for r in rates], color=colour, label=name)
        axis.plot([r["left"] for r in rates], "k--", label="events, left view")
        axis.set(title=f"{net} net", xlabel="frame (50 ms)", ylim=(0, None))
        axis.set_ylabel("share of values that are not 0")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    write_figure(path, figure, title=f"{NETWORK}: firing rates over a recording")


def write_pictures(path: Path, source: Sequences, maps: Tensor) -> None:
    """Of frames of the recording that was streamed, a row each: events, estimate, truth, error."""
    chosen = np.linspace(2, len(maps) - 1, 2).astype(int)
    figure = Figure(figsize=(13, 3 * len(chosen)), layout="tight")
    axes = figure.subplots(len(chosen), 4, squeeze=False)
    for row, frame in zip(axes, chosen, strict=True):
        left, _, truths = source.frames(0, range(frame, frame + 1))
        truth = torch.from_numpy(truths[0])
        scale = {"vmin": 0, "vmax": float(truth.nan_to_num().max()), "cmap": "viridis"}
        row[0].imshow(np.sign(left[0].sum(0)), cmap="bwr", vmin=-1, vmax=1)
        row[1].imshow(maps[frame], **scale)
        row[2].imshow(thickened(truth), **scale)
        row[3].imshow(thickened((maps[frame] - truth).abs()), cmap="magma", vmin=0, vmax=3)
        for axis, name in zip(
            row, ("events", "estimate", "truth", "error, 0 to 3 px"), strict=True
        ):
            axis.set(title=name, xticks=[], yticks=[])
    write_figure(path, figure, title=f"{NETWORK} on {DATA}")


def thickened(sparse: Tensor) -> Tensor:
    """A map [H, W] whose known pixels, which are not negative, spread to their neighbours."""
    spread = F.max_pool2d(sparse.nan_to_num(-1)[None, None], (5, 3), 1, (2, 1))[0, 0]
    return spread.where(spread >= 0, torch.nan)


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = [f"| | {' | '.join(TITLES)} |", "|---" * (len(TITLES) + 1) + "|"]
    for name, errors in rows.items():
        accuracy, *others = (errors[measure] for measure in MEASURES)
        numbers = [f"{100 * accuracy:.1f}", *(f"{value:.2f}" for value in others)]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("-o", "--out", type=Path, default=Path("evidence"))
    options.add_argument("--epochs", type=int, default=RECIPE.epochs)
    options.add_argument("--data", default=DATA)
    given = options.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    recipe = out / "stereo.toml"
    recipe.write_text(RECIPE.to_toml())
    common = (NETWORK, "--data", given.data)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    how = ("--config", str(recipe), "--epochs", str(given.epochs))
    train = ("train", *common, *settings, *how)
    trained = Run("trained on crops", out / "stereo", train).finish()
    weights = out / "stereo" / "best.safetensors"

    splits = open_data(given.data, Request("stereo", (5, 260, 346), None))
    task = Disparity(support=2, diversity=RECIPE.diversity)
    rows: dict[str, Any] = {}
    *views, truths = splits.test.batch(range(len(splits.test)))
    left, right = (view[-1] for view in views)
    rows["one disparity everywhere"] = mean_errors(
        torch.full_like(truths[-1], constant(splits)), truths[-1]
    )
    window = best_window(splits)
    rows[f"block matching, {window} px"] = mean_errors(
        torch.cat(
            [
                block_matching(*pair, window)
                for pair in zip(left.split(1), right.split(1), strict=True)
            ]
        ),
        truths[-1],
    )
    network = DeployedModule(deploy(build(parse(models.source(NETWORK))), weights), CPU)
    rows[f"{NETWORK}, from rest"] = network.evaluate(batches(splits.test, 1, seed=0), task).measures
    costs: dict[str, Any] = {}
    for precision in ("fp32", "exact"):  # the pictures are of the last
        step = snnir.compile(NETWORK, weights=weights, form="step", precision=precision)
        assert step.passed
        running = DeployedModel(step.model, step.graph, threads=1)
        streamed = stream(running, splits.test, task)
        rows[f"{NETWORK}, stream, {precision} in onnxruntime"] = streamed.evaluation.measures
        costs[precision] = energy(running) | {
            "frames_per_second": streamed.frames / streamed.seconds
        }
        maps, rates = record(running, splits.test.source, 0)
        away = differences(step, splits.test.source, 0, maps)
        costs[precision] |= {
            "disparities_compared": away.numel(),
            "disparities_unlike_torch": int((away > 0).sum()),
            "largest_difference_px": float(away.max()),
        }
        print(precision, costs[precision], flush=True)
    write_rates(out / "rates.svg", rates)
    write_pictures(out / "stereo.svg", splits.test.source, maps)
    (out / "stereo.md").write_text(table(rows) + "\n")
    found = {"errors": rows, "costs": costs, "training": trained, "samples": len(splits.test)}
    (out / "errors.json").write_text(json.dumps(found, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
