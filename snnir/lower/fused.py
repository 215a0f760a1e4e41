"""Batch norms, their sum and the neuron that reads it, as one function of a training step.

Torch writes out each normalised value, their sum and the membranes, and reads them all again for
the gradient. Compiled loops (`snnir.lower.kernels`) go from the convolutions' outputs to spikes at
once and keep nothing but those outputs; the gradient computes the membranes again. What a batch
norm or a sum returns is then `Normalised`: what it stands for, not its values.

It is the same function as node by node, to rounding. It needs numba (the extra `fast`), a processor
and sums of batch norms of 2-D layers before leaky neurons; all else is computed node by node, and
so is everything in evaluation and where values are looked at.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnir.ir.graph import Graph
from snnir.ir.nodes import Add, BatchNorm, Concat, Neuron, Slice

STORED: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.uint16,
}
"""Types of values that can be computed with, and what compiled loops read them as."""


@cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def must_compile() -> bool:
    """Whether the first step will take long, to compile the loops for this processor."""
    from snnir.lower import kernels

    return not kernels.compiled()


# --- what can be fused --------------------------------------------------------------------------


def deferrable(graph: Graph, siblings: Container[str]) -> set[str]:
    """Batch norms, their slices and sums whose values need not be written out: each is read once,
    in the end by a leaky neuron, and so are all channels of each batch norm. `siblings` are the
    slices that together are all of what they slice."""
    chains = {
        neuron.path: chain
        for neuron in graph.of_type(Neuron)
        if neuron.states == ("v",) and neuron.grid is None and neuron.learned is None
        for chain in [_chain(graph, neuron, siblings)]
        if chain
    }
    while True:
        reached = set().union(*chains.values())
        complete = {
            neuron: chain
            for neuron, chain in chains.items()
            if all(reached.union([neuron]).issuperset(graph.consumers(path)) for path in chain)
        }
        if len(complete) == len(chains):
            return reached
        chains = complete


def _chain(graph: Graph, neuron: Neuron, siblings: Container[str]) -> set[str]:
    """What lies between convolutions and the neuron; nothing if it is not as it should be."""
    (source,) = graph.inputs(neuron.path)
    terms = graph.inputs(source) if isinstance(graph[source], Add) else (source,)
    chain = {source, *terms}
    if any(len(graph.consumers(path)) > 1 for path in chain) or len(set(terms)) < len(terms):
        return set()
    for path in terms:
        node = graph[path]
        if isinstance(node, Slice) and path in siblings:
            (whole,) = graph.inputs(path)
            chain.add(whole)
            start, stop, node = node.start, node.stop, graph[whole]
            if not isinstance(node, BatchNorm) or not {start, stop} <= _bounds(node):
                return set()
        two_dimensional = len(graph.type(path).shape or ()) == 3
        if not isinstance(node, BatchNorm) or not two_dimensional:
            return set()
    return chain if len({graph.type(path).time for path in terms}) == 1 else set()


def concatenated(graph: Graph, deferred: Container[str]) -> dict[str, tuple[str, int]]:
    """Neurons that are fused, as are all others that are concatenated with them: by path, the
    concatenation and their first channel in it."""
    places: dict[str, tuple[str, int]] = {}
    for node in graph.of_type(Concat):
        sources = graph.inputs(node.path)
        fires = [
            isinstance(graph[path], Neuron) and graph.inputs(path)[0] in deferred
            for path in sources
        ]
        if all(fires) and len(set(sources)) == len(sources) and not places.keys() & set(sources):
            starts = _starts([graph.shape(path)[0] for path in sources])
            places |= {path: (node.path, at) for path, at in zip(sources, starts, strict=True)}
    return places


def _bounds(node: BatchNorm) -> set[int]:
    """The channels at which an owner's begin or end."""
    return {0, *accumulate(owner.channels for owner in node.owners)}


# --- values not written out ---------------------------------------------------------------------


class Parameters(NamedTuple):
    """A batch norm's, each [C]."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


class Term(NamedTuple):
    """A batch norm of x, [T·N, C, H, W] or [N, C, H, W], and what its owners have of the
    parameters; each kind lies in one piece of memory."""

    x: Tensor
    owners: tuple[Parameters, ...]
    eps: float
    joint: Joint | None = None
    start: int = 0
    """Where x lies among the channels of the joint."""


@dataclass(frozen=True)
class Normalised:
    """A sum of batch norms; not `stepped`: the same at every step."""

    terms: tuple[Term, ...]
    stepped: bool

    def split(self, sizes: Sequence[int]) -> list[Normalised]:
        """The one term's channels in pieces, each of some owners."""
        (term,) = self.terms
        joint = Joint(term.x.shape[1])
        owner_at = dict(
            zip(_starts([len(o.weight) for o in term.owners]), term.owners, strict=True)
        )
        pieces = []
        xs = _Split.apply(term.x, tuple(sizes), joint)
        for x, size, start in zip(xs, sizes, _starts(sizes), strict=True):
            owners = [owner for at, owner in owner_at.items() if start <= at < start + size]
            piece = Term(x, tuple(owners), term.eps, joint, start)
            pieces.append(Normalised((piece,), self.stepped))
        return pieces


def add(values: Sequence[Normalised]) -> Normalised:
    return Normalised(tuple(term for value in values for term in value.terms), values[0].stepped)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes[:-1])]


class Joint:
    """Memory for tensors that will lie side by side along the channels, so that none is copied to
    join them: spikes that are concatenated, gradients of a tensor's pieces."""

    def __init__(self, channels: int):
        self._channels = channels
        self._whole: Tensor | None = None

    def piece(self, start: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a tensor [N, C, H, W] from channel `start`."""
        if self._whole is None:
            self._whole = _empty((shape[0], self._channels, *shape[2:]), dtype)
        return self._whole.narrow(1, start, shape[1])

    def take(self) -> Tensor | None:
        """All of it, if there is any; what is written next gets new memory."""
        whole, self._whole = self._whole, None
        return whole


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], joint: Joint) -> tuple[Tensor, ...]:
        ctx.sizes, ctx.joint, ctx.like = sizes, joint, (x.shape, x.dtype)
        return x.split_with_sizes(sizes, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        whole = ctx.joint.take()
        if whole is None:
            whole = _empty(*ctx.like)
        for piece, gradient in zip(whole.split_with_sizes(ctx.sizes, 1), gradients, strict=True):
            if gradient is None:
                piece.zero_()
            elif gradient.data_ptr() != piece.data_ptr():
                piece.copy_(gradient)
        return whole, None, None


def concatenate(pieces: Sequence[Tensor], joint: Joint) -> Tensor:
    """[N, C, H, W] of the pieces, which were written to the joint."""
    return _Concatenate.apply(joint.take(), *pieces)


class _Concatenate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, *pieces: Tensor) -> Tensor:
        ctx.sizes = [piece.shape[1] for piece in pieces]
        return whole.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradient.split_with_sizes(ctx.sizes, 1)


# --- the function -------------------------------------------------------------------------------


class Part(NamedTuple):
    """An output: the first and the end of its channels, and where it is written if not to memory of
    its own: the joint and its first channel there."""

    start: int
    stop: int
    joint: Joint | None = None
    at: int = 0


class Firing(NamedTuple):
    """How currents become spikes."""

    neuron: Neuron
    steps: int
    stepped: bool
    """Whether x has the rows of all steps, or of one."""
    parts: tuple[Part, ...]
    momentum: float
    synchronised: bool
    """Whether statistics are those of all processes."""


def fire(
    neuron: Neuron,
    current: Normalised,
    steps: int,
    parts: Sequence[Part],
    *,
    momentum: float,
    synchronised: bool,
) -> tuple[Tensor, ...]:
    """Spikes of a leaky neuron from rest, [T·N, C, H, W], an output for each part; method §1, §3.

    Batch norm is that of training: statistics are the batch's, and running ones move by the
    momentum. ValueError for a batch of one value per channel, as torch's.
    """
    terms = current.terms
    how = Firing(neuron, steps, current.stepped, tuple(parts), momentum, synchronised)
    weights = [owner.weight for term in terms for owner in term.owners]
    biases = [owner.bias for term in terms for owner in term.owners]
    return _Fire.apply(how, terms, *(term.x for term in terms), *weights, *biases)


class _Fire(torch.autograd.Function):
    """(…, inputs, weights and biases of all terms' owners) -> spikes."""

    @staticmethod
    def forward(
        ctx: Any, how: Firing, terms: tuple[Term, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        from snnir.lower import kernels

        xs = [_even_rows(x) for x in tensors[: len(terms)]]
        n, channels, *size = xs[0].shape
        rows = n * size[0] * size[1]
        zero, sample = _zero(terms[0].owners[0].weight), _zero(xs[0])
        table = _table(xs)
        means, squares = np.empty((2, len(terms), channels))
        _run(kernels.moments, table, sample, zero, rows, means, squares)
        rows_of_all = _reduce(rows, means, squares) if how.synchronised else rows
        if rows_of_all == 1:
            raise ValueError("found one value per channel, expected more to train batch norm")
        scales, inverse, shift = np.empty((3, len(terms), channels), zero.dtype)
        kernels.normalise(
            np.array([[x.data_ptr() for x in term.owners[0]] for term in terms]),
            np.array([term.eps for term in terms]),
            zero, how.momentum, rows_of_all, means, squares, inverse, scales, shift,
        )  # fmt: skip
        places = rows // how.steps if how.stepped else rows
        batch = places * how.steps // (size[0] * size[1])
        outs = [
            _place((batch, part.stop - part.start, *size), xs[0].dtype, part.joint, part.at)
            for part in how.parts
        ]
        neuron = how.neuron
        _run(
            kernels.fire, table, sample, how.stepped, scales, shift[:1], neuron.leak,
            neuron.v_threshold, how.steps, places, _table(outs, how.parts),
        )  # fmt: skip
        ctx.save_for_backward(*xs)
        ctx.how, ctx.rows, ctx.rows_of_all, ctx.places = how, rows, rows_of_all, places
        ctx.numbers = scales, shift[:1], means, inverse
        ctx.joints = [(term.joint, term.start) for term in terms]
        ctx.owners = [len(owner.weight) for term in terms for owner in term.owners]
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from snnir.lower import kernels

        xs: tuple[Tensor, ...] = ctx.saved_tensors
        how: Firing = ctx.how
        neuron = how.neuron
        scales, shift, means, inverse = ctx.numbers
        terms, channels = scales.shape
        sample, table = _zero(xs[0]), _table(xs)
        received = [
            (_even_rows(gradient), part)
            for gradient, part in zip(gradients, how.parts, strict=True)
            if gradient is not None
        ]
        current = torch.empty_like(xs[0], memory_format=torch.channels_last)
        current_table = _table([current], [Part(0, channels)])[0]
        total, products = np.empty(channels), np.empty((terms, channels))
        _run(
            kernels.backpropagate, table, sample, how.stepped, scales, shift, means,
            neuron.leak, neuron.v_threshold, kernels.SURROGATES.index(neuron.surrogate), neuron.b,
            neuron.detach_reset, how.steps, ctx.places,
            _table([x for x, _ in received], [part for _, part in received]),
            current_table, total, products,
        )  # fmt: skip
        of_parameters = np.empty((2, terms, channels), scales.dtype)
        np.multiply(products, inverse, out=of_parameters[0], casting="unsafe")
        of_parameters[1] = total
        if how.synchronised:
            _sum_over_processes(total, products)
        flat = torch.from_numpy(of_parameters.reshape(-1))
        of_owners = flat.split_with_sizes(ctx.owners * 2)
        if not any(ctx.needs_input_grad[2 : 2 + terms]):
            return None, None, *[None] * terms, *of_owners
        of_inputs = [
            _place(x.shape, x.dtype, joint, start)
            for x, (joint, start) in zip(xs, ctx.joints, strict=True)
        ]
        _run(
            kernels.spread, table, sample, ctx.rows, current_table, scales, inverse, means,
            total, products, ctx.rows_of_all, _table(of_inputs),
        )  # fmt: skip
        return None, None, *of_inputs, *of_owners


# --- calls --------------------------------------------------------------------------------------

_LOCK = threading.Lock()
"""Numba's threads take one call at a time."""


def _run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call a parallel kernel with as many threads as torch uses."""
    numba = _numba()
    with _LOCK:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        kernel(*arguments)


@cache
def _numba() -> Any:
    """numba with its threads started, which may set torch's number too: they share OpenMP."""
    import numba
    from numba.np.ufunc.parallel import _launch_threads

    threads = torch.get_num_threads()
    _launch_threads()
    torch.set_num_threads(threads)
    return numba


def _zero(x: Tensor) -> Any:
    """A value of the type that compiled loops read x as."""
    return STORED[x.dtype](0)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, memory_format=torch.channels_last)


def _place(shape: Sequence[int], dtype: torch.dtype, joint: Joint | None, start: int) -> Tensor:
    return _empty(shape, dtype) if joint is None else joint.piece(start, shape, dtype)


def _even_rows(x: Tensor) -> Tensor:
    """x if its rows [C] lie at even distances, else a copy."""
    _, _, height, width = x.shape
    row = _row_stride(x)
    expected = row * width * height, 1, row * width, row
    for size, found, stride in zip(x.shape, x.stride(), expected, strict=True):
        if size > 1 and found != stride:
            return x.contiguous(memory_format=torch.channels_last)
    return x


def _row_stride(x: Tensor) -> int:
    """The distance between a value and that of the next place, of the same channel."""
    n, channels, height, width = x.shape
    n_stride, _, height_stride, width_stride = x.stride()
    if width > 1:
        return width_stride
    return height_stride if height > 1 else n_stride if n > 1 else channels


def _table(xs: Sequence[Tensor], parts: Sequence[Part] = ()) -> np.ndarray:
    """A line per tensor: its address, the distance between its rows, and which channels it has of
    all."""
    lines = [(x.data_ptr(), _row_stride(x)) for x in xs]
    if not parts:
        return np.array(lines, np.int64)
    return np.array([(*x, p.start, p.stop) for x, p in zip(lines, parts, strict=True)], np.int64)


def _reduce(rows: int, means: np.ndarray, squares: np.ndarray) -> int:
    """Put all processes' means and squared distances in the place of this one's; returns the number
    of their rows."""
    sums = np.concatenate([[rows], (rows * means).ravel()])
    _sum_over_processes(sums)
    mean = (sums[1:] / sums[0]).reshape(means.shape)
    squares += rows * (means - mean) ** 2
    _sum_over_processes(squares)
    means[:] = mean
    return int(sums[0])


def _sum_over_processes(*arrays: np.ndarray) -> None:
    for array in arrays:
        dist.all_reduce(torch.from_numpy(array))
