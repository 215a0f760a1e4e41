"""The runtime: whole sequences, streams, other batches, threads; without torch.

The models here compute exactly: weights, inputs and leaks lie on a grid so coarse that no fp32 sum
rounds (float64 agrees bit for bit), or were put on one by exact mode. So equality may be asked for
in whatever order a kernel sums.
"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import GridModels, assert_all_fire, genotype, record
from onnx import TensorProto, helper

import snnir
from snnir.errors import SnnirError
from snnir.lower import SpikingModule
from snnir.models import fashion_mnist_sample

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Models that take frames [N, 1, 8, 8], T = 4."""
    return GridModels(genotype("grid"), tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """The same network for events [T, N, 2, 8, 8]."""
    network = snnir.genotype.retarget(genotype("grid"), ["input=events[2, 8, 8]"])
    return GridModels(network, tmp_path_factory.mktemp("events"))


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    """Models that take two streams of events [T, N, 2, 8, 12], T = 3."""
    return GridModels(genotype("grid_stereo"), tmp_path_factory.mktemp("stereo"))


def plain_steps(path, inputs, steps):
    """Every step's output from rest, through onnxruntime alone."""
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    state = {
        i.name: np.zeros((inputs[0].shape[-4], *i.shape[1:]), np.float32)
        for i in session.get_inputs()
        if f"{i.name}.next" in names
    }
    outputs = []
    for t in range(steps):
        frames = [i.name for i in session.get_inputs() if f"{i.name}.next" not in names]
        fed = {n: x[t] if x.ndim == 5 else x for n, x in zip(frames, inputs, strict=True)}
        output, *after = session.run(names, fed | state)
        outputs.append(output)
        state = {name.removesuffix(".next"): x for name, x in zip(names[1:], after, strict=True)}
    assert any(x.any() for x in state.values())
    return np.stack(outputs)


# --- whole sequences ---------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["images", "events"])
def test_both_forms_give_torchs_logits(network, request):
    models = request.getfixturevalue(network)
    sequence = snnir.Runtime(models.paths["sequence"])
    step = snnir.Runtime(models.paths["step"])
    assert (sequence.form, step.form) == ("sequence", "step")
    assert sequence.steps == step.steps == 4
    by_step = [step.step(x[t] if x.ndim == 5 else x) for t in range(4) for x in models.inputs]
    plain = plain_steps(models.paths["step"], models.inputs, 4)
    assert np.array_equal(by_step, plain)
    assert len(np.unique(plain, axis=0)) > 1, "the steps say different things"
    for logits in (sequence.run(*models.inputs), step.run(*models.inputs), plain.mean(0)):
        assert logits.dtype == np.float32
        assert np.array_equal(logits, models.expected)
    assert len(np.unique(models.expected, axis=0)) == 5, "the samples differ"


def test_both_forms_of_an_exact_model_give_torchs_bits(tmp_path):
    """The trained network in exact mode: logits of a sequence, and of each of its steps."""
    frames = fashion_mnist_sample()[0][:24]
    for form in ("sequence", "step"):
        compiled = snnir.compile(
            "fashion_small", tmp_path / form, precision="exact", form=form, inputs=[frames]
        )
    sequence, step = (snnir.Runtime(tmp_path / f / "network.onnx") for f in ("sequence", "step"))
    module = SpikingModule(compiled.graph, compiled.folded_weights).eval()
    expected, spikes = record(module, torch.from_numpy(frames))
    assert spikes.keys() == {neuron.path for neuron in compiled.graph.neurons}
    assert_all_fire(spikes)
    by_step, state = [], None
    for _ in range(step.steps):
        with torch.no_grad():
            logits, state = module.step(torch.from_numpy(frames), state=state)
        by_step.append(step.step(frames))
        assert np.array_equal(by_step[-1], logits)
    assert len(np.unique(by_step, axis=0)) == step.steps == 4, "the steps say different things"
    for logits in (sequence.run(frames), step.run(frames), np.mean(by_step, 0)):
        assert np.array_equal(logits, expected)
    assert len(np.unique(expected, axis=0)) == len(frames), "the samples differ"


def test_both_forms_give_torchs_disparity(stereo):
    """Costs are exact; exp may round differently where kernels vectorise, twice in a quotient."""
    plain = plain_steps(stereo.paths["step"], stereo.inputs, 3)
    step = snnir.Runtime(stereo.paths["step"])
    by_step = np.stack([step.step(*(x[t] for x in stereo.inputs)) for t in range(3)])
    whole = [snnir.Runtime(path).run(*stereo.inputs) for path in stereo.paths.values()]
    for disparity in (plain, by_step, *whole):
        assert disparity.shape == stereo.expected.shape == (3, 5, 8, 12)
        np.testing.assert_allclose(disparity, stereo.expected, rtol=1e-6)
    assert np.ptp(stereo.expected) > 1


@pytest.mark.parametrize("form", ["sequence", "step"])
def test_any_batch_in_any_order(images, form):
    runtime = snnir.Runtime(images.paths[form])
    (x,) = images.inputs
    for chosen in ([0], [4, 3, 2, 1, 0], [1, 1], [0, 1, 2]):
        assert np.array_equal(runtime.run(x[chosen]), images.expected[chosen])


def test_frames_that_are_not_contiguous(images):
    (x,) = images.inputs
    turned = np.asfortranarray(x)
    assert not turned.flags.c_contiguous
    for path in images.paths.values():
        assert np.array_equal(snnir.Runtime(path).run(turned), images.expected)


# --- streams -----------------------------------------------------------------------------------


def test_a_stream_in_two_parts_is_one_stream(events):
    """Seven frames, with other work of the same Runtime in between."""
    x = np.concatenate([events.inputs[0], events.inputs[0][:3, ::-1]])
    runtime = snnir.Runtime(events.paths["step"])
    whole = runtime.run(x)
    parts = [runtime.step(frame) for frame in x[:3]]
    assert np.array_equal(runtime.run(events.inputs[0]), events.expected)
    parts += [runtime.step(frame) for frame in x[3:]]
    assert np.array_equal(np.mean(parts, 0), whole)
    assert np.array_equal(parts, plain_steps(events.paths["step"], [x], 7))


def test_reset_starts_from_rest(images):
    (x,) = images.inputs
    runtime = snnir.Runtime(images.paths["step"])
    first, second = runtime.step(x), runtime.step(x)
    assert not np.array_equal(first, second)
    runtime.reset()
    assert np.array_equal(runtime.step(x), first)
    assert np.array_equal(runtime.step(x), second)


def test_another_batch_size_starts_from_rest(images):
    (x,) = images.inputs
    runtime = snnir.Runtime(images.paths["step"])
    first = runtime.step(x)
    for size in (2, 5, 1):
        assert np.array_equal(runtime.step(x[:size]), first[:size])
    assert not np.array_equal(runtime.step(x[:1]), first[:1]), "the same size goes on"


def test_samples_of_a_batch_do_not_mix(images):
    (x,) = images.inputs
    together = snnir.Runtime(images.paths["step"])
    alone = [snnir.Runtime(images.paths["step"]) for _ in x]
    for _ in range(3):
        one_by_one = [runtime.step(x[[n]]) for n, runtime in enumerate(alone)]
        assert np.array_equal(together.step(x), np.concatenate(one_by_one))


# --- threads -----------------------------------------------------------------------------------


def test_streams_in_threads_do_not_disturb_each_other(events):
    (x,) = events.inputs
    streams = [x, x[:, ::-1]]
    expected = [plain_steps(events.paths["step"], [stream], 4) for stream in streams]

    def follow(stream):
        runtime = snnir.Runtime(events.paths["step"], threads=1)
        found = []
        for _ in range(25):
            runtime.reset()
            found.append([runtime.step(frame) for frame in stream])
        return found

    with ThreadPoolExecutor(2) as pool:
        for found, steps in zip(pool.map(follow, streams), expected, strict=True):
            assert all(np.array_equal(again, steps) for again in found)


def test_threads_may_share_a_runtime(images):
    """No step of 80 is lost, whoever takes it, and runs in between see nothing of them."""
    (x,) = images.inputs
    runtime = snnir.Runtime(images.paths["step"], threads=1)

    def work(number):
        return runtime.run(x) if number % 5 == 0 else runtime.step(x)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(100)))
    assert all(np.array_equal(logits, images.expected) for logits in found[::5])
    stepped = [logits for number, logits in enumerate(found) if number % 5]
    alone = plain_steps(images.paths["step"], [x], 80)
    assert sorted(y.tobytes() for y in stepped) == sorted(y.tobytes() for y in alone)


# --- what is wrong -----------------------------------------------------------------------------

X = np.zeros((2, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("form", "inputs", "message"),
    [
        ("sequence", [], "found 0 inputs, expected 1: image"),
        ("sequence", [X, X], "found 2 inputs, expected 1: image"),
        ("sequence", [X[0]], "'image': found shape [1, 8, 8], expected [N, 1, 8, 8]"),
        ("sequence", [X[:0]], "'image': found shape [0, 1, 8, 8], expected [N, 1, 8, 8]"),
        ("sequence", [X[None]], "found shape [1, 2, 1, 8, 8], expected [N, 1, 8, 8]"),
        ("sequence", [X.astype(np.float64)], "found float64, expected a float32 array"),
        ("step", [X.astype(np.uint8)], "'image': found uint8, expected a float32 array"),
        ("step", [X.tolist()], "'image': found list, expected a float32 array"),
        ("step", [X[..., :7]], "[2, 1, 8, 7], expected [N, 1, 8, 8] or [T, N, 1, 8, 8]"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused(images, form, inputs, message):
    with pytest.raises(SnnirError, match=re.escape(message)):
        snnir.Runtime(images.paths[form]).run(*inputs)


def test_views_must_agree_about_the_batch(stereo):
    left, right = stereo.inputs
    message = re.escape("'right': found shape [3, 4, 2, 8, 12], expected [3, 5, 2, 8, 12]")
    with pytest.raises(SnnirError, match=message):
        snnir.Runtime(stereo.paths["sequence"]).run(left, right[:, :4])
    step = snnir.Runtime(stereo.paths["step"])
    with pytest.raises(SnnirError, match=re.escape("or [3, 5, 2, 8, 12]")):
        step.run(left, right[:2])
    with pytest.raises(SnnirError, match=re.escape("expected [5, 2, 8, 12]")):
        step.step(left[0], right[0, :4])


def test_a_refused_step_keeps_the_state(images):
    (x,) = images.inputs
    runtime = snnir.Runtime(images.paths["step"])
    runtime.step(x)
    with pytest.raises(SnnirError, match=re.escape("expected [N, 1, 8, 8]")):
        runtime.step(x[None])
    assert np.array_equal(runtime.step(x), plain_steps(images.paths["step"], [x], 2)[1])


def test_a_sequence_model_takes_no_single_steps(images):
    with pytest.raises(SnnirError, match=r"sequence form, expected step form.*--form step"):
        snnir.Runtime(images.paths["sequence"]).step(*images.inputs)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(SnnirError, match=r"none\.onnx: cannot be read: No such file"):
        snnir.Runtime(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(SnnirError, match=r"text\.onnx: found no readable ONNX model"):
        snnir.Runtime(tmp_path / "text.onnx")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "other",
        [value("x", TensorProto.FLOAT, ["N"])],
        [value("y", TensorProto.FLOAT, ["N"])],
    )
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    with pytest.raises(SnnirError, match="found a model of another program"):
        snnir.Runtime(tmp_path / "other.onnx")


# --- without torch, without snnir --------------------------------------------------------------

WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "lark", "pydantic", "networkx", "typer"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Refuse())
import numpy as np
import snnir
sequence, step, x, out = sys.argv[1:]
x = np.load(x)
stream = snnir.Runtime(step)
np.savez(out, run=snnir.Runtime(sequence).run(x), steps=[stream.step(x) for _ in range(4)])
try:
    snnir.load("fashion_small")
except ModuleNotFoundError:
    print("refused")
"""


def test_numpy_and_onnxruntime_are_all_it_needs(images, tmp_path):
    np.save(tmp_path / "x.npy", images.inputs[0])
    files = [*images.paths.values(), tmp_path / "x.npy", tmp_path / "out.npz"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused\n"
    with np.load(tmp_path / "out.npz") as out:
        assert np.array_equal(out["run"], images.expected)
        assert np.array_equal(out["steps"].mean(0), images.expected)


def test_the_documented_python_does_what_it_says(images, tmp_path, monkeypatch):
    ours, plain = re.findall(r"```python\n(.*?)```", DEPLOY.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.onnx").write_bytes(images.paths["sequence"].read_bytes())
    (tmp_path / "step.onnx").write_bytes(images.paths["step"].read_bytes())
    (x,) = images.inputs
    names = {"frames": x, "frames_of_a_camera": [x[:1]] * 4}
    exec(ours, names)
    assert np.array_equal(names["stream"].step(x[:1]), plain_steps("step.onnx", [x[:1]], 1)[0])
    for code in (ours.split("stream =")[0], plain):
        names = {"frames": x}
        exec(code, names)
        assert np.array_equal(names["logits"], images.expected)
