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
from cliploc.refine._propagation import ALPHA, solved

FloatArray = npt.NDArray[np.float32]
VECTORS_FROM = 4  # names; fewer would leave most of a vector empty: bench.refinements --names 1 2 4 8


def room(size: tuple[int, int]) -> Tensor:
    """Zeros for the weights of a picture, `[H, 84, pitch]`; the picture is at `inside` of each line."""
    height, width = size
    tiles = -(-width // _compiled.TILE)
    return torch.zeros(height, len(HALF), tiles * _compiled.TILE + 2 * RADIUS)


def inside(width: int) -> slice:
    """Where the picture is in a row of `room`."""
    return slice(RADIUS, RADIUS + width)


def swept(weights: Tensor, degree: Tensor, parts: Iterable[Tensor], tolerance: float) -> Iterator[Tensor]:
    """(1 − α) (I − α Ŵ)⁻¹ Y of each part Y, `[P, H, W]`.

    Ŵ `[H, 84, pitch]` lies in `room`, and is overwritten; `degree` `[H, W]` are the row sums that it was divided by.
    """
    picture = inside(degree.shape[1])
    vector = torch.ones(weights.shape[0], weights.shape[2])
    vector[:, picture] = degree.sqrt()
    scale = torch.from_numpy(_compiled.factored(weights.numpy(), ALPHA, vector.numpy()))
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:

        def each(function: Callable[..., None], *arguments: object) -> None:
            """Calls a function in each thread with its share of the strips."""
            list(pool.map(lambda share: function(*arguments, share, threads), range(threads)))

        for labels in parts:
            # The residual of Y is D^½ K times ours, and ‖D^½ K‖² = ‖M‖ ≤ ‖I − α Ŵ‖ ≤ 1 + α: what M lacks of Ŵ's
            # equation is negative semidefinite, because it is 0 for v and non-negative beside the diagonal.
            enough = tolerance**2 / (1 + ALPHA) * labels.square().sum(dim=(1, 2))
            yield solved(_Swept(weights, scale, labels, each), enough)


class _Swept:
    """A `System` of maps `[P, H, W]`, the weights in K, D^-½ `[H, pitch]`, and a function that computes all strips."""

    def __init__(self, weights: Tensor, scale: Tensor, labels: Tensor, each: Callable[..., None]) -> None:
        names, height, width = labels.shape
        self._each, self._inside, self._weights, self._names = each, inside(width), weights.numpy(), names
        self._lanes = _compiled.LANES if names >= VECTORS_FROM else 1
        self._scale = scale[:, self._inside]
        self._diagonal = (scale.square() - 2).repeat_interleave(self._lanes, dim=1).numpy()
        self._shape = -(-names // self._lanes), height, weights.shape[2], self._lanes
        # Of torch, which aligns memory to whole lines of the cache.
        self._residual, self._direction, self._back, self._found, self._rest = (
            torch.zeros(self._shape).flatten(2).numpy() for _ in range(5)
        )
        padded = F.pad(labels * self._scale, (0, 0, 0, 0, 0, self._shape[0] * self._lanes - names))
        rest = torch.from_numpy(self._rest).view(self._shape)[:, :, self._inside]  # [groups, H, W, lanes]
        rest.copy_(padded.view(-1, self._lanes, height, width).permute(0, 2, 3, 1))
        self._forward()
        self._residual, self._rest = self._rest, self._residual
        self._turn = self._along(torch.zeros(names))
        self.length = self._by_name(self._residual).square().sum(dim=(1, 2))

    def bend(self) -> Tensor:
        for odd in (1, 0):
            maps = self._residual, self._turn, self._direction, self._back, self._rest
            self._each(_compiled.backward, self._weights, self._diagonal, *maps, odd)
        return self._forward()

    def move(self, step: Tensor) -> Tensor:
        total = self._totals()
        maps = self._back, self._rest, self._found, self._residual
        self._each(_compiled.move, self._along(step), *maps, total)
        return self._summed(total)

    def turn(self, by: Tensor) -> None:
        self._turn = self._along(by)  # until the next sweep

    @property
    def found(self) -> Tensor:
        return self._by_name(self._found)[:, :, self._inside] * self._scale

    def _forward(self) -> Tensor:
        total = self._totals()
        for odd in (0, 1):
            maps = self._direction, self._back, self._rest
            self._each(_compiled.forward, self._weights, *maps, total, odd)
        return self._summed(total)

    def _by_name(self, maps: FloatArray) -> Tensor:
        """Maps of each name: `[groups, H, pitch · lanes]` → `[P, H, pitch]`."""
        return torch.from_numpy(maps).view(self._shape).permute(0, 3, 1, 2).flatten(0, 1)[: self._names]

    def _along(self, values: Tensor) -> FloatArray:
        """A value for each name, at each pixel of a row: `[P]` → `[groups, pitch · lanes]`."""
        groups, _, pitch, lanes = self._shape
        padded = F.pad(values, (0, groups * lanes - len(values))).view(groups, 1, lanes)
        return padded.expand(groups, pitch, lanes).flatten(1).numpy()

    def _totals(self) -> FloatArray:
        """Zeros, a row for each strip and group."""
        groups, height, pitch, lanes = self._shape
        return np.zeros((-(-height // _compiled.STRIP), groups, pitch * lanes), np.float32)

    def _summed(self, total: FloatArray) -> Tensor:
        """The sum for each name, `[P]`; by NumPy, as torch's threads would still spin beside the next sweep's."""
        by_lane = total.sum(axis=0).reshape(-1, *self._shape[2:]).sum(axis=1)  # [groups, lanes]
        return torch.from_numpy(by_lane.ravel()[: self._names])
