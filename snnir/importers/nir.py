"""NIR files as graphs: what SpikingJelly and snnTorch export, and what `snnir.export.nir` writes.

A NIR neuron, stepped by dt = 1e-4 s as these clients do, is

    v <- (1 - dt/tau_mem)·v + gain·I,  gain = r·dt/tau_mem (CubaLIF: times w_in·dt/tau_syn)

and ours with tau = 1 - dt/tau_mem and v_threshold / gain, as long as all neurons of a layer are
alike, reset to 0, and their synapses forget at once (tau_syn = dt).

Nothing in a file is trusted: links and overly large content are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, get_args

import numpy as np

from snnir.errors import SnnirError
from snnir.export.nir import DT, FIRES_AT_THRESHOLD, Client, missing_package
from snnir.ir import nodes as ir
from snnir.ir.graph import Graph
from snnir.ir.types import Shape, ShapeError
from snnir.lower import SpikingModule
from snnir.passes import ANALYSIS, run_passes
from snnir.weights import Weights, check_weights

if TYPE_CHECKING:
    import h5py

MAX_BYTES = 2**31
"""Of all arrays in a file, unpacked."""
MAX_DEPTH = 8
CLOSE = 1e-6
"""Relative error up to which fp32 parameters count as the numbers they stand for."""

Fields = dict[str, Any]
"""What a file says of one node: `type`, and arrays, numbers and texts by name."""


def read_nir(
    path: str | Path, *, steps: int | None = None, client: Client | None = None
) -> tuple[Graph, Weights]:
    """Read a NIR file: a graph whose nodes are named as in the file, and weights in its precision.

    NIR knows no steps, and not whether a neuron fires at its threshold or only above it. So `steps`
    is how often the input is shown, and `client` whose neurons are meant: the tool that wrote the
    file. Both may be left out for files that snnir wrote. The input is [N, C, H, W] (flat ones of F
    values: [N, F, 1, 1]); the output is the mean over the steps.

    Raises:
        SnnirError: no readable NIR file, or one with nodes that snnir does not have, by name.
    """
    content = _read_file(Path(path))
    metadata = content.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    steps = steps or _known_steps(known)
    if steps is None:
        raise SnnirError(f"{path}: found no number of steps in the file, expected it to be given")
    client = client or _known_client(known)
    if client is None:
        raise SnnirError(
            f"{path}: found no client in the file, expected to be told who wrote it: "
            "spikingjelly, whose neurons fire at the threshold, or snntorch or norse, above it"
        )
    graph, weights = _Importer(Path(path), steps, client).read(content)
    check_weights(graph, weights, name=str(path))
    typed = run_passes(ANALYSIS, graph, weights)
    try:
        SpikingModule(typed.graph, typed.weights)
    except (KeyError, SnnirError) as error:
        raise SnnirError(f"{path}: found a node name that no module can have: {error}") from None
    return typed.graph, typed.weights


def _known_steps(metadata: Fields) -> int | None:
    steps = metadata.get("steps")
    return int(steps) if isinstance(steps, np.integer) and steps > 0 else None


def _known_client(metadata: Fields) -> Client | None:
    return next((c for c in get_args(Client) if str(metadata.get("client")) == c), None)


# --- files --------------------------------------------------------------------------------------


def _read_file(path: Path) -> Fields:
    """The fields of a file's NIRGraph."""
    try:
        import h5py
    except ImportError:
        raise missing_package("h5py") from None
    try:
        with h5py.File(path, "r") as file:
            content = _read_group(file, [0])
    except FileNotFoundError:
        raise SnnirError(f"{path}: no such file") from None
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise SnnirError(f"{path}: found no readable HDF5 file: {error}") from None
    node = content.get("node")
    if not isinstance(node, dict) or str(node.get("type")) != "NIRGraph":
        raise SnnirError(f"{path}: found an HDF5 file without a NIRGraph, expected a NIR file")
    return node


def _read_group(group: h5py.Group, read: list[int], depth: int = 0) -> Fields:
    """Everything in a group; `read` counts the bytes. Raises ValueError for what is not plain."""
    import h5py

    if depth > MAX_DEPTH:
        raise ValueError(f"groups nested more than {MAX_DEPTH} deep")
    fields: Fields = {}
    for name in group:
        item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            fields[name] = _read_group(item, read, depth + 1)
        elif isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
            read[0] += item.nbytes
            if read[0] > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            value = item[()]
            fields[name] = value.decode() if isinstance(value, bytes) else value
        else:
            raise ValueError(f"'{item or name}' is a link or lies in another file")
    return fields


# --- graphs -------------------------------------------------------------------------------------


class _Importer:
    def __init__(self, path: Path, steps: int, client: Client):
        self.file = path
        self.fires_at_threshold = client in FIRES_AT_THRESHOLD
        self.graph = Graph(path.stem, steps)
        self.weights: Weights = {}
        self.shapes: dict[str, Shape] = {}
        self.results: dict[str, str] = {}
        """By NIR node, the path of what it gives."""

    def read(self, content: Fields) -> tuple[Graph, Weights]:
        nodes, sources = self.structure(content)
        for name in self.order(nodes, sources):
            kind = str(nodes[name].get("type"))
            if kind not in _KINDS:
                self.refuse(name, kind, f"expected {', '.join(_KINDS)}")
            given = [self.results[source] for source in sources[name]]
            if bool(given) == (kind == "Input"):
                self.refuse(name, kind, f"found {len(given)} edges into it")
            try:
                self.results[name] = _KINDS[kind](self, name, nodes[name], given)
            except KeyError as error:
                self.refuse(name, kind, f"found no field {error}")
            except (ShapeError, ValueError, TypeError) as error:
                self.refuse(name, kind, str(error))
        return self.graph, self.weights

    def refuse(self, name: str, kind: str, reason: str) -> NoReturn:
        raise SnnirError(f"{self.file}: {name} ({kind}) cannot be imported: {reason}")

    def structure(self, content: Fields) -> tuple[dict[str, Fields], dict[str, list[str]]]:
        """The nodes by name, and what each reads."""
        nodes, edges = content.get("nodes"), np.asarray(content.get("edges"))
        if not isinstance(nodes, dict) or not all(isinstance(n, dict) for n in nodes.values()):
            raise SnnirError(f"{self.file}: found no nodes, expected a NIR graph")
        if edges.ndim != 2 or edges.shape[1] != 2:
            raise SnnirError(f"{self.file}: found no list of edges, expected pairs of names")
        sources: dict[str, list[str]] = {name: [] for name in nodes}
        for edge in edges.tolist():
            source, target = (x.decode() if isinstance(x, bytes) else str(x) for x in edge)
            if source not in nodes or target not in nodes or source in sources[target]:
                raise SnnirError(
                    f"{self.file}: found an edge from '{source}' to '{target}', "
                    "expected nodes of the graph, and each edge once"
                )
            sources[target].append(source)
        return nodes, sources

    def order(self, nodes: dict[str, Fields], sources: dict[str, list[str]]) -> list[str]:
        """What the one output depends on, each node after what it reads."""
        for kind in ("Input", "Output"):
            found = [name for name, fields in nodes.items() if str(fields.get("type")) == kind]
            if len(found) != 1:
                raise SnnirError(
                    f"{self.file}: found {len(found)} {kind} nodes {', '.join(found)}, expected one"
                )
        needed: set[str] = set()
        stack = found
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack = [*stack, *sources[name]]
        try:
            return list(TopologicalSorter({name: sources[name] for name in needed}).static_order())
        except CycleError as error:
            name = min(error.args[1])  # of a cycle, whose edges stand in the file in any order
            self.refuse(name, str(nodes[name].get("type")), "found a recurrent connection")

    def add(self, node: ir.Node, *inputs: str) -> str:
        """Add a node; raises ShapeError at once when its inputs do not fit."""
        self.shapes[node.path] = node.output_shape([self.shapes[i] for i in inputs])
        return self.graph.add(node, inputs)

    def summed(self, name: str, given: Sequence[str]) -> str:
        """Several edges into one node are a sum."""
        return given[0] if len(given) == 1 else self.add(ir.Add(path=f"{name}.sum"), *given)

    # --- nodes ------------------------------------------------------------------------------

    def input(self, name: str, fields: Fields, given: Sequence[str]) -> str:
        shape = _integers(fields["shape"], least=1)
        if len(shape) not in (1, 3):
            raise ValueError(f"found shape {shape}, expected (C, H, W) or (F,)")
        spatial = shape if len(shape) == 3 else (*shape, 1, 1)
        x = self.add(ir.Input(path=name, kind="frame", shape=spatial))
        x = self.add(ir.Repeat(path=f"{name}.repeat"), x)
        return x if len(shape) == 3 else self.add(ir.Flatten(path=f"{name}.flatten"), x)

    def output(self, name: str, fields: Fields, given: Sequence[str]) -> str:
        mean = self.add(ir.MeanOverTime(path=f"{name}.mean"), self.summed(name, given))
        return self.add(ir.Output(path=name), mean)

    def conv(self, name: str, fields: Fields, given: Sequence[str]) -> str:
        weight = self.keep(name, "weight", fields, 4)
        self.keep(name, "bias", fields, 1)
        stride, dilation = _pair(fields["stride"], least=1), _pair(fields["dilation"], least=1)
        if dilation[0] != dilation[1]:
            raise ValueError(f"found dilation {dilation}, expected one number")
        (groups,) = _integers(fields["groups"], least=1)
        if len(weight) % groups:
            raise ValueError(f"found {groups} groups, expected a divisor of {len(weight)} channels")
        node = ir.Conv(
            path=name, in_channels=weight.shape[1] * groups, out_channels=len(weight),
            kernel=weight.shape[2:], stride=stride, dilation=dilation[0], groups=groups,
            padding=_padding(fields["padding"], weight.shape[2:], stride, dilation[0]),
        )  # fmt: skip
        return self.add(node, self.summed(name, given))

    def affine(self, name: str, fields: Fields, given: Sequence[str]) -> str:
        out_features, in_features = self.keep(name, "weight", fields, 2).shape
        bias = "bias" in fields
        if bias:
            self.keep(name, "bias", fields, 1)
        node = ir.Linear(path=name, in_features=in_features, out_features=out_features, bias=bias)
        return self.add(node, self.summed(name, given))

    def average_pool(self, name: str, fields: Fields, given: Sequence[str]) -> str:
        kernel, stride = (_pair(fields[key], least=1) for key in ("kernel_size", "stride"))
        padding = _pair(fields["padding"])
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            raise ValueError(f"found padding {padding}, expected at most half the kernel {kernel}")
        node = ir.Pool(path=name, kind="average", kernel=kernel, stride=stride, padding=padding)
        return self.add(node, self.summed(name, given))

    def flatten(self, name: str, fields: Fields, given: Sequence[str]) -> str:
        x = self.summed(name, given)
        rank = len(self.shapes[x])
        (start,), (end,) = _integers(fields["start_dim"]), _integers(fields["end_dim"])
        if start not in (0, -rank) or end not in (-1, rank - 1):
            raise ValueError(f"found dimensions {start} to {end}, expected all {rank}")
        return self.add(ir.Flatten(path=name), x)

    def neuron(self, name: str, fields: Fields, given: Sequence[str]) -> str:
        x = self.summed(name, given)
        tau, gain = _leak_and_gain(fields, self.shapes[x])
        for key in ("v_leak", "v_reset"):
            if abs(_uniform(fields, key, self.shapes[x], default=0.0)) > 0:
                raise ValueError(f"found a {key} other than 0, expected 0")
        threshold = _uniform(fields, "v_threshold", self.shapes[x]) / gain
        if not 0 < threshold < np.inf:
            raise ValueError(f"found a threshold of {threshold} per unit of input, expected > 0")
        if self.fires_at_threshold:
            threshold = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
        kind: Any = {"kind": "if"} if tau == 1 else {"kind": "lif", "tau": tau}
        return self.add(ir.Neuron(path=name, v_threshold=threshold, **kind), x)

    def keep(self, name: str, key: str, fields: Fields, rank: int) -> np.ndarray:
        """Keep an array as a weight: fp64 if it is, else fp32."""
        array = np.asarray(fields[key])
        if array.ndim != rank or array.dtype.kind != "f":
            raise ValueError(
                f"found {key} of {array.dtype} {array.shape}, expected floating-point numbers of "
                f"{rank} dimensions"
            )
        wide = array.dtype == np.float64
        self.weights[f"{name}.{key}"] = array if wide else array.astype(np.float32)
        return array


_KINDS: Final[dict[str, Callable[[_Importer, str, Fields, Sequence[str]], str]]] = {
    "Input": _Importer.input,
    "Output": _Importer.output,
    "Affine": _Importer.affine,
    "Linear": _Importer.affine,
    "Conv2d": _Importer.conv,
    "AvgPool2d": _Importer.average_pool,
    "Flatten": _Importer.flatten,
    "IF": _Importer.neuron,
    "LIF": _Importer.neuron,
    "CubaLIF": _Importer.neuron,
}


def _leak_and_gain(fields: Fields, shape: Shape) -> tuple[float, float]:
    """What a neuron keeps of its membrane per step, and what it multiplies its input by."""
    kind = fields["type"]
    r = _uniform(fields, "r", shape)
    if kind == "IF":
        return 1.0, _gain(r * DT)
    key = "tau_mem" if kind == "CubaLIF" else "tau"
    tau = _uniform(fields, key, shape)
    if tau < DT * (1 - CLOSE):
        raise ValueError(f"found {key} = {tau:g} s, expected at least a step of {DT:g} s")
    gain = r * DT / tau
    if kind == "CubaLIF":
        tau_syn = _uniform(fields, "tau_syn", shape)
        if abs(tau_syn - DT) > CLOSE * DT:
            raise ValueError(
                f"found a synapse that remembers, tau_syn = {tau_syn:g} s, expected {DT:g} s"
            )
        gain *= _uniform(fields, "w_in", shape, default=1.0)
    # an fp32 time constant stands for an fp32 leak
    precision = np.asarray(fields[key]).dtype
    return max(0.0, float(np.asarray(1 - DT / tau, precision))), _gain(gain)


def _gain(value: float) -> float:
    if not value > 0:
        raise ValueError(f"found a gain of {value}, expected a positive one")
    return 1.0 if abs(value - 1) < CLOSE else value


def _uniform(fields: Fields, key: str, shape: Shape, *, default: float | None = None) -> float:
    """The one value of a parameter that may be given per neuron."""
    values = np.asarray(fields[key] if default is None else fields.get(key, default), np.float64)
    if values.size != 1 and values.shape != shape:
        raise ValueError(f"found {key} of shape {values.shape}, expected {shape}")
    first = float(values.reshape(-1)[0])
    if not np.isfinite(first) or (values != first).any():
        raise ValueError(f"found several values of {key}, or one that is not finite, expected one")
    return first


def _integers(value: Any, least: int | None = None) -> tuple[int, ...]:
    """One number or several as integers, each at least `least`."""
    array = np.atleast_1d(np.asarray(value))
    low = least is not None and array.size and array.min() < least
    if array.dtype.kind not in "iu" or array.ndim != 1 or low:
        more = "" if least is None else f" from {least}"
        raise ValueError(f"found {array.tolist()}, expected whole numbers{more}")
    return tuple(int(x) for x in array)


def _pair(value: Any, least: int = 0) -> tuple[int, int]:
    numbers = _integers(value, least)
    if len(numbers) not in (1, 2):
        raise ValueError(f"found {numbers}, expected one or two numbers")
    return numbers[0], numbers[-1]


def _padding(value: Any, kernel: Sequence[int], stride: Sequence[int], dilation: int) -> ir.Sizes:
    """Zeros on each side: numbers, or 'valid' (none) or 'same' (the size stays)."""
    if not isinstance(value, str):
        return _pair(value)
    if value == "valid":
        return (0, 0)
    if value == "same" and set(stride) == {1} and all(k % 2 for k in kernel):
        return tuple(dilation * (k // 2) for k in kernel)
    raise ValueError(
        f"found padding '{value}', expected numbers, 'valid', or 'same' around odd "
        "kernels with stride 1"
    )
