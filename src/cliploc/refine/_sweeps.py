"""(I − α Ŵ) X = Y over pixels, preconditioned by sweeps over the picture: fewer steps of conjugate gradients.

The pixels get an order, and L has the α Ŵ_ij of the pixels j before i, so that I − α Ŵ = I − L − Lᵀ. The preconditioner
is M = (D − L) D⁻¹ (D − Lᵀ), where the diagonal D is such that M v = (I − α Ŵ) v for one vector v > 0 (modified
incomplete Cholesky, Gustafsson 1978). v has the square roots of W's row sums: an eigenvector of Ŵ, of eigenvalue 1.

With K = I − D^-½ L D^-½, conjugate gradients work on K⁻¹ D^-½ (I − α Ŵ) D^-½ K⁻ᵀ, whose product with a direction d is

    t + K⁻¹ (d + (D⁻¹ − 2 I) t),   t = K⁻ᵀ d

(Eisenstat 1981). K⁻ᵀ and K⁻¹ are sweeps over the picture: each pixel adds the neighbours that are already done.
Together they read each neighbour once, as Ŵ d does.

In the order, strips of rows with an even number come before those with an odd one. So all even strips are swept at
once, and all odd ones.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.refine import _compiled
from cliploc.refine._neighbours import HALF, RADIUS
from cliploc.refine._propagation import ALPHA, STEPS

FloatArray = npt.NDArray[np.float32]
VECTORS_FROM = 4  # names; fewer would leave most of a vector empty: bench.refinements --names 1 2 4 8


def room(size: tuple[int, int]) -> Tensor:
    """Zeros for the weights of a picture, `[H, 84, pitch]`; the picture is at `inside` of each line."""
    height, width = size
    tiles = -(-width // _compiled.TILE)
    return torch.zeros(height, len(HALF), tiles * _compiled.TILE + 2 * RADIUS, dtype=torch.float32)


def inside(width: int) -> slice:
    """Where the picture is in a row of `room`."""
    return slice(RADIUS, RADIUS + width)


def swept(weights: Tensor, degree: Tensor, parts: Iterable[Tensor], tolerance: float) -> Iterator[Tensor]:
    """(1 − α) (I − α Ŵ)⁻¹ Y of each part Y, `[P, H, W]`.

    Ŵ `[H, 84, pitch]` lies in `room`, and is overwritten; `degree` `[H, W]` are the row sums that it was divided by.
    """
    picture = inside(degree.shape[1])
    vector = weights.new_ones(weights.shape[0], weights.shape[2])
    vector[:, picture] = degree.sqrt()
    scale = torch.from_numpy(_compiled.factored(weights.numpy(), ALPHA, vector.numpy()))
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:

        def each(function: Callable[..., None], *arguments: object) -> None:
            """Calls a function in each thread with its share of the strips."""
            list(pool.map(lambda share: function(*arguments, share, threads), range(threads)))

        for labels in parts:
            yield _solved(weights.numpy(), scale, labels, tolerance, each)


def _solved(weights: FloatArray, scale: Tensor, labels: Tensor, tolerance: float, each: Callable[..., None]) -> Tensor:
    """Conjugate gradients as `propagate`'s, of maps `[P, H, W]`; the weights in K, D^-½ `[H, pitch]`."""
    names, height, width = labels.shape
    lanes = _compiled.LANES if names >= VECTORS_FROM else 1
    groups, pitch, picture = -(-names // lanes), weights.shape[2], inside(width)
    shape = groups, height, pitch, lanes
    diagonal = (scale.square() - 2).repeat_interleave(lanes, dim=1).numpy()
    # Of torch, which aligns memory to whole lines of the cache.
    residual, direction, back, solution, rest = (labels.new_zeros(shape).flatten(2).numpy() for _ in range(5))

    def by_name(maps: FloatArray) -> Tensor:
        """Maps of each name: `[groups, H, pitch · lanes]` → `[P, H, pitch]`."""
        return torch.from_numpy(maps).view(shape).permute(0, 3, 1, 2).flatten(0, 1)[:names]

    def along(values: Tensor) -> FloatArray:
        """A value for each name, at each pixel of a row: `[P]` → `[groups, pitch · lanes]`."""
        padded = F.pad(values, (0, groups * lanes - names)).view(groups, 1, lanes)
        return padded.expand(groups, pitch, lanes).flatten(1).numpy()

    def totals() -> FloatArray:
        """Zeros, a row for each strip and group."""
        return np.zeros((-(-height // _compiled.STRIP), groups, pitch * lanes), np.float32)

    def summed(total: FloatArray) -> Tensor:
        """The sum for each name, `[P]`; by NumPy, as torch's threads would still spin beside the next sweep's."""
        by_lane = total.sum(axis=0).reshape(groups, pitch, lanes).sum(axis=1)  # [groups, lanes]
        return torch.from_numpy(by_lane.ravel()[:names])

    def forward() -> Tensor:
        total = totals()
        for odd in (0, 1):
            each(_compiled.forward, weights, direction, back, rest, total, odd)
        return summed(total)

    padded = F.pad(labels * scale[:, picture], (0, 0, 0, 0, 0, groups * lanes - names))
    start = torch.from_numpy(rest).view(shape)[:, :, picture]  # [groups, H, W, lanes]
    start.copy_(padded.view(groups, lanes, height, width).permute(0, 2, 3, 1))
    forward()
    residual, rest = rest, residual
    turn = along(labels.new_zeros(names))
    length = by_name(residual).square().sum(dim=(1, 2))
    # The residual of Y is D^½ K times ours, and ‖D^½ K‖² = ‖M‖ ≤ ‖I − α Ŵ‖ ≤ 1 + α: what M lacks of Ŵ's equation is
    # negative semidefinite, because it is 0 for v and non-negative beside the diagonal.
    enough = tolerance**2 / (1 + ALPHA) * labels.square().sum(dim=(1, 2))
    for _ in range(STEPS):
        going = length > enough
        if not going.any():
            break
        for odd in (1, 0):
            each(_compiled.backward, weights, diagonal, residual, turn, direction, back, rest, odd)
        step = torch.where(going, length / forward(), 0)  # a name that is done moves no more
        total = totals()
        each(_compiled.move, along(step), back, rest, solution, residual, total)
        after = summed(total)
        turn = along(torch.where(going, after / length, 0))
        length = after
    return (by_name(solution)[:, :, picture] * scale[:, picture]).mul_(1 - ALPHA).clamp_(min=0)
