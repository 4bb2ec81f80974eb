"""Sums over the 13×13 neighbours of every pixel for many names, compiled by numba; `_sweeps.py` says what they are for.

Layout: maps are `[H, pitch · P]`, the values of a pixel side by side, P a multiple of `LANES`. A row has `pitch`
pixels: `RADIUS` of zeros, those of the picture, zeros up to a multiple of `TILE`, and again `RADIUS` of zeros. Weights
are `[H, 84 · pitch]`, for each row a line of each offset of `_neighbours.HALF`. A pair's weight is stored at the pixel
that comes first; what lies beyond the picture is 0.

The innermost sums are written in LLVM's language, because numba has no vectors: `TILE` pixels of `LANES` names stay in
registers, and each neighbour is read once for all of them.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from cliploc.refine._neighbours import RADIUS

SIDE = 2 * RADIUS + 1
LANES = 8  # names in a vector
TILE = 8  # pixels
STRIP = 16  # rows; at least RADIUS, so that a strip has no neighbours in the next but one
ANY_ORDER = {"contract", "reassoc", "nsz"}  # of sums; infinity and nan as usual
BYTES = 4


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def factored(weights, alpha, vector, width):
    """Scales Ŵ to the neighbours' part of K; returns the scale s of each pixel, `[H, pitch]`. See `_sweeps.py`.

    s = D^-½; D_i = 1 − Σ_j α Ŵ_ij Σ_k α Ŵ_jk v_k / (D_j v_i), over the pixels j before i and k after j.
    """
    height, pitch = vector.shape
    later, sums, scale = np.zeros_like(vector), np.zeros_like(vector), np.zeros_like(vector)
    for y in range(height):
        _sum_of_other_rows(weights, vector, later[y], y, True)
        for p in range(RADIUS, RADIUS + width):
            for k in range(RADIUS):
                later[y, p] += weights[y, k * pitch + p] * vector[y, p + k + 1]
    for odd in range(2):
        for start in range(odd * STRIP, height, 2 * STRIP):
            for y in range(start, min(start + STRIP, height)):
                lost = np.zeros_like(vector[y])
                _sum_of_other_rows(weights, sums, lost, y, False)
                for p in range(RADIUS, RADIUS + width):
                    for k in range(RADIUS):
                        lost[p] += weights[y, k * pitch + p - k - 1] * sums[y, p - k - 1]
                    pivot = 1 - alpha * lost[p] / vector[y, p]
                    scale[y, p] = 1 / np.sqrt(pivot)
                    sums[y, p] = alpha * later[y, p] / pivot
    for y in range(height):
        for k in range(RADIUS + RADIUS * SIDE):
            down = (k + RADIUS + 1) // SIDE
            right = (k + RADIUS + 1) % SIDE - RADIUS
            if y + down < height:
                for p in range(RADIUS, RADIUS + width):
                    weights[y, k * pitch + p] *= alpha * scale[y, p] * scale[y + down, p + right]
    return scale


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def _sum_of_other_rows(weights, one, total, y, later):
    """As `_other_rows`, of one map."""
    pitch = one.shape[1]
    for v in range(max(0, y - RADIUS), min(one.shape[0], y + RADIUS + 1)):
        if v != y and _comes_later(y, v) == later:
            line = (RADIUS + SIDE * (abs(v - y) - 1)) * pitch
            others, upper = one[v], weights[min(v, y)]
            for k in range(SIDE):
                first = line + k * pitch if v > y else line + (SIDE - 1 - k) * pitch + k - RADIUS
                for p in range(RADIUS, pitch - RADIUS):
                    total[p] += upper[first + p] * others[p + k - RADIUS]


@njit(nogil=True, cache=True)
def _comes_later(y, v):
    """Whether row v, near row y, follows it: strips with an even number come first; in a strip, rows go down."""
    return v > y if v // STRIP == y // STRIP else y // STRIP % 2 == 0


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def backward(weights, diagonal, residual, turn, direction, back, rest, width, names, odd, share, shares):
    """direction ← residual + turn · direction, back ← K⁻ᵀ direction, rest ← direction + diagonal · back.

    In the strips with an odd number, or an even one; of these in a share. The odd ones come first.
    """
    height = direction.shape[0]
    for start in range((odd + 2 * share) * STRIP, height, 2 * shares * STRIP):
        for y in range(min(start + STRIP, height) - 1, start - 1, -1):
            for i in range(direction.shape[1]):
                direction[y, i] = residual[y, i] + turn[i] * direction[y, i]
                back[y, i] = direction[y, i]
            _other_rows(weights, back, y, width, names, True)
            _right(weights, back, y, names)
            for p in range(diagonal.shape[1]):
                factor = diagonal[y, p]
                for n in range(names):
                    i = p * names + n
                    rest[y, i] = direction[y, i] + factor * back[y, i]


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def forward(weights, direction, back, rest, total, width, names, odd, share, shares):
    """rest ← K⁻¹ rest; total += direction · (back + rest), for each strip a row. The even strips come first."""
    height = direction.shape[0]
    for start in range((odd + 2 * share) * STRIP, height, 2 * shares * STRIP):
        for y in range(start, min(start + STRIP, height)):
            _other_rows(weights, rest, y, width, names, False)
            _left(weights, rest, y, width, names)
            for i in range(direction.shape[1]):
                total[y // STRIP, i] += direction[y, i] * (back[y, i] + rest[y, i])


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def move(step, back, rest, found, residual, total, share, shares):
    """found += step · back, residual −= step · (back + rest), total += residual², for each strip a row."""
    height = found.shape[0]
    for start in range(share * STRIP, height, shares * STRIP):
        for y in range(start, min(start + STRIP, height)):
            for i in range(found.shape[1]):
                found[y, i] += step[i] * back[y, i]
                residual[y, i] -= step[i] * (back[y, i] + rest[y, i])
                total[y // STRIP, i] += residual[y, i] * residual[y, i]


@njit(nogil=True, cache=True)
def _other_rows(weights, maps, y, width, names, later):
    """Adds to a row the neighbours in other rows that come later in the order, or those that come earlier."""
    pitch = maps.shape[1] // names
    for v in range(max(0, y - RADIUS), min(maps.shape[0], y + RADIUS + 1)):
        if v == y or _comes_later(y, v) != later:
            continue
        upper = weights[min(v, y)]
        first = (RADIUS + SIDE * (abs(v - y) - 1)) * pitch  # the line of the first neighbour, 6 pixels to the left
        step = pitch
        if v > y:
            first += RADIUS
        else:
            first += (SIDE - 1) * pitch
            step = 1 - pitch
        total, others, weight = maps[y].ctypes.data, maps[v].ctypes.data, upper.ctypes.data + BYTES * first
        for p in range(0, width, TILE):
            for n in range(0, names, LANES):
                to = total + BYTES * ((p + RADIUS) * names + n)
                _add_side(to, others + BYTES * (p * names + n), weight + BYTES * p, step, names)


@njit(nogil=True, cache=True)
def _left(weights, maps, y, width, names):
    """Adds to each pixel of a row, from left to right, the six on its left."""
    pitch = maps.shape[1] // names
    row, weight = maps[y].ctypes.data, weights[y].ctypes.data
    for n in range(0, names, LANES):
        for p in range(RADIUS, width + RADIUS, TILE):
            _add_before(row + BYTES * (p * names + n), weight + BYTES * (p - 1), pitch - 1, names, 1)


@njit(nogil=True, cache=True)
def _right(weights, maps, y, names):
    """Adds to each pixel of a row, from right to left, the six on its right."""
    pitch = maps.shape[1] // names
    row, weight = maps[y].ctypes.data, weights[y].ctypes.data
    for n in range(0, names, LANES):
        for p in range(pitch - RADIUS - 1, RADIUS, -TILE):
            _add_before(row + BYTES * (p * names + n), weight + BYTES * p, pitch, -names, -1)


class _Vectors:
    """Loads, stores and sums of `LANES` float32 numbers."""

    def __init__(self, builder):
        self.builder = builder
        self.type = ir.VectorType(ir.FloatType(), LANES)
        self.none = ir.Constant(self.type, ir.Undefined)
        self.zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)

    def place(self, address, *steps):
        """A pointer to the number that lies some steps after an address; a step is a factor and a size."""
        pointer = self.builder.inttoptr(address, ir.FloatType().as_pointer())
        for factor, size in steps:
            pointer = self.builder.gep(pointer, [self.builder.mul(size, size.type(factor))])
        return pointer

    def load(self, pointer):
        vector = self.builder.load(self.builder.bitcast(pointer, self.type.as_pointer()))
        vector.align = BYTES
        return vector

    def store(self, vector, pointer):
        self.builder.store(vector, self.builder.bitcast(pointer, self.type.as_pointer())).align = BYTES

    def plus(self, total, pointer, vector):
        """total + the number at the pointer · vector."""
        weight = self.builder.insert_element(self.none, self.builder.load(pointer), ir.IntType(32)(0))
        weight = self.builder.shuffle_vector(weight, self.none, self.zeros)
        product = self.builder.fmul(weight, vector, flags=("contract",))
        return self.builder.fadd(total, product, flags=("contract",))


@intrinsic
def _add_side(typing, total, others, weights, step, names):  # noqa: ARG001  # numba asks for these
    """total_t += Σ_k weights[k · step + t] · others_{t + k}, for pixels t of a tile and k from 0 to 12."""

    def emit(context, builder, signature, arguments):  # noqa: ARG001
        total, others, weights, step, names = arguments
        vectors, one = _Vectors(builder), names.type(1)
        places = [vectors.place(total, (t, names)) for t in range(TILE)]
        sums = [vectors.load(place) for place in places]
        for column in range(TILE + SIDE - 1):
            other = vectors.load(vectors.place(others, (column, names)))
            for t in range(max(0, column - SIDE + 1), min(TILE, column + 1)):
                sums[t] = vectors.plus(sums[t], vectors.place(weights, (column - t, step), (t, one)), other)
        for place, total in zip(places, sums, strict=True):
            vectors.store(total, place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), emit


@intrinsic
def _add_before(typing, row, weights, step, names, way):  # noqa: ARG001
    """row_t += Σ_k weights[k · step + t · way] · row_{t − 1 − k}, for pixels t of a tile, one after the other, k 0 … 5.

    From one pixel to the next it is `names` numbers, which may be negative.
    """

    def emit(context, builder, signature, arguments):  # noqa: ARG001
        row, weights, step, names, way = arguments
        vectors = _Vectors(builder)
        done = [vectors.load(vectors.place(row, (t, names))) for t in range(-RADIUS, 0)]
        for t in range(TILE):
            place = vectors.place(row, (t, names))
            total = vectors.load(place)
            for k in reversed(range(RADIUS)):  # the latest result last: the others need not wait for it
                total = vectors.plus(total, vectors.place(weights, (k, step), (t, way)), done[-1 - k])
            vectors.store(total, place)
            done.append(total)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), emit
