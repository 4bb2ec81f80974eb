"""Label propagation (Zhou et al. 2003): F = (I − α Ŵ)⁻¹ Y, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ALPHA = 0.95  # LPOSS's
STEPS = 50  # at most; LPOSS's


def normalized(weights: Tensor) -> Tensor:
    """Ŵ = D^-½ W D^-½ of symmetric W `[B, N, N]` with a zero diagonal; a place without neighbours stays so."""
    degree = weights.sum(dim=2)  # [B, N]
    scale = torch.where(degree > 0, degree, 1).rsqrt()
    return scale[:, :, None] * weights * scale[:, None, :]


def propagate(spread: Callable[[Tensor], Tensor], labels: Tensor, tolerance: float) -> Tensor:
    """(1 − α) (I − α Ŵ)⁻¹ Y for all names at once.

    Each name has its own step lengths and its own end, so that none depends on the others. SciPy's `cg` solves for one
    name at a time. The factor 1 − α keeps the size of the values.

    Args:
        spread: X → Ŵ X; Ŵ symmetric, its eigenvalues from −1 to 1.
        labels: `[P, …]` Y, a row for each name.
        tolerance: a name is done when its residual has this share of its labels' length, or after `STEPS` steps.

    Returns:
        `[P, …]`, not below 0 where labels and Ŵ are not.
    """
    shape = (len(labels), *[1] * (labels.dim() - 1))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a.flatten(1) * b.flatten(1)).sum(dim=1).view(shape)

    found = torch.zeros_like(labels)
    residual, direction = labels.clone(), labels.clone()
    length = dot(residual, residual)
    enough = tolerance**2 * length
    for _ in range(STEPS):
        going = length > enough
        if not going.any():
            break
        image = direction - ALPHA * spread(direction)
        step = torch.where(going, length / dot(direction, image), 0)  # of a name that is done: 0
        found.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        after = dot(residual, residual)
        direction.mul_(torch.where(going, after / length, 0)).add_(residual)
        length = after
    return ((1 - ALPHA) * found).clamp(min=0)
