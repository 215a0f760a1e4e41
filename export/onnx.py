"""The folded graph as ONNX, built node by node with onnx's own helpers.

Tensors are named by node path. Stepped values are [T·N, …], so that convolutions run batched over
time; neurons are unrolled over T into Mul, Add, Greater and Cast.

Form "sequence": all T steps at once, from rest, batch free. Form "step": one step, the state going
in as `<path>.v` and coming out as `<path>.v.next` (ALIF also `.a`); start from zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatchmethod
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snnir import __version__
from snnir.export.refusal import ExportError, refuse
from snnir.ir import nodes as ir
from snnir.ir.estimator import STEPS_PER_UNIT, exponentials, interpolation_matrix
from snnir.ir.graph import Graph
from snnir.ir.types import Shape, Time
from snnir.weights import Weights, weights_hash

Form = Literal["sequence", "step"]

OPSET = 18
IR_VERSION = 10


def export_onnx(graph: Graph, weights: Weights, *, form: Form = "sequence") -> onnx.ModelProto:
    """Build a checked fp32 model from a deployed graph and its weights.

    Inputs: a frame [N, C, H, W]; events [T, N, C, H, W] (step form: [N, C, H, W]). Output: logits
    [N, classes], or disparity [T, N, H, W] (step form: [N, H, W]).

    Raises:
        ExportError: naming every node without an ONNX form.
    """
    refuse_inexpressible(graph)
    return checked(OnnxExporter(graph, weights, form).model())


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its shapes inferred; raises onnx's error for one that breaks its rules."""
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def refuse_inexpressible(graph: Graph) -> None:
    """Raise ExportError when `graph` has nodes that the exporter cannot write."""
    reasons: list[tuple[ir.Node, str]] = []
    for node in graph.nodes():
        reason = {
            ir.Mixed: "a search space is to be decoded first",
            ir.BatchNorm: "batch norm is to be folded first",
        }.get(type(node))
        if isinstance(node, ir.AdaptiveAveragePool) and set(node.size) != {1}:
            reason = f"adaptive pooling to {node.size}, only to size 1"
        if reason:
            reasons.append((node, reason))
    refuse(graph, "ONNX", reasons)


class OnnxExporter:
    def __init__(self, graph: Graph, weights: Weights, form: Form):
        self.graph = graph
        self.weights = weights
        self.form = form
        self.steps = graph.steps if form == "sequence" else 1
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        for node in self.graph.nodes():
            self.emit_node(node, [self.value(path) for path in self.graph.inputs(node.path)])
        graph = helper.make_graph(
            self.nodes, self.graph.name, self.inputs, self.outputs, list(self.initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="snnir",
            producer_version=__version__,
        )
        helper.set_model_props(
            model,
            {
                "genotype": self.graph.source.text if self.graph.source else "",
                "snnir_version": __version__,
                "weights_sha256": weights_hash(self.weights),
                "form": self.form,
                "steps": str(self.graph.steps),
            },
        )
        return model

    # --- helpers ----------------------------------------------------------------------------

    def value(self, path: str) -> str:
        """The tensor that holds a node's value, flat over time."""
        node = self.graph[path]
        flattened = isinstance(node, ir.Input) and node.kind == "events" and self.form == "sequence"
        return f"{path}.flat" if flattened else path

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, array: np.ndarray | np.generic, name: str | None = None) -> str:
        """An initializer; nameless ones (few values) are shared by value."""
        if name is None:
            values = "_".join(map(str, array.reshape(-1)))
            name = f"const.{array.dtype}.{'x'.join(map(str, array.shape))}.{values}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def scalar(self, value: float) -> str:
        return self.constant(np.float32(value).reshape(()))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def stacked_array(self, owners: Sequence[ir.Owner], kind: str) -> np.ndarray:
        return np.concatenate([self.weights[f"{owner.path}.{kind}"] for owner in owners])

    def stacked(self, owners: Sequence[ir.Owner], kind: str, path: str) -> str:
        array = self.stacked_array(owners, kind)
        return self.constant(array.astype(np.float32), f"{path}.{kind}")

    def window(self, node: ir.Conv) -> dict[str, Any]:
        """A convolution's attributes."""
        return {
            "kernel_shape": node.kernel,
            "strides": node.stride,
            "pads": node.padding * 2,
            "dilations": [node.dilation] * len(node.kernel),
            "group": node.groups,
        }

    def spikes(self, fired: str, out: str) -> str:
        """Numbers of the booleans that a comparison makes."""
        return self.op("Cast", [fired], out, to=TensorProto.FLOAT)

    def silent(self, fired: str, y: str, out: str) -> str:
        """1 - y, to multiply with."""
        return self.op("Sub", [self.scalar(1), y], out)

    def as_float(self, y: str, out: str) -> str:
        """Spikes, to add to."""
        return y

    def stepped(self, path: str) -> bool:
        return self.graph.type(path).time == Time.STEPPED

    def split(self, x: str, path: str, name: str) -> list[str]:
        """A value per step."""
        if not self.stepped(path) or self.steps == 1:
            return [x] * self.steps
        outputs = [f"{name}.{t}" for t in range(self.steps)]
        self.nodes.append(
            helper.make_node("Split", [x], outputs, name=name, axis=0, num_outputs=self.steps)
        )
        return outputs

    # --- nodes ------------------------------------------------------------------------------

    def emit_node(self, node: ir.Node, inputs: list[str]) -> None:
        self.emit(node, inputs)

    @singledispatchmethod
    def emit(self, node: ir.Node, inputs: list[str]) -> None:
        raise ExportError(f"{node.path} ({node.op}) cannot be exported to ONNX")

    @emit.register(ir.Input)
    def _input(self, node: ir.Input, inputs: list[str]) -> None:
        stepped = node.kind == "events" and self.form == "sequence"
        shape: list[str | int] = [*([self.steps] if stepped else []), "N", *node.shape]
        self.inputs.append(helper.make_tensor_value_info(node.path, TensorProto.FLOAT, shape))
        if stepped:
            self.op("Reshape", [node.path, self.integers(-1, *node.shape)], self.value(node.path))

    @emit.register(ir.Repeat)
    def _repeat(self, node: ir.Repeat, inputs: list[str]) -> None:
        self.op("Concat", inputs * self.steps, node.path, axis=0)

    @emit.register(ir.Identity)
    def _identity(self, node: ir.Identity, inputs: list[str]) -> None:
        self.op("Identity", inputs, node.path)

    @emit.register(ir.Conv)
    def _conv(self, node: ir.Conv, inputs: list[str]) -> None:
        parameters = [self.stacked(node.owners, "weight", node.path)]
        if node.bias:
            parameters.append(self.stacked(node.owners, "bias", node.path))
        self.op("Conv", [*inputs, *parameters], node.path, **self.window(node))

    @emit.register(ir.Linear)
    def _linear(self, node: ir.Linear, inputs: list[str]) -> None:
        parameters = [self.stacked(node.owners, "weight", node.path)]
        if node.bias:
            parameters.append(self.stacked(node.owners, "bias", node.path))
        self.op("Gemm", [*inputs, *parameters], node.path, transB=1)

    @emit.register(ir.Pool)
    def _pool(self, node: ir.Pool, inputs: list[str]) -> None:
        window = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding * 2}
        if node.kind == "max":
            self.op("MaxPool", inputs, node.path, **window)
        else:
            self.op("AveragePool", inputs, node.path, count_include_pad=1, **window)

    @emit.register(ir.AdaptiveAveragePool)
    def _global_average_pool(self, node: ir.AdaptiveAveragePool, inputs: list[str]) -> None:
        self.op("GlobalAveragePool", inputs, node.path)

    @emit.register(ir.Flatten)
    def _flatten(self, node: ir.Flatten, inputs: list[str]) -> None:
        self.op("Flatten", inputs, node.path, axis=1)

    @emit.register(ir.Resize)
    def _resize(self, node: ir.Resize, inputs: list[str]) -> None:
        """Slice for halving, Gather for other nearest sizes, MatMul for linear: Resize itself is
        off by a pixel between runtimes."""
        (x,) = inputs
        (shape,) = self.graph.input_shapes(node.path)
        changed = [
            (axis, old, new)
            for axis, (old, new) in enumerate(zip(shape[1:], node.size, strict=True), start=2)
            if old != new
        ]
        if node.grid is not None:
            x = self._product(x, 1.0, node.grid, f"{node.path}.given" if changed else node.path)
        for number, (axis, old, new) in enumerate(changed):
            out = node.path if number == len(changed) - 1 else f"{node.path}.axis{axis}"
            if node.mode == "linear":
                x = self._interpolate(x, axis, old, node, out)
            elif old == 2 * new:
                end = self.integers(old)
                x = self.op(
                    "Slice", [x, self.integers(0), end, self.integers(axis), self.integers(2)], out
                )
            else:
                index = self.constant(np.arange(new) * old // new, f"{node.path}.index{axis}")
                x = self.op("Gather", [x, index], out, axis=axis)
        if x != node.path:
            self.op("Identity", [x], node.path)

    def _interpolate(self, x: str, axis: int, old: int, node: ir.Resize, out: str) -> str:
        """Multiply one axis with the interpolation matrix [old, new]."""
        last = axis == len(node.size) + 1
        order = list(range(len(node.size) + 2))
        order[axis], order[-1] = order[-1], order[axis]
        matrix = interpolation_matrix(old, node.size[axis - 2], exact=node.grid is not None)
        moved = x if last else self.op("Transpose", [x], f"{out}.moved", perm=order)
        factor = self.constant(matrix, f"{node.path}.matrix{axis}")
        whole = last and node.grid is None
        x = self.op("MatMul", [moved, factor], out if whole else f"{out}.product")
        if node.grid is not None:
            x = self._product(x, 1.0, node.grid, out if last else f"{out}.on_grid")
        return x if last else self.op("Transpose", [x], out, perm=order)

    @emit.register(ir.Concat)
    def _concat(self, node: ir.Concat, inputs: list[str]) -> None:
        self.op("Concat", inputs, node.path, axis=1)

    @emit.register(ir.Add)
    def _add(self, node: ir.Add, inputs: list[str]) -> None:
        total = inputs[0]
        for number, x in enumerate(inputs[1:], start=1):
            out = node.path if number == len(inputs) - 1 else f"{node.path}.{number}"
            total = self.op("Add", [total, x], out)
        if len(inputs) == 1:
            self.op("Identity", inputs, node.path)

    @emit.register(ir.Slice)
    def _slice(self, node: ir.Slice, inputs: list[str]) -> None:
        bounds = [self.integers(node.start), self.integers(node.stop), self.integers(1)]
        self.op("Slice", [*inputs, *bounds], node.path)

    @emit.register(ir.Quantise)
    def _quantise(self, node: ir.Quantise, inputs: list[str]) -> None:
        scaled = self.op("Mul", [*inputs, self.scalar(node.scale)], f"{node.path}.scaled")
        rounded = self.op("Round", [scaled], f"{node.path}.rounded")
        self.op("Clip", [rounded, self.scalar(node.low), self.scalar(node.high)], node.path)

    @emit.register(ir.Neuron)
    def _neuron(self, node: ir.Neuron, inputs: list[str]) -> None:
        path = node.path
        if node.kind == "relu" and node.grid is not None:
            positive = self.op("Relu", inputs, f"{path}.positive")
            self._product(positive, 1.0, node.grid, path)
        elif node.kind == "relu":
            self.op("Relu", inputs, path)
        elif not node.states:
            fired = self.op("Greater", [*inputs, self.scalar(node.v_threshold)], f"{path}.fired")
            self.spikes(fired, path)
        else:
            self._recurrence(
                node, self.split(inputs[0], self.graph.inputs(path)[0], f"{path}.current")
            )

    def _recurrence(self, node: ir.Neuron, currents: list[str]) -> None:
        """u = leak·v + I; y = [u > threshold + beta·a]; v = u·(1 - y); a = tau_a·a + y."""
        path, adaptive = node.path, node.kind == "alif"
        state: dict[str, str | None] = dict.fromkeys(node.states)
        if self.form == "step":
            state = {name: f"{path}.{name}" for name in node.states}
            self.inputs += [self._state_info(node, f"{path}.{name}") for name in node.states]
        spikes = []
        for t, current in enumerate(currents):
            last = t == len(currents) - 1
            at = f"{path}.{t}"
            u, threshold = current, self.scalar(node.v_threshold)
            if state["v"]:
                kept = state["v"]
                if node.leak != 1:
                    kept = self._product(kept, node.leak, node.grid, f"{at}.leaked")
                u = self.op("Add", [kept, current], f"{at}.u")
            if adaptive and state["a"]:
                risen = self._product(state["a"], node.beta, node.grid, f"{at}.rise")
                threshold = self.op("Add", [risen, threshold], f"{at}.threshold")
            fired = self.op("Greater", [u, threshold], f"{at}.fired")
            y = path if len(currents) == 1 else f"{at}.spikes"
            spikes.append(self.spikes(fired, y))
            if last and self.form == "sequence":
                break
            silent = self.silent(fired, y, f"{at}.silent")
            step = self.form == "step"
            if adaptive:
                a = self.as_float(y, f"{at}.risen")
                if state["a"]:
                    decayed = self._product(state["a"], node.tau_a, node.grid, f"{at}.decayed")
                    a = self.op("Add", [decayed, a], f"{path}.a.next" if step else f"{at}.a")
                state["a"] = a
            state["v"] = self.op("Mul", [u, silent], f"{path}.v.next" if step else f"{at}.v")
        if len(currents) > 1:
            self.op("Concat", spikes, path, axis=0)
        if self.form == "step":
            self.outputs += [self._state_info(node, f"{path}.{name}.next") for name in node.states]

    def _product(self, x: str, factor: float, grid: int | None, out: str) -> str:
        """x times a factor, rounded to multiples of 2^grid."""
        if grid is None:
            return self.op("Mul", [x, self.scalar(factor)], out)
        scaled = self.op("Mul", [x, self.scalar(factor * 2.0**-grid)], f"{out}.scaled")
        rounded = self.op("Round", [scaled], f"{out}.rounded")
        return self.op("Mul", [rounded, self.scalar(2.0**grid)], out)

    def _state_info(self, node: ir.Neuron, name: str) -> onnx.ValueInfoProto:
        shape: list[str | int] = ["N", *self.graph.shape(node.path)]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    @emit.register(ir.MeanOverTime)
    def _mean_over_time(self, node: ir.MeanOverTime, inputs: list[str]) -> None:
        if not self.stepped(self.graph.inputs(node.path)[0]) or self.steps == 1:
            self.op("Identity", inputs, node.path)
            return
        shape = self.graph.shape(node.path)
        by_step = self.op(
            "Reshape", [*inputs, self.integers(self.steps, -1, *shape)], f"{node.path}.by_step"
        )
        self.op("ReduceMean", [by_step, self.integers(0)], node.path, keepdims=0)

    @emit.register(ir.CostVolume)
    def _cost_volume(self, node: ir.CostVolume, inputs: list[str]) -> None:
        left, right = inputs
        width = self.graph.shape(node.path)[-1]
        axis, depth = self.integers(3), self.integers(2)
        slices = []
        for d in range(node.slices):
            at = f"{node.path}.{d}"
            seen = self.op(
                "Slice", [left, self.integers(d), self.integers(width), axis], f"{at}.left"
            )
            other = self.op(
                "Slice", [right, self.integers(0), self.integers(width - d), axis], f"{at}.right"
            )
            pair = self.op("Concat", [seen, other], f"{at}.pair", axis=1)
            if d:
                padding = self.integers(0, 0, 0, d, 0, 0, 0, 0)
                pair = self.op("Pad", [pair, padding], f"{at}.padded")
            slices.append(self.op("Unsqueeze", [pair, depth], f"{at}.slice"))
        self.op("Concat", slices, node.path, axis=2)

    @emit.register(ir.SoftArgmin)
    def _soft_argmin(self, node: ir.SoftArgmin, inputs: list[str]) -> None:
        path, one = node.path, self.integers(1)
        depth = self.graph.input_shapes(path)[0][1]
        index = np.arange(depth, dtype=np.int64).reshape(1, -1, 1, 1)
        cost = self.op("Squeeze", [*inputs, one], f"{path}.cost")
        least = self.op("ReduceMin", [cost, one], f"{path}.least", keepdims=1)
        best = self.op("ArgMin", [cost], f"{path}.best", axis=1, keepdims=1)
        offset = self.op("Sub", [self.constant(index, f"{path}.index"), best], f"{path}.offset")
        distance = self.op("Abs", [offset], f"{path}.distance")
        near = self.op(
            "LessOrEqual", [distance, self.constant(np.int64(node.support))], f"{path}.near"
        )
        mask = self.op("Cast", [near], f"{path}.mask", to=TensorProto.FLOAT)
        excess = self.op("Sub", [least, cost], f"{path}.excess")
        exponential = f"{path}.exponential"
        if node.exact:
            self._whole_exponential(excess, exponential)
        else:
            self.op("Exp", [excess], exponential)
        weight = self.op("Mul", [exponential, mask], f"{path}.weight")
        disparity = self.constant((2 * index).astype(np.float32), f"{path}.disparities")
        weighted = self.op("Mul", [weight, disparity], f"{path}.weighted")
        numerator = self.op("ReduceSum", [weighted, one], f"{path}.numerator", keepdims=0)
        total = self.op("ReduceSum", [weight, one], f"{path}.total", keepdims=0)
        self.op("Div", [numerator, total], path)

    def _whole_exponential(self, x: str, out: str) -> None:
        """exp(x), x <= 0, from the table of exact mode."""
        table = exponentials()
        steps = self.op("Mul", [x, self.scalar(-STEPS_PER_UNIT)], f"{out}.steps")
        rounded = self.op("Round", [steps], f"{out}.rounded")
        known = self.op("Min", [rounded, self.scalar(len(table) - 1)], f"{out}.known")
        index = self.op("Cast", [known], f"{out}.index", to=TensorProto.INT64)
        self.op("Gather", [self.constant(table, f"{out}.table"), index], out, axis=0)

    @emit.register(ir.Output)
    def _output(self, node: ir.Output, inputs: list[str]) -> None:
        shape: Shape = self.graph.shape(node.path)
        stepped = self.stepped(self.graph.inputs(node.path)[0]) and self.form == "sequence"
        if stepped:
            self.op("Reshape", [*inputs, self.integers(self.steps, -1, *shape)], node.path)
        else:
            self.op("Identity", inputs, node.path)
        sizes: list[str | int] = [*([self.steps] if stepped else []), "N", *shape]
        self.outputs.insert(0, helper.make_tensor_value_info(node.path, TensorProto.FLOAT, sizes))
