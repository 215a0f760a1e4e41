"""ONNX export: valid, plain, named by path, the same spikes; and a proof that can fail."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import calibrated, genotype
from onnx import numpy_helper

from snnir.export.folding import check_folding
from snnir.export.onnx import ExportError, export_onnx
from snnir.export.parity import check_parity, session
from snnir.genotype import parse
from snnir.ir import build
from snnir.ir.estimator import interpolation_matrix
from snnir.lower import SpikingModule
from snnir.passes import ANALYSIS, DEPLOYMENT, run_passes

NETWORKS = ("hybrid", "menu", "spikes", "small_stereo")
FORMS = ("sequence", "step")


def deployed(name):
    graph, weights, inputs = calibrated(name)
    return run_passes(DEPLOYMENT, graph, weights), inputs


def exported(name, form="sequence"):
    result, inputs = deployed(name)
    return export_onnx(result.graph, result.weights, form=form), result, inputs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_models_are_valid_and_plain(name, form):
    model, _, _ = exported(name, form)
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Where", "Resize", "If", "Loop", "Scan"}
    assert {"Conv", "Greater", "Cast"} <= kinds
    names = [name for node in model.graph.node for name in node.output]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_parity_layer_by_layer(name, form):
    model, result, inputs = exported(name, form)
    parity = check_parity(model, result.graph, result.weights, inputs, form=form)
    assert parity.passed, parity.failures
    assert parity.samples == 3
    assert parity.spikes_compared > 1000
    for layer in parity.layers:
        assert 0.005 < layer.firing_rate < 0.995, layer
        assert layer.neuron_errors == 0
    assert parity.end_to_end_max_abs_diff < 1e-3 or name == "small_stereo"


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_is_exact_in_float64(name):
    graph, weights, inputs = calibrated(name)
    folding = check_folding(graph, weights, inputs)
    assert folding.passed
    assert folding.spikes_compared > 1000


# --- the proof can fail -----------------------------------------------------------------------


def corrupt_weight(model, name, factor=1.05):
    for initializer in model.graph.initializer:
        if initializer.name == name:
            array = numpy_helper.to_array(initializer).copy()
            array.flat[array.size // 2] *= factor
            initializer.CopyFrom(numpy_helper.from_array(array, name))
            return
    raise AssertionError(f"no initializer {name}")


def corrupt_constant(model, prefix, factor):
    """A neuron's scalar, for one neuron only."""
    for node in model.graph.node:
        if node.name.startswith(prefix):
            for slot, name in enumerate(node.input):
                if name.startswith("const.float32"):
                    original = next(i for i in model.graph.initializer if i.name == name)
                    value = numpy_helper.to_array(original) * np.float32(factor)
                    model.graph.initializer.append(
                        numpy_helper.from_array(value.astype(np.float32), f"{name}.corrupted")
                    )
                    node.input[slot] = f"{name}.corrupted"
                    return
    raise AssertionError(f"no constant under {prefix}")


def swap_operator(model, name, operator):
    node = next(n for n in model.graph.node if n.name == name)
    node.op_type = operator


CORRUPTIONS = {
    "a deep weight": lambda m: corrupt_weight(m, "trunk.layers.2.n1.prev+n0.conv.weight"),
    "a bias": lambda m: corrupt_weight(m, "trunk.layers.1.n1.prev.conv.bias"),
    "the readout": lambda m: corrupt_weight(m, "head.linear.weight"),
    "a leak": lambda m: corrupt_constant(m, "trunk.layers.0.n0.neuron.1.leaked", 1.1),
    "a threshold": lambda m: corrupt_constant(m, "trunk.layers.1.n0.neuron.2.fired", 1.02),
    "ALIF's rise": lambda m: corrupt_constant(m, "trunk.layers.0.n1.neuron.2.rise", 1.5),
    "the reset": lambda m: swap_operator(m, "trunk.layers.1.n0.neuron.0.silent", "Add"),
    "the comparison": lambda m: swap_operator(m, "trunk.stem.0.neuron.3.fired", "Less"),
    "a relu": lambda m: swap_operator(m, "trunk.layers.2.n1.neuron", "Identity"),
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_a_corrupted_export_is_caught(what):
    model, result, inputs = exported("hybrid")
    CORRUPTIONS[what](model)
    parity = check_parity(model, result.graph, result.weights, inputs, form="sequence")
    assert not parity.passed


def test_a_corrupted_step_model_is_caught():
    model, result, inputs = exported("hybrid", "step")
    corrupt_constant(model, "trunk.layers.0.n0.neuron.0.leaked", 1.1)
    parity = check_parity(model, result.graph, result.weights, inputs, form="step")
    assert [layer.path for layer in parity.failures] == ["trunk.layers.0.n0.neuron"]


def test_a_smaller_corruption_than_a_percent_is_caught():
    model, result, inputs = exported("hybrid")
    corrupt_weight(model, "trunk.layers.2.n1.prev+n0.conv.weight", factor=1.002)
    assert not check_parity(model, result.graph, result.weights, inputs, form="sequence").passed


def test_rounding_alone_is_not_a_failure():
    """Weights moved by one unit in the last place stay within rounding."""
    model, result, inputs = exported("hybrid")
    for initializer in model.graph.initializer:
        if initializer.name.endswith("conv.weight"):
            array = numpy_helper.to_array(initializer)
            moved = np.nextafter(array, np.float32(np.inf), dtype=np.float32)
            initializer.CopyFrom(numpy_helper.from_array(moved, initializer.name))
    parity = check_parity(model, result.graph, result.weights, inputs, form="sequence")
    assert parity.passed, parity.failures
    assert parity.max_abs_diff > 0


def test_a_wrong_fold_is_caught(monkeypatch):
    from snnir.passes import fold_batch_norm

    graph, weights, inputs = calibrated("hybrid")
    right = fold_batch_norm._scale_and_shift

    def wrong(path, eps, weights):
        scale, shift = right(path, eps, weights)
        return scale, shift + 0.01 * (path == "trunk.layers.1.n0.prev.bn")

    monkeypatch.setattr(fold_batch_norm, "_scale_and_shift", wrong)
    assert not check_folding(graph, weights, inputs).passed


# --- forms, names, metadata -------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_free(batch):
    model, result, _ = exported("hybrid")
    run = session(model)
    x = np.random.default_rng(0).random((batch, 1, 28, 28), dtype=np.float32)
    (logits,) = run.run(None, {"image": x})
    with torch.no_grad():
        expected = SpikingModule(result.graph, result.weights).eval()(torch.from_numpy(x))
    assert logits.shape == (batch, 10)
    np.testing.assert_allclose(logits, expected.numpy(), atol=0.2)
    assert (logits.argmax(1) == expected.numpy().argmax(1)).mean() > 0.5


def test_inputs_and_outputs_are_named_by_path():
    sequence, _, _ = exported("hybrid")
    assert [i.name for i in sequence.graph.input] == ["image"]
    assert [o.name for o in sequence.graph.output] == ["logits"]
    step, _, _ = exported("hybrid", "step")
    inputs = [i.name for i in step.graph.input]
    outputs = [o.name for o in step.graph.output]
    assert outputs[0] == "logits"
    assert "trunk.layers.0.n1.neuron.v" in inputs
    assert "trunk.layers.0.n1.neuron.a" in inputs
    assert set(outputs[1:]) == {f"{name}.next" for name in inputs[1:]}
    assert "trunk.layers.2.n1.neuron" not in {name.rsplit(".", 1)[0] for name in inputs}
    made = {name for node in sequence.graph.node for name in node.output}
    assert {"trunk.stem.0.conv", "trunk.layers.0.concat", "head.linear"} <= made


def test_step_form_keeps_state_over_a_stream():
    """Step by step in onnxruntime equals the sequence model on the same events."""
    sequence, result, inputs = exported("small_stereo")
    step = session(exported("small_stereo", "step")[0])
    (expected,) = session(sequence).run(None, dict(zip(("left", "right"), inputs, strict=True)))
    state = {
        i.name: np.zeros((3, *i.shape[1:]), np.float32)
        for i in step.get_inputs()
        if i.name not in ("left", "right")
    }
    names = [o.name for o in step.get_outputs()]
    for t in range(result.graph.steps):
        got = dict(
            zip(
                names,
                step.run(None, {"left": inputs[0][t], "right": inputs[1][t]} | state),
                strict=True,
            )
        )
        np.testing.assert_allclose(got["disparity"], expected[t], atol=1e-4)
        state = {name: got[f"{name}.next"] for name in state}
    assert any(np.abs(value).max() > 0.1 for value in state.values())


def test_metadata():
    model, result, _ = exported("hybrid")
    metadata = {p.key: p.value for p in model.metadata_props}
    assert parse(metadata["genotype"]) == genotype("hybrid")
    assert metadata["form"] == "sequence"
    assert metadata["steps"] == "4"
    assert len(metadata["weights_sha256"]) == 64
    changed = {k: v + (k == "head.linear.bias") for k, v in result.weights.items()}
    other = export_onnx(result.graph, {k: np.asarray(v, np.float32) for k, v in changed.items()})
    assert {p.key: p.value for p in other.metadata_props}["weights_sha256"] != metadata[
        "weights_sha256"
    ]


def test_export_is_deterministic():
    assert exported("menu")[0].SerializeToString() == exported("menu")[0].SerializeToString()


def test_initializers_carry_the_folded_weights():
    model, result, _ = exported("hybrid")
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    weight = stored["trunk.stem.0.conv.weight"]
    assert np.array_equal(weight, result.weights["trunk.stem.0.conv.weight"])


def test_what_cannot_be_exported_is_named_before_anything_is_written():
    space = run_passes(DEPLOYMENT, build(genotype("cifar_space"))).graph
    with pytest.raises(
        ExportError, match=r"trunk\.layers\.0\.n0\.prev_prev\.mixed \(mixed\)"
    ) as caught:
        export_onnx(space, {})
    assert "cifar_space.snn" in str(caught.value)
    assert "more" in str(caught.value)
    with pytest.raises(ExportError, match="batch norm is to be folded first"):
        export_onnx(run_passes(ANALYSIS, build(genotype("hybrid"))).graph, {})


@pytest.mark.parametrize(("old", "new"), [(3, 7), (21, 32), (8, 4), (5, 5), (1, 4)])
def test_interpolation_matrix_is_torchs_interpolation(old, new):
    x = torch.rand(1, 1, old, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(x, size=new, mode="linear")
    found = x @ torch.from_numpy(interpolation_matrix(old, new)).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_onnxruntime_needs_no_snnir(tmp_path):
    model, _, inputs = exported("hybrid")
    path = tmp_path / "network.onnx"
    path.write_bytes(model.SerializeToString())
    run = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert run.run(["logits"], {"image": inputs[0]})[0].shape == (3, 10)
