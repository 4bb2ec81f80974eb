"""Label propagation (Zhou et al. 2003): F = (I − α Ŵ)⁻¹ Y, by conjugate gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

ALPHA = 0.95  # LPOSS's
STEPS = 50  # at most; see `lposs`


def normalized(weights: Tensor) -> Tensor:
    """Ŵ = D^-½ W D^-½ of symmetric W `[B, N, N]` with a zero diagonal; rows that are all 0 stay 0."""
    degree = weights.sum(dim=2)  # [B, N]
    scale = torch.where(degree > 0, degree, 1).rsqrt()
    return scale[:, :, None] * weights * scale[:, None, :]


def propagate(spread: Callable[[Tensor], Tensor], labels: Tensor, tolerance: float) -> Tensor:
    """(1 − α) (I − α Ŵ)⁻¹ Y for all names at once, `[P, …]`, a row for each name.

    `spread` computes Ŵ X; Ŵ is symmetric, its eigenvalues from −1 to 1. Each name has its step lengths and stops by
    itself, when its residual's norm is this share of its labels' norm, or after `STEPS` steps, so that none depends on
    the others. (SciPy's `cg` solves for one name at a time.) The factor 1 − α keeps the scale of the values.
    """
    others = tuple(range(1, labels.dim()))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=others, keepdim=True)

    solution, residual, direction = torch.zeros_like(labels), labels.clone(), labels.clone()
    length = dot(labels, labels)  # of the residual, a sum of squares
    enough = tolerance**2 * length
    for _ in range(STEPS):
        going = length > enough
        if not going.any():
            break
        image = torch.sub(direction, spread(direction), alpha=ALPHA)
        step = torch.where(going, length / dot(direction, image), 0)  # a name that is done moves no more
        solution.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        after = dot(residual, residual)
        direction.mul_(torch.where(going, after / length, 0)).add_(residual)
        length = after
    return solution.mul_(1 - ALPHA).clamp_(min=0)  # 0 or more, as for any non-negative labels and Ŵ
