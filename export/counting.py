"""Spikes counted inside an exported model: outputs that it gets for the purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snnir.analysis.firing import is_counted
from snnir.ir.graph import Graph
from snnir.ir.nodes import Input
from snnir.ir.types import Domain, Time

COUNTS = ".counts"
"""Suffix of the outputs that hold counts."""


def add_counters(model: onnx.ModelProto, graph: Graph) -> list[str]:
    """Give a model an output `PATH.counts` [T, C, H, W] for each node of the deployed `graph` that
    is to be counted: its non-zero values, summed over the batch. T = 1 for a static node and in
    step form. Returns the paths."""
    made = {name for node in model.graph.node for name in node.output}
    made |= {given.name for given in model.graph.input}
    paths = [n.path for n in graph.nodes() if is_counted(graph, n) and n.path in made]
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    form = {entry.key: entry.value for entry in model.metadata_props}["form"]
    for path in paths:
        stepped = graph.type(path).time == Time.STEPPED and form == "sequence"
        whole = types.get(path) == TensorProto.UINT8
        _add_counter(model.graph, graph, path, graph.steps if stepped else 1, whole=whole)
    return paths


def _add_counter(
    model: onnx.GraphProto, graph: Graph, path: str, steps: int, *, whole: bool
) -> None:
    """`whole`: the model has u8 spikes, which ReduceSum does not take."""

    def op(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        model.node.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(values: np.ndarray, name: str) -> str:
        model.initializer.append(numpy_helper.from_array(values, name))
        return name

    found, at = graph.type(path), f"{path}{COUNTS}"
    assert found.shape is not None
    x = path
    if isinstance(graph[path], Input) or found.domain != Domain.SPIKE:
        zero = constant(np.array(0, np.float32), f"{at}.zero")
        x = op("Not", [op("Equal", [x, zero], f"{at}.equal")], f"{at}.not")
        x = op("Cast", [x], f"{at}.cast", to=TensorProto.FLOAT)
    elif whole:
        x = op("Cast", [x], f"{at}.cast", to=TensorProto.FLOAT)
    sizes = constant(np.array([steps, -1, *found.shape], np.int64), f"{at}.sizes")
    by_step = op("Reshape", [x, sizes], f"{at}.by_step")
    batch = constant(np.array([1], np.int64), f"{at}.axis")
    op("ReduceSum", [by_step, batch], at, keepdims=0)
    shape = [steps, *found.shape]
    model.output.append(helper.make_tensor_value_info(at, TensorProto.FLOAT, shape))
