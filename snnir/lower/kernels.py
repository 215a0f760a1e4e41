"""The compiled loops of `snnir.lower.fused`, by numba.

Tensors are rows [rows, C], channels side by side, a row being a step, a sample and a place; step t
begins at row t·places. They come as a table with a line per tensor: its address, the distance
between its rows in values and, where it has some of the channels, the first and the end of these.
The values of one call are of one type, which a sample stands for; `zero` stands for the type of
numbers to compute with. bfloat16 comes as its bits, uint16, and is computed with in fp32.

Work is cut into pieces that do not depend on the number of threads, and partial sums are added in
order, so results do not either. Inner loops run over flat memory by address, since that is what the
compiler makes vector instructions of. An address does not keep its memory: its array must be an
argument, which lives as long as the call.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import llvmlite.ir as llvm
import numpy as np
from numba import carray, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import as_dtype

Array = np.ndarray

SURROGATES = ("dspike", "triangle", "superspike", "arctan", "rectangular", "sigmoid")
"""Surrogate gradients by number (`snnir.lower.surrogates`)."""

_TILE = 512
"""Values of a step that are worked on at once: those of all steps then stay in the processor."""

_PIECES = 32
"""Pieces that the places of a tensor are cut into."""


def _cacheable() -> bool:
    """Whether there is a folder to keep compiled code in."""
    try:
        njit(cache=True)(_cacheable)
    except RuntimeError:
        return False
    return True


_OPTIONS = {
    "cache": _cacheable(),
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz"},
}
_compiled = njit(**_OPTIONS)
_parallel = njit(parallel=True, **_OPTIONS)


def compiled() -> bool:
    """Whether code from an earlier process is there."""
    if not _OPTIONS["cache"]:
        return False
    folder = Path(backpropagate._cache.cache_path)
    return any(folder.glob(f"{Path(__file__).stem}.backpropagate-*.nbi"))


# --- memory and numbers -------------------------------------------------------------------------


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic
def _prefetch(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = llvm.IntType(32)
        kind = llvm.FunctionType(llvm.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        builder.call(function, [pointer, word(0), word(3), word(1)])

    return types.void(address), generate


def _values(address: int, start: int, count: int, sample: Any) -> Any:
    """The values start to start + count behind an address."""
    raise NotImplementedError


@overload(_values, inline="always")
def _values_of_type(address: Any, start: Any, count: Any, sample: Any) -> Any:
    dtype = as_dtype(sample)
    size = dtype.itemsize

    def view(address: Any, start: Any, count: Any, sample: Any) -> Any:
        return carray(_pointer(address + start * size), (count,), dtype)

    return view


def _size(sample: Any) -> int:
    """Bytes of a value."""
    raise NotImplementedError


@overload(_size, inline="always")
def _size_of_type(sample: Any) -> Any:
    size = as_dtype(sample).itemsize

    def of_type(sample: Any) -> int:
        return size

    return of_type


def _number(x: Any) -> Any:
    """A value as a number to compute with."""
    raise NotImplementedError


@overload(_number, inline="always")
def _number_of_type(x: Any) -> Any:
    if x != types.uint16:

        def same(x: Any) -> Any:
            return x

        return same

    def widened(x: Any) -> Any:
        return np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)

    return widened


def _stored(x: Any, sample: Any) -> Any:
    """A number as a value; to bfloat16, ties go to even."""
    raise NotImplementedError


@overload(_stored, inline="always")
def _stored_as_type(x: Any, sample: Any) -> Any:
    if sample != types.uint16:

        def same(x: Any, sample: Any) -> Any:
            return x

        return same

    def nearest(x: Any, sample: Any) -> Any:
        bits = np.float32(x).view(np.uint32)
        tie = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + tie) >> np.uint32(16))

    return nearest


@register_jitable
def _address(x: Array) -> int:
    return np.int64(x.ctypes.data)


@_compiled
def _fetch(tensor: Array, row: int, count: int, channels: int, size: int) -> None:
    """Ask for rows that will be read soon: memory that is read at several places in turn is not
    foreseen by the processor."""
    stride, length = tensor[1] * size, channels * size
    begin = tensor[0] + row * stride
    if stride == length:
        count, length = 1, count * length
    for p in range(count):
        for line in range(begin + p * stride, begin + p * stride + length, 64):
            _prefetch(line)


@_compiled
def _runs(stride: int, channels: int, part: int, count: int) -> tuple[int, int]:
    """The rows' memory as (pieces, their length): one piece where rows have no gaps."""
    return (1, count * channels) if stride == channels == part else (count, part)


@_compiled
def _repeated(values: Array, width: int, zero: Any) -> Array:
    """[n, C] as [n, width·C]."""
    n, channels = values.shape
    out = np.full((n, width * channels), zero)
    for i in range(n):
        for j in range(width * channels):
            out[i, j] = values[i, j % channels]
    return out


@_compiled
def _folded(wide: Array, channels: int) -> Array:
    """[width·C] summed to [C]."""
    out = np.zeros(channels, wide.dtype)
    for j in range(len(wide)):
        out[j % channels] += wide[j]
    return out


@_compiled
def _fill(address: int, count: int, value: Any) -> None:
    x = _values(address, 0, count, value)
    for j in range(count):
        x[j] = value


@_compiled
def _copy(x: int, out: int, count: int, zero: Any) -> None:
    x_, out_ = _values(x, 0, count, zero), _values(out, 0, count, zero)
    for j in range(count):
        out_[j] = x_[j]


@_compiled
def _gather(
    tensor: Array, row: int, count: int, channels: int, sample: Any, out: int, zero: Any
) -> None:
    """Add a tensor's rows to numbers [count, C]."""
    stride, start, stop = tensor[1], tensor[2], tensor[3]
    pieces, length = _runs(stride, channels, stop - start, count)
    address = tensor[0] + row * stride * _size(sample)
    for p in range(pieces):
        x = _values(address, p * stride, length, sample)
        y = _values(out, p * channels + start, length, zero)
        for j in range(length):
            y[j] += _number(x[j])


@_compiled
def _scatter(
    numbers: int, zero: Any, channels: int, row: int, count: int, tensor: Array, sample: Any
) -> None:
    """Write numbers [count, C] to a tensor's rows."""
    stride, start, stop = tensor[1], tensor[2], tensor[3]
    pieces, length = _runs(stride, channels, stop - start, count)
    address = tensor[0] + row * stride * _size(sample)
    for p in range(pieces):
        x = _values(numbers, p * channels + start, length, zero)
        y = _values(address, p * stride, length, sample)
        for j in range(length):
            y[j] = _stored(x[j], sample)


# --- batch norm ---------------------------------------------------------------------------------


@_parallel
def moments(xs: Array, sample: Any, zero: Any, rows: int, means: Array, squares: Array) -> None:
    """Per term and channel the mean over rows, and the sum of squared distances from it, [terms, C]
    in float64."""
    terms, channels = means.shape
    length = max(16, 8192 // channels)
    blocks = (rows + length - 1) // length
    sums = np.full((terms, blocks, 2, channels), zero)
    for task in prange(terms * blocks):
        term, block = task // blocks, task % blocks
        count = min(rows, (block + 1) * length) - block * length
        _block_moments(xs[term], block * length, count, sample, sums[term, block])
    means[:] = 0
    squares[:] = 0
    for term in range(terms):
        for block in range(blocks):
            share = (min(rows, (block + 1) * length) - block * length) / rows
            for c in range(channels):
                means[term, c] += share * sums[term, block, 0, c]
        for block in range(blocks):
            count = min(rows, (block + 1) * length) - block * length
            for c in range(channels):
                distance = sums[term, block, 0, c] - means[term, c]
                squares[term, c] += sums[term, block, 1, c] + count * distance * distance


@_compiled
def _block_moments(tensor: Array, row: int, rows: int, sample: Any, out: Array) -> None:
    """Mean and squared distances of some rows, from their distances to the first of them."""
    channels = out.shape[1]
    stride = tensor[1]
    address = tensor[0] + row * stride * _size(sample)
    width = max(1, min(rows, _TILE // channels)) if stride == channels else 1
    size = width * channels
    first = _values(address, 0, channels, sample)
    centre = np.empty(size, out.dtype)
    for j in range(size):
        centre[j] = _number(first[j % channels])
    sums = np.zeros(size, out.dtype)
    squares = np.zeros(size, out.dtype)
    done = rows - rows % (4 * width)
    for r in range(0, done, 4 * width):
        x0 = _values(address, r * stride, size, sample)
        x1 = _values(address, (r + width) * stride, size, sample)
        x2 = _values(address, (r + 2 * width) * stride, size, sample)
        x3 = _values(address, (r + 3 * width) * stride, size, sample)
        for j in range(size):
            d0, d1 = _number(x0[j]) - centre[j], _number(x1[j]) - centre[j]
            d2, d3 = _number(x2[j]) - centre[j], _number(x3[j]) - centre[j]
            sums[j] += (d0 + d1) + (d2 + d3)
            squares[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for r in range(done, rows):
        x = _values(address, r * stride, channels, sample)
        for c in range(channels):
            distance = _number(x[c]) - centre[c]
            sums[c] += distance
            squares[c] += distance * distance
    total, square = _folded(sums, channels), _folded(squares, channels)
    for c in range(channels):
        out[0, c] = centre[c] + total[c] / rows
        out[1, c] = square[c] - total[c] * total[c] / rows


@_compiled
def normalise(
    parameters: Array,
    eps: Array,
    zero: Any,
    momentum: float,
    rows: int,
    means: Array,
    squares: Array,
    inverse: Array,
    scales: Array,
    shift: Array,
) -> None:
    """Batch norm as Σ scale·x + shift, and the inverse standard deviation, from the moments; the
    running statistics move by the momentum. `parameters` has each term's addresses of weight, bias,
    running mean and running variance."""
    terms, channels = means.shape
    for i in range(terms):
        weight = _values(parameters[i, 0], 0, channels, zero)
        bias = _values(parameters[i, 1], 0, channels, zero)
        running_mean = _values(parameters[i, 2], 0, channels, zero)
        running_var = _values(parameters[i, 3], 0, channels, zero)
        for c in range(channels):
            mean, square = means[i, c], squares[i, c]
            running_mean[c] += momentum * (mean - running_mean[c])
            running_var[c] += momentum * (square / (rows - 1) - running_var[c])
            inverse[i, c] = 1 / math.sqrt(square / rows + eps[i])
            scales[i, c] = weight[c] * inverse[i, c]
            base = bias[c] - mean * scales[i, c]
            shift[0, c] = base if i == 0 else shift[0, c] + base


@_parallel
def spread(
    xs: Array,
    sample: Any,
    rows: int,
    gradient: Array,
    scales: Array,
    inverse: Array,
    means: Array,
    total: Array,
    products: Array,
    rows_of_all: int,
    outs: Array,
) -> None:
    """Batch norm's gradient: from that of the currents to those of each x, into `outs`. `total` and
    `products` are those of `backpropagate`, over `rows_of_all`."""
    terms, channels = scales.shape
    zero = scales.dtype.type(0)
    width = max(1, _TILE // channels)
    tiles = (rows + width - 1) // width
    away, level = np.empty((terms, channels)), np.empty((terms, channels))
    for i in range(terms):
        for c in range(channels):
            factor = scales[i, c] * inverse[i, c] * inverse[i, c] * products[i, c] / rows_of_all
            away[i, c] = -factor
            level[i, c] = factor * means[i, c] - scales[i, c] * total[c] / rows_of_all
    along_, away_ = _repeated(scales, width, zero), _repeated(away, width, zero)
    level_ = _repeated(level, width, zero)
    for tile in prange(tiles):
        first = tile * width
        count = min(rows - first, width)
        for i in range(terms):
            _spread(
                xs[i], sample, first, count, channels, gradient, along_[i], away_[i], level_[i],
                outs[i],
            )  # fmt: skip


@_compiled
def _spread(
    tensor: Array,
    sample: Any,
    row: int,
    count: int,
    channels: int,
    gradient: Array,
    along: Array,
    away: Array,
    level: Array,
    out: Array,
) -> None:
    pieces, length = _runs(max(tensor[1], out[1]), channels, channels, count)
    for p in range(pieces):
        received = _values(gradient[0], (row + p) * channels, length, sample)
        x = _values(tensor[0], (row + p) * tensor[1], length, sample)
        y = _values(out[0], (row + p) * out[1], length, sample)
        for j in range(length):
            value = along[j] * _number(received[j]) + (away[j] * _number(x[j]) + level[j])
            y[j] = _stored(value, sample)


# --- spikes -------------------------------------------------------------------------------------


@_parallel
def fire(
    xs: Array,
    sample: Any,
    stepped: bool,
    scales: Array,
    shift: Array,
    leak: float,
    threshold: float,
    steps: int,
    places: int,
    outs: Array,
) -> None:
    """Spikes of leaky neurons, from rest, on the currents Σ scale·x + shift, into each of `outs`;
    unless `stepped`, x has the rows of one step."""
    channels = scales.shape[1]
    zero = scales.dtype.type(0)
    width = max(1, _TILE // channels)
    tiles = (places + width - 1) // width
    pieces = min(tiles, _PIECES)
    scales_, shift_ = _repeated(scales, width, zero), _repeated(shift, width, zero)
    scratch = np.empty((pieces, 3, width * channels), scales.dtype)
    for piece in prange(pieces):
        _fire(
            scratch[piece], xs, sample, stepped, scales_, shift_, leak, threshold, steps, places,
            outs, channels, piece * tiles // pieces, (piece + 1) * tiles // pieces,
        )  # fmt: skip


@_compiled
def _fire(
    scratch: Array,
    xs: Array,
    sample: Any,
    stepped: bool,
    scales: Array,
    shift: Array,
    leak: float,
    threshold: float,
    steps: int,
    places: int,
    outs: Array,
    channels: int,
    tile: int,
    end: int,
) -> None:
    size = scales.shape[1]
    width = size // channels
    number = scales.dtype.type
    zero, leak_, threshold_ = number(0), number(leak), number(threshold)
    current, v, y = _address(scratch[0]), _address(scratch[1]), _address(scratch[2])
    for first in range(tile * width, end * width, width):
        count = min(places - first, width)
        _fill(v, count * channels, zero)
        for t in range(steps):
            row = t * places + first
            if t == 0 or stepped:
                soon = row + places if stepped and t < steps - 1 else first + width
                _currents(xs, sample, row, soon, count, channels, scales, shift, current, 0)
            _step(leak_, threshold_, count * channels, current, v, y)
            for o in range(len(outs)):
                _scatter(y, zero, channels, row, count, outs[o], sample)


@_compiled
def _currents(
    xs: Array,
    sample: Any,
    row: int,
    soon: int,
    count: int,
    channels: int,
    scales: Array,
    shift: Array,
    current: int,
    copies: int,
) -> None:
    """Σ scale·x + shift of the rows from `row`, those from `soon` coming next; x itself too, to the
    address `copies` unless that is 0."""
    size = scales.shape[1]
    zero = scales.dtype.type(0)
    _copy(_address(shift), current, count * channels, zero)
    for i in range(len(xs)):
        _fetch(xs[i], soon, count, channels, _size(sample))
        stride = xs[i, 1]
        pieces, length = _runs(stride, channels, channels, count)
        address = xs[i, 0] + row * stride * _size(sample)
        scale = _values(_address(scales), i * size, size, zero)
        for p in range(pieces):
            x = _values(address, p * stride, length, sample)
            y = _values(current, p * channels, length, zero)
            if copies:
                copy = _values(copies, i * size + p * channels, length, zero)
                for j in range(length):
                    copy[j] = _number(x[j])
                    y[j] += scale[j] * _number(x[j])
            else:
                for j in range(length):
                    y[j] += scale[j] * _number(x[j])


@_compiled
def _step(leak: Any, threshold: Any, count: int, current: int, v: int, y: int) -> None:
    zero, one = type(leak)(0), type(leak)(1)
    current_, v_ = _values(current, 0, count, leak), _values(v, 0, count, leak)
    y_ = _values(y, 0, count, leak)
    for j in range(count):
        u = leak * v_[j] + current_[j]
        y_[j] = one if u > threshold else zero
        v_[j] = zero if u > threshold else u


# --- the gradient of spikes ---------------------------------------------------------------------


@_parallel
def backpropagate(
    xs: Array,
    sample: Any,
    stepped: bool,
    scales: Array,
    shift: Array,
    means: Array,
    leak: float,
    threshold: float,
    surrogate: int,
    b: float,
    detach_reset: bool,
    steps: int,
    places: int,
    gradients: Array,
    out: Array,
    total: Array,
    products: Array,
) -> None:
    """From the gradients of spikes to those of the currents, into `out`: of each step, or unless
    `stepped` their sum. The sum of these over rows goes to `total` [C], that of gradient·(x - mean)
    to `products` [terms, C]."""
    terms, channels = scales.shape
    zero = scales.dtype.type(0)
    width = max(1, _TILE // channels)
    tiles = (places + width - 1) // width
    pieces = min(tiles, _PIECES)
    scales_, shift_ = _repeated(scales, width, zero), _repeated(shift, width, zero)
    means_ = _repeated(means, width, zero)
    sums = np.full((pieces, 1 + terms, channels), zero)
    # of each step the terms' x, the membrane and the spike's slope, and three lines more
    scratch = np.empty((pieces, steps * (terms + 2) + 3, width * channels), scales.dtype)
    for piece in prange(pieces):
        _backpropagate(
            scratch[piece], xs, sample, stepped, scales_, shift_, means_, leak, threshold,
            surrogate, b, detach_reset, steps, places, gradients, out, channels,
            piece * tiles // pieces, (piece + 1) * tiles // pieces, sums[piece],
        )  # fmt: skip
    total[:] = 0
    products[:] = 0
    for piece in range(pieces):
        for c in range(channels):
            total[c] += sums[piece, 0, c]
            for i in range(terms):
                products[i, c] += sums[piece, 1 + i, c]


@_compiled
def _backpropagate(
    scratch: Array,
    xs: Array,
    sample: Any,
    stepped: bool,
    scales: Array,
    shift: Array,
    means: Array,
    leak: float,
    threshold: float,
    surrogate: int,
    b: float,
    detach_reset: bool,
    steps: int,
    places: int,
    gradients: Array,
    out: Array,
    channels: int,
    tile: int,
    end: int,
    sums: Array,
) -> None:
    terms, size = scales.shape
    width = size // channels
    number = scales.dtype.type
    zero, leak_, threshold_ = number(0), number(leak), number(threshold)
    height = number(b / (2 * math.tanh(b / 2)))
    line = size * _size(zero)
    x = _address(scratch)
    u = x + steps * terms * line
    slope = u + steps * line
    given = slope + steps * line
    gradient = given + line
    summed = gradient + line
    totals = np.full((1 + terms, size), zero)
    for first in range(tile * width, end * width, width):
        count = min(places - first, width)
        values = count * channels
        for t in range(steps):
            now = u + t * line
            if t == 0 or stepped:
                row = t * places + first
                soon = row + places if stepped and t < steps - 1 else first + width
                copies = x + t * terms * line
                _currents(xs, sample, row, soon, count, channels, scales, shift, now, copies)
                if not stepped:
                    _copy(now, summed, values, zero)
            else:
                _copy(summed, now, values, zero)
            _leak(leak_, threshold_, values, now - line if t else 0, now, given)
            slopes(surrogate, b, height, values, given, slope + t * line)
        _fill(gradient, values, zero)
        _fill(summed, values, zero)
        for t in range(steps - 1, -1, -1):
            row = t * places + first
            soon = row - places if t else (steps - 1) * places + first + width
            _fill(given, values, zero)
            for o in range(len(gradients)):
                part = gradients[o, 3] - gradients[o, 2]
                _fetch(gradients[o], soon, count, part, _size(sample))
                _gather(gradients[o], row, count, channels, sample, given, zero)
            _recur(
                leak_, threshold_, detach_reset, values, given, slope + t * line, u + t * line,
                gradient,
            )  # fmt: skip
            found = gradient
            if not stepped:
                _add(gradient, summed, values, zero)
                found = summed
            if stepped or t == 0:
                _scatter(found, zero, channels, row, count, out, sample)
                _add_products(found, values, x + t * terms * line, means, totals)
    for i in range(1 + terms):
        sums[i] = _folded(totals[i], channels)


@_compiled
def _leak(leak: Any, threshold: Any, count: int, before: int, u: int, distance: int) -> None:
    """Add what the step before, if any, leaves of the membrane; its distance from the threshold."""
    zero = type(leak)(0)
    u_, distance_ = _values(u, 0, count, leak), _values(distance, 0, count, leak)
    if before:
        before_ = _values(before, 0, count, leak)
        for j in range(count):
            membrane = u_[j] + leak * (zero if before_[j] > threshold else before_[j])
            u_[j] = membrane
            distance_[j] = membrane - threshold
    else:
        for j in range(count):
            distance_[j] = u_[j] - threshold


@_compiled
def _recur(
    leak: Any,
    threshold: Any,
    detach_reset: bool,
    count: int,
    given: int,
    slope: int,
    u: int,
    gradient: int,
) -> None:
    """A membrane's gradient from its spike's and the next membrane's (`snnir.lower.neurons`)."""
    zero, one = type(leak)(0), type(leak)(1)
    given_, slope_ = _values(given, 0, count, leak), _values(slope, 0, count, leak)
    u_, gradient_ = _values(u, 0, count, leak), _values(gradient, 0, count, leak)
    if detach_reset:
        for j in range(count):
            passes = zero if u_[j] > threshold else leak
            gradient_[j] = given_[j] * slope_[j] + gradient_[j] * passes
    else:
        for j in range(count):
            passes = (zero if u_[j] > threshold else one) - u_[j] * slope_[j]
            gradient_[j] = given_[j] * slope_[j] + gradient_[j] * (leak * passes)


@_compiled
def _add(x: int, out: int, count: int, zero: Any) -> None:
    x_, out_ = _values(x, 0, count, zero), _values(out, 0, count, zero)
    for j in range(count):
        out_[j] += x_[j]


@_compiled
def _add_products(gradient: int, count: int, x: int, means: Array, totals: Array) -> None:
    """Add gradient, and gradient·(x - mean) of each term, to the lines of `totals`."""
    size = means.shape[1]
    zero = means.dtype.type(0)
    _add(gradient, _address(totals), count, zero)
    gradient_ = _values(gradient, 0, count, zero)
    for i in range(len(means)):
        x_ = _values(x, i * size, count, zero)
        mean = _values(_address(means), i * size, count, zero)
        product = _values(_address(totals), (1 + i) * size, count, zero)
        for j in range(count):
            product[j] += gradient_[j] * (x_[j] - mean[j])


# --- surrogates ---------------------------------------------------------------------------------


def _sech2(x: Any) -> Any:
    """1 - tanh²(x) = 4 e / (1 + e)², with e = exp(-2 |x|). In fp32 by Taylor's series around the
    nearest power of 2, which, unlike the C library's, runs on many values at once."""
    raise NotImplementedError


@overload(_sech2, inline="always")
def _sech2_of_type(x: Any) -> Any:
    if x != types.float32:

        def in_fp64(x: Any) -> Any:
            return 1 - math.tanh(x) ** 2

        return in_fp64

    def in_fp32(x: Any) -> Any:
        f = np.float32
        y = min(abs(x), f(40)) * f(2)
        power = np.int32(y * f(1 / math.log(2)) + f(0.5))
        r = f(power) * f(math.log(2)) - y
        e = f(1 / 5040)
        e = e * r + f(1 / 720)
        e = e * r + f(1 / 120)
        e = e * r + f(1 / 24)
        e = e * r + f(1 / 6)
        e = e * r + f(1 / 2)
        e = (e * r + f(1)) * r + f(1)
        e *= np.int32((np.int32(127) - power) << np.int32(23)).view(np.float32)
        return f(4) * e / ((f(1) + e) * (f(1) + e))

    return in_fp32


@_compiled
def slopes(surrogate: int, b: float, height: Any, count: int, distance: int, out: int) -> None:
    """The surrogate gradient at distances from the threshold, both by address; `height` is
    dspike's at 0."""
    number, half, one = type(height), type(height)(0.5), type(height)(1)
    d, y = _values(distance, 0, count, height), _values(out, 0, count, height)
    if surrogate == 0:
        for j in range(count):
            value = height * _sech2(number(b) * d[j])
            y[j] = value if abs(d[j]) <= half else number(0)
    elif surrogate == 1:
        for j in range(count):
            y[j] = number(b) * max(number(0), one - abs(d[j]))
    elif surrogate == 2:
        for j in range(count):
            x = number(b) * abs(d[j]) + one
            y[j] = one / (x * x)
    elif surrogate == 3:
        for j in range(count):
            x = number(math.pi) * d[j]
            y[j] = number(b / 3) / (one + x * x)
    elif surrogate == 4:
        for j in range(count):
            y[j] = number(b) if abs(d[j]) <= number(1 / (2 * b)) else number(0)
    else:
        for j in range(count):
            y[j] = number(b / 4) * _sech2(number(b / 2) * d[j])
