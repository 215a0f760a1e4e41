"""Proof that an exported model computes what the torch network computes.

fp32 spikes are chaotic: a membrane within rounding of its threshold flips with the order of a sum,
and one flip cascades through the layers behind it. So the proof goes layer by layer. The exported
model itself is cut open at every neuron: each layer is fed the spikes that torch recorded, and must
give back, from the same spikes,

1. currents within rounding of their exact (float64) value;
2. spikes that are bit for bit what the neuron's equations make of those currents;
3. torch's spikes, but where a membrane lies within rounding of its threshold.

Rounding: a sum of K products is taken to lie within SAFETY·sqrt(K)·2^-24·Σ|w·x| of the exact one,
the form of the probabilistic bound of Higham and Mary (2019), who call SAFETY lambda. How much of
it is used is reported. Firing rates stand beside every comparison, since silent layers agree about
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from snnir.export import runtime
from snnir.export.onnx import Form
from snnir.ir.graph import Graph
from snnir.ir.nodes import (
    AdaptiveAveragePool,
    Conv,
    Input,
    Linear,
    MeanOverTime,
    Neuron,
    Node,
    Pool,
    SoftArgmin,
)
from snnir.ir.types import volume
from snnir.lower.module import Observer, SpikingModule
from snnir.lower.neurons import run_neuron
from snnir.lower.operations import Value
from snnir.weights import Weights

SAFETY = 4.0
UNIT_ROUNDOFF = 2.0**-24
ELEMENTS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
"""What onnxruntime calls the types of our models' inputs."""


@dataclass(frozen=True)
class LayerParity:
    """One neuron layer (or the readout, whose spike fields stay 0) against torch."""

    path: str
    values: int
    firing_rate: float
    max_abs_diff: float
    """Largest difference between exported and exact currents."""
    rounding_used: float
    """The same as a share of what rounding explains; above 1 it does not."""
    spike_mismatches: int = 0
    """Spikes that differ from torch's."""
    largest_margin: float = 0.0
    """Largest distance from threshold among first mismatches, as a share of rounding."""
    neuron_errors: int = 0
    """Spikes that are not what the equations make of the layer's own currents."""

    @property
    def passed(self) -> bool:
        return self.rounding_used <= 1 and self.largest_margin <= 1 and self.neuron_errors == 0


@dataclass(frozen=True)
class Parity:
    """The proof's outcome."""

    form: str
    samples: int
    layers: tuple[LayerParity, ...]
    readout: LayerParity
    end_to_end_max_abs_diff: float
    """Unforced outputs against torch's: for information, since flips cascade."""

    @property
    def passed(self) -> bool:
        return all(layer.passed for layer in (*self.layers, self.readout))

    @property
    def max_abs_diff(self) -> float:
        return max(layer.max_abs_diff for layer in (*self.layers, self.readout))

    @property
    def spikes_compared(self) -> int:
        return sum(layer.values for layer in self.layers)

    @property
    def spike_mismatch_rate(self) -> float:
        mismatches = sum(layer.spike_mismatches for layer in self.layers)
        return mismatches / max(1, self.spikes_compared)

    @property
    def failures(self) -> list[LayerParity]:
        return [layer for layer in (*self.layers, self.readout) if not layer.passed]


def session(model: onnx.ModelProto, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session of a model in memory; 0 threads: onnxruntime's choice."""
    return runtime.session(model.SerializeToString(), threads=threads)


def check_parity(
    model: onnx.ModelProto,
    graph: Graph,
    weights: Weights,
    inputs: Sequence[np.ndarray],
    *,
    form: Form,
) -> Parity:
    """Compare an exported model with the torch module of `graph` on `inputs` (sequence form:
    frames [N, C, H, W], events [T, N, C, H, W])."""
    with torch.no_grad():
        return Proof(model, graph, weights, inputs, form).run()


class Proof:
    """The layer-by-layer comparison; what a quantised network is compared with differs
    (`snnir.export.int8_parity`)."""

    def __init__(
        self,
        model: onnx.ModelProto,
        graph: Graph,
        weights: Weights,
        inputs: Sequence[np.ndarray],
        form: Form,
    ):
        self.model = model
        self.graph = graph
        self.weights = weights
        self.inputs = [torch.from_numpy(x) for x in inputs]
        self.form: Form = form
        self.neurons = graph.neurons
        self.readout = _readout(graph)
        self.currents_of = {n.path: graph.inputs(n.path)[0] for n in self.neurons}
        self.watched = {*self.currents_of.values(), self.readout}
        self.steps = _steps(graph, self.inputs)
        self.fed: list[dict[str, Tensor]] = []

    def run(self) -> Parity:
        recorded, output = self.record()
        self.fed = self.states(recorded) if self.form == "step" else []
        exact = self.exact(recorded)
        bounds = self.bounds(recorded)
        exported = self.run_cut(recorded)
        layers = tuple(
            self.compare(neuron, self.expected(neuron, recorded, exact), exported, exact, bounds)
            for neuron in self.neurons
        )
        return Parity(
            form=self.form,
            samples=int(self.inputs[0].shape[-4]),
            layers=layers,
            readout=self.compare_readout(exported, exact, bounds),
            end_to_end_max_abs_diff=float((self.run_whole() - output).abs().max()),
        )

    def exact(self, recorded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Currents and readout in float64, from the recorded spikes."""
        return self.forced(recorded, self.weights, torch.float64)

    def bounds(self, recorded: dict[str, Tensor]) -> dict[str, Tensor]:
        """How far rounding may take them."""
        magnitude = self.forced(
            {path: x.abs() for path, x in recorded.items()},
            {name: np.abs(array) for name, array in self.weights.items()},
            torch.float32,
            absolute=True,
        )
        terms = _terms(self.graph)
        return {
            path: SAFETY * terms[path] ** 0.5 * UNIT_ROUNDOFF * magnitude[path]
            for path in self.watched
        }

    def expected(
        self, neuron: Neuron, recorded: dict[str, Tensor], exact: dict[str, Tensor]
    ) -> Tensor:
        """The output that the exported neuron's is compared with."""
        return recorded[neuron.path]

    # --- torch ------------------------------------------------------------------------------

    def record(self) -> tuple[dict[str, Tensor], Tensor]:
        """The neurons' outputs, [T, N, …] or static [N, …], and the network's output, in fp32."""
        module = SpikingModule(self.graph, self.weights).eval()
        recorded: dict[str, Tensor] = {}

        def keep(node: Node, value: Value) -> Value:
            if isinstance(node, Neuron):
                recorded[node.path] = self.unfold(value)
            return value

        output, _ = module.run(*self.inputs, observe=keep)
        return recorded, output

    def forced(
        self,
        recorded: dict[str, Tensor],
        weights: Weights,
        dtype: torch.dtype,
        absolute: bool = False,
        change: Observer = lambda node, value: value,
    ) -> dict[str, Tensor]:
        """Currents and readout, unfolded, when every neuron's output is replaced by `recorded`, and
        other values by what `change` makes of them."""
        module = SpikingModule(self.graph, weights).to(dtype).eval()
        seen: dict[str, Tensor] = {}

        def force(node: Node, value: Value) -> Value:
            value = change(node, value)
            if node.path in self.watched:
                seen[node.path] = self.unfold(value)
            if isinstance(node, Neuron):
                spikes = recorded[node.path].to(dtype)
                return Value(spikes.flatten(0, 1) if value.stepped else spikes, value.stepped)
            return value

        inputs = [(x.abs() if absolute else x).to(dtype) for x in self.inputs]
        module.run(*inputs, observe=force)
        return seen

    def unfold(self, value: Value) -> Tensor:
        return value.unfolded(self.steps) if value.stepped else value.data

    # --- the exported model -----------------------------------------------------------------

    def run_cut(self, recorded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Spikes, currents and readout of the exported model, cut open and fed torch's spikes."""
        watched = {n.path for n in self.neurons} | self.watched
        cut = session(cut_open(self.model, {n.path: n for n in self.neurons}, watched))
        wanted = sorted(watched - {i.name for i in self.model.graph.input})
        if self.form == "sequence":
            feed = self.network_feed() | {
                f"{path}.forced": x.flatten(0, 1) if self.is_stepped(path) else x
                for path, x in recorded.items()
            }
            got = _run(cut, wanted, feed)
            return {path: self.refold(path, x) for path, x in got.items()} | self.read_inputs()
        by_step = []
        for t in range(self.steps):
            spikes = {
                f"{path}.forced": x[t] if self.is_stepped(path) else x
                for path, x in recorded.items()
            }
            by_step.append(_run(cut, wanted, self.network_feed(t) | spikes | self.fed[t]))
        joined = {path: torch.stack([got[path] for got in by_step]) for path in wanted}
        static = {path: x[0] for path, x in joined.items() if not self.is_stepped(path)}
        if isinstance(self.graph[self.readout], MeanOverTime):
            static[self.readout] = joined[self.readout].mean(0)
        return joined | static | self.read_inputs()

    def run_whole(self) -> Tensor:
        """The exported model's own output on the inputs, nothing forced."""
        head = self.graph.outputs[0].path
        return run_exported(session(self.model), self.graph, self.inputs, self.form, [head])[head]

    def network_feed(self, step: int | None = None) -> dict[str, Tensor]:
        return _feed(self.graph, self.inputs, step)

    def read_inputs(self) -> dict[str, Tensor]:
        """Network inputs that a neuron reads directly stand for their currents."""
        return {path: x for path, x in self.network_feed().items() if path in self.watched}

    def states(self, recorded: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The neurons' states before each step, as torch has them."""
        currents = self.forced(recorded, self.weights, torch.float32)
        before: list[dict[str, Tensor]] = [{} for _ in range(self.steps)]
        for neuron in self.neurons:
            current = self.by_step(currents[self.currents_of[neuron.path]], neuron)
            state = {name: torch.zeros_like(current[0]) for name in neuron.states}
            for t in range(self.steps if neuron.states else 0):
                before[t] |= {f"{neuron.path}.{name}": value for name, value in state.items()}
                _, state = run_neuron(neuron, current[t : t + 1], state)
        return before

    def is_stepped(self, path: str) -> bool:
        return self.graph.type(path).time == "stepped"

    def refold(self, path: str, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.steps, -1)) if self.is_stepped(path) else x

    def by_step(self, x: Tensor, neuron: Neuron) -> Tensor:
        """A current as [T, N, …], or [N, …] where the neuron itself is static."""
        if self.is_stepped(neuron.path) and not self.is_stepped(self.currents_of[neuron.path]):
            return x.expand(self.steps, *x.shape)
        return x

    # --- comparison -------------------------------------------------------------------------

    def compare(
        self,
        neuron: Neuron,
        torch_spikes: Tensor,
        exported: dict[str, Tensor],
        exact: dict[str, Tensor],
        bounds: dict[str, Tensor],
    ) -> LayerParity:
        source = self.currents_of[neuron.path]
        spikes = exported[neuron.path]
        current = self.by_step(exported[source], neuron)
        diff = (exported[source].double() - exact[source]).abs()
        errors = int((self.neuron_alone(neuron, current) != spikes).sum())
        mismatch = spikes != torch_spikes
        if not neuron.spiking:
            bound = bounds[source].double().clamp(min=torch.finfo(torch.float32).tiny)
            mismatch = ((spikes - torch_spikes).abs() > 2 * bound) | (spikes.isnan())
        margin = 0.0
        if neuron.spiking and mismatch.any():
            margin = self.margin(neuron, mismatch, torch_spikes, exact[source], bounds[source])
        return LayerParity(
            path=neuron.path,
            values=spikes.numel(),
            firing_rate=float((torch_spikes != 0).double().mean()),
            max_abs_diff=float(diff.max()),
            rounding_used=_share(diff, bounds[source]),
            spike_mismatches=int(mismatch.sum()),
            largest_margin=margin if neuron.spiking else float(mismatch.any()) * 2,
            neuron_errors=errors,
        )

    def neuron_alone(self, neuron: Neuron, current: Tensor) -> Tensor:
        """What the neuron's equations make of the exported currents: from rest, or in step form
        from the states that were fed in."""
        if self.form == "sequence" or not neuron.states:
            return run_neuron(neuron, current, {})[0]
        outputs = [
            run_neuron(
                neuron,
                current[t : t + 1],
                {name: self.fed[t][f"{neuron.path}.{name}"] for name in neuron.states},
            )[0]
            for t in range(self.steps)
        ]
        return torch.cat(outputs)

    def margin(
        self, neuron: Neuron, mismatch: Tensor, torch_spikes: Tensor, exact: Tensor, bound: Tensor
    ) -> float:
        """How far from threshold first mismatches lie, as a share of rounding. A mismatch changes
        its neuron's own later membrane, so only the first of each neuron counts."""
        current = self.by_step(exact, neuron).double()
        limit = self.by_step(bound, neuron).double()
        if not neuron.states:
            distance = (current - neuron.v_threshold).abs()
            return float((distance / limit)[mismatch].max())
        worst = 0.0
        v = torch.zeros_like(current[0])
        a, slack = torch.zeros_like(v), torch.zeros_like(v)
        clean = torch.ones_like(v, dtype=torch.bool)
        for t in range(self.steps):
            u = neuron.leak * v + current[t]
            slack = (
                neuron.leak * slack + limit[t] + 2 * UNIT_ROUNDOFF * (u.abs() + neuron.v_threshold)
            )
            rise = neuron.beta * a if neuron.kind == "alif" else 0.0
            share = (u - neuron.v_threshold - rise).abs() / slack
            first = mismatch[t] & clean
            if first.any():
                worst = max(worst, float(share[first].max()))
            if self.form == "sequence":
                clean &= ~mismatch[t]
            y = torch_spikes[t].double()
            v, a = u * (1 - y), neuron.tau_a * a + y
        return worst

    def compare_readout(
        self, exported: dict[str, Tensor], exact: dict[str, Tensor], bounds: dict[str, Tensor]
    ) -> LayerParity:
        found, expected = exported[self.readout], exact[self.readout]
        diff = (found.double() - expected).abs()
        return LayerParity(
            path=self.readout,
            values=found.numel(),
            firing_rate=0.0,
            max_abs_diff=float(diff.max()),
            rounding_used=_share(diff, bounds[self.readout]),
        )


def run_exported(
    run: onnxruntime.InferenceSession,
    graph: Graph,
    inputs: Sequence[Tensor],
    form: Form,
    wanted: Iterable[str],
) -> dict[str, Tensor]:
    """Outputs of an exported model by path, [T, N, …] or static [N, …], nothing forced. In step
    form the steps run one after the other, and the output's mean over them is taken here."""
    paths = list(wanted)
    steps, head = _steps(graph, inputs), graph.outputs[0].path
    stepped = {path for path in paths if graph.type(path).time == "stepped"}
    if form == "sequence":
        got = _run(run, paths, _feed(graph, inputs, None))
        flat = stepped - {head}
        return {p: x.unflatten(0, (steps, -1)) if p in flat else x for p, x in got.items()}
    state = {
        i.name: torch.zeros(inputs[0].shape[-4], *i.shape[1:])
        for i in run.get_inputs()
        if i.name not in graph
    }
    by_step = []
    for t in range(steps):
        names = [*paths, *(f"{name}.next" for name in state)]
        by_step.append(_run(run, names, _feed(graph, inputs, t) | state))
        state = {name: by_step[-1][f"{name}.next"] for name in state}
    joined = {path: torch.stack([got[path] for got in by_step]) for path in paths}
    return {
        path: x if path in stepped else x.mean(0) if path == head else x[0]
        for path, x in joined.items()
    }


def _feed(graph: Graph, inputs: Sequence[Tensor], step: int | None) -> dict[str, Tensor]:
    """The network's inputs by name, whole or of one step."""
    given = zip(graph.network_inputs, inputs, strict=True)
    return {n.path: x if step is None or x.dim() == 4 else x[step] for n, x in given}


def _steps(graph: Graph, inputs: Sequence[Tensor]) -> int:
    stepped = [x.shape[0] for x in inputs if x.dim() == 5]
    return stepped[0] if stepped else graph.steps


def cut_open(
    model: onnx.ModelProto, neurons: dict[str, Neuron], watched: set[str]
) -> onnx.ModelProto:
    """The model with every neuron's readers reading a new input `<path>.forced` instead, and the
    watched tensors as outputs."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    types = {v.name: v for v in (*graph.value_info, *graph.output)}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in neurons and not node.name.startswith(f"{name}."):
                node.input[slot] = f"{name}.forced"
    given = {i.name for i in graph.input}
    made = {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input}
    for path in neurons:
        if f"{path}.forced" in read:
            kind = types[path].type.tensor_type
            sizes = [None, *(d.dim_value or None for d in kind.shape.dim[1:])]
            forced = helper.make_tensor_value_info(f"{path}.forced", kind.elem_type, sizes)
            graph.input.append(forced)
    listed = {o.name for o in graph.output}
    for name in sorted(watched & made - listed - given):
        kind = types[name].type.tensor_type
        graph.output.append(helper.make_tensor_value_info(name, kind.elem_type, None))
    return cut


def _run(
    run: onnxruntime.InferenceSession, names: Sequence[str], feed: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Spikes may be u8 in the model; here they are fp32."""
    taken = {i.name: ELEMENTS[i.type] for i in run.get_inputs()}
    arrays = {
        name: np.ascontiguousarray(x.numpy(), dtype=taken[name])
        for name, x in feed.items()
        if name in taken
    }
    found = (torch.from_numpy(x).float() for x in run.run(list(names), arrays))
    return dict(zip(names, found, strict=True))


def _readout(graph: Graph) -> str:
    """The last linear value: what the head returns, or the cost that its estimator reads."""
    path = graph.inputs(graph.outputs[0].path)[0]
    return graph.inputs(path)[0] if isinstance(graph[path], SoftArgmin) else path


def _terms(graph: Graph) -> dict[str, int]:
    """How many roundings a value has behind it since the last neuron or input."""
    terms: dict[str, int] = {}
    for node in graph.nodes():
        before = [terms[source] for source in graph.inputs(node.path)]
        own = 1
        if isinstance(node, Neuron | Input):
            before = [0]
        elif isinstance(node, Conv | Linear):
            own = node.fan_in + 1
        elif isinstance(node, Pool):
            own = volume(node.kernel)
        elif isinstance(node, MeanOverTime):
            own = graph.steps**2  # steps are much alike, so that their roundings add up
        elif isinstance(node, AdaptiveAveragePool):
            own = volume(graph.input_shapes(node.path)[0][1:])
        terms[node.path] = max(before) + max(own, len(before))
    return terms


def _share(diff: Tensor, bound: Tensor) -> float:
    """The largest diff as a share of its bound; values without any rounding must be exact."""
    share = diff / bound.double().clamp(min=torch.finfo(torch.float32).tiny)
    return float(share.nan_to_num(nan=float("inf")).max())
