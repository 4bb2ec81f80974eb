"""Label propagation (Zhou et al. 2003): F = (I − α Ŵ)⁻¹ Y, by conjugate gradients."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ALPHA = 0.95  # LPOSS's
STEPS = 50  # at most; see `lposs`


def normalized(weights: Tensor) -> Tensor:
    """Ŵ = D^-½ W D^-½ of symmetric W `[B, N, N]` with a zero diagonal; rows that are all 0 stay 0."""
    degree = weights.sum(dim=2)  # [B, N]
    scale = torch.where(degree > 0, degree, 1).rsqrt()
    return scale[:, :, None] * weights * scale[:, None, :]


def propagate(spread: Callable[[Tensor], Iterable[tuple[slice, Tensor]]], labels: Tensor, tolerance: float) -> Tensor:
    """(1 − α) (I − α Ŵ)⁻¹ Y for all names at once, `[P, N, …]`, a row for each name, dense in memory, in any order.

    `spread` computes Ŵ X in strips of the second dimension, so that each is still in the processor's cache when it is
    used; Ŵ is symmetric, its eigenvalues from −1 to 1. Each name has its own step lengths and stops on its own, when
    its residual's norm is this share of its labels' norm, or after `STEPS` steps, so that none depends on the others.
    (SciPy's `cg` solves for one name at a time.) The factor 1 − α keeps the scale of the values.
    """
    others = tuple(range(1, labels.dim()))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=others, keepdim=True)

    # A factor for each name is spread over a row first: long inner loops, also where names lie side by side.
    row = torch.ones_like(labels[:, :1])
    solution, image = torch.zeros_like(labels), torch.empty_like(labels)
    residual, direction = labels.clone(), labels.clone()
    length = dot(labels, labels)  # of the residual, a sum of squares
    enough = tolerance**2 * length
    for _ in range(STEPS):
        going = length > enough
        if not going.any():
            break
        bend, strips = torch.zeros_like(length), []
        for strip, sums in spread(direction):
            torch.sub(direction[:, strip], sums, alpha=ALPHA, out=image[:, strip])
            bend += dot(direction[:, strip], image[:, strip])
            strips.append(strip)
        step = row * torch.where(going, length / bend, 0)  # a name that is done moves no more
        after = torch.zeros_like(length)
        for strip in strips:
            solution[:, strip].addcmul_(step, direction[:, strip])
            residual[:, strip].addcmul_(step, image[:, strip], value=-1)
            after += dot(residual[:, strip], residual[:, strip])
        direction.mul_(row * torch.where(going, after / length, 0)).add_(residual)
        length = after
    return solution.mul_(1 - ALPHA).clamp_(min=0)  # 0 or more, as for any non-negative labels and Ŵ
