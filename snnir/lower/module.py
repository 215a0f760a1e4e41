"""The graph as one `torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnir.errors import SnnirError
from snnir.ir.graph import Graph
from snnir.ir.nodes import (
    Add,
    BatchNorm,
    Conv,
    Input,
    Linear,
    Mixed,
    Neuron,
    Node,
    Output,
    Slice,
    WeightLayer,
)
from snnir.ir.types import Domain
from snnir.lower import fused
from snnir.lower.fusion import FusedStep, Fusion
from snnir.lower.gates import Gates, GateTable
from snnir.lower.initialise import initial_weights
from snnir.lower.operations import Flow, State, Value, compute, split
from snnir.lower.stacking import Stacks
from snnir.weights import Weights

Observer = Callable[[Node, Value], Value]


class SpikingModule(nn.Module):
    """A network lowered from a graph.

    `module(x)` runs a whole sequence from rest: a frame input is [N, C, H, W] (shown at every
    step) or [T, N, C, H, W] (one frame per step), an events input [T, N, C, H, W]; any N. It
    returns logits [N, classes] or disparity [T, N, H, W]; in training with auxiliary heads
    `(logits, [auxiliary logits, …])`, and for stereo the cost [T, N, D, H, W].

    A search space's candidates are mixed by the softmax of the parameters named `….logits`.

    `module.step(x, state)` runs one step, [N, C, H, W], and returns `(output, state)`.

    Parameters are named by node path (`trunk.layers.3.n1.prev.conv.weight`) whatever the passes
    merged. Neuron state is never stored in the module. SnnirError for a node named as an attribute
    of torch modules is, such as `training`.
    """

    def __init__(
        self, graph: Graph, weights: Mapping[str, np.ndarray] | None = None, *, seed: int = 0
    ):
        super().__init__()
        self.batch_norm_momentum = 0.1
        """Share of a batch's statistics in the running ones (torch's default)."""
        self.synchronised = False
        """Whether batch norm takes its statistics over all processes of torch.distributed."""
        self.observer: Observer | None = None
        """Sees every value of `module(x)`, as `observe` does of `run`."""
        self.graph = graph
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        self._stacks = Stacks()
        initial = initial_weights(graph, seed)
        for name in graph.parameter_shapes():
            self._place(name, nn.Parameter(_tensor(weights, initial, name)))
        for name in graph.buffer_shapes():
            self._place(name, _tensor(weights, initial, name))
        self.follow(graph)

    def follow(self, graph: Graph) -> None:
        """Compute another graph from now on, one with the same parameters (other neurons, say).

        Raises:
            ValueError: for a graph that has other parameters.
        """
        if self._places.keys() != graph.parameter_shapes().keys() | graph.buffer_shapes().keys():
            raise ValueError("found a graph of other parameters, expected the module's own")
        self.graph = graph
        self._gates = GateTable(graph)
        self._schedule = [(node, graph.inputs(node.path)) for node in graph.nodes()]
        self._siblings = {
            part.path: parts for node in graph.nodes() for parts in [_partition(graph, node)]
            for part in parts
        }  # fmt: skip
        self._fusion = Fusion(graph, self._siblings)
        self._lean = {n.path for n in graph.nodes() if _overwrites(graph, n) or _spikes(graph, n)}
        self._inputs, self._outputs = graph.network_inputs, graph.outputs
        self._head_only = graph.reachable([self._outputs[0].path])
        self._last_read = {
            source: number for number, (_, inputs) in enumerate(self._schedule) for source in inputs
        }

    def share(self, other: SpikingModule) -> None:
        """Take `other`'s parameters and running statistics for those of the same name: one tensor
        for both from then on."""
        for name in self._places.keys() & other._places.keys():
            tensors, leaf = self._places[name]
            tensors[leaf] = other.parameter(name)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(*inputs, observe=self.observer, keep_state=False)[0]

    def step(self, *inputs: Tensor, state: State | None = None) -> tuple[Any, State]:
        """One step from `state` (None: at rest): inputs [N, C, H, W].

        Returns this step's output (their mean over the steps is the sequence's logits) and the
        state to pass to the next call.
        """
        inputs = tuple(
            x.unsqueeze(0) if node.kind == "events" else x
            for node, x in zip(self._inputs, inputs, strict=True)
        )
        return self.run(*inputs, state=state, steps=1)

    def run(
        self,
        *inputs: Tensor,
        state: State | None = None,
        steps: int | None = None,
        observe: Observer | None = None,
        mixing: Mapping[str, Tensor] | None = None,
        keep_state: bool = True,
    ) -> tuple[Any, State]:
        """Run a sequence from `state` (None: at rest) and return its output and final state, which
        is incomplete unless kept.

        `steps` is how often a frame is shown (default: the graph's). `observe(node, value)` sees
        every value as it is made, and what it returns takes the value's place. `mixing` has, by
        owner, the weights of a search's candidates in the place of the softmax of its logits; a
        state of which every candidate weighs 0 is absent: nothing reads it.

        Raises:
            SnnirError: when an input's shape or number is not the graph's.
        """
        gates = Gates(self._gates, self, mixing)
        flow = Flow(self, self._steps(inputs, steps), state or {}, {}, gates)
        values: dict[str, Value] = {}
        plain = not (observe or mixing or state or keep_state)
        fusing = plain and self.training and torch.is_grad_enabled() and self.fuses
        step = FusedStep(self._fusion, flow) if fusing else None
        lean = observe is None and mixing is None
        absent: set[str] = set()
        outputs: dict[str, Tensor] = {}
        given = dict(zip([n.path for n in self._inputs], inputs, strict=True))
        for number, (node, sources) in enumerate(self._schedule):
            if not self.training and node.path not in self._head_only:
                continue
            if mixing is not None:
                node, sources = _present(node, sources, absent, gates)
                if not sources and not isinstance(node, Input):
                    absent.add(node.path)
                    continue
            found = step.compute(node, sources, values) if step else None
            if found is not None:
                values |= found
            else:
                value = self._value(node, sources, values, flow, given, lean=lean)
                values[node.path] = observe(node, value) if observe else value
            if isinstance(node, Output):
                value = values[node.path]
                outputs[node.path] = value.unfolded(flow.steps) if value.stepped else value.data
            for source in set(sources):
                if self._last_read[source] == number:
                    values.pop(source, None)
        head, *auxiliary = [outputs[node.path] for node in self._outputs if node.path in outputs]
        return ((head, auxiliary) if auxiliary else head), flow.new_state

    def _value(
        self,
        node: Node,
        sources: Sequence[str],
        values: dict[str, Value],
        flow: Flow,
        given: Mapping[str, Tensor],
        *,
        lean: bool,
    ) -> Value:
        """A node's value, from the inputs `given` and the values of its sources; of slices that
        together are all of what they slice, all are noted at the first."""
        if isinstance(node, Input):
            return self._input(node, given[node.path])
        parts = self._siblings.get(node.path)
        if parts is None:
            lean = lean and node.path in self._lean
            return compute(node, flow, [values[source] for source in sources], lean=lean)
        if node.path not in values:
            values |= zip((p.path for p in parts), split(parts, values[sources[0]]), strict=True)
        return values[node.path]

    @property
    def fuses(self) -> bool:
        """Whether a training step computes layers by `snnir.lower.fused`, as things are."""
        if not self._fusion.deferred:
            return False
        weight = next(self.parameters())
        dtype = weight.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        return weight.device.type == "cpu" and weight.dtype.itemsize >= 4 and dtype in fused.STORED

    # --- inputs -----------------------------------------------------------------------------

    def _steps(self, inputs: Sequence[Tensor], steps: int | None) -> int:
        nodes = self._inputs
        if len(inputs) != len(nodes):
            names = ", ".join(node.path for node in nodes)
            raise SnnirError(f"found {len(inputs)} inputs, expected {len(nodes)}: {names}")
        stepped = {x.shape[0] for x in inputs if x.dim() == 5}
        if len(stepped) > 1:
            raise SnnirError(f"found inputs of {sorted(stepped)} steps, expected one number")
        return stepped.pop() if stepped else steps or self.graph.steps

    def _input(self, node: Input, x: Tensor) -> Value:
        form = "[T, N, C, H, W]" if node.kind == "events" else "[N, C, H, W] or [T, N, C, H, W]"
        dims = (5,) if node.kind == "events" else (4, 5)
        if x.dim() not in dims or tuple(x.shape[-3:]) != node.shape:
            raise SnnirError(
                f"input '{node.path}': found shape {list(x.shape)}, "
                f"expected {form} with [C, H, W] = {list(node.shape)}"
            )
        value = Value(x.flatten(0, 1), True) if x.dim() == 5 else Value(x, False)
        return replace(value, data=value.data.contiguous(memory_format=torch.channels_last))

    # --- parameters -------------------------------------------------------------------------

    def parameter(self, name: str) -> Tensor:
        """A parameter or running statistic by its full name."""
        tensors, leaf = self._places[name]
        return tensors[leaf]

    def stacked(self, node: WeightLayer, name: str) -> Tensor:
        """A parameter (or running statistic) of the node's owners along the output channels; what
        is written to it is written to theirs."""
        parts = self._owned(node, name)
        return parts[0] if len(parts) == 1 else self._stacks.get(_stack_key(node, name), parts)

    def side_by_side(self, node: WeightLayer, name: str) -> list[Tensor]:
        """The same as its parts, which lie one behind the other in memory."""
        parts = self._owned(node, name)
        if len(parts) > 1:
            self._stacks.hold(_stack_key(node, name), parts)
        return parts

    def _owned(self, node: WeightLayer, name: str) -> list[Tensor]:
        return [self.parameter(f"{owner.path}.{name}") for owner in node.owners]

    def weights(self) -> Weights:
        """Parameters and running statistics as arrays, by name."""
        return {name: self.parameter(name).detach().cpu().numpy().copy() for name in self._places}

    def _place(self, name: str, tensor: Tensor) -> None:
        *path, leaf = name.split(".")
        holder: nn.Module = self
        for part in path:
            child = holder._modules.get(part)
            if child is None and hasattr(holder, part):
                raise SnnirError(
                    f"{name}: found the name '{part}', which torch modules have for something "
                    "else, expected another"
                )
            if child is None:
                child = nn.Module()
                holder.add_module(part, child)
            holder = child
        # by dict it is looked up in a fraction of an attribute's time, hundreds of times a step
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
            self._places[name] = holder._parameters, leaf
        else:
            holder.register_buffer(leaf, tensor)
            self._places[name] = holder._buffers, leaf


def _stack_key(node: WeightLayer, name: str) -> str:
    return f"{'+'.join(owner.path for owner in node.owners)}.{name}"


def _present(
    node: Node, sources: tuple[str, ...], absent: set[str], gates: Gates
) -> tuple[Node, tuple[str, ...]]:
    """The node and its sources without what is absent; none are left of a node that is absent."""
    if isinstance(node, Mixed):
        pairs = zip(sources, node.gates, strict=True)
        left = [(s, gate) for s, gate in pairs if s not in absent and gates.open(gate)]
        chosen = tuple(gate for _, gate in left)
        return node.model_copy(update={"gates": chosen}), tuple(s for s, _ in left)
    if isinstance(node, Add):
        return node, tuple(s for s in sources if s not in absent)
    return node, () if absent.intersection(sources) else sources


def _tensor(weights: Mapping[str, np.ndarray] | None, initial: Weights, name: str) -> Tensor:
    array = initial[name] if weights is None or name not in weights else weights[name]
    tensor = torch.from_numpy(np.array(array))
    if tensor.dim() != 4:
        return tensor
    # contiguous() would leave a 1x1 kernel its strides, which its gradient then has not (DDP warns)
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def _partition(graph: Graph, node: Node) -> list[Slice]:
    """The slices of a node, in order, where they cover all its channels without overlap."""
    parts = [graph[path] for path in graph.consumers(node.path)]
    slices = sorted((p for p in parts if isinstance(p, Slice)), key=lambda p: p.start)
    bounds = [0, *(p.stop for p in slices)]
    shape = graph.type(node.path).shape
    tiled = shape and [p.start for p in slices] == bounds[:-1] and bounds[-1] == shape[0]
    return slices if slices and tiled else []


def _overwrites(graph: Graph, node: Node) -> bool:
    """Whether a sum or neuron that takes its first input's memory harms nobody: the input has no
    other reader, and what made it made it afresh and does not need it for its own gradient."""
    if not isinstance(node, Add | Neuron):
        return False
    path = graph.inputs(node.path)[0]
    source = graph[path]
    several = isinstance(source, Add) and len(graph.inputs(path)) > 1
    fresh = several or isinstance(source, BatchNorm | Conv | Linear)
    return fresh and graph.consumers(path) == [node.path]


def _spikes(graph: Graph, node: Node) -> bool:
    """Whether a convolution reads spikes, which neurons alone make."""
    return isinstance(node, Conv) and graph.type(graph.inputs(node.path)[0]).domain is Domain.SPIKE
