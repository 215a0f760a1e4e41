"""The node types of the IR: frozen data that know arity, shape, domain, parameters and MACs.

Shapes leave out steps and batch. Every node has one output; `path` names both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from snnir.genotype.ast import NeuronKind, SurrogateKind
from snnir.ir.types import Domain, Shape, ShapeError, Time, join_domains, volume
from snnir.source import Span

Positive = Annotated[int, Field(gt=0)]
Sizes = tuple[int, ...]


class Owner(NamedTuple):
    """Parameters of `channels` output channels, stored under `path`.

    Two applications of one backbone name the same owner; a merged node names several, stacked
    in order along the output channels.
    """

    path: str
    channels: int


class Gate(NamedTuple):
    """One softmax weight: of the `size` logits stored under `owner`, the one at `entry`."""

    owner: str
    entry: int
    size: int

    def parameter_shape(self) -> dict[str, Shape]:
        return {f"{self.owner}.logits": (self.size,)}


class Node(BaseModel):
    """A node of the graph. Subclasses are registered in `NODE_TYPES`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    op: ClassVar[str]
    arity: ClassVar[tuple[int, int | None]] = (1, 1)
    path: str
    span: Span | None = None

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The output's shape. Raises ShapeError when the inputs do not fit."""
        return shapes[0]

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return Domain.REAL

    def output_time(self, times: Sequence[Time]) -> Time:
        return times[0]

    def macs(self, shapes: Sequence[Shape], output: Shape) -> int:
        """Multiply-accumulates of one step, padding taps included."""
        return 0

    def parameter_shapes(self) -> dict[str, Shape]:
        """Shapes of the learned parameters this node reads, by full name (`path.weight`)."""
        return {}

    def buffer_shapes(self) -> dict[str, Shape]:
        """Shapes of the running statistics this node reads, by full name."""
        return {}


class WeightLayer(Node):
    """A node whose parameters multiply its input."""

    owners: tuple[Owner, ...] = ()
    bias: bool = True

    @model_validator(mode="before")
    @classmethod
    def _own_parameters(cls, data: dict[str, Any]) -> dict[str, Any]:
        if isinstance(data, dict) and not data.get("owners"):
            channels: Any = data.get("out_channels", data.get("out_features"))
            data = {**data, "owners": (Owner(data["path"], channels),)}
        return data

    @property
    def fan_in(self) -> int:
        """How many products one output value sums."""
        raise TypeError(f"{type(self).__name__} has no fan-in")


class Input(Node):
    """A network input: a frame (static) or events (stepped, SBT: {-1, 0, 1})."""

    op = "input"
    arity = (0, 0)
    kind: Literal["frame", "events"]
    shape: Sizes

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return self.shape

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return Domain.REAL if self.kind == "frame" else Domain.SIGNED

    def output_time(self, times: Sequence[Time]) -> Time:
        return Time.STATIC if self.kind == "frame" else Time.STEPPED


class _SameDomain(Node):
    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return domains[0]


class Repeat(_SameDomain):
    """Direct encoding: a static value shown again at every step."""

    op = "repeat"

    def output_time(self, times: Sequence[Time]) -> Time:
        return Time.STEPPED


class Identity(_SameDomain):
    """The input, unchanged: a skip between equal shapes."""

    op = "identity"


class Conv(WeightLayer):
    """Convolution over the last two (H, W) or three (D, H, W) dimensions."""

    op = "conv"
    in_channels: Positive
    out_channels: Positive
    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Positive = 1
    """From one tap to the next, in every dimension."""
    groups: Positive = 1

    @property
    def fan_in(self) -> int:
        return self.in_channels // self.groups * volume(self.kernel)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        _expect_channels(shape, self.in_channels)
        spread = tuple(self.dilation * (k - 1) + 1 for k in self.kernel)
        return (self.out_channels, *_windows(shape[1:], spread, self.stride, self.padding))

    def macs(self, shapes: Sequence[Shape], output: Shape) -> int:
        return volume(output) * self.fan_in

    def parameter_shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for path, channels in self.owners:
            shapes[f"{path}.weight"] = (channels, self.in_channels // self.groups, *self.kernel)
            if self.bias:
                shapes[f"{path}.bias"] = (channels,)
        return shapes


class Linear(WeightLayer):
    """y = W x + b on a flat vector."""

    op = "linear"
    in_features: Positive
    out_features: Positive

    @property
    def fan_in(self) -> int:
        return self.in_features

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if shapes[0] != (self.in_features,):
            raise ShapeError(f"found shape {shapes[0]}, expected ({self.in_features},)")
        return (self.out_features,)

    def macs(self, shapes: Sequence[Shape], output: Shape) -> int:
        return self.in_features * self.out_features

    def parameter_shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for path, channels in self.owners:
            shapes[f"{path}.weight"] = (channels, self.in_features)
            if self.bias:
                shapes[f"{path}.bias"] = (channels,)
        return shapes


class BatchNorm(WeightLayer):
    """Normalisation per channel, its statistics over T, N and space together (method §3).

    With gates, one per owner, its channels are the weighted candidates of a search: weight and bias
    are multiplied by the gate.
    """

    op = "batch_norm"
    out_channels: Positive
    eps: float = 1e-5
    gates: tuple[Gate | None, ...] = ()

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        _expect_channels(shapes[0], self.out_channels)
        return shapes[0]

    def parameter_shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {
            f"{path}.{name}": (channels,)
            for path, channels in self.owners
            for name in ("weight", "bias")
        }
        for gate in filter(None, self.gates):
            shapes |= gate.parameter_shape()
        return shapes

    def buffer_shapes(self) -> dict[str, Shape]:
        return {
            f"{path}.{name}": (channels,)
            for path, channels in self.owners
            for name in ("running_mean", "running_var")
        }


class Pool(Node):
    """Average (padding counted) or max pooling; max keeps spikes binary."""

    op = "pool"
    kind: Literal["average", "max"]
    kernel: Sizes
    stride: Sizes
    padding: Sizes

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        return (shape[0], *_windows(shape[1:], self.kernel, self.stride, self.padding))

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return domains[0] if self.kind == "max" else Domain.REAL


class AdaptiveAveragePool(Node):
    """Average pooling to a given size; size 1 is global average pooling."""

    op = "adaptive_average_pool"
    size: Sizes

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        if len(shape) != len(self.size) + 1:
            raise ShapeError(f"found shape {shape}, expected {len(self.size)} spatial dimensions")
        return (shape[0], *self.size)


class Flatten(_SameDomain):
    """(C, H, W) to (C·H·W,)."""

    op = "flatten"

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (volume(shapes[0]),)


class Resize(Node):
    """Spatial resizing: nearest takes index floor(i·in/out); linear interpolates between pixel
    centres (torch's align_corners=False).

    With a grid (exact mode), values are rounded to multiples of 2^grid before and after each axis,
    halves to even, and so are the fractions (`snnir.ir.estimator`).
    """

    op = "resize"
    size: Sizes
    mode: Literal["nearest", "linear"] = "nearest"
    grid: int | None = None

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        if len(shape) != len(self.size) + 1:
            raise ShapeError(f"found shape {shape}, expected {len(self.size)} spatial dimensions")
        return (shape[0], *self.size)

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return domains[0] if self.mode == "nearest" else Domain.REAL

    def strides(self, shape: Shape) -> Sizes | None:
        """Every how many pixels along each dimension it takes of an input of this shape, from the
        first; None where it does not just drop pixels evenly."""
        ratios = [divmod(old, new) for old, new in zip(shape[1:], self.size, strict=True)]
        even = self.mode == "nearest" and not any(rest for _, rest in ratios)
        return tuple(ratio for ratio, _ in ratios) if even else None


class Concat(Node):
    """Inputs side by side along the channels."""

    op = "concat"
    arity = (1, None)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len({shape[1:] for shape in shapes}) != 1:
            raise ShapeError(
                f"found shapes {_listed(shapes)}, expected equal sizes beside the channels"
            )
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return join_domains(list(domains))


class Add(Node):
    """The sum of equally shaped inputs."""

    op = "add"
    arity = (1, None)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len(set(shapes)) != 1:
            raise ShapeError(f"found shapes {_listed(shapes)}, expected equal ones")
        return shapes[0]

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        if len(domains) == 1:
            return domains[0]
        counted = set(domains) <= {Domain.SPIKE, Domain.COUNT}
        return Domain.COUNT if counted else Domain.REAL


class Slice(_SameDomain):
    """Channels [start, stop)."""

    op = "slice"
    start: int
    stop: int

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        if not 0 <= self.start < self.stop <= shape[0]:
            raise ShapeError(
                f"found {shape[0]} channels, expected [{self.start}, {self.stop}) in them"
            )
        return (self.stop - self.start, *shape[1:])


class Quantise(Node):
    """Whole numbers for real ones: clip(round(scale·x), low, high), halves to even. What reads them
    has the scale in its weights."""

    op = "quantise"
    scale: Annotated[float, Field(gt=0)]
    low: int
    high: int

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return Domain.COUNT if self.low >= 0 else Domain.REAL


class LearnedLeak(NamedTuple):
    """A leak factor that the gradient moves: the parameter itself, `tau`, within [0, 1); or `plif`,
    1 - sigmoid(parameter) (method §1; paper eq. 24)."""

    parameter: str
    """Its full name."""
    form: Literal["tau", "plif"]


class Neuron(Node):
    """A neuron model (method §1). u: membrane, I: input current, y: spikes, H(x) = [x > 0].

        u[t] = tau·u[t-1]·(1 - y[t-1]) + I[t];  y[t] = H(u[t] - A[t])
        A[t] = v_threshold + beta·a[t];  a[t] = tau_a·a[t-1] + y[t-1]

    if: tau = 1, beta = 0. lif: beta = 0. binary: tau = 0, beta = 0. relu: y[t] = max(0, I[t]).

    With a grid (exact mode), the products tau·u, beta·a and tau_a·a, and relu's output, are rounded
    to multiples of 2^grid, halves to even.
    """

    op = "neuron"
    kind: NeuronKind
    tau: Annotated[float, Field(ge=0, lt=1)] = 0.2
    v_threshold: Annotated[float, Field(gt=0)] = 0.5
    tau_a: Annotated[float, Field(ge=0, lt=1)] = 0.2
    beta: Annotated[float, Field(ge=0)] = 0.2
    surrogate: SurrogateKind = "dspike"
    b: Annotated[float, Field(gt=0)] = 3.0
    detach_reset: bool = False
    learned: LearnedLeak | None = None
    """What is learned in the place of tau."""
    grid: int | None = None
    parts: tuple[Owner, ...] = ()
    """The neurons that a merged one stands for, side by side along the channels."""

    @property
    def spiking(self) -> bool:
        return self.kind != "relu"

    @property
    def leak(self) -> float:
        """The share of the membrane kept per step."""
        return {"if": 1.0, "binary": 0.0, "relu": 0.0}.get(self.kind, self.tau)

    def parameter_shapes(self) -> dict[str, Shape]:
        return {self.learned.parameter: ()} if self.learned else {}

    @property
    def states(self) -> tuple[str, ...]:
        """State kept between steps: v, the membrane after reset; a, ALIF's threshold rise."""
        return {"binary": (), "relu": (), "alif": ("v", "a")}.get(self.kind, ("v",))

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return Domain.SPIKE if self.spiking else Domain.REAL

    def output_time(self, times: Sequence[Time]) -> Time:
        return Time.STEPPED if self.states else times[0]


class MeanOverTime(Node):
    """The mean over the steps; static values pass."""

    op = "mean_over_time"

    def output_time(self, times: Sequence[Time]) -> Time:
        return Time.STATIC


class CostVolume(Node):
    """Slice d = concat(left[x], right[x - d]), zeros for x < d: (2C, slices, H, W) (method §8)."""

    op = "cost_volume"
    arity = (2, 2)
    slices: Positive

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        left, right = shapes
        if left != right or len(left) != 3:
            raise ShapeError(f"found shapes {left} and {right}, expected two equal (C, H, W)")
        if self.slices > left[2]:
            raise ShapeError(
                f"found a width of {left[2]}, expected at least {self.slices} (disparities)"
            )
        return (2 * left[0], self.slices, *left[1:])

    def output_domain(self, domains: Sequence[Domain]) -> Domain:
        return join_domains(list(domains))


class SoftArgmin(Node):
    """Sub-pixel disparity from a cost (1, D, H, W): softmin over ±support indices around the
    minimum, of several the first, index d meaning disparity 2d (method §8, estimator; paper eq.
    29). `exact`: exponentials are whole numbers (`snnir.ir.estimator`)."""

    op = "soft_argmin"
    support: Annotated[int, Field(ge=0)] = 2
    exact: bool = False

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        if len(shape) != 4 or shape[0] != 1:
            raise ShapeError(f"found shape {shape}, expected a cost (1, D, H, W)")
        return shape[2:]


class Mixed(Node):
    """Candidates weighted by softmaxed logits, Σ softmax(logits)_k · x_k (paper eq. 13-16).

    The inputs' order is the gates' order. A cell's edge mixes by alpha, a trellis by beta.
    """

    op = "mixed"
    arity = (1, None)
    gates: tuple[Gate, ...]

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len(shapes) != len(self.gates) or len(set(shapes)) != 1:
            raise ShapeError(
                f"found shapes {_listed(shapes)}, expected {len(self.gates)} equal ones"
            )
        return shapes[0]

    def parameter_shapes(self) -> dict[str, Shape]:
        return {k: v for gate in self.gates for k, v in gate.parameter_shape().items()}


class Output(_SameDomain):
    """What the network returns: the head's result, or an auxiliary head's for training."""

    op = "output"
    role: Literal["head", "auxiliary"] = "head"
    weight: float = 1.0


NODE_TYPES: Final[dict[str, type[Node]]] = {
    node.op: node
    for node in (
        Input, Repeat, Identity, Conv, BatchNorm, Linear, Pool, AdaptiveAveragePool, Flatten,
        Resize, Concat, Add, Slice, Quantise, Neuron, MeanOverTime, CostVolume, SoftArgmin, Mixed,
        Output,
    )
}  # fmt: skip


def _expect_channels(shape: Shape, channels: int) -> None:
    if shape[0] != channels:
        raise ShapeError(f"found {shape[0]} channels, expected {channels}")


def _windows(sizes: Shape, kernel: Sizes, stride: Sizes, padding: Sizes) -> Shape:
    if len(sizes) != len(kernel):
        raise ShapeError(f"found {len(sizes)} spatial dimensions, expected {len(kernel)}")
    out = tuple(
        (size + 2 * p - k) // s + 1
        for size, k, s, p in zip(sizes, kernel, stride, padding, strict=True)
    )
    if min(out) < 1:
        raise ShapeError(f"found spatial size {sizes}, expected at least the kernel {kernel}")
    return out


def _listed(shapes: Sequence[Shape]) -> str:
    return ", ".join(map(str, shapes))
