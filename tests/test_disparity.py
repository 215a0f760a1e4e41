"""Estimating disparity: estimator, loss, measures, training over stacks, streams."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GENOTYPES, genotype

import snnir
from snnir.data import DATA_SETS, Samples
from snnir.data.request import Sources
from snnir.data.stereo import FOCAL_BASELINE, Sequences
from snnir.errors import SnnirError
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.lower.initialise import initial_weights
from snnir.lower.operations import sub_pixel
from snnir.reports import some_samples
from snnir.training import PRESETS, TrainingConfig, default_recipe, preset
from snnir.training.config import configured
from snnir.training.evaluate import DeployedModel, DeployedModule, evaluate, torch_predictor
from snnir.training.run import train_network
from snnir.training.stream import stream
from snnir.training.tasks import Classification, Disparity, disparity_errors, task_of
from snnir.weights import read_weights

CPU = torch.device("cpu")
TASK = Disparity(support=2, diversity=1.0)
NAN = math.nan


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- estimator ----------------------------------------------------------------------------------


def plain_estimate(cost: list[float], support: int) -> float:
    best = cost.index(min(cost))
    near = [d for d in range(len(cost)) if abs(d - best) <= support]
    weights = [math.exp(cost[best] - cost[d]) for d in near]
    return sum(2 * d * w for d, w in zip(near, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("support", [0, 1, 2, 5])
def test_the_estimator_is_the_plain_loop(support):
    cost = 3 * seeded(2, 9, 4, 5)
    found = sub_pixel(cost, support)
    assert found.shape == (2, 4, 5)
    best = cost.argmin(1)
    assert (best == 0).any()
    assert (best == 8).any()
    for n, y, x in np.ndindex(2, 4, 5):
        assert float(found[n, y, x]) == pytest.approx(
            plain_estimate(cost[n, :, y, x].tolist(), support)
        )


def test_the_estimator_by_hand():
    """Costs of log 2, 0, log 4 are weights of 1/2, 1, 1/4 at 0, 2 and 4; the fourth, below 0 but
    far, has none at support 1."""
    cost = torch.tensor([math.log(2), 0, math.log(4), 5.0]).view(1, 4, 1, 1)
    assert float(sub_pixel(cost, 1)) == pytest.approx((2 * 1 + 4 * 0.25) / 1.75)
    assert float(sub_pixel(cost, 0)) == 2


# --- loss ---------------------------------------------------------------------------------------


def plain_loss(cost: torch.Tensor, target: torch.Tensor, diversity: float) -> float:
    steps, samples, disparities, height, width = cost.shape
    total = 0.0
    for t, n, y, x in np.ndindex(steps, samples, height, width):
        true = float(target[t, n, y, x])
        if math.isnan(true):
            continue
        weights = [math.exp(-abs(2 * d - true) / diversity) for d in range(disparities)]
        soft = [math.exp(-float(cost[t, n, d, y, x])) for d in range(disparities)]
        for weight, s in zip(weights, soft, strict=True):
            total -= weight / sum(weights) * math.log(s / sum(soft))
    return total


@pytest.mark.parametrize("diversity", [1.0, 2.0])
def test_the_loss_is_the_plain_loop(diversity):
    cost = seeded(2, 3, 6, 2, 4)
    target = torch.rand(2, 3, 2, 4, generator=torch.Generator().manual_seed(1)).double() * 13 - 1
    target[0, :, 1] = NAN
    task = Disparity(support=2, diversity=diversity)
    assert float(task.loss(cost, target)) == pytest.approx(plain_loss(cost, target, diversity))
    assert task.counted(target) == 2 * 3 * 8 - 12


def test_the_loss_by_hand():
    """Two disparities, 0 and 2; the truth is 2 and the costs log 3 and 0: softmin is 1/4, 3/4."""
    cost = torch.tensor([math.log(3), 0.0]).view(1, 1, 2, 1, 1)
    a = math.exp(-2)
    expected = -(a * math.log(1 / 4) + math.log(3 / 4)) / (1 + a)
    assert float(TASK.loss(cost, torch.full((1, 1, 1, 1), 2.0))) == pytest.approx(expected)


def test_the_loss_is_least_where_the_softmin_is_the_truths_distribution():
    target = torch.tensor([0.0, 3.3, 61.0]).view(1, 1, 1, 3)
    best = (2 * torch.arange(32.0).view(1, 1, 32, 1, 1) - target[:, :, None]).abs()
    least = float(TASK.loss(best, target))
    for seed in range(5):
        other = best + 0.1 * seeded(*best.shape, seed=seed).float()
        assert float(TASK.loss(other, target)) > least


def test_pixels_without_truth_have_no_gradient():
    cost = seeded(1, 2, 4, 3, 3).requires_grad_()
    target = torch.full((1, 2, 3, 3), NAN)
    target[0, 0, 1, 2] = 3
    TASK.loss(cost, target).backward()
    moved = cost.grad.abs().sum(2)
    assert moved[0, 0, 1, 2] > 0
    assert moved.count_nonzero() == 1


def test_no_truth_at_all_is_a_loss_of_zero():
    cost = seeded(1, 1, 4, 2, 2).requires_grad_()
    target = torch.full((1, 1, 2, 2), NAN)
    loss = TASK.loss(cost, target)
    loss.backward()
    assert (loss.item(), TASK.counted(target), TASK.right(cost, target)) == (0, 0, 0)
    assert not cost.grad.any()


def test_right_in_training_is_within_one_pixel():
    cost = torch.full((1, 1, 8, 1, 4), 50.0)
    cost[:, :, 3] = 0  # disparity 6
    target = torch.tensor([5.0, 7.01, 6.4, NAN]).view(1, 1, 1, 4)
    assert TASK.right(cost, target) == 2


# --- measures -----------------------------------------------------------------------------------


def test_measures_by_hand():
    """Truths 4, 5, 10 and 20 px; found 5, 7, 9.5, 20: errors 1, 2, 0.5, 0 px."""
    found = torch.tensor([[5.0, 7.0], [9.5, 20.0]])
    true = torch.tensor([[4.0, 5.0], [10.0, 20.0]])
    one_pixel, mean_depth, median_depth, disparity = disparity_errors(found, true).tolist()
    assert one_pixel == 3 / 4
    assert disparity == pytest.approx(3.5 / 4)
    depths = [100 * FOCAL_BASELINE * e for e in (1 / 4 - 1 / 5, 1 / 5 - 1 / 7, 1 / 9.5 - 1 / 10, 0)]
    assert mean_depth == pytest.approx(sum(depths) / 4, rel=1e-5)
    assert median_depth == pytest.approx((depths[2] + depths[0]) / 2, rel=1e-5)


def test_measures_are_the_plain_formulas_over_known_pixels():
    rng = np.random.default_rng(0)
    true = rng.uniform(3, 30, (20, 30))
    found = true + rng.normal(0, 1.5, true.shape)
    true[rng.random(true.shape) < 0.7] = np.nan
    known = ~np.isnan(true)
    depth = 100 * np.abs(FOCAL_BASELINE / found[known] - FOCAL_BASELINE / true[known])
    error = np.abs(found - true)[known]
    expected = [(error <= 1).mean(), depth.mean(), np.median(depth), error.mean()]
    result = disparity_errors(torch.from_numpy(found), torch.from_numpy(true))
    assert np.allclose(result, expected, rtol=1e-5)
    assert 0.2 < expected[0] < 0.8


def test_the_last_map_counts_and_maps_without_truth_do_not():
    found, true = torch.zeros(3, 3, 2, 2), torch.full((3, 3, 2, 2), NAN)
    true[:2] = 9.0  # earlier steps
    true[2, 0], true[2, 2, 0, 0] = 5.0, 10.0
    found[2, 0], found[2, 2] = 6.0, 30.0
    measured = TASK.measured(found, true)
    assert measured.shape == (4, 2)
    assert measured[0].tolist() == [1, 0]
    assert measured[3].tolist() == [1, 20]
    assert TASK.measured(found, torch.full_like(true, NAN)).shape == (4, 0)


def test_a_disparity_of_zero_has_a_depth():
    assert torch.isfinite(disparity_errors(torch.zeros(1, 1), torch.ones(1, 1))).all()


def test_an_evaluation_without_truth_is_an_error():
    batch = (torch.zeros(1, 2, 5, 4, 4), torch.zeros(1, 2, 5, 4, 4), torch.full((1, 2, 4, 4), NAN))
    with pytest.raises(SnnirError, match="found no ground truth to evaluate"):
        evaluate(lambda *inputs: (torch.zeros(1, 2, 4, 4), {}), [batch], TASK)


def test_the_task_is_what_the_network_ends_in():
    stereo, classifier = (build(genotype(n)) for n in ("small_stereo", "hybrid"))
    assert task_of(stereo, diversity=2.0) == Disparity(2, 2.0)
    assert task_of(classifier, diversity=2.0) == Classification()


# --- training -----------------------------------------------------------------------------------


class Shifted:
    """A recording in which the right view is the left one moved by 4 or 8 pixels."""

    def __init__(self, seed: int, frames: int = 6, height: int = 18, width: int = 24):
        rng = np.random.default_rng(seed)
        self.frames, self._shift = frames, int(rng.choice([4, 8]))
        self._left = rng.integers(-1, 2, (frames, 2, height, width)).astype(np.int8)
        self._mask = rng.random((frames, height, width)) < 0.5

    def read(self, frame):
        left, shift = self._left[frame], self._shift
        right = np.zeros_like(left)
        right[..., :-shift] = left[..., shift:]
        truth = np.where(self._mask[frame], shift, np.nan).astype(np.float32)
        truth[:, :shift] = np.nan
        return left, right, truth


def sequences(seeds: range, steps: int = 3) -> Sequences:
    recordings = [Shifted(seed) for seed in seeds]
    ends = [(n, f) for n in range(len(seeds)) for f in range(steps - 1, recordings[n].frames)]
    return Sequences(recordings, ends, (steps, 2, 18, 24))


@pytest.fixture(scope="module", autouse=True)
def shifted():
    """The data set `synthetic-stereo`, replaced by views that are shifted noise."""

    def opened(place, request):
        return Sources(sequences(range(12)), sequences(range(22, 26)))

    entry = replace(DATA_SETS["synthetic-stereo"], open=opened)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA_SETS, "synthetic-stereo", entry)
        yield


QUICK = TrainingConfig(
    epochs=10, batch_size=8, optimizer="adam", learning_rate=1e-2, weight_decay=0, halved_at=(7,)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stereo") / "run"
    return train_network(genotype("small_stereo"), "synthetic-stereo", folder, QUICK)


def test_a_stereo_network_learns_what_a_shift_is(trained):
    found = trained
    first, *_, last = found.history
    assert last.train_loss < 0.7 * first.train_loss
    assert found.best.accuracy > 0.65  # one disparity everywhere: 0.5
    assert found.best.errors.keys() == {
        "mean_depth_error_cm", "median_depth_error_cm", "mean_disparity_error_px"
    }  # fmt: skip
    assert found.best.errors["mean_disparity_error_px"] < 1.3
    assert last.loss is None
    assert all(rate > 0.01 for rate in last.firing_rates.values()), last.firing_rates
    log = (found.folder / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["errors"] == last.errors
    assert (found.folder / "curve.svg").stat().st_size > 1000


def test_a_stopped_stereo_run_goes_on_to_the_same_weights(trained, tmp_path):
    network, found = genotype("small_stereo"), trained
    half = tmp_path / "half"
    train_network(network, "synthetic-stereo", half, configured(QUICK, {"epochs": 2}))
    # a checkpoint of another recipe is refused, so the recipe in it is made the longer one
    checkpoint = torch.load(half / "checkpoint.pt", weights_only=True)
    checkpoint["config"]["epochs"] = QUICK.epochs
    torch.save(checkpoint, half / "checkpoint.pt")
    train_network(network, "synthetic-stereo", half, QUICK, resume=True)
    whole, resumed = ((f / "last.safetensors").read_bytes() for f in (found.folder, half))
    assert whole == resumed


def test_a_stream_is_the_run_from_its_first_frame(trained):
    """Fed with one stack per step, state kept, the network says what it says of all at once."""
    graph = build(genotype("small_stereo"))
    arrays = initial_weights(graph, 0) | read_weights(trained.folder / "best.safetensors", graph)
    module = SpikingModule(graph, arrays).eval()
    frames = sequences(range(22, 26), steps=1)
    network = DeployedModule(module, CPU)
    streamed = stream(network, Samples(frames, np.array([5, 11, 17, 23])), TASK)
    assert streamed.frames == 4  # of each recording the one that is wanted
    everything = Samples(frames, np.arange(24))
    streamed = stream(DeployedModule(module, CPU), everything, TASK)
    assert (streamed.frames, streamed.evaluation.samples) == (24, 24)
    assert streamed.seconds > 0

    outputs = []
    for number, recording in enumerate(frames.recordings):
        views = [np.stack(v) for v in zip(*(recording.read(f)[:2] for f in range(6)), strict=True)]
        with torch.no_grad():
            outputs.append(module(*(torch.from_numpy(v)[:, None].float() for v in views)))
        assert outputs[number].shape == (6, 1, 18, 24)
    truths = [torch.from_numpy(r.read(f)[2]) for r in frames.recordings for f in range(6)]
    maps = torch.cat(outputs)[:, 0]
    expected = torch.stack([disparity_errors(a, b) for a, b in zip(maps, truths, strict=True)])
    assert np.allclose(list(streamed.evaluation.measures.values()), expected.mean(0), rtol=1e-6)

    rates = streamed.evaluation.firing_rates
    assert rates == evaluate_whole(module, frames).firing_rates
    fixed = evaluate(torch_predictor(module, CPU), _alone(frames), TASK)
    assert fixed.measures != streamed.evaluation.measures, "the state makes no difference"


def evaluate_whole(module, frames):
    """Each recording at once, from rest."""
    network = DeployedModule(module, CPU)
    views = [
        [np.stack(v) for v in zip(*(r.read(f) for f in range(6)), strict=True)]
        for r in frames.recordings
    ]
    return network.evaluate(
        [tuple(torch.from_numpy(x)[:, None].float() for x in three) for three in views], TASK
    )


@pytest.mark.parametrize("precision", ["fp32", "exact"])
def test_an_exported_step_model_streams_as_torch_does(trained, tmp_path, precision):
    """The same disparities; in exact mode the same bits."""
    network = genotype("small_stereo")
    weights = trained.folder / "best.safetensors"
    compiled = snnir.compile(network, weights=weights, form="step", precision=precision)
    assert compiled.passed
    frames = sequences(range(22, 26), steps=1)
    everything = Samples(frames, np.arange(24))
    module = SpikingModule(compiled.graph, compiled.folded_weights).eval()
    maps = {}
    streams = {}
    for name, deployed in (
        ("torch", DeployedModule(module, CPU)),
        ("onnxruntime", DeployedModel(compiled.model, compiled.graph)),
    ):
        streams[name] = stream(deployed, everything, TASK)
        deployed.reset()
        views = [np.stack(v) for v in zip(*map(frames.recordings[1].read, range(6)), strict=True)]
        steps = zip(*(torch.from_numpy(x)[:, None].float() for x in views[:2]), strict=True)
        maps[name] = torch.stack([deployed.step(*now) for now in steps])
    found, expected = (streams[name].evaluation for name in ("onnxruntime", "torch"))
    assert (found.samples, streams["onnxruntime"].frames) == (24, 24)
    assert found.firing_rates.keys() == expected.firing_rates.keys()
    assert min(found.firing_rates.values()) > 0.01
    assert float(maps["torch"].std()) > 0.5
    if precision == "exact":
        assert torch.equal(maps["onnxruntime"], maps["torch"])
        assert found.measures == expected.measures
        assert found.firing_rates == expected.firing_rates
    else:
        assert float((maps["onnxruntime"] - maps["torch"]).abs().median()) < 1e-4
        assert found.accuracy == pytest.approx(expected.accuracy, abs=0.02)
        assert found.firing_rates == pytest.approx(expected.firing_rates, abs=1e-3)


def _alone(frames: Sequences):
    """Every frame by itself, from rest."""
    for index in range(len(frames.ends)):
        left, right, truth = map(torch.from_numpy, frames.read(index, None))
        yield left[:, None].float(), right[:, None].float(), truth[:, None]


def test_only_recordings_can_be_streamed():
    with pytest.raises(SnnirError, match="found data without recordings to stream"):
        stream(None, Samples(object(), np.arange(1)), TASK)


def test_the_papers_stereo_recipe():
    recipe = preset("stereo", PRESETS)
    assert default_recipe(genotype("spikedhs_stereo")) == recipe
    assert default_recipe(genotype("hybrid")) == TrainingConfig()
    rates = [recipe.learning_rate_at(e) for e in (0, 49.9, 50, 100, 150, 199)]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 1.25e-4])
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (200, 2, "adam")
    assert (recipe.momentum, recipe.diversity) == (0.9, 1.0)


def test_commands(trained, run):
    found = trained
    path = found.folder / "genotype.snn"
    weights = found.folder / "best.safetensors"
    options = ("--data", "synthetic-stereo", "--weights", weights, "--batch-size", 5)
    code, out, err = run("eval", path, *options, "--stream", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["one_pixel_accuracy"] == pytest.approx(found.best.accuracy, abs=0.05)
    for name in ("mean_depth_error_cm", "median_depth_error_cm", "mean_disparity_error_px"):
        assert result[name] == pytest.approx(found.best.errors[name], rel=0.3)
        assert result["stream"][name] > 0
    assert (result["samples"], result["stream"]["samples"], result["stream"]["frames"]) == (16,) * 3
    assert result["stream"]["frames_per_second"] > 1
    code, out, _ = run("eval", path, *options, "--stream")
    assert "one pixel accuracy" in out
    assert "stream: one pixel accuracy" in out
    code, _, err = run("compile", path, "--weights", weights, "--form", "step", "-o", "step")
    assert code == 0, err
    model = ("--data", "synthetic-stereo", "--model", "step/network.onnx", "--stream", "--json")
    code, out, err = run("eval", path, *model)
    assert code == 0, err
    exported = json.loads(out)
    assert exported["runtime"] == "onnxruntime"
    assert exported["one_pixel_accuracy"] == pytest.approx(result["one_pixel_accuracy"], abs=0.01)
    assert exported["firing_rate"] == pytest.approx(result["firing_rate"], abs=1e-3)
    streamed = exported["stream"]["one_pixel_accuracy"]
    assert streamed == pytest.approx(result["stream"]["one_pixel_accuracy"], abs=0.01)
    run("compile", path, "--weights", weights, "-o", "whole")
    code, _, err = run("eval", path, *model[:3], "whole/network.onnx", "--stream")
    assert code == 2
    assert "whole/network.onnx: found a model in sequence form, expected step form for" in err


def test_a_report_on_sequences_shorter_than_the_network(monkeypatch, run):
    """They begin anew: the network has three steps, the samples two."""
    short = sequences(range(12), steps=2)
    entry = replace(DATA_SETS["synthetic-stereo"], open=lambda *_: Sources(short, short))
    monkeypatch.setitem(DATA_SETS, "synthetic-stereo", entry)
    for view in some_samples(genotype("small_stereo"), "synthetic-stereo"):
        assert view.shape == (3, 8, 2, 18, 24)
        assert np.array_equal(view[2], view[0])
        assert not np.array_equal(view[1], view[0])
    path = GENOTYPES / "small_stereo.snn"
    code, out, err = run("report", path, "--data", "synthetic-stereo", "--limit-test", 3, "--json")
    assert code == 0, err
    report = json.loads(out)
    runs = {layer["path"]: layer["runs_per_sample"] for layer in report["layers"]}
    assert runs["matching.stem.0.neuron"] == report["measured_steps"] == 2


@pytest.mark.parametrize("method", ["random", "evolution"])
def test_baselines_are_judged_on_what_the_data_holds_out(run, monkeypatch, method):
    """Not on the test set, of which a training run reads one sample at its end."""

    read = Counter()

    class Noted(Shifted):
        def read(self, frame):
            read[self.part] += 1
            return super().read(frame)

    def part(name, seeds):
        found = sequences(seeds)
        for recording in found.recordings:
            recording.__class__, recording.part = Noted, name
        return found

    def opened(place, request):
        held_out = part("held out", range(30, 32))
        return Sources(sequences(range(12)), part("test", range(22, 26)), validation=held_out)

    entry = replace(DATA_SETS["synthetic-stereo"], open=opened)
    monkeypatch.setitem(DATA_SETS, "synthetic-stereo", entry)
    Path("c.toml").write_text(
        f'method = "{method}"\ntrials = 3\npopulation = 2\ntournament = 2\ntrial_epochs = 4\n'
        'epochs = 1\nwarmup_epochs = 0\nbatch_size = 8\noptimizer = "adam"\nlearning_rate = 0.01\n'
    )
    code, _, err = run(
        "search", GENOTYPES / "small_stereo_space.snn", "--data", "synthetic-stereo", "-o", "found",
        "--config", "c.toml",
    )  # fmt: skip
    assert code == 0, err
    trials = [json.loads(line) for line in Path("found/trials.jsonl").read_text().splitlines()]
    assert len(trials) == 3
    assert all(0 < trial["accuracy"] < 1 for trial in trials)
    assert read == {"held out": 3 * 4 * 8 * 3, "test": 3 * 3}  # trials, epochs, samples, stacks


def test_an_epoch_without_truth_is_an_error(tmp_path, monkeypatch):
    class Blind(Shifted):
        def read(self, frame):
            left, right, truth = super().read(frame)
            return left, right, np.full_like(truth, np.nan)

    blind = replace(sequences(range(2)), recordings=[Blind(0), Blind(1)])
    entry = replace(DATA_SETS["synthetic-stereo"], open=lambda *_: Sources(blind, blind))
    monkeypatch.setitem(DATA_SETS, "synthetic-stereo", entry)
    with pytest.raises(SnnirError, match="found no ground truth"):
        train_network(genotype("small_stereo"), "synthetic-stereo", tmp_path / "run", QUICK)
