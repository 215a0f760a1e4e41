"""The folded graph as NIR, the neuromorphic intermediate representation (Pedersen et al. 2024).

One NIR node per node of the graph, named by its path; sums are several edges into one node, and
steps do not exist: a client shows a frame at every step and takes the mean of what comes out.

A neuron (method §1) is a `CubaLIF` whose synapse forgets at once; in steps of dt = 1e-4 s,

    tau_syn = dt, w_in = 1:                   I[t] = the weighted sum
    tau_mem = dt/(1 - tau), r = 1/(1 - tau):  v[t] = tau·v[t-1] + I[t]

and `if`, which forgets nothing, is an `IF` with r = 1/dt.
"""

from __future__ import annotations

import io
from functools import singledispatchmethod
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from snnir import __version__
from snnir.errors import SnnirError
from snnir.export.refusal import refuse
from snnir.ir import nodes as ir
from snnir.ir.graph import Graph
from snnir.weights import Weights, weights_hash

if TYPE_CHECKING:
    import nir

Client = Literal["spikingjelly", "snntorch", "norse", "any"]
"""Who runs the file; any: no membrane can be exactly at its threshold (exact mode)."""

FIRES_AT_THRESHOLD: Final = ("spikingjelly",)
"""Clients whose neurons fire at u >= threshold; the others' do at u > threshold, as ours."""

DT = 1e-4
"""Seconds a step: what SpikingJelly and snnTorch assume, and what Norse is to be told."""


def export_nir(graph: Graph, weights: Weights, *, client: Client = "spikingjelly") -> nir.NIRGraph:
    """Build a type-checked NIR graph from a graph of `NIR_DEPLOYMENT` and its weights.

    Input: [N, C, H, W], once per step. Output: what the network takes the mean of over the steps,
    [N, classes] per step. For a client that fires at the threshold, thresholds are one fp32 number
    up; such a file differs in the other clients only for a membrane that is exactly that number.

    Raises:
        ExportError: naming every node without a NIR form.
        SnnirError: without the package `nir`.
    """
    refuse_inexpressible(graph)
    return _Exporter(graph, weights, client).graph_of_nodes()


def nir_bytes(graph: nir.NIRGraph) -> bytes:
    """The content of the graph's HDF5 file; the same graph gives the same bytes."""
    file = io.BytesIO()
    nir_package().write(file, graph)
    return file.getvalue()


def nir_package() -> ModuleType:
    """The package `nir`. Raises SnnirError where it is not installed."""
    try:
        import nir
    except ImportError:
        raise missing_package("nir") from None
    return nir


def missing_package(name: str) -> SnnirError:
    """What to say where a package of the extra `nir` is not installed."""
    return SnnirError(f"found no package '{name}', expected it: pip install 'snnir[nir]'")


def refuse_inexpressible(graph: Graph) -> None:
    """Raise ExportError when `graph` has nodes that NIR, or each of its clients, cannot say."""
    taken: dict[str, str] = {}
    reasons = []
    for node in graph.nodes():
        reason = _reason(graph, node)
        namesake = taken.setdefault(node.path.replace(".", "_"), node.path)
        if namesake != node.path:
            reason = reason or f"its name and '{namesake}' are one to clients, who write _ for ."
        if reason:
            reasons.append((node, reason))
    refuse(graph, "NIR", reasons)


def _reason(graph: Graph, node: ir.Node) -> str:
    """Why a node cannot be exported; nothing if it can."""
    shapes = graph.input_shapes(node.path)
    match node:
        case ir.Mixed():
            return "a search space is to be decoded first"
        case ir.BatchNorm():
            return "batch norm is to be folded first"
        case ir.Input() if node != graph.network_inputs[0]:
            return "one input only"
        case ir.Neuron(kind="alif" | "relu" as kind):
            return f"no neuron '{kind}', only lif, if and binary"
        case ir.Resize(size=size, mode=mode):
            return (
                f"{mode} resizing from {shapes[0][1:]} to {size}, only nearest by a whole factor, "
                "down, before convolutions"
            )
        case ir.Concat():
            readers = ", ".join(graph[path].op for path in graph.consumers(node.path))
            return f"a concatenation read by {readers}, only by layers that sum over it"
        case ir.Pool(kind="max"):
            return "max pooling"
        case ir.Pool() if any(node.padding):
            return "average pooling with padding"
        case ir.AdaptiveAveragePool(size=size) if set(size) != {1}:
            return f"adaptive pooling to {size}, only to size 1"
        case ir.Conv() | ir.Pool() | ir.AdaptiveAveragePool() if len(shapes[0]) != 3:
            return f"{len(shapes[0]) - 1} spatial dimensions, only 2"
        case ir.Conv(kernel=kernel) if len(set(kernel)) > 1:
            return f"a kernel of {kernel}, only square ones"
        case ir.Conv(groups=groups) if groups > 1:
            return "groups are to be expanded first"
        case ir.MeanOverTime() if not _feeds_outputs(graph, node):
            return "a mean over time that more than the output reads"
    if not isinstance(node, _SAID + _UNSAID):
        return "no such node"
    sources = _sources(graph, node.path)
    return "" if len(set(sources)) == len(sources) else "the same value summed twice"


def _feeds_outputs(graph: Graph, node: ir.Node) -> bool:
    return all(isinstance(graph[path], ir.Output) for path in graph.consumers(node.path))


_SAID = (
    ir.Input, ir.Conv, ir.Linear, ir.Pool, ir.AdaptiveAveragePool, ir.Flatten, ir.Neuron, ir.Output,
)  # fmt: skip

_UNSAID = (ir.Add, ir.Identity, ir.MeanOverTime, ir.Quantise, ir.Repeat)
"""Nodes that edges or the client stand for: it also shows images as whole numbers."""


def _sources(graph: Graph, path: str) -> list[str]:
    """What a node reads in NIR, sums as several."""
    found = []
    for source in graph.inputs(path):
        found += _sources(graph, source) if isinstance(graph[source], _UNSAID) else [source]
    return found


class _Exporter:
    def __init__(self, graph: Graph, weights: Weights, client: Client):
        self.graph = graph
        self.weights = weights
        self.client = client
        self.nir = nir_package()

    def graph_of_nodes(self) -> nir.NIRGraph:
        said = [node for node in self.graph.nodes() if not isinstance(node, _UNSAID)]
        nodes = {node.path: self.node(node) for node in said}
        edges = [(source, n.path) for n in said for source in _sources(self.graph, n.path)]
        for output in self.graph.outputs:
            summed = [edge for edge in edges if edge[1] == output.path]
            if len(summed) > 1:  # clients do not sum edges into an output
                path = f"{output.path}.sum"
                nodes[path] = self.identity(self.graph.shape(output.path)[0])
                edges = [(a, path if b == output.path else b) for a, b in edges]
                edges.append((path, output.path))
        return self.nir.NIRGraph(nodes, edges, metadata=self.metadata())

    def metadata(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "genotype": self.graph.source.text if self.graph.source else "",
            "snnir_version": __version__,
            "steps": self.graph.steps,
            "weights_sha256": weights_hash(self.weights),
        }

    def stacked(self, node: ir.WeightLayer, name: str) -> np.ndarray:
        return np.concatenate([self.weights[f"{owner.path}.{name}"] for owner in node.owners])

    def weight_and_bias(self, node: ir.WeightLayer) -> dict[str, np.ndarray]:
        """Clients want a bias in every layer."""
        weight = self.stacked(node, "weight")
        bias = self.stacked(node, "bias") if node.bias else np.zeros(len(weight), weight.dtype)
        return {"weight": weight, "bias": bias}

    def identity(self, size: int) -> nir.Affine:
        weight = np.eye(size, dtype=np.float32)
        return self.nir.Affine(weight=weight, bias=np.zeros(size, np.float32))

    @singledispatchmethod
    def node(self, node: ir.Node) -> nir.NIRNode:
        raise TypeError(f"{node.path}: no NIR form of {node.op}")

    @node.register(ir.Input)
    def _input(self, node: ir.Input) -> nir.NIRNode:
        return self.nir.Input(np.array(node.shape))

    @node.register(ir.Output)
    def _output(self, node: ir.Output) -> nir.NIRNode:
        return self.nir.Output(np.array(self.graph.shape(node.path)))

    @node.register(ir.Conv)
    def _conv(self, node: ir.Conv) -> nir.NIRNode:
        (shape,) = self.graph.input_shapes(node.path)
        return self.nir.Conv2d(
            input_shape=shape[1:], stride=node.stride, padding=node.padding,
            dilation=(node.dilation,) * 2, groups=1, **self.weight_and_bias(node),
        )  # fmt: skip

    @node.register(ir.Linear)
    def _linear(self, node: ir.Linear) -> nir.NIRNode:
        return self.nir.Affine(**self.weight_and_bias(node))

    @node.register(ir.Pool)
    def _pool(self, node: ir.Pool) -> nir.NIRNode:
        return self.average_pool(node.kernel, node.stride)

    @node.register(ir.AdaptiveAveragePool)
    def _global_average_pool(self, node: ir.AdaptiveAveragePool) -> nir.NIRNode:
        (shape,) = self.graph.input_shapes(node.path)
        return self.average_pool(shape[1:], shape[1:])

    def average_pool(self, kernel: ir.Sizes, stride: ir.Sizes) -> nir.NIRNode:
        return self.nir.AvgPool2d(
            kernel_size=np.array(kernel), stride=np.array(stride), padding=np.zeros(2, int)
        )

    @node.register(ir.Flatten)
    def _flatten(self, node: ir.Flatten) -> nir.NIRNode:
        """Counted from the end, which holds with and without a batch in front."""
        (shape,) = self.graph.input_shapes(node.path)
        return self.nir.Flatten(np.array(shape), start_dim=-len(shape), end_dim=-1)

    @node.register(ir.Neuron)
    def _neuron(self, node: ir.Neuron) -> nir.NIRNode:
        threshold = np.float32(node.v_threshold)
        if self.client in FIRES_AT_THRESHOLD:
            threshold = np.nextafter(threshold, np.float32(np.inf))
        fields = {"v_threshold": float(threshold), "v_reset": 0.0}
        if node.leak == 1:
            return self.nir.IF(**self.full(node, r=1 / DT, **fields))
        tau_mem = DT / (1 - node.leak)
        return self.nir.CubaLIF(
            **self.full(
                node, tau_syn=DT, tau_mem=tau_mem, r=tau_mem / DT, v_leak=0.0, w_in=1.0, **fields
            )
        )

    def full(self, node: ir.Neuron, **values: float) -> dict[str, np.ndarray]:
        """One value per neuron, in fp64: an fp32 dt would not be the client's."""
        shape = self.graph.shape(node.path)
        return {name: np.full(shape, value) for name, value in values.items()}
