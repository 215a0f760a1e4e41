"""The compiled loops of `snnir.lower.fused`, by numba.

Tensors are rows [rows, C], channels side by side, a row being a step, a sample and a place; step t
begins at row t·places. They come as an address, where rows have no gaps between them, or as a table
with a line per tensor: its address, the distance between its rows in values, the first and the end
of the channels that it has, and which rows it has: `down`, `across` and `length`, every `across`th
of every `down`th line, a line being `length` rows.
A term of a sum of batch norms has, after the distance, the address of its numbers, lines of which
lie at the same distance.
The values of one call are of one type, which a sample stands for; `zero` stands for the type of
numbers to compute with. bfloat16 comes as its bits, uint16, and is computed with in fp32.

Work is cut into pieces that do not depend on the number of threads, and partial sums are added in
order, so results do not either. Inner loops run over flat memory by address, since that is what the
compiler makes vector instructions of. An address does not keep its memory: its array must be an
argument, which lives as long as the call.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import llvmlite.ir as llvm
import numpy as np
from numba import carray, njit, prange, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import as_dtype

Array = np.ndarray

SURROGATES = ("dspike", "triangle", "superspike", "arctan", "rectangular", "sigmoid")
"""Surrogate gradients by number (`snnir.lower.surrogates`)."""

LINES = 7
MEAN, SQUARES, INVERSE, SCALE, SHIFT, TOTAL, PRODUCT = range(LINES)
"""The lines of a batch norm's numbers, [LINES, C] in float64: of x the mean, the sum of squared
distances from it, and 1 over the standard deviation; scale·x + shift; of its gradient the sum, and
the sum of its products with x - mean."""

_TILE = 512
"""Values of a step that are worked on at once: those of all steps then stay in the processor."""

_BLOCK = 32768
"""Values whose moments are summed up before they are joined to the others'."""

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


def compiled(sample: Any) -> bool:
    """Whether there is code from an earlier process, for this processor and values of this type."""
    if not _OPTIONS["cache"]:
        return False
    cache, codegen = backpropagate._cache, backpropagate.targetctx.codegen()
    index = cache._cache_file._load_index()
    return any(
        key == cache._index_key(key[0], codegen) and key[0][0].types[0] == typeof(sample)
        for key in index
    )


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


@intrinsic
def _copy_64(context: Any, address: Any, out: Any) -> Any:
    """Copy 64 bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = llvm.VectorType(llvm.IntType(8), 64).as_pointer()
        x, out = (builder.inttoptr(argument, pointer) for argument in arguments)
        builder.store(builder.load(x, align=1), out, align=1)

    return types.void(address, out), generate


@intrinsic
def _use_widest_vectors(context: Any) -> Any:
    """LLVM keeps to half of what Intel's processors have unless a function asks for more."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        attributes = builder.function.attributes
        if isinstance(attributes, set):  # beyond its own add, which takes names without a value
            set.add(attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate


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
def _repeated(values: Array, width: int, zero: Any) -> Array:
    """[n, C] as [n, width·C]."""
    n, channels = values.shape
    out = np.full((n, width * channels), zero)
    for i in range(n):
        for first in range(0, width * channels, channels):
            for c in range(channels):
                out[i, first + c] = values[i, c]
    return out


@_compiled
def _folded(wide: Array, channels: int) -> Array:
    """[width·C] summed to [C]."""
    out = np.zeros(channels, wide.dtype)
    for first in range(0, len(wide), channels):
        for c in range(channels):
            out[c] += wide[first + c]
    return out


@_compiled
def _joined(tensors: Array, row: int, count: int, channels: int, size: int, scratch: int) -> int:
    """The address of rows without gaps, each of some channels: of the one tensor that has them all,
    or `scratch` after copying them there."""
    if len(tensors) == 1 and tensors[0, 1] == channels:
        return tensors[0, 0] + row * channels * size
    for i in range(len(tensors)):
        address, stride, start, stop = tensors[i, :4]
        from_, to = address + row * stride * size, scratch + start * size
        _copy_rows(from_, stride * size, to, channels * size, count, (stop - start) * size)
    return scratch


@_compiled
def _divide(x: int, row: int, count: int, channels: int, size: int, tensors: Array) -> None:
    """Copy rows without gaps to tensors, to each what it has of them."""
    for i in range(len(tensors)):
        address, stride = tensors[i, 0], tensors[i, 1] * size
        down, across, length = tensors[i, 4], tensors[i, 5], tensors[i, 6]
        x_, gap = x + tensors[i, 2] * size, across * channels * size
        wanted = (tensors[i, 3] - tensors[i, 2]) * size
        if down * across == 1:
            _copy_rows(x_, gap, address + row * stride, stride, count, wanted)
            continue
        for line in range(row // length, (row + count - 1) // length + 1):
            p, at, found = _sampled(line, row, count, down, across, length)
            from_, to = x_ + p * channels * size, address + at * stride
            _copy_rows(from_, gap, to, stride, found, wanted)


@_compiled
def _sampled(
    line: int, row: int, count: int, down: int, across: int, length: int
) -> tuple[int, int, int]:
    """What a tensor has of a line's rows: the first, counted from `row`, its number in the tensor,
    and how many."""
    begin = line * length
    first = max(row, begin)
    first += (begin - first) % across
    end = min(row + count, begin + length)
    if line % down or first >= end:
        return 0, 0, 0
    at = line // down * (length // across) + (first - begin) // across
    return first - row, at, (end - first + across - 1) // across


@_compiled
def _copy_rows(x: int, stride: int, out: int, out_stride: int, rows: int, length: int) -> None:
    """Rows by address, with strides and length in bytes."""
    whole = length - length % 64
    for at in range(0, whole, 64):
        for r in range(rows):
            _copy_64(x + r * stride + at, out + r * out_stride + at)
    rest = (length - whole) // 2
    for r in range(rows if rest else 0):
        x_ = _values(x + r * stride + whole, 0, rest, np.uint16(0))
        out_ = _values(out + r * out_stride + whole, 0, rest, np.uint16(0))
        for j in range(rest):
            out_[j] = x_[j]


@_compiled
def _fill(address: int, count: int, value: Any) -> None:
    x = _values(address, 0, count, value)
    for j in range(count):
        x[j] = value


@_compiled
def _add(x: int, sample: Any, out: int, count: int, zero: Any) -> None:
    """Add values to numbers."""
    x_, out_ = _values(x, 0, count, sample), _values(out, 0, count, zero)
    for j in range(count):
        out_[j] += _number(x_[j])


@_compiled
def _store(numbers: int, zero: Any, out: int, count: int, sample: Any) -> None:
    """Write numbers as values."""
    x, y = _values(numbers, 0, count, zero), _values(out, 0, count, sample)
    for j in range(count):
        y[j] = _stored(x[j], sample)


# --- batch norm ---------------------------------------------------------------------------------


@_compiled
def batch_norm(
    x: int,
    sample: Any,
    zero: Any,
    rows: int,
    parameters: Array,
    eps: float,
    momentum: float,
    numbers: Array,
) -> None:
    """Both of the following: a batch norm on the statistics of this process."""
    moments(x, sample, zero, rows, numbers)
    normalise(zero, rows, parameters, eps, momentum, numbers)


@_parallel
def moments(x: int, sample: Any, zero: Any, rows: int, numbers: Array) -> None:
    """MEAN and SQUARES of rows [rows, C] at an address."""
    channels = numbers.shape[1]
    length = max(16, _BLOCK // channels)
    blocks = (rows + length - 1) // length
    sums = np.full((blocks, 2, channels), zero)
    for block in prange(blocks):
        first = block * length
        _block_moments(x, first, min(rows - first, length), sample, sums[block])
    means, squares = np.zeros(channels), np.zeros(channels)
    for block in range(blocks):
        share = min(rows - block * length, length) / rows
        for c in range(channels):
            means[c] += share * sums[block, 0, c]
    for block in range(blocks):
        count = min(rows - block * length, length)
        for c in range(channels):
            distance = sums[block, 0, c] - means[c]
            squares[c] += sums[block, 1, c] + count * distance * distance
    numbers[MEAN] = means
    numbers[SQUARES] = squares


@_compiled
def _block_moments(address: int, row: int, rows: int, sample: Any, out: Array) -> None:
    """Mean and squared distances of some rows, from their distances to the first of them."""
    channels = out.shape[1]
    width = max(1, min(rows, _TILE // channels))
    size = width * channels
    first = _values(address, row * channels, channels, sample)
    centre = np.empty(size, out.dtype)
    for at in range(0, size, channels):
        for c in range(channels):
            centre[at + c] = _number(first[c])
    sums, squares = np.zeros(size, out.dtype), np.zeros(size, out.dtype)
    start, end = row * channels, (row + rows) * channels
    last = end - (end - start) % (4 * size)
    for at in range(start, last, 4 * size):
        x0, x1 = _values(address, at, size, sample), _values(address, at + size, size, sample)
        x2 = _values(address, at + 2 * size, size, sample)
        x3 = _values(address, at + 3 * size, size, sample)
        for j in range(size):
            d0, d1 = _number(x0[j]) - centre[j], _number(x1[j]) - centre[j]
            d2, d3 = _number(x2[j]) - centre[j], _number(x3[j]) - centre[j]
            sums[j] += (d0 + d1) + (d2 + d3)
            squares[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for at in range(last, end, size):
        x = _values(address, at, min(size, end - at), sample)
        for j in range(len(x)):
            distance = _number(x[j]) - centre[j]
            sums[j] += distance
            squares[j] += distance * distance
    total, square = _folded(sums, channels), _folded(squares, channels)
    for c in range(channels):
        out[0, c] = centre[c] + total[c] / rows
        out[1, c] = square[c] - total[c] * total[c] / rows


@_compiled
def normalise(
    zero: Any, rows: int, parameters: Array, eps: float, momentum: float, numbers: Array
) -> None:
    """INVERSE, SCALE and SHIFT from the moments over `rows`; the running statistics move by the
    momentum. `parameters` are the addresses of weight, bias, running mean, running variance and,
    unless it is 0, of what x is without (its running mean is not)."""
    channels = numbers.shape[1]
    weight = _values(parameters[0], 0, channels, zero)
    bias = _values(parameters[1], 0, channels, zero)
    running_mean = _values(parameters[2], 0, channels, zero)
    running_var = _values(parameters[3], 0, channels, zero)
    for c in range(channels):
        mean, squares = numbers[MEAN, c], numbers[SQUARES, c]
        missing = _values(parameters[4], c, 1, zero)[0] if parameters[4] else zero
        running_mean[c] += momentum * (mean + missing - running_mean[c])
        running_var[c] += momentum * (squares / (rows - 1) - running_var[c])
        numbers[INVERSE, c] = 1 / math.sqrt(squares / rows + eps)
        numbers[SCALE, c] = weight[c] * numbers[INVERSE, c]
        numbers[SHIFT, c] = bias[c] - mean * numbers[SCALE, c]


@_compiled
def of_parameters(zero: Any, numbers: Array, out: int) -> None:
    """The gradients of weight and bias to the address `out`, one behind the other."""
    channels = numbers.shape[1]
    weight, bias = _values(out, 0, channels, zero), _values(out, channels, channels, zero)
    for c in range(channels):
        weight[c] = numbers[PRODUCT, c] * numbers[INVERSE, c]
        bias[c] = numbers[TOTAL, c]


@_parallel
def spread(
    x: int,
    sample: Any,
    zero: Any,
    rows: int,
    rows_of_all: int,
    gradients: Array,
    numbers: Array,
    out: int,
) -> None:
    """Batch norm's gradient: from those of its output, each of some channels, to that of x, rows
    [rows, C] at an address. TOTAL and PRODUCT are over `rows_of_all`."""
    channels = numbers.shape[1]
    width = max(1, _TILE // channels)
    tiles = (rows + width - 1) // width
    pieces = min(tiles, _PIECES)
    factors = np.empty((3, channels))
    for c in range(channels):
        scale, inverse = numbers[SCALE, c], numbers[INVERSE, c]
        factor = scale * inverse * inverse * numbers[PRODUCT, c] / rows_of_all
        factors[0, c] = scale
        factors[1, c] = -factor
        factors[2, c] = factor * numbers[MEAN, c] - scale * numbers[TOTAL, c] / rows_of_all
    factors_ = _repeated(factors, width, zero)
    scratch = np.empty((pieces, width * channels * _size(sample)), np.uint8)
    for piece in prange(pieces):
        for tile in range(piece * tiles // pieces, (piece + 1) * tiles // pieces):
            first = tile * width
            count = min(rows - first, width)
            _spread(scratch[piece], x, sample, first, count, channels, gradients, factors_, out)


@_compiled
def _spread(
    scratch: Array,
    x: int,
    sample: Any,
    row: int,
    count: int,
    channels: int,
    gradients: Array,
    factors: Array,
    out: int,
) -> None:
    received = _joined(gradients, row, count, channels, _size(sample), _address(scratch))
    start, values = row * channels, count * channels
    along, away, level = factors[0], factors[1], factors[2]
    received_ = _values(received, 0, values, sample)
    x_, out_ = _values(x, start, values, sample), _values(out, start, values, sample)
    for j in range(values):
        value = along[j] * _number(received_[j]) + (away[j] * _number(x_[j]) + level[j])
        out_[j] = _stored(value, sample)


# --- spikes -------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """Leaky neurons, from rest, on currents of `places` places a step; unless `stepped`, they are
    the same at every step, and x has the rows of one."""

    sample: Any
    zero: Any
    channels: int
    places: int
    steps: int
    stepped: bool
    leak: float
    threshold: float
    surrogate: int
    """Its place among `SURROGATES`."""
    b: float
    """The surrogate's temperature."""
    detach_reset: bool


@_compiled
def _lines(terms: Array, kind: int, channels: int) -> Array:
    """A line of each term's numbers, [terms, C]."""
    out = np.empty((len(terms), channels))
    for i in range(len(terms)):
        line = _values(terms[i, 2], kind * terms[i, 1], channels, np.float64(0))
        for c in range(channels):
            out[i, c] = line[c]
    return out


@_compiled
def _shift(terms: Array, channels: int) -> Array:
    """The sum of all terms' shifts, [1, C]."""
    lines = _lines(terms, SHIFT, channels)
    for i in range(1, len(lines)):
        lines[0] += lines[i]
    return lines[:1]


@_parallel
def fire(layer: Layer, terms: Array, outs: Array) -> None:
    """Spikes of the currents Σ scale·x + shift, into each of `outs`."""
    channels, zero = layer.channels, layer.zero
    width = max(1, _TILE // channels)
    tiles = (layer.places + width - 1) // width
    pieces = min(tiles, _PIECES)
    scales = _repeated(_lines(terms, SCALE, channels), width, zero)
    shift = _repeated(_shift(terms, channels), width, zero)
    # lines of current and membrane, of spikes and copies of the terms' x
    line = 2 * _size(zero) + (1 + len(terms)) * _size(layer.sample)
    scratch = np.empty((pieces, line * width * channels), np.uint8)
    for piece in prange(pieces):
        begin, end = piece * tiles // pieces, (piece + 1) * tiles // pieces
        _fire(scratch[piece], layer, terms, scales, shift, outs, begin, end)


@_compiled
def _fire(
    scratch: Array,
    layer: Layer,
    terms: Array,
    scales: Array,
    shift: Array,
    outs: Array,
    tile: int,
    end: int,
) -> None:
    """Those of the tiles from `tile` to `end`."""
    sample, zero, channels, places = layer.sample, layer.zero, layer.channels, layer.places
    size = scales.shape[1]
    width = size // channels
    number = scales.dtype.type
    leak, threshold = number(layer.leak), number(layer.threshold)
    current = _address(scratch)
    v = current + size * _size(zero)
    spikes = v + size * _size(zero)
    copies = spikes + size * _size(sample)
    where = np.empty(len(terms), np.int64)
    alone = len(outs) == 1 and outs[0, 1] == channels and outs[0, 4] * outs[0, 5] == 1
    for first in range(tile * width, end * width, width):
        count = min(places - first, width)
        _fill(v, count * channels, zero)
        for t in range(layer.steps):
            row = t * places + first
            if t == 0 or layer.stepped:
                _currents(layer, terms, t, first, count, scales, shift, current, copies, where)
            y = outs[0, 0] + row * channels * _size(sample) if alone else spikes
            _step(leak, threshold, count * channels, current, v, y, sample)
            if not alone:
                _divide(y, row, count, channels, _size(sample), outs)


@_compiled
def _currents(
    layer: Layer,
    terms: Array,
    t: int,
    first: int,
    count: int,
    scales: Array,
    shift: Array,
    current: int,
    copies: int,
    where: Array,
) -> None:
    """Σ scale·x + shift of a step's places from the `first`. `where` becomes each x's address
    without gaps between rows: where they lie, or `copies` after copying them there."""
    sample, zero, channels = layer.sample, layer.zero, layer.channels
    values, line, size = count * channels, scales.shape[1], _size(sample)
    row = t * layer.places + first
    soon = row + layer.places if layer.stepped and t < layer.steps - 1 else first + line // channels
    shift_, y = _values(_address(shift), 0, line, zero), _values(current, 0, values, zero)
    for i in range(len(terms)):
        _fetch(terms[i], soon, count, channels, size)
        stride = terms[i, 1] * size
        where[i] = terms[i, 0] + row * stride
        if stride != channels * size:
            copy = copies + i * line * size
            _copy_rows(where[i], stride, copy, channels * size, count, channels * size)
            where[i] = copy
        x = _values(where[i], 0, values, sample)
        scale = _values(_address(scales), i * line, line, zero)
        if i:
            for j in range(values):
                y[j] += scale[j] * _number(x[j])
        else:
            for j in range(values):
                y[j] = shift_[j] + scale[j] * _number(x[j])


@_compiled
def _step(
    leak: Any, threshold: Any, count: int, current: int, v: int, spikes: int, sample: Any
) -> None:
    zero = type(leak)(0)
    silence, spike = _stored(zero, sample), _stored(type(leak)(1), sample)
    current_, v_ = _values(current, 0, count, leak), _values(v, 0, count, leak)
    spikes_ = _values(spikes, 0, count, sample)
    for j in range(count):
        u = leak * v_[j] + current_[j]
        spikes_[j] = spike if u > threshold else silence
        v_[j] = zero if u > threshold else u


# --- the gradient of spikes ---------------------------------------------------------------------


@_parallel
def backpropagate(layer: Layer, terms: Array, gradients: Array, out: int) -> None:
    """From the gradients of spikes to those of the currents, into rows [rows, C] at the address
    `out`: of each step, or unless `stepped` their sum. The sums of these go to the terms' TOTAL and
    PRODUCT."""
    channels, zero, steps = layer.channels, layer.zero, layer.steps
    width = max(1, _TILE // channels)
    tiles = (layer.places + width - 1) // width
    pieces = min(tiles, _PIECES)
    scales = _repeated(_lines(terms, SCALE, channels), width, zero)
    shift = _repeated(_shift(terms, channels), width, zero)
    means = _repeated(_lines(terms, MEAN, channels), width, zero)
    sums = np.full((pieces, 1 + len(terms), channels), zero)
    # three lines, and of each step the membrane, the spike's slope and copies of the terms' x
    line = (3 + 2 * steps) * _size(zero) + steps * len(terms) * _size(layer.sample)
    scratch = np.empty((pieces, line * width * channels), np.uint8)
    for piece in prange(pieces):
        begin, end = piece * tiles // pieces, (piece + 1) * tiles // pieces
        _backpropagate(
            scratch[piece], layer, terms, scales, shift, means, gradients, out, begin, end,
            sums[piece],
        )  # fmt: skip
    for i in range(len(terms)):
        address, line = terms[i, 2], terms[i, 1]
        total = _values(address, TOTAL * line, channels, np.float64(0))
        product = _values(address, PRODUCT * line, channels, np.float64(0))
        for c in range(channels):
            total[c], product[c] = 0, 0
        for piece in range(pieces):
            for c in range(channels):
                total[c] += sums[piece, 0, c]
                product[c] += sums[piece, 1 + i, c]


@_compiled
def _backpropagate(
    scratch: Array,
    layer: Layer,
    terms: Array,
    scales: Array,
    shift: Array,
    means: Array,
    gradients: Array,
    out: int,
    tile: int,
    end: int,
    sums: Array,
) -> None:
    """Those of the tiles from `tile` to `end`."""
    _use_widest_vectors()
    sample, zero, channels, places = layer.sample, layer.zero, layer.channels, layer.places
    steps, stepped = layer.steps, layer.stepped
    size = scales.shape[1]
    width = size // channels
    number = scales.dtype.type
    leak, threshold = number(layer.leak), number(layer.threshold)
    height = number(layer.b / (2 * math.tanh(layer.b / 2)))
    line = size * _size(zero)
    given = _address(scratch)
    gradient = given + line
    summed = gradient + line
    u = summed + line
    slope = u + steps * line
    copies = slope + steps * line
    where = np.empty((steps, len(terms)), np.int64)
    totals = np.full((1 + len(terms), size), zero)
    for first in range(tile * width, end * width, width):
        count = min(places - first, width)
        values = count * channels
        for t in range(steps):
            now = u + t * line
            if t == 0 or stepped:
                copy = copies + t * len(terms) * size * _size(sample)
                _currents(layer, terms, t, first, count, scales, shift, now, copy, where[t])
                if not stepped:
                    _store(now, zero, summed, values, zero)
            else:
                _store(summed, zero, now, values, zero)
            _leak(leak, threshold, values, now - line if t else 0, now, given)
            slopes(layer.surrogate, layer.b, height, values, given, slope + t * line)
        _fill(gradient, values, zero)
        _fill(summed, values, zero)
        for t in range(steps - 1, -1, -1):
            row = t * places + first
            soon = row - places if t else (steps - 1) * places + first + width
            _fill(given, values, zero)
            _gather(gradients, row, soon, count, channels, sample, given, zero)
            _recur(
                leak, threshold, layer.detach_reset, values, given, slope + t * line, u + t * line,
                gradient,
            )  # fmt: skip
            found = gradient
            if not stepped:
                _add(gradient, zero, summed, values, zero)
                found = summed
            if stepped or t == 0:
                _store(found, zero, out + row * channels * _size(sample), values, sample)
                _add_products(found, values, where[t], sample, means, totals)
    for i in range(1 + len(terms)):
        sums[i] = _folded(totals[i], channels)


@_compiled
def _gather(
    tensors: Array, row: int, soon: int, count: int, channels: int, sample: Any, out: int, zero: Any
) -> None:
    """Add what tensors have of rows to numbers [count, C]; those from `soon` come next."""
    size = _size(sample)
    for i in range(len(tensors)):
        address, stride = tensors[i, 0], tensors[i, 1] * size
        down, across, length = tensors[i, 4], tensors[i, 5], tensors[i, 6]
        out_, gap = out + tensors[i, 2] * _size(zero), across * channels * _size(zero)
        wanted = tensors[i, 3] - tensors[i, 2]
        if down * across == 1:
            _fetch(tensors[i], soon, count, wanted, size)
            _add_rows(address + row * stride, stride, sample, out_, gap, count, wanted, zero)
            continue
        for line in range(row // length, (row + count - 1) // length + 1):
            p, at, found = _sampled(line, row, count, down, across, length)
            from_, to = address + at * stride, out_ + p * channels * _size(zero)
            _add_rows(from_, stride, sample, to, gap, found, wanted, zero)


@_compiled
def _add_rows(
    x: int, stride: int, sample: Any, out: int, out_stride: int, rows: int, count: int, zero: Any
) -> None:
    """Add rows of values to rows of numbers; strides in bytes."""
    if stride == count * _size(sample) and out_stride == count * _size(zero):
        rows, count = 1, rows * count
    for r in range(rows):
        _add(x + r * stride, sample, out + r * out_stride, count, zero)


@_compiled
def _leak(leak: Any, threshold: Any, count: int, before: int, u: int, distance: int) -> None:
    """Add what the step before, if any, leaves of the membrane; its distance from the threshold."""
    _use_widest_vectors()
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
    _use_widest_vectors()
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
def _add_products(
    gradient: int, count: int, where: Array, sample: Any, means: Array, totals: Array
) -> None:
    """Add gradient, and gradient·(x - mean) of each term, to the lines of `totals`; `where` has
    each x's address."""
    _use_widest_vectors()
    size = means.shape[1]
    zero = means.dtype.type(0)
    _add(gradient, zero, _address(totals), count, zero)
    gradient_ = _values(gradient, 0, count, zero)
    for i in range(len(means)):
        x = _values(where[i], 0, count, sample)
        mean = _values(_address(means), i * size, count, zero)
        product = _values(_address(totals), (1 + i) * size, count, zero)
        for j in range(count):
            product[j] += gradient_[j] * (_number(x[j]) - mean[j])


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
    _use_widest_vectors()
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
