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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnir.errors import SnnirError
from snnir.ir.nodes import Neuron

if TYPE_CHECKING:
    from snnir.lower.kernels import Layer

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


def must_compile(dtype: torch.dtype) -> bool:
    """Whether the first step on values of this type will take long, to compile the loops for this
    processor.

    Raises:
        SnnirError: numba is installed but cannot be used.
    """
    try:
        from snnir.lower import kernels
    except ImportError as error:
        raise SnnirError(
            f"found numba installed but not usable ({error}), expected a whole one, or none: "
            "training then goes without"
        ) from None
    return not kernels.compiled(STORED[dtype](0))


class Extent(NamedTuple):
    """Some channels of a tensor, and of every how many rows and columns of its pixels."""

    start: int
    stop: int
    down: int = 1
    across: int = 1


# --- batch norm ---------------------------------------------------------------------------------


class Parameters(NamedTuple):
    """A batch norm's, each [C]."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


class Norm(NamedTuple):
    """A batch norm in training: scale·x + shift, by channel. Its gradient needs sums that the
    neurons' leave among its numbers."""

    zero: Any
    """Of the type of numbers to compute with."""
    rows: int
    rows_of_all: int
    """Over all processes, if it is synchronised."""
    numbers: np.ndarray
    """[LINES, C] in float64; their names are in `snnir.lower.kernels`."""


class Term(NamedTuple):
    """Some channels of a batch norm."""

    x: Tensor
    """[T·N, C, H, W] or [N, C, H, W]; its gradient is that of the current."""
    norm: Norm
    start: int
    """The first of them."""


@dataclass(frozen=True)
class Normalised:
    """A sum of batch norms; not `stepped`: the same at every step."""

    terms: tuple[Term, ...]
    stepped: bool


def normalise(
    x: Tensor,
    owners: Sequence[Parameters],
    eps: float,
    sizes: Sequence[int],
    *,
    left_out: Sequence[Tensor] = (),
    momentum: float,
    synchronised: bool,
) -> list[Term]:
    """The batch norm of x, [T·N, C, H, W] or [N, C, H, W], in pieces of so many channels.

    `left_out` is the bias, side by side in memory, that a convolution before did not add: batch
    norm takes away what it adds, so only the running mean knows it, and its gradient is 0.

    Statistics are the batch's (of all processes' if `synchronised`), and running ones move by the
    momentum. Each kind of the owners' parameters lies in one piece of memory. ValueError for a
    batch of one value per channel, as torch's.
    """
    from snnir.lower import kernels

    x = x.contiguous(memory_format=torch.channels_last)
    n, channels, height, width = x.shape
    rows = rows_of_all = n * height * width
    zero, numbers = _zero(owners[0].weight), np.zeros((kernels.LINES, channels))
    missing = left_out[0].data_ptr() if left_out else 0
    addresses = np.array([*(kind.data_ptr() for kind in owners[0]), missing])
    tensor, how = (x.data_ptr(), _zero(x), zero, rows), (addresses, eps, momentum, numbers)
    if synchronised:
        _run(kernels.moments, *tensor, numbers)
        rows_of_all = _reduce(rows, numbers[kernels.MEAN], numbers[kernels.SQUARES])
    if rows_of_all == 1:
        raise ValueError("found one value per channel, expected more to train batch norm")
    if synchronised:
        kernels.normalise(zero, rows_of_all, *how)
    else:
        _run(kernels.batch_norm, *tensor, *how)
    norm = Norm(zero, rows, rows_of_all, numbers)
    weights, biases = [owner.weight for owner in owners], [owner.bias for owner in owners]
    pieces = _Normalise.apply(norm, sizes, synchronised, x, *weights, *biases, *left_out)
    return [Term(piece, norm, at) for piece, at in zip(pieces, _starts(sizes), strict=True)]


class _Normalise(torch.autograd.Function):
    """(…, x, weights and biases of the owners, what is left out) -> x in pieces; the gradients that
    come are those of the pieces' norm."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: Norm,
        sizes: Sequence[int],
        synchronised: bool,
        x: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.norm, ctx.sizes, ctx.synchronised = norm, sizes, synchronised
        ctx.owners, ctx.dtype = [len(tensor) for tensor in tensors], tensors[0].dtype
        ctx.set_materialize_grads(False)
        return x.split_with_sizes(sizes, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from snnir.lower import kernels

        (x,) = ctx.saved_tensors
        norm: Norm = ctx.norm
        extents = [Extent(*bounds) for bounds in pairwise([*_starts(ctx.sizes), x.shape[1]])]
        for extent, gradient in zip(extents, gradients, strict=True):
            if gradient is None:  # sums may be there from a backward pass before
                norm.numbers[[kernels.TOTAL, kernels.PRODUCT], extent.start : extent.stop] = 0
        of_parameters = torch.zeros(sum(ctx.owners), dtype=ctx.dtype)
        kernels.of_parameters(norm.zero, norm.numbers, of_parameters.data_ptr())
        of_owners = of_parameters.split_with_sizes(ctx.owners)
        if ctx.synchronised:
            _sum_over_processes(norm.numbers[kernels.TOTAL], norm.numbers[kernels.PRODUCT])
        if not ctx.needs_input_grad[3]:
            return None, None, None, None, *of_owners
        received = [
            torch.zeros_like(x[:, extent.start : extent.stop], memory_format=torch.channels_last)
            if gradient is None
            else _even_rows(gradient)
            for extent, gradient in zip(extents, gradients, strict=True)
        ]
        of_x = _empty(x.shape, x.dtype)
        _run(
            kernels.spread, x.data_ptr(), _zero(x), norm.zero, norm.rows, norm.rows_of_all,
            _table(received, extents, x.shape[3]), norm.numbers, of_x.data_ptr(),
        )  # fmt: skip
        return None, None, None, of_x, *of_owners


def add(values: Sequence[Normalised]) -> Normalised:
    return Normalised(tuple(term for value in values for term in value.terms), values[0].stepped)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes[:-1])]


# --- spikes side by side ------------------------------------------------------------------------


class Joint:
    """Memory for spikes that are read side by side along the channels, so that none are copied for
    it."""

    def __init__(self, channels: int):
        self._channels = channels
        self._whole: Tensor | None = None
        self._pieces: dict[int, Tensor] = {}

    def memory(self, start: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a piece [N, C, H, W] from channel `start`."""
        if self._whole is None:
            self._whole = _empty((shape[0], self._channels, *shape[2:]), dtype)
        return self._whole.narrow(1, start, shape[1])

    def add(self, start: int, piece: Tensor) -> None:
        """Note what was written from channel `start`."""
        self._pieces[start] = piece

    def whole(self) -> Tensor:
        """[N, C, H, W] of all pieces."""
        pieces = [piece for _, piece in sorted(self._pieces.items())]
        return _Concatenate.apply(self._whole, *pieces)


class _Concatenate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, *pieces: Tensor) -> Tensor:
        ctx.sizes = [piece.shape[1] for piece in pieces]
        return whole.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradient.split_with_sizes(ctx.sizes, 1)


# --- neurons ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """What is written of a neuron's spikes in one piece."""

    path: str
    """The node whose value it is, or is part of."""
    extent: Extent
    at: int = 0
    """Its first channel there."""
    channels: int = 0
    """How many are there, if others are beside it."""


def fire(
    neuron: Neuron,
    current: Normalised,
    steps: int,
    parts: Sequence[Part],
    joints: dict[str, Joint],
) -> dict[str, Tensor]:
    """Spikes of a leaky neuron from rest, [T·N, C, H, W], by path; method §1, §3. Parts of what
    more neurons write go to the joints, by path too."""
    from snnir.lower import kernels

    for part in parts:
        if part.channels and part.path not in joints:
            joints[part.path] = Joint(part.channels)
    xs, norms = [term.x for term in current.terms], [term[1:] for term in current.terms]
    rows, channels, height, width = xs[0].shape
    layer = kernels.Layer(
        sample=_zero(xs[0]),
        zero=norms[0][0].zero,
        channels=channels,
        places=rows * height * width // (steps if current.stepped else 1),
        steps=steps,
        stepped=current.stepped,
        leak=neuron.leak,
        threshold=neuron.v_threshold,
        surrogate=kernels.SURROGATES.index(neuron.surrogate),
        b=neuron.b,
        detach_reset=neuron.detach_reset,
    )
    pieces = _Fire.apply(layer, norms, parts, joints, *xs)
    spikes = {}
    for part, piece in zip(parts, pieces, strict=True):
        if part.channels:
            joints[part.path].add(part.at, piece)
        else:
            spikes[part.path] = piece
    return spikes


class _Fire(torch.autograd.Function):
    """(…, x of all terms) -> spikes, a piece for each part."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        norms: Sequence[tuple[Norm, int]],
        parts: Sequence[Part],
        joints: Mapping[str, Joint],
        *xs: Tensor,
    ) -> tuple[Tensor, ...]:
        from snnir.lower import kernels

        dtype, (_, _, height, width) = xs[0].dtype, xs[0].shape
        images = layer.steps * layer.places // (height * width)
        outs = []
        for path, (start, stop, down, across), at, joined in parts:
            shape = images, stop - start, height // down, width // across
            outs.append(joints[path].memory(at, shape, dtype) if joined else _empty(shape, dtype))
        extents = [part.extent for part in parts]
        _run(kernels.fire, layer, _terms(xs, norms), _table(outs, extents, width))
        ctx.save_for_backward(*xs)
        ctx.layer, ctx.norms, ctx.extents = layer, norms, extents
        ctx.set_materialize_grads(False)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from snnir.lower import kernels

        xs: tuple[Tensor, ...] = ctx.saved_tensors
        given = [
            (_even_rows(gradient), extent)
            for gradient, extent in zip(gradients, ctx.extents, strict=True)
            if gradient is not None
        ]
        received = _table([x for x, _ in given], [extent for _, extent in given], xs[0].shape[3])
        current = _empty(xs[0].shape, xs[0].dtype)
        _run(kernels.backpropagate, ctx.layer, _terms(xs, ctx.norms), received, current.data_ptr())
        return None, None, None, None, *[current] * len(xs)


# --- calls --------------------------------------------------------------------------------------

_LOCK = threading.Lock()
"""Numba's threads take one call at a time."""


def _run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call a parallel kernel with as many threads as torch uses."""
    numba = _numba()
    with _LOCK:
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        if numba.get_num_threads() != threads:
            numba.set_num_threads(threads)
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


def _even_rows(x: Tensor) -> Tensor:
    """x if its rows [C] lie at even distances, else a copy."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
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


def _table(xs: Sequence[Tensor], extents: Sequence[Extent], width: int) -> np.ndarray:
    """A line per tensor, which has that of a whole of some width: its address, the distance between
    its rows, its extent and the width."""
    lines = [
        (x.data_ptr(), _row_stride(x), *extent, width)
        for x, extent in zip(xs, extents, strict=True)
    ]
    return np.array(lines, np.int64).reshape(-1, 7)


def _terms(xs: Sequence[Tensor], norms: Sequence[tuple[Norm, int]]) -> np.ndarray:
    """A line per term: the addresses of x and of its numbers, between them the distance between
    rows of x, and between lines of its numbers."""
    lines = [
        (x.data_ptr(), norm.numbers.shape[1], norm.numbers.ctypes.data + start * 8)
        for x, (norm, start) in zip(xs, norms, strict=True)
    ]
    return np.array(lines, np.int64)


def _reduce(rows: int, means: np.ndarray, squares: np.ndarray) -> int:
    """Put all processes' means and squared distances in the place of this one's; returns the number
    of their rows."""
    sums = np.concatenate([[rows], rows * means])
    _sum_over_processes(sums)
    mean = sums[1:] / sums[0]
    squares += rows * (means - mean) ** 2
    _sum_over_processes(squares)
    means[:] = mean
    return int(sums[0])


def _sum_over_processes(*arrays: np.ndarray) -> None:
    for array in arrays:
        dist.all_reduce(torch.from_numpy(array))
