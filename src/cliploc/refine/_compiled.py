"""Sums over the 13×13 neighbours of every pixel, compiled by numba; `_sweeps.py` says what they are for.

Maps are `[P, H, pitch]`; a row has `RADIUS` zeros, the picture's pixels, and again `RADIUS` zeros. Weights are
`[H, 84, pitch]`, for each row a line of each offset of `_neighbours.HALF`. A pair's weight is stored at the pixel that
comes first; what lies beyond the picture is 0.

The inner loops go along a row, so that the compiler makes vectors of them.
"""

import numpy as np
from numba import njit

from cliploc.refine._neighbours import RADIUS

SIDE = 2 * RADIUS + 1
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
        for k in range(RADIUS + RADIUS * SIDE):
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
    names, height, pitch = direction.shape
    for start in range((odd + 2 * share) * STRIP, height, 2 * shares * STRIP):
        for y in range(min(start + STRIP, height) - 1, start - 1, -1):
            for n in range(names):
                for p in range(pitch):
                    direction[n, y, p] = residual[n, y, p] + turn[n] * direction[n, y, p]
                    back[n, y, p] = direction[n, y, p]
            _add_other_rows_of_all(weights, back, y, True)
            for n in range(names):
                _add_right(weights[y], back[n, y])
                for p in range(pitch):
                    rest[n, y, p] = direction[n, y, p] + diagonal[y, p] * back[n, y, p]


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def forward(weights, direction, back, rest, total, odd, share, shares):
    """rest ← K⁻¹ rest; total += direction · (back + rest), for each strip a row. The even strips come first."""
    names, height, pitch = direction.shape
    for start in range((odd + 2 * share) * STRIP, height, 2 * shares * STRIP):
        for y in range(start, min(start + STRIP, height)):
            _add_other_rows_of_all(weights, rest, y, False)
            for n in range(names):
                _add_left(weights[y], rest[n, y])
                product = np.float32(0)
                for p in range(pitch):
                    product += direction[n, y, p] * (back[n, y, p] + rest[n, y, p])
                total[y // STRIP, n] += product


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def move(step, back, rest, found, residual, total, share, shares):
    """found += step · back, residual −= step · (back + rest), total += residual², for each strip a row."""
    names, height, pitch = found.shape
    for start in range(share * STRIP, height, shares * STRIP):
        for y in range(start, min(start + STRIP, height)):
            for n in range(names):
                length = np.float32(0)
                for p in range(pitch):
                    found[n, y, p] += step[n] * back[n, y, p]
                    residual[n, y, p] -= step[n] * (back[n, y, p] + rest[n, y, p])
                    length += residual[n, y, p] * residual[n, y, p]
                total[y // STRIP, n] += length


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def _add_other_rows_of_all(weights, maps, y, later):
    """`_add_other_rows` of each map to its own row; two maps at once, so that weights are read half as often."""
    names, height, pitch = maps.shape
    width = pitch - 2 * RADIUS
    if names % 2:
        _add_other_rows(weights, maps[-1], maps[-1, y], y, later)
    for n in range(0, names - 1, 2):
        first, second = maps[n, y, RADIUS:], maps[n + 1, y, RADIUS:]
        for v in range(max(0, y - RADIUS), min(height, y + RADIUS + 1)):
            if v == y or _comes_later(y, v) != later:
                continue
            for k in range(0, SIDE - 1, 4):
                a, b = _line(weights, y, v, k), _line(weights, y, v, k + 1)
                c, d = _line(weights, y, v, k + 2), _line(weights, y, v, k + 3)
                one, two = maps[n, v, k:], maps[n + 1, v, k:]
                for p in range(width):
                    first[p] += a[p] * one[p] + b[p] * one[p + 1] + c[p] * one[p + 2] + d[p] * one[p + 3]
                    second[p] += a[p] * two[p] + b[p] * two[p + 1] + c[p] * two[p + 2] + d[p] * two[p + 3]
            a, one, two = _line(weights, y, v, SIDE - 1), maps[n, v, SIDE - 1 :], maps[n + 1, v, SIDE - 1 :]
            for p in range(width):
                first[p] += a[p] * one[p]
                second[p] += a[p] * two[p]


@njit(nogil=True, cache=True, fastmath=ANY_ORDER)
def _add_other_rows(weights, one, total, y, later):
    """Adds to a row the neighbours in other rows of a map that come later in the order, or those that come earlier."""
    height, pitch = one.shape
    inside = total[RADIUS : pitch - RADIUS]
    for v in range(max(0, y - RADIUS), min(height, y + RADIUS + 1)):
        if v == y or _comes_later(y, v) != later:
            continue
        for k in range(0, SIDE - 1, 4):  # four at once: fewer passes over the total
            a, b = _line(weights, y, v, k), _line(weights, y, v, k + 1)
            c, d = _line(weights, y, v, k + 2), _line(weights, y, v, k + 3)
            others = one[v, k:]
            for p in range(inside.size):
                inside[p] += a[p] * others[p] + b[p] * others[p + 1] + c[p] * others[p + 2] + d[p] * others[p + 3]
        a, others = _line(weights, y, v, SIDE - 1), one[v, SIDE - 1 :]
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
