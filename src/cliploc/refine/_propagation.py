"""Label propagation (Zhou et al. 2003): F = (I − α Ŵ)⁻¹ Y, by conjugate gradients."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

ALPHA = 0.95  # LPOSS's
STEPS = 50  # at most; see `lposs`


def normalized(weights: Tensor) -> Tensor:
    """Ŵ = D^-½ W D^-½ of symmetric W `[B, N, N]` with a zero diagonal; rows that are all 0 stay 0."""
    degree = weights.sum(dim=2)  # [B, N]
    scale = torch.where(degree > 0, degree, 1).rsqrt()
    return scale[:, :, None] * weights * scale[:, None, :]


class System(Protocol):
    """(I − α Ŵ) X = Y, and how far conjugate gradients are. Lengths are sums of squares, one for each name."""

    length: Tensor  # of the first residual

    @property
    def found(self) -> Tensor:
        """X so far."""

    def bend(self) -> Tensor:
        """The products of the direction and of its image under the equation's matrix, a sum for each name."""

    def move(self, step: Tensor) -> Tensor:
        """X goes so many directions further; the length of the new residual."""

    def turn(self, by: Tensor) -> None:
        """The direction becomes the residual + by · direction."""


def solved(system: System, enough: Tensor) -> Tensor:
    """(1 − α) X for all names at once, by conjugate gradients; 0 or more, as for any non-negative labels and Ŵ.

    Each name has its own step lengths and stops on its own, when its residual is not longer than `enough`, or after
    `STEPS` steps, so that none depends on the others. (SciPy's `cg` solves for one name at a time.) The factor 1 − α
    keeps the scale of the values.
    """
    length = system.length
    for _ in range(STEPS):
        going = length > enough
        if not going.any():
            break
        after = system.move(torch.where(going, length / system.bend(), 0))  # a name that is done moves no more
        system.turn(torch.where(going, after / length, 0))
        length = after
    return system.found.mul_(1 - ALPHA).clamp_(min=0)


def propagate(spread: Callable[[Tensor], Iterable[tuple[slice, Tensor]]], labels: Tensor, tolerance: float) -> Tensor:
    """(1 − α) (I − α Ŵ)⁻¹ Y for all names at once, `[P, N, …]`, a row for each name, dense in memory, in any order.

    `spread` computes Ŵ X in strips of the second dimension, so that each is still in the processor's cache when it is
    used; Ŵ is symmetric, its eigenvalues from −1 to 1. A name is done when its residual's norm is this share of its
    labels' norm.
    """
    system = _Spread(spread, labels)
    return solved(system, tolerance**2 * system.length)


class _Spread:
    """A `System` of Ŵ as a function, and of labels; see `propagate`."""

    def __init__(self, spread: Callable[[Tensor], Iterable[tuple[slice, Tensor]]], labels: Tensor) -> None:
        self._spread, self._others = spread, tuple(range(1, labels.dim()))
        # A factor for each name is spread over a row first: long inner loops, also where names lie side by side.
        self._row = torch.ones_like(labels[:, :1])
        self._residual, self._direction, self._image = labels.clone(), labels.clone(), torch.empty_like(labels)
        self._strips: list[slice] = []
        self.found = torch.zeros_like(labels)
        self.length = self._dot(labels, labels)

    def bend(self) -> Tensor:
        total, self._strips = torch.zeros_like(self.length), []
        for strip, sums in self._spread(self._direction):
            torch.sub(self._direction[:, strip], sums, alpha=ALPHA, out=self._image[:, strip])
            total += self._dot(self._direction[:, strip], self._image[:, strip])
            self._strips.append(strip)
        return total

    def move(self, step: Tensor) -> Tensor:
        total, row = torch.zeros_like(self.length), self._row * step
        for strip in self._strips:
            self.found[:, strip].addcmul_(row, self._direction[:, strip])
            self._residual[:, strip].addcmul_(row, self._image[:, strip], value=-1)
            total += self._dot(self._residual[:, strip], self._residual[:, strip])
        return total

    def turn(self, by: Tensor) -> None:
        self._direction.mul_(self._row * by).add_(self._residual)

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=self._others, keepdim=True)
