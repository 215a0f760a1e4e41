"""A device beside the processor, as CUDA is: commands need nothing but its name."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import TESTS
from safetensors.numpy import load_file

TRAIN = (
    "train", "net.snn", "--data", "digits", "--epochs", "2", "--batch-size", "20",
    "--learning-rate", "0.1", "--limit-train", "120", "--limit-test", "60", "--out", "run",
)  # fmt: skip
CELLS = """snn 1
network {name}
input image: frame[1, 8, 8]
steps 2
cell normal(a, b) {{ {cell} }}
backbone trunk(image) {{ stem conv3x3(6) layers channels=3 {{ normal@0 normal@1 }} }}
head classify(trunk, classes=10)
auxiliary classify(trunk.layers[0], classes=10, weight=0.4)
"""
NETWORK = CELLS.format(
    name="small", cell="n0 = conv3x3(a) + skip(b)  n1 = conv3x3(b) + conv3x3(n0) : alif"
)
SPACE = CELLS.format(
    name="space",
    cell="search nodes=2 keep=2 mix=membrane { conv3x3(b=3) | conv3x3(b=5) | skip }",
)
SEARCH = (
    "--data", "digits", "--epochs", "2", "--warmup-epochs", "1", "--batch-size", "20",
    "--learning-rate", "0.1", "--limit-train", "120", "--out", "run",
)  # fmt: skip
TUNE = ("tune", "net.snn", *SEARCH, "--limit-test", "60", "--iterations", "2", "--interval", "1")
SECOND = "elsewhere"


def python(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_both(folder: Path, *command: str, launch: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """The command on the processor and on the second device: the folders it ran in, which get a
    file of what it printed."""
    folders = folder / "cpu", folder / SECOND
    for place in folders:
        place.mkdir(exist_ok=True)
        (place / "net.snn").write_text(NETWORK)
        (place / "space.snn").write_text(SPACE)
        runner = str(TESTS / "elsewhere.py")
        printed = python(place, *launch, runner, *command, "--device", place.name)
        (place / "printed").write_text(printed)
    return folders


def assert_equal_runs(folders: tuple[Path, Path], name: str) -> None:
    logs = [
        [json.loads(x) for x in (f / "run/log.jsonl").read_text().splitlines()] for f in folders
    ]
    assert len(logs[0]) == len(logs[1]) == 2
    for one, other in zip(*logs, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
        assert other["firing_rates"] == pytest.approx(one["firing_rates"], abs=1e-5)
        assert 0.01 < one["firing_rate"] < 0.99
    one, other = (load_file(f / "run" / name) for f in folders)
    assert one.keys() == other.keys()
    for key, values in one.items():
        assert np.allclose(values, other[key], rtol=1e-4, atol=1e-5), key


def assert_equal_genotypes(folders: tuple[Path, Path]) -> None:
    one, other = ((folder / "run/genotype.snn").read_text() for folder in folders)
    assert one == other


APART = """
import torch
from elsewhere import elsewhere
with elsewhere():
    x = torch.ones(2, 3, device="elsewhere", requires_grad=True)
    (3 * x * torch.tensor(2.0)).sum().backward()
    assert x.grad.device.type == "elsewhere" and x.grad.cpu().tolist() == 2 * [3 * [6.0]]
    for mixed in (lambda: x + torch.ones(3), lambda: x.detach().numpy()):
        try:
            mixed()
        except (RuntimeError, TypeError) as error:
            print(error)
"""


def test_the_second_device_is_one(tmp_path):
    """Else all of this would pass whatever the code does: mixing fails there, and is said."""
    found = python(TESTS, "-c", APART).splitlines()
    assert found == [
        "aten.add.Tensor: found tensors on elsewhere and on cpu",
        "found a tensor on elsewhere, expected one on the processor",
    ]


STEPS = """
import json, sys, torch
from contextlib import nullcontext
from elsewhere import elsewhere
from helpers import as_float64, assert_all_fire, calibrated, record
from snnir.lower import SpikingModule
from snnir.passes import TRAINING, run_passes

name, device = sys.argv[1:]
graph, weights, inputs = calibrated(name)
graph = run_passes(TRAINING, graph).graph
with elsewhere() if device == "elsewhere" else nullcontext():
    module = SpikingModule(graph, as_float64(weights)).to(device)
    given = [torch.from_numpy(x).double().to(device) for x in inputs]
    optimizer = torch.optim.SGD(module.parameters(), 0.01, 0.9, fused=True)
    found = []
    for _ in range(3):
        output, auxiliary = module(*given), []
        if isinstance(output, tuple):
            output, auxiliary = output
        loss = sum(x.square().mean() for x in (output, *auxiliary))
        optimizer.zero_grad()
        loss.backward()
        found.append([loss.item(), *(p.grad.norm().item() for p in module.parameters()
                                     if p.grad is not None)])
        optimizer.step()
    output, spikes = record(module.eval(), *given)
    spikes = {path: x.cpu() for path, x in spikes.items()}
    assert_all_fire(spikes, least=0.001)
    state = None
    for _ in range(2):
        stepped, state = module.step(*(x[0] if x.dim() == 5 else x for x in given), state=state)
rates = [x.mean().item() for x in spikes.values()]
print(json.dumps([found, output.flatten().tolist(), stepped.flatten().tolist(), rates]))
"""


@pytest.mark.parametrize("name", ["menu", "small_stereo", "small_space"])
def test_steps_are_the_processors(name):
    """float64, all operations of the language: losses, the norm of every gradient, spikes."""
    found = [json.loads(python(TESTS, "-c", STEPS, name, where)) for where in ("cpu", SECOND)]
    for ours, theirs in zip(*found, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    steps, output, stepped, rates = found[0]
    assert np.ptp([loss for loss, *_ in steps]) > 0
    assert np.ptp(output) > 0 < np.ptp(stepped)
    assert rates == found[1][-1]


def test_train_and_evaluate(tmp_path):
    assert_equal_runs(on_both(tmp_path, *TRAIN), "best.safetensors")
    weights = ("--weights", "run/best.safetensors")
    evaluation = ("eval", "net.snn", *weights, "--data", "digits", "--limit-test", "60", "--json")
    found = [json.loads((f / "printed").read_text()) for f in on_both(tmp_path, *evaluation)]
    assert 0.01 < found[0]["firing_rate"] < 0.99
    for key in ("accuracy", "firing_rate", "samples"):
        assert found[1][key] == pytest.approx(found[0][key], abs=1e-5), key


def test_a_run_goes_on_where_it_was_interrupted(tmp_path):
    """Begun on the second device, it ends there, and on the processor just so."""
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "net.snn").write_text(NETWORK)
    command = [sys.executable, TESTS / "elsewhere.py", *TRAIN]
    process = subprocess.Popen([*command, "--device", SECOND], cwd=begun, stderr=subprocess.PIPE)
    log = begun / "run/log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    for name in ("cpu", SECOND):
        shutil.copytree(begun, tmp_path / name)
    assert_equal_runs(on_both(tmp_path, *TRAIN, "--resume"), "last.safetensors")


def test_two_processes(tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert_equal_runs(on_both(tmp_path, *TRAIN, launch=launch), "last.safetensors")


def test_search(tmp_path):
    folders = on_both(tmp_path, "search", "space.snn", *SEARCH)
    assert_equal_runs(folders, "last.safetensors")
    assert_equal_genotypes(folders)


@pytest.mark.parametrize("method", ["dgs", "tps", "hns"])
def test_tune(tmp_path, method):
    folders = on_both(tmp_path, *TUNE, "--method", method, "--retrain-epochs", "1")
    assert_equal_runs(folders, "last.safetensors")
    assert_equal_genotypes(folders)
    assert "annotate {" in (folders[0] / "run/genotype.snn").read_text()
