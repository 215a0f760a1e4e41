"""Training on real images (digits): it learns, goes on after any interruption to the same weights,
and says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import GENOTYPES
from onnx import numpy_helper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import snnir
from snnir import models
from snnir.data import Augmentation, batches
from snnir.errors import SnnirError
from snnir.genotype import parse, retarget
from snnir.ir import build
from snnir.training import (
    PRESETS,
    Diverged,
    TrainingConfig,
    configured,
    preset,
    read_config,
    trainer,
)
from snnir.training.checkpoint import read_checkpoint
from snnir.training.evaluate import evaluate, torch_predictor
from snnir.training.run import deploy, open_splits, open_test, train_network
from snnir.weights import read_weights

CPU = torch.device("cpu")
SMALL = ("--set", "input=1x8x8", "--set", "steps=2", "--set", "channels=4")
QUICK = TrainingConfig(epochs=3, batch_size=50, learning_rate=0.1, limit_train=600)


def digits_network(text: str | None = None):
    settings = ["input=1x8x8", "steps=2", "channels=4"]
    return retarget(models.load("fashion_small"), settings) if text is None else parse(text)


def evaluate_network(network, data, **options):
    return open_test(network, data, **options).evaluate()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on all the digits."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = TrainingConfig(epochs=5, batch_size=25, learning_rate=0.05, validation=200)
    said: list[str] = []
    result = train_network(digits_network(), "digits", folder, config, say=said.append)
    return result, said


# --- what training gives ----------------------------------------------------------------------


def test_training_learns_real_digits(trained):
    result, said = trained
    assert result.test is not None
    assert result.test.accuracy > 0.85
    assert result.test.samples == 360
    assert result.chosen_on == "validation"
    assert result.history[-1].train_loss < 0.5 * result.history[0].train_loss
    assert 0.02 < result.test.firing_rate < 0.6
    assert min(result.test.firing_rates.values()) > 0.005
    assert not [line for line in said if line.startswith("warning")]


def test_a_run_leaves_what_it_promises(trained):
    result, _ = trained
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "genotype.snn", "config.toml", "best.safetensors", "last.safetensors", "checkpoint.pt",
        "log.jsonl", "curve.svg", "tensorboard",
    }  # fmt: skip
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert parse((result.folder / "genotype.snn").read_text()) == digits_network()
    assert read_config(result.folder / "config.toml", TrainingConfig()).validation == 200
    assert "accuracy" in (result.folder / "curve.svg").read_text()
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    found = [round(e.value, 5) for e in events.Scalars("accuracy")]
    assert found == [round(line["accuracy"], 5) for line in lines]
    assert "firing_rate/trunk.layers.1.n1.neuron" in events.Tags()["scalars"]


def test_best_and_last_weights_are_what_the_log_says(trained):
    result, _ = trained
    network = build(digits_network())
    splits = open_splits(
        network, "digits", read_config(result.folder / "config.toml", TrainingConfig())
    )
    predict = torch_predictor(deploy(network, result.folder / "best.safetensors"), CPU)
    found = evaluate(predict, batches(splits.validation, 40, seed=0))
    assert found.accuracy == pytest.approx(result.best.accuracy, abs=0.01)
    assert not set(splits.validation.indices) & set(splits.train.indices)
    checkpoint = read_checkpoint(result.folder / "checkpoint.pt")
    last = read_weights(result.folder / "last.safetensors")
    for name, value in checkpoint.module.items():
        assert np.array_equal(last[name], value.numpy()), name


def test_the_best_weights_are_kept_when_later_ones_are_worse(tmp_path, monkeypatch):
    accuracies = iter([0.3, 0.9, 0.5])
    honest = trainer.evaluate

    def graded(*arguments, **options):
        found = honest(*arguments, **options)
        return replace(found, measures=found.measures | {"accuracy": next(accuracies)})

    monkeypatch.setattr(trainer, "evaluate", graded)
    saved = []
    train_network(
        digits_network(), "digits", tmp_path / "run", configured(QUICK, {"limit_train": 100}),
        say=lambda line: saved.append((tmp_path / "run" / "last.safetensors").read_bytes()),
    )  # fmt: skip
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == saved[1]
    assert saved[2] != saved[1]


def test_layers_that_nothing_reads_keep_their_weights(tmp_path):
    text = PARALLEL.replace("n1 = conv3x3(a) + skip(b) : alif", "n1 = conv3x3(a)")
    text = text.replace("n0 = conv3x3(a) + conv3x3(b)", "n0 = conv3x3(a)")
    text = text.replace("c@0 c@1", "c@0 c@1 c@1").replace("t.layers[0]", "t.layers[2]")
    config = configured(QUICK, {"epochs": 1, "limit_train": 100, "validation": 50})
    result = train_network(parse(text), "digits", tmp_path / "run", config)
    assert result.test is not None  # best.safetensors could be read back
    weights = read_weights(tmp_path / "run" / "best.safetensors", build(parse(text)))
    assert "t.layers.1.n0.a.conv.weight" in weights


def test_bf16_learns_too(tmp_path):
    config = configured(QUICK, {"precision": "bf16"})
    history = train_network(digits_network(), "digits", tmp_path / "run", config).history
    assert history[-1].accuracy > 0.6
    weights = read_weights(tmp_path / "run" / "last.safetensors")
    assert all(value.dtype == np.float32 for value in weights.values())


def test_the_python_function(tmp_path):
    result = snnir.train(
        digits_network(), "digits", tmp_path / "run", epochs=1, batch_size=100, limit_train=200
    )
    assert len(result.history) == 1
    assert (tmp_path / "run" / "best.safetensors").exists()


# --- configs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_toml(name, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(preset(name, PRESETS).to_toml())
    assert read_config(path, TrainingConfig()) == preset(name, PRESETS)


def test_the_papers_recipe():
    """method §9: 100 epochs, batch 50, SGD 0.9, cosine from 0.025, weight decay 3e-4, clip 5."""
    found = preset("cifar", PRESETS)
    assert (found.epochs, found.batch_size, found.momentum) == (100, 50, 0.9)
    assert (found.learning_rate, found.weight_decay, found.gradient_clip) == (0.025, 3e-4, 5)
    assert found.augmentation == Augmentation(crop_padding=4, flip=True, cutout=16)
    assert preset("imagenet", PRESETS).batch_size == 160


def test_the_learning_rate_is_half_a_cosine_after_the_warm_up():
    config = TrainingConfig(epochs=12, learning_rate=0.2, warmup_epochs=2)
    expected = {0: 0, 1: 0.1, 2: 0.2, 7: 0.1, 12: 0}
    for epoch, rate in expected.items():
        assert config.learning_rate_at(epoch) == pytest.approx(rate)
    short = TrainingConfig(epochs=1, learning_rate=0.2, warmup_epochs=2)
    assert short.learning_rate_at(0.5) == pytest.approx(0.2)
    assert short.learning_rate_at(1) == pytest.approx(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: found 0, expected a value greater than 0"),
        ({"batch_size": -5}, "batch_size: found -5"),
        ({"learning_rate": 0.0}, "learning_rate: found 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate: found nan"),
        ({"momentum": 1.5}, "momentum: found 1.5"),
        ({"precision": "fp8"}, "precision: found 'fp8'"),
        ({"epoch": 3}, "epoch: found an unknown setting.*did you mean 'epochs'"),
        ({"limit_train": 0}, "limit_train: found 0"),
        ({"augmentation": {"flop": True}}, "augmentation.flop: found an unknown setting"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(SnnirError, match=message):
        configured(TrainingConfig(), settings)


def test_bad_config_files(tmp_path):
    with pytest.raises(SnnirError, match=r"found preset 'cifra', expected one of .*'cifar'"):
        preset("cifra", PRESETS)
    path = tmp_path / "c.toml"
    with pytest.raises(SnnirError, match="found no readable TOML"):
        read_config(path, TrainingConfig())
    path.write_text("epochs = [")
    with pytest.raises(SnnirError, match="found no readable TOML"):
        read_config(path, TrainingConfig())
    path.write_text('epochs = "many"\nbatch_size = 0\n')
    with pytest.raises(SnnirError, match=r"epochs: found 'many'(.|\n)*batch_size: found 0"):
        read_config(path, TrainingConfig())


# --- going on ---------------------------------------------------------------------------------

SAVING_EVERY_STEP = """
import sys, torch
from snnir.training import trainer, watch
trainer.CHECKPOINT_SECONDS = 0  # save after every step
watch.PROBES_PER_EPOCH = 2  # a probed step does not overwrite in place, as most steps do
torch.set_num_threads(1)
from snnir.cli import main
main()
"""
RUN = (
    "train", "fashion_small", *SMALL, "--data", "digits", "--epochs", "2", "--batch-size", "25",
    "--learning-rate", "0.1", "--limit-train", "500", "--limit-test", "100", "-o", "run",
)  # fmt: skip


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SAVING_EVERY_STEP, *RUN, *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen, checkpoint: Path, epoch: int, step: int) -> None:
    """Until the run has saved that many epochs and steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if checkpoint.exists():
            found = read_checkpoint(checkpoint)
            if (found.epoch, found.step) >= (epoch, step):
                return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise AssertionError("the run never got there")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The last weights of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return folder / "run", out


def same_weights(a: Path, b: Path) -> bool:
    names = ("last.safetensors", "best.safetensors")
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_killed_runs_resume_to_the_same_weights(whole_run, tmp_path):
    expected, out = whole_run
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    process = start(tmp_path)
    wait_for_step(process, checkpoint, 0, 7)
    process.kill()  # in the first epoch
    process.wait()
    process = start(tmp_path, "--resume")
    wait_for_step(process, checkpoint, 1, 3)
    process.kill()  # in the second
    process.wait()
    assert not same_weights(expected, tmp_path / "run")
    process = start(tmp_path, "--resume")
    resumed, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert same_weights(expected, tmp_path / "run")
    assert resumed == out
    whole, parts = (
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (expected, tmp_path / "run")
    )
    for one, other in zip(whole, parts, strict=True):
        for key in set(one) - {"seconds", "samples_per_second", "finished"}:
            assert one[key] == other[key], key


def test_ctrl_c_saves_and_exits_with_130(whole_run, tmp_path):
    expected, _ = whole_run
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    process = start(tmp_path)
    wait_for_step(process, checkpoint, 0, 4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"interrupted in epoch \d, step \d+ of 20: saved in run", err)
    assert "Traceback" not in err
    assert (read_checkpoint(checkpoint).epoch, read_checkpoint(checkpoint).step) >= (0, 4)
    process = start(tmp_path, "--resume")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert same_weights(expected, tmp_path / "run")


def test_an_interruption_while_evaluating_goes_on_with_the_evaluation(whole_run, tmp_path):
    expected, _ = whole_run
    interrupting = """
predictor = trainer.torch_predictor
def interrupting(*arguments, **options):
    import os, signal
    predict = predictor(*arguments, **options)
    def interrupted(x):
        os.kill(os.getpid(), signal.SIGINT)
        return predict(x)
    return interrupted
trainer.torch_predictor = interrupting
main()
"""
    code = SAVING_EVERY_STEP.removesuffix("main()\n") + interrupting
    done = subprocess.run(
        [sys.executable, "-c", code, *RUN],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "interrupted in epoch 1, step 20 of 20" in done.stderr
    process = start(tmp_path, "--resume")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert same_weights(expected, tmp_path / "run")


def test_a_finished_run_resumes_to_nothing_more(whole_run):
    folder, out = whole_run
    before = (folder / "last.safetensors").read_bytes()
    process = start(folder.parent, "--resume")
    again, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert again == out
    assert (folder / "last.safetensors").read_bytes() == before


def test_workers_change_nothing(tmp_path):
    config = configured(QUICK, {"epochs": 1, "augmentation": {"crop_padding": 1}})
    for workers in (0, 2):
        train_network(digits_network(), "digits", tmp_path / str(workers), config, workers=workers)
    assert same_weights(tmp_path / "0", tmp_path / "2")


def test_the_seed_decides(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = configured(QUICK, {"epochs": 1, "seed": seed})
        train_network(digits_network(), "digits", tmp_path / name, config)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


# --- what can go wrong ------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(tmp_path):
    settings = {"learning_rate": 1e38, "gradient_clip": 0.0}
    for name, more in {"in_a_step": {}, "in_the_last": {"limit_train": 50, "epochs": 1}}.items():
        config = configured(QUICK, settings | more)
        with pytest.raises(Diverged, match=r"epoch 1, step \d+: found .* the last good checkpoint"):
            train_network(digits_network(), "digits", tmp_path / name, config)
        checkpoint = read_checkpoint(tmp_path / name / "checkpoint.pt")
        assert (checkpoint.epoch, checkpoint.step) == (0, 0)
        assert all(float(value.abs().max()) < 100 for value in checkpoint.module.values())
        assert not (tmp_path / name / "best.safetensors").exists()


QUIET = """snn 1
network quiet
input image: frame[1, 8, 8]
steps 2
neuron lif({neuron})
cell c(a, b) {{
  n0 = conv3x3(a) + conv3x3(b)
}}
backbone t(image) {{
  stem conv3x3(4)
  layers channels=4 {{ c@0 }}
}}
head classify(t, classes=10)
{annotate}
"""


def warnings_of(tmp_path, **parts):
    said: list[str] = []
    text = QUIET.format(**{"neuron": "tau=0.2", "annotate": ""} | parts)
    config = configured(QUICK, {"epochs": 2, "limit_train": 200})
    train_network(parse(text), "digits", tmp_path / "run", config, say=said.append)
    return [line for line in said if line.startswith("warning")]


def test_a_silent_layer_is_warned_of_by_name_once(tmp_path):
    found = warnings_of(tmp_path, annotate="annotate { t.layers[0].n0 neuron=lif(v_threshold=99) }")
    silent = [line for line in found if "has not fired" in line]
    assert [line.split()[1] for line in silent] == ["t.layers[0].n0", "head.neuron"]


def test_weights_without_gradient_are_warned_of_by_name(tmp_path):
    found = warnings_of(tmp_path, neuron="surrogate=rectangular(b=1e6)")
    frozen = [line.split()[1] for line in found if "no gradient" in line]
    assert "t.layers.0.n0.a.conv.weight" in frozen
    assert "head.linear.weight" not in frozen


def test_a_healthy_network_is_not_warned_of(tmp_path):
    assert warnings_of(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "condition", "name"),
    [
        ("checkpoint.Checkpoint, 'write'", "arguments[0].epoch == 2", "checkpoint.pt"),
        (
            "run, 'write_tensorboard'",
            "len(arguments[1]) == 2",
            "tensorboard/events.out.tfevents.snnir",
        ),
    ],
)
def test_a_full_disk_loses_nothing(tmp_path, place, condition, name):
    """The limit on file sizes stops a file of the second epoch; the first one's stay."""
    code = """
import resource, sys
from snnir.training import checkpoint, run
from snnir.cli import main
def limit(owner, name):
    honest = getattr(owner, name)
    def limited(*arguments, **options):
        if CONDITION:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        return honest(*arguments, **options)
    setattr(owner, name, limited)
limit(PLACE)
main()
"""
    code = code.replace("CONDITION", condition).replace("PLACE", place)
    arguments = [*RUN, "--epochs", "3"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert re.search(f"run/{name}: cannot be written: File too large", done.stderr)
    assert "Traceback" not in done.stderr
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt").epoch == 1
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


@pytest.fixture
def begun(tmp_path):
    """The folder of a run of one epoch."""
    config = configured(QUICK, {"epochs": 1, "limit_train": 100})
    train_network(digits_network(), "digits", tmp_path / "run", config)
    return tmp_path / "run", config


def test_a_run_is_not_overwritten(begun):
    folder, config = begun
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(SnnirError, match=r"found a run .* --resume goes on"):
        train_network(digits_network(), "digits", folder, config)
    assert {path: path.read_bytes() for path in before} == before


def test_resuming_another_run_is_refused(begun):
    folder, config = begun
    other = retarget(models.load("fashion_small"), ["input=1x8x8", "steps=3", "channels=4"])
    with pytest.raises(SnnirError, match="found a checkpoint of another genotype"):
        train_network(other, "digits", folder, config, resume=True)
    changed = configured(config, {"learning_rate": 0.2})
    with pytest.raises(SnnirError, match=r"found a run with learning_rate 0.1, expected .* 0.2"):
        train_network(digits_network(), "digits", folder, changed, resume=True)
    with pytest.raises(SnnirError, match=r"found no checkpoint.pt, expected a run to resume"):
        train_network(digits_network(), "digits", folder / "other", config, resume=True)


def test_damaged_and_hostile_checkpoints_are_refused(begun, tmp_path):
    folder, config = begun
    path = folder / "checkpoint.pt"
    whole = path.read_bytes()

    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    for content in (whole[: len(whole) // 2], b"", b"hello", b"a text", pickle.dumps(Hostile())):
        path.write_bytes(content)
        with pytest.raises(SnnirError, match="found a damaged or foreign file"):
            train_network(digits_network(), "digits", folder, config, resume=True)
    assert not (tmp_path / "owned").exists()
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(SnnirError, match="found another kind of file"):
        train_network(digits_network(), "digits", folder, config, resume=True)


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        (["steps=2"], {}, r"found samples of \[1, 8, 8\], expected \[1, 28, 28\]"),
        (["input=3x8x8"], {}, r"found samples of \[1, 8, 8\], expected \[3, 8, 8\]"),
        (["input=1x8x8", "classes=7"], {}, "found 10 classes, expected 7"),
        (["input=1x8x8"], {"batch_size": 5000}, "batch_size: found 5000, expected at most 600"),
        (["input=1x8x8"], {"validation": 1437}, "found 1437 training samples"),
    ],
)
def test_data_that_does_not_fit_the_network(tmp_path, settings, config, message):
    network = retarget(models.load("fashion_small"), settings)
    with pytest.raises(SnnirError, match=message):
        train_network(network, "digits", tmp_path / "run", configured(QUICK, config))
    assert not (tmp_path / "run").exists()


def test_a_stereo_network_needs_stereo_data(tmp_path):
    network = models.load("spikedhs_stereo")
    with pytest.raises(SnnirError, match="found data of kind frame, expected stereo"):
        train_network(network, "digits", tmp_path / "run", QUICK)


# --- several processes ------------------------------------------------------------------------

TWENTY_STEPS = """
import json, sys, torch
from pathlib import Path
from snnir.genotype import parse
from snnir.ir import build
from snnir.lower import SpikingModule
from snnir.passes import TRAINING, run_passes
from snnir.training import TrainingConfig, watch
from snnir.training.processes import joined_processes
from snnir.training.run import open_splits
from snnir.training.trainer import Trainer

torch.set_num_threads(1)
watch.PROBES_PER_EPOCH = 2
text = Path(sys.argv[1]).read_text()
graph = build(parse(text))
config = TrainingConfig(epochs=1, batch_size=9, learning_rate=0.1, limit_train=180, limit_test=46)
splits = open_splits(graph, "digits", config)
def threads():
    names = (x.read_text() for x in Path("/proc/self/task").glob("*/comm"))
    return [name for name in names if "gloo" in name]
module = SpikingModule(run_passes(TRAINING, graph).graph, seed=3).double()
losses = []
with joined_processes("cpu") as processes:
    def note(progress):
        losses.append(progress.loss * trainer.totals.count - sum(losses))
    trainer = Trainer(module, splits, config, Path(sys.argv[2]), processes, genotype=text,
                      data="digits", unread={}, show=note)
    record = next(trainer.run())
    if processes.first:
        rates = trainer.history[0].firing_rates
        statistics = {k: v.tolist() for k, v in module.state_dict().items() if "running" in k}
        weights = {k: v.flatten()[:5].tolist() for k, v in module.state_dict().items()}
        Path(sys.argv[2], "found.json").write_text(json.dumps(
            [losses, statistics, weights, rates, record.accuracy]))
    assert bool(threads()) == (processes.count > 1)
assert not threads(), "the process group's"
"""

PARALLEL = """snn 1
network parallel
input image: frame[1, 8, 8]
steps 2
cell c(a, b) {
  n0 = conv3x3(a) + conv3x3(b)
  n1 = conv3x3(a) + skip(b) : alif
}
backbone t(image) {
  stem conv3x3(6)
  layers channels=3 { c@0 c@1 }
}
head classify(t, classes=10)
auxiliary classify(t.layers[0], classes=10, weight=0.4)
"""


def test_two_processes_give_the_losses_of_one(tmp_path):
    """Global batch 9, so unequal shares, 20 steps, float64: losses, weights and batch statistics to
    1e-6. Of the 46 test samples the last batch has one, so one process has none."""
    (tmp_path / "network.snn").write_text(PARALLEL)
    (tmp_path / "steps.py").write_text(TWENTY_STEPS)
    found = []
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for count in ("1", "2"):
        folder = tmp_path / count
        folder.mkdir()
        done = subprocess.run(
            [*launch, count, "steps.py", "network.snn", str(folder)],
            cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(json.loads((folder / "found.json").read_text()))
    (losses, *_, rates, accuracy), (other_losses, *_, other_rates, other_accuracy) = found
    assert len(losses) == 20
    assert np.allclose(losses, other_losses, rtol=0, atol=1e-6)
    assert losses[-1] < losses[0]
    assert accuracy == other_accuracy
    assert all(0.01 < rate < 0.99 for rate in rates.values())
    assert rates == pytest.approx(other_rates, abs=1e-9)
    for one, other in zip(found[0][1:3], found[1][1:3], strict=True):
        for name, values in one.items():
            assert np.allclose(values, other[name], rtol=0, atol=1e-6), name


def test_torchrun_trains_from_the_command_line(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*launch, "2", "-m", "snnir", *RUN, "--epochs", "1", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 1
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1
    alone = train_network(
        digits_network(), "digits", tmp_path / "alone",
        TrainingConfig(epochs=1, batch_size=25, learning_rate=0.1, limit_train=500, limit_test=100),
    )  # fmt: skip
    together = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert together["train_loss"] == pytest.approx(alone.history[0].train_loss, rel=0.05)


def test_an_unknown_device_is_an_error(tmp_path):
    with pytest.raises(SnnirError, match="found device 'tpu'"):
        train_network(digits_network(), "digits", tmp_path / "run", QUICK, device="tpu")


# --- evaluation -------------------------------------------------------------------------------


def test_torch_and_onnxruntime_agree_on_accuracy_and_rates(trained, tmp_path):
    result, _ = trained
    weights = result.folder / "best.safetensors"
    snnir.compile(digits_network(), tmp_path / "out", weights=weights)
    network = digits_network()
    ours = evaluate_network(network, "digits", weights=weights)
    theirs = evaluate_network(network, "digits", model=tmp_path / "out" / "network.onnx")
    assert ours.accuracy > 0.85
    assert theirs.samples == ours.samples == 360
    assert abs(ours.accuracy - theirs.accuracy) <= 1.5 / 360  # one sample of 360 is 0.28 points
    assert theirs.firing_rates.keys() == ours.firing_rates.keys()
    assert theirs.firing_rates == pytest.approx(ours.firing_rates, abs=1e-3)


def write_recordings(folder: Path) -> None:
    """Two classes of recordings in N-MNIST's layout: most events are left, or right."""
    rng = np.random.default_rng(0)
    for part, count in (("Train", 30), ("Test", 12)):
        for label in range(2):
            (folder / part / str(label)).mkdir(parents=True)
            for number in range(count):
                x = rng.integers(0, 17, 300) + np.where(rng.random(300) < 0.8, 17 * label, 0)
                y, p = rng.integers(0, 34, 300), rng.integers(0, 2, 300)
                t = np.sort(rng.integers(0, 300_000, 300))
                events = [x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]
                content = np.stack(events, 1).astype(np.uint8).tobytes()
                (folder / part / str(label) / f"{number}.bin").write_bytes(content)


def test_events_train_and_export(tmp_path):
    write_recordings(tmp_path / "data")
    settings = ["input=events[2,34,34]", "classes=2", "steps=3", "channels=2"]
    network = retarget(models.load("fashion_small"), settings)
    data = f"n-mnist:{tmp_path / 'data'}"
    config = TrainingConfig(epochs=8, batch_size=10, learning_rate=0.05)
    result = train_network(network, data, tmp_path / "run", config)
    assert result.best.accuracy > 0.85
    assert min(result.best.firing_rates.values()) > 0.005
    weights = tmp_path / "run" / "best.safetensors"
    compiled = snnir.compile(network, tmp_path / "out", weights=weights)
    assert compiled.report["spike_pure"] is True
    ours = evaluate_network(network, data, weights=weights)
    theirs = evaluate_network(network, data, model=tmp_path / "out" / "network.onnx")
    assert abs(ours.accuracy - theirs.accuracy) <= 1.5 / 24
    assert theirs.firing_rates == pytest.approx(ours.firing_rates, abs=1e-3)


def test_models_that_cannot_be_evaluated(trained, tmp_path):
    result, _ = trained
    weights = result.folder / "best.safetensors"
    network = digits_network()
    with pytest.raises(SnnirError, match="found no such file, expected an ONNX model"):
        evaluate_network(network, "digits", model=tmp_path / "no.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(SnnirError, match="found no readable ONNX model"):
        evaluate_network(network, "digits", model=tmp_path / "bad.onnx")
    compiled = snnir.compile(network, tmp_path / "whole", weights=weights)
    hostile = onnx.ModelProto.FromString(compiled.model.SerializeToString())
    head = next(node for node in hostile.graph.node if node.output[0] == "head.linear")
    weight = next(x for x in hostile.graph.initializer if x.name in head.input[1:])
    shape = [n + 1 for n in weight.dims]
    weight.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), weight.name))
    onnx.save(hostile, tmp_path / "hostile.onnx")
    with pytest.raises(SnnirError, match=r"hostile\.onnx: found no readable ONNX model"):
        evaluate_network(network, "digits", model=tmp_path / "hostile.onnx")
    for key, value, message in (
        ("form", "loop", "found a model of another program"),
        ("form", "step", "found nothing for input 'trunk.stem.0.neuron.v', expected"),
        ("steps", "0", "found a model of another program"),
        ("steps", "9" * 5000, "found a model of another program"),
        ("no neuron", "", "found other inputs or neurons than network"),
    ):
        other = onnx.ModelProto.FromString(compiled.model.SerializeToString())
        for entry in other.metadata_props:
            entry.value = value if entry.key == key else entry.value
        if key == "no neuron":
            content = other.SerializeToString().replace(b"head.neuron", b"head.nobody")
            other = onnx.ModelProto.FromString(content)
        onnx.save(other, tmp_path / "other.onnx")
        with pytest.raises(SnnirError, match=f"other.onnx: {message}"):
            evaluate_network(network, "digits", model=tmp_path / "other.onnx")
    with pytest.raises(SnnirError, match="found device 'cuda', expected cpu"):
        evaluate_network(
            network, "digits", model=tmp_path / "whole" / "network.onnx", device="cuda"
        )
    with pytest.raises(SnnirError, match="found a model of another genotype"):
        evaluate_network(
            retarget(network, ["classes=12"]), "digits", model=tmp_path / "whole" / "network.onnx"
        )
    with pytest.raises(SnnirError, match="limit_test: found 0"):
        evaluate_network(network, "digits", weights=weights, limit_test=0)
    with pytest.raises(SnnirError, match="found neither weights nor a model"):
        evaluate_network(network, "digits")
    other = retarget(parse((GENOTYPES / "hybrid.snn").read_text()), ["input=1x8x8"])
    with pytest.raises(SnnirError, match="these are not weights of network 'hybrid'"):
        evaluate_network(other, "digits", weights=weights)


# --- the commands -----------------------------------------------------------------------------


def test_train_and_eval_as_typed(run, tmp_path):
    code, out, err = run(*RUN, "--epochs", "1", "--seed", "4", "--preset", "small", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["epochs"] == 1
    assert summary["chosen_on"] == "test"
    assert "accuracy" in err
    config = read_config(tmp_path / "run" / "config.toml", TrainingConfig())
    assert (config.seed, config.batch_size) == (4, 25)
    assert config.augmentation == PRESETS["small"].augmentation
    retargeted = tmp_path / "run" / "genotype.snn"
    weights = tmp_path / "run" / "best.safetensors"
    limits = ("--data", "digits", "--limit-test", "100", "--seed", "4")
    code, out, err = run("eval", retargeted, "--weights", weights, *limits, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["samples"] == 100
    assert found["accuracy"] == pytest.approx(summary["accuracy"], abs=0.02)
    assert 0.02 < found["firing_rate"] < 0.6
    assert found["runtime"] == "torch"
    code, out, err = run("compile", retargeted, "--weights", weights, "-o", "out")
    assert code == 0, err
    code, out, err = run("eval", retargeted, "--model", "out/network.onnx", *limits)
    assert code == 0, err
    assert re.match(r"accuracy \d+\.\d\d% of 100 samples, firing rate 0\.\d+, .*onnxruntime", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "fashion_small", "--data", "digit"), "found data set 'digit'"),
        (("train", "fashion_small", "--data", "cifar10:nowhere"), "found no folder nowhere"),
        ((*RUN, "--epochs", "0"), "epochs: found 0"),
        ((*RUN, "--batch-size", "-3"), "batch_size: found -3"),
        ((*RUN, "--preset", "cifra"), "did you mean 'cifar'"),
        ((*RUN, "--preset", "cifar", "--config", "x.toml"), "found --preset and --config"),
        ((*RUN, "--config", "x.toml"), "x.toml: found no readable TOML file"),
        ((*RUN, "--set", "classes=ten"), "--set classes=ten: found 'ten'"),
        ((*RUN, "--weights", "no.safetensors"), "no such weights file"),
        ((*RUN, "--resume"), "found no checkpoint.pt, expected a run to resume"),
        ((*RUN, "--device", "meta"), "found device 'meta', which cannot be used"),
        (("eval", "fashion_small", *SMALL, "--data", "digits"), "found neither weights nor"),
        (("eval", "fashion_small", "--data", "digits", "--model", "no.onnx"), "no such file"),
        (("train", "cifar_space", "--data", "digits"), "a search space"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(run, tmp_path, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_exits_with_1(run):
    code, _, err = run(*RUN, "--learning-rate", "1e30")
    assert code == 1
    assert "the last good checkpoint is run/checkpoint.pt" in err


def test_the_default_folder_does_not_hide_the_model_of_its_name(run, tmp_path):
    arguments = [a for a in RUN if a not in ("-o", "run")] + ["--epochs", "1"]
    code, _, err = run(*arguments)
    assert code == 0, err
    assert (tmp_path / "fashion_small" / "checkpoint.pt").exists()
    code, _, err = run(*arguments, "--resume")
    assert code == 0, err


# --- the box ----------------------------------------------------------------------------------


def test_the_trained_model_of_the_box_knows_fashion_mnist():
    """At least 90 % on the 10,000 test images (docs/training.md); here on the 1,000 in the box."""
    images, labels = models.fashion_mnist_sample()
    module = snnir.load("fashion_small").eval()
    with torch.no_grad():
        logits = module(torch.from_numpy(images))
    assert float((logits.argmax(1).numpy() == labels).mean()) >= 0.89
    path = models.trained_weights("fashion_small")
    assert path.stat().st_size < 2_000_000
    assert models.trained_weights("spikedhs_cla") is None


def test_the_box_compiles_with_its_trained_weights(run, tmp_path):
    code, _, err = run("compile", "fashion_small", "-o", "out")
    assert code == 0, err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["weights"]["source"] == "fashion_small.safetensors"
    assert report["spike_pure"] is True
    assert report["silent"] == []
