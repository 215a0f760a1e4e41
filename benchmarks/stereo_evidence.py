"""Does the stereo network find depth? Beside one disparity everywhere, and block matching.

    python benchmarks/stereo_evidence.py -o evidence

`spikedhs_stereo` at full width learns on crops of `synthetic-stereo`, one thread, and is tested on
whole views, in stacks from rest and as a stream. Both baselines see the same events. Left behind:
OUT/stereo.json (the run's result), OUT/errors.json, OUT/stereo.md (the table) and OUT/stereo.svg
(events, estimate, truth and error of three frames, as the paper's Figure 4). Stopped, the training
goes on where it was; see `evidence.py`.
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
from matplotlib.figure import Figure
from torch import Tensor

from snnir import models
from snnir.analysis.counts import parameter_count
from snnir.analysis.energy import cost_model
from snnir.analysis.energy import energy as price
from snnir.analysis.operations import count_operations
from snnir.data import Request, Splits, open_data
from snnir.genotype import parse
from snnir.ir import build
from snnir.lower.counting import count_spikes
from snnir.passes import FOLDING, run_passes
from snnir.training import TrainingConfig
from snnir.training.record import write_figure
from snnir.training.run import deploy
from snnir.training.stream import stream
from snnir.training.tasks import Disparity, disparity_errors

NETWORK: Final = "spikedhs_stereo"
DATA: Final = "synthetic-stereo,stacks=2,recordings=32"
SETTINGS: Final = (
    "input=5x64x96",
    "neuron=lif(tau=0.2, v_threshold=0.5, surrogate=arctan(b=3))",
)
"""Crops; and a surrogate that is nowhere 0, without which the loss stays where one disparity for
all pixels has it (docs/stereo.md)."""
TESTED: Final = 18
"""Whole views, drawn from the test recordings."""
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


def energy(weights: Path, views: list[np.ndarray]) -> dict[str, float]:
    """Parameters, mean firing rate, operations and energy of one estimate of a whole view."""
    graph = build(parse(models.source(NETWORK)))
    module = deploy(graph, weights)
    counts = count_spikes(module.graph, module.weights(), views)
    rates = [counts.rate(neuron.path) for neuron in module.graph.neurons]
    found = count_operations(run_passes(FOLDING, graph).graph, counts)
    return {
        "parameters": parameter_count(graph),
        "mean_firing_rate": sum(rates) / len(rates),
        "energy_mj": price(found, cost_model("45nm")).total_mj / counts.steps,
    }


def write_pictures(path: Path, batch: tuple[Tensor, ...], maps: Tensor) -> None:
    """A row per frame: events, estimate, truth, error."""
    left, _, truths = batch
    rows = range(0, len(maps), max(1, len(maps) // 3))[:3]
    figure = Figure(figsize=(13, 3 * len(rows)), layout="tight")
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for row, n in zip(axes, rows, strict=True):
        truth = truths[-1, n]
        scale = {"vmin": 0, "vmax": float(truth.nan_to_num().max()), "cmap": "viridis"}
        row[0].imshow(left[-1, n].sum(0).sign(), cmap="bwr", vmin=-1, vmax=1)
        row[1].imshow(maps[n], **scale)
        row[2].imshow(thickened(truth), **scale)
        row[3].imshow(thickened((maps[n] - truth).abs()), cmap="magma", vmin=0, vmax=3)
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
    options = ("--config", str(recipe), "--epochs", str(given.epochs))
    train = ("train", *common, *settings, *options)
    trained = Run("trained on crops", out / "stereo", train).finish()
    weights = out / "stereo" / "best.safetensors"

    request = Request("stereo", (5, 260, 346), None, limit_test=TESTED)
    splits = open_data(given.data, request)
    left, right, truths = batch = splits.test.batch(range(len(splits.test)))
    module = deploy(build(parse(models.source(NETWORK))), weights)
    with torch.no_grad():
        pairs = zip(left.split(1, 1), right.split(1, 1), strict=True)
        maps = torch.cat([module(*pair)[-1] for pair in pairs])
    window = best_window(splits)
    matched = block_matching(left[-1], right[-1], window)
    rows: dict[str, Any] = {
        "one disparity everywhere": mean_errors(
            torch.full_like(maps, constant(splits)), truths[-1]
        ),
        f"block matching, {window} px": mean_errors(matched, truths[-1]),
        NETWORK: mean_errors(maps, truths[-1]),
    }
    task = Disparity(support=2, diversity=RECIPE.diversity)
    streamed = stream(module, splits.test, task, torch.device("cpu"))
    rows[f"{NETWORK}, stream"] = streamed.evaluation.measures
    costs = energy(weights, [view[:, :2].numpy() for view in (left, right)])
    costs["frames_per_second"] = streamed.frames / streamed.seconds
    write_pictures(out / "stereo.svg", batch, maps)
    (out / "stereo.md").write_text(table(rows) + "\n")
    found = {"errors": rows, "costs": costs, "training": trained, "samples": len(splits.test)}
    (out / "errors.json").write_text(json.dumps(found, indent=1))
    print(table(rows))
    print(", ".join(f"{name} {value:.4g}" for name, value in costs.items()))


if __name__ == "__main__":
    main()
