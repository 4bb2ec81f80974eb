"""Sums over the 13×13 neighbours of every pixel, compiled by numba; `_sweeps.py` says what they are for.

Weights are `[H, 84, pitch]`, for each row a line of each offset of `_neighbours.HALF`; a line has `RADIUS` zeros, the
picture's pixels, and again `RADIUS` zeros or more. A pair's weight is stored at the pixel that comes first; what lies
beyond the picture is 0.

Maps are `[groups, H, pitch · lanes]`: a group has one name, or `LANES` names side by side at each pixel, which then
make a vector. With one name, the inner loops go along a row, so that the compiler makes vectors of them.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from cliploc.refine._neighbours import RADIUS

SIDE = 2 * RADIUS + 1
LINES = RADIUS + RADIUS * SIDE
LANES = 8  # names in a vector
TILE = 6  # pixels whose sums are in registers together: each neighbour is read once for all; a multiple is a line
BLOCK = 20 * TILE  # pixels of a row whose weights are in the nearest cache
STRIP = 16  # rows; at least RADIUS, so that a strip has no neighbours in the next but one
ANY_ORDER = {"contract", "reassoc", "nsz"}  # of sums; infinity and nan as usual


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def factored(weights, alpha, vector):
    """Scales Ŵ to the neighbours' part of K; returns the scale s of each pixel, `[H, pitch]`. See `_sweeps.py`.

    s = D^-½; D_i = 1 − Σ_j α Ŵ_ij Σ_k α Ŵ_jk v_k / (D_j v_i), over the pixels j before i and k after j.
    """
    height, pitch = vector.shape
    later, sums, scale = np.zeros_like(vector), np.zeros_like(vector), np.zeros_like(vector)
    for y in range(height):
        _add_other_rows(weights, vector, later[y], y, True)
        for p in range(RADIUS, pitch - RADIUS):
            for k in range(RADIUS):
                later[y, p] += weights[y, k, p] * vector[y, p + k + 1]
    for odd in range(2):
        for start in range(odd * STRIP, height, 2 * STRIP):
            for y in range(start, min(start + STRIP, height)):
                lost = np.zeros_like(vector[y])
                _add_other_rows(weights, sums, lost, y, False)
                for p in range(RADIUS, pitch - RADIUS):
                    for k in range(RADIUS):
                        lost[p] += weights[y, k, p - k - 1] * sums[y, p - k - 1]
                    pivot = 1 - alpha * lost[p] / vector[y, p]
                    scale[y, p] = 1 / np.sqrt(pivot)
                    sums[y, p] = alpha * later[y, p] / pivot
    for y in range(height):
        for k in range(LINES):
            down = (k + RADIUS + 1) // SIDE
            right = (k + RADIUS + 1) % SIDE - RADIUS
            if y + down < height:
                for p in range(RADIUS, pitch - RADIUS):
                    weights[y, k, p] *= alpha * scale[y, p] * scale[y + down, p + right]
    return scale


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def backward(weights, diagonal, residual, turn, direction, back, rest, odd, share, shares):
    """direction ← residual + turn · direction, back ← K⁻ᵀ direction, rest ← direction + diagonal · back.

    In the strips with an odd number, or an even one; of these in a share. The odd ones come first.
    """
    groups, height, row = direction.shape
    for start in range((odd + 2 * share) * STRIP, height, 2 * shares * STRIP):
        for y in range(min(start + STRIP, height) - 1, start - 1, -1):
            for g in range(groups):
                for i in range(row):
                    direction[g, y, i] = residual[g, y, i] + turn[g, i] * direction[g, y, i]
                    back[g, y, i] = direction[g, y, i]
            _add_neighbours(weights, back, y, True)
            for g in range(groups):
                for i in range(row):
                    rest[g, y, i] = direction[g, y, i] + diagonal[y, i] * back[g, y, i]


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def forward(weights, direction, back, rest, total, odd, share, shares):
    """rest ← K⁻¹ rest; total += direction · (back + rest), for each strip a row. The even strips come first."""
    groups, height, row = direction.shape
    for start in range((odd + 2 * share) * STRIP, height, 2 * shares * STRIP):
        for y in range(start, min(start + STRIP, height)):
            _add_neighbours(weights, rest, y, False)
            for g in range(groups):
                for i in range(row):
                    total[y // STRIP, g, i] += direction[g, y, i] * (back[g, y, i] + rest[g, y, i])


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def move(step, back, rest, solution, residual, total, share, shares):
    """found += step · back, residual −= step · (back + rest), total += residual², for each strip a row."""
    groups, height, row = solution.shape
    for start in range(share * STRIP, height, shares * STRIP):
        for y in range(start, min(start + STRIP, height)):
            for g in range(groups):
                for i in range(row):
                    solution[g, y, i] += step[g, i] * back[g, y, i]
                    residual[g, y, i] -= step[g, i] * (back[g, y, i] + rest[g, y, i])
                    total[y // STRIP, g, i] += residual[g, y, i] * residual[g, y, i]


@njit(nogil=True, cache=True)
def _add_neighbours(weights, maps, y, later):
    """Adds to row y of each map the neighbours that come later in the order, or those that come earlier."""
    groups, _, row = maps.shape
    if row == weights.shape[2]:
        for g in range(groups):
            _add_other_rows(weights, maps[g], maps[g, y], y, later)
            if later:
                _add_right(weights[y], maps[g, y])
            else:
                _add_left(weights[y], maps[g, y])
    else:
        _add_other_rows_of_all(weights, maps, y, later)
        _add_sides_of_all(weights, maps, y, later)


@njit(nogil=True, cache=True)
def _add_other_rows_of_all(weights, maps, y, later):
    """`_add_other_rows` of each map, a vector of `LANES` names at a time."""
    groups, height, row = maps.shape
    pitch = row // LANES
    flat, lines = maps.reshape(-1), weights.reshape(-1)
    for start in range(RADIUS, pitch - RADIUS, BLOCK):
        for v in range(max(0, y - RADIUS), min(height, y + RADIUS + 1)):
            if v == y or _comes_later(y, v) != later:
                continue
            if v > y:
                first, stride = (y * LINES + RADIUS + SIDE * (v - y - 1)) * pitch, pitch
            else:
                first, stride = (v * LINES + RADIUS + SIDE * (y - v) - 1) * pitch - RADIUS, 1 - pitch
            for g in range(groups):
                own, other = (g * height + y) * row, (g * height + v) * row - RADIUS * LANES
                for p in range(start, min(start + BLOCK, pitch - RADIUS), TILE):
                    at = p * LANES
                    _add_products(flat, own + at, other + at, lines, first + p, stride, SIDE, TILE, 1)  # type: ignore[call-arg]


@njit(nogil=True, cache=True)
def _add_sides_of_all(weights, maps, y, later):
    """Adds to each pixel of a row the six on its right, from right to left; or those on its left, from left to right.

    The nearest is added last: the other sums need not wait for it.
    """
    groups, height, row = maps.shape
    pitch = row // LANES
    flat, lines, first = maps.reshape(-1), weights.reshape(-1), (y * LINES + RADIUS - 1) * pitch
    for g in range(groups):
        own = (g * height + y) * row
        for i in range(RADIUS, pitch - RADIUS):
            if later:
                p = pitch - 1 - i
                far = own + (p + RADIUS) * LANES
                _add_products(flat, own + p * LANES, far, lines, first + p, -pitch, RADIUS, 1, -1)  # type: ignore[call-arg]
            else:
                far = own + (i - RADIUS) * LANES
                _add_products(flat, own + i * LANES, far, lines, first + i - RADIUS, 1 - pitch, RADIUS, 1, 1)  # type: ignore[call-arg]


@intrinsic
def _add_products(_, maps, at, other, weights, first, stride, count, pixels, way):  # noqa: ARG001  # types; see `args`
    """maps[at + j] += Σ_k weights[first + k · stride + j] · maps[other + j + k · way], for j < pixels and k < count.

    maps[i] stands for the `LANES` values from i; j and k · way count pixels. Written in LLVM's vectors: numba makes
    none of loops as short as these.
    """

    def generate(context, builder, signature, args):
        values, lines = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3))
        own, others, first, stride = args[1], args[2], args[4], args[5]
        number, place = ir.IntType(32), args[1].type
        vector = ir.VectorType(ir.FloatType(), LANES)
        unset, everywhere = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(number, LANES), [0] * LANES)

        def pixel(index, by):
            index = builder.add(index, ir.Constant(place, by * LANES))
            return builder.bitcast(builder.gep(values, [index]), vector.as_pointer())

        def weight(k, j):
            index = builder.add(first, builder.add(builder.mul(stride, ir.Constant(place, k)), ir.Constant(place, j)))
            lane = builder.insert_element(unset, builder.load(builder.gep(lines, [index])), ir.Constant(number, 0))
            return builder.shuffle_vector(lane, unset, everywhere)

        sums = [builder.load(pixel(own, j), align=4) for j in range(pixels.literal_value)]
        for step in range(count.literal_value + len(sums) - 1):
            neighbour = builder.load(pixel(others, step * way.literal_value), align=4)
            for j, total in enumerate(sums):
                if 0 <= step - j < count.literal_value:
                    product = builder.fmul(weight(step - j, j), neighbour, flags=["contract"])
                    sums[j] = builder.fadd(total, product, flags=["contract"])
        for j, total in enumerate(sums):
            builder.store(total, pixel(own, j), align=4)
        return context.get_dummy_value()

    place = types.intp
    if not all(isinstance(constant, types.IntegerLiteral) for constant in (count, pixels, way)):
        return None
    return types.void(maps, place, place, weights, place, place, count, pixels, way), generate


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def _add_other_rows(weights, row, total, y, later):
    """Adds to a row the neighbours in other rows of a map that come later in the order, or those that come earlier."""
    height, pitch = row.shape
    inside = total[RADIUS : pitch - RADIUS]
    for v in range(max(0, y - RADIUS), min(height, y + RADIUS + 1)):
        if v == y or _comes_later(y, v) != later:
            continue
        for k in range(0, SIDE - 1, 4):  # four at once: fewer passes over the total
            a, b = _line(weights, y, v, k), _line(weights, y, v, k + 1)
            c, d = _line(weights, y, v, k + 2), _line(weights, y, v, k + 3)
            others = row[v, k:]
            for p in range(inside.size):
                inside[p] += a[p] * others[p] + b[p] * others[p + 1] + c[p] * others[p + 2] + d[p] * others[p + 3]
        a, others = _line(weights, y, v, SIDE - 1), row[v, SIDE - 1 :]
        for p in range(inside.size):
            inside[p] += a[p] * others[p]


@njit(nogil=True, cache=True)
def _line(weights, y, v, k):
    """The weights between the pixels of row y and those of row v that are k − RADIUS to the right."""
    first = RADIUS + SIDE * (abs(v - y) - 1)
    return weights[y, first + k, RADIUS:] if v > y else weights[v, first + SIDE - 1 - k, k:]


@njit(nogil=True, cache=True)
def _comes_later(y, v):
    """Whether row v, near row y, follows it: strips with an even number come first; in a strip, rows go down."""
    return v > y if v // STRIP == y // STRIP else y // STRIP % 2 == 0


@njit(nogil=True, cache=True)
def _add_left(weights, row):
    """Adds to each pixel of a row, from left to right, the six on its left."""
    a, b, c = weights[0, RADIUS - 1 :], weights[1, RADIUS - 2 :], weights[2, RADIUS - 3 :]
    d, e, f = weights[3, RADIUS - 4 :], weights[4, RADIUS - 5 :], weights[5, RADIUS - 6 :]
    _add_before(a, b, c, d, e, f, row[RADIUS : row.size - RADIUS])


@njit(nogil=True, cache=True)
def _add_right(weights, row):
    """Adds to each pixel of a row, from right to left, the six on its right."""
    inside = slice(RADIUS, row.size - RADIUS)
    back = weights[:RADIUS, inside][:, ::-1]
    _add_before(back[0], back[1], back[2], back[3], back[4], back[5], row[inside][::-1])


@njit(nogil=True, cache=True, fastmath={"contract"})
def _add_before(a, b, c, d, e, f, row):
    """Adds to each pixel of a row, one after the other, the six before it; a has the weights of the nearest."""
    one = two = three = four = five = six = np.float32(0)
    for p in range(row.size):  # the latest last: the other sums need not wait for it
        now = row[p] + f[p] * six + e[p] * five + d[p] * four + c[p] * three + b[p] * two + a[p] * one
        row[p] = now
        one, two, three, four, five, six = now, one, two, three, four, five
