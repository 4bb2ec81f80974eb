"""TLP, PEARL's second part: cosines of all queries are spread over a coarse grid of the picture, up to its edges."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

PixelMaps = Callable[[int, int], Tensor]  # queries from, to → their maps `[q, H, W]` over the picture's pixels

# All constants are the authors'.
GRID = 80  # about so many cells along each side
TEMPERATURE = 0.5  # of the softmax over queries
SELF = 10.0  # weight of a query's likeness to itself
EDGES = 5.0  # how much an edge of the picture weakens a link
FLOOR = 0.05  # least confidence of a cell
STEPS = 25  # of conjugate gradients
EPS = 1e-6
LUMA = (0.299, 0.587, 0.114)


def propagated(over_pixels: PixelMaps, picture: Tensor, queries: Tensor, hw: tuple[int, int], values: int) -> PixelMaps:
    """Text-aware Laplacian propagation of Pei et al. 2026 (PEARL, CVPR): (C + L) F = C X on a coarse grid.

    X are the cosines, averaged over cells of round(H / 80) × round(W / 80) pixels; p = softmax over queries of X.
    C_i = max(p_i, 0.05)² · (1 + p_iᵀ G p_i), with the largest of p_i, is how far a cell is trusted. L is the Laplacian
    of the grid's four neighbours, with w_ij = min(1, exp(−5 · g_ij / mean g) · (1 + p_iᵀ G p_j)), g the step in
    brightness. G = diag(g_q): softmax over queries of the texts' cosines / 0.5, plus 10 for itself, divided by its sum.
    Solved by 25 steps of conjugate gradients from X, for all queries together, and resized to the pixels bilinearly.

    This is the authors' code. In their paper G is the whole matrix; their product takes its diagonal alone. They use no
    logit scale in p, so that with cosines it is nearly flat.

    `picture` is normalised RGB `[1, 3, h, w]` of any size, `queries` are the texts' embeddings `[Q, D]`, `hw` is of the
    pixels. So many `values` of maps may be in memory at once.
    """
    cell = max(1, round(hw[0] / GRID)), max(1, round(hw[1] / GRID))
    at_once = max(1, values // (hw[0] * hw[1]))
    pooled = []
    for start in range(0, len(queries), at_once):
        pooled.append(F.avg_pool2d(over_pixels(start, min(start + at_once, len(queries))).float(), cell, cell))
    cosines = torch.cat(pooled)  # [Q, h, w]
    sized = F.interpolate(picture.float(), size=hw, mode="bilinear", align_corners=False)
    grey = torch.einsum("c,chw->hw", sized.new_tensor(LUMA), F.avg_pool2d(sized[0], cell, cell)).to(cosines)
    spread = solved(cosines, grey, alike(queries).to(cosines))

    return lambda start, end: F.interpolate(spread[None, start:end], hw, mode="bilinear", align_corners=False)[0]


def alike(queries: Tensor) -> Tensor:
    """`[Q]`: the diagonal of G."""
    texts = F.normalize(queries.float(), dim=-1)
    likeness = (texts @ texts.T / TEMPERATURE).softmax(dim=1)
    return (likeness.diagonal() + SELF) / (likeness.sum(dim=1) + SELF + EPS)


def solved(cosines: Tensor, grey: Tensor, weight: Tensor) -> Tensor:
    """F `[Q, h, w]` of X `[Q, h, w]`, the brightness `[h, w]` and G's diagonal `[Q]`."""
    chances = cosines.softmax(dim=0)
    weighted = weight[:, None, None] * chances
    agreement = (chances * weighted).sum(dim=0).clamp(0, 1)
    trust = chances.amax(dim=0).clamp(min=FLOOR) ** 2 * (1 + agreement)  # [h, w]
    links = []  # w between each cell and the next one along an axis
    for axis in (0, 1):
        edge = grey.diff(dim=axis).abs()
        length = grey.shape[axis]
        here, onward_weighted = chances.narrow(axis + 1, 1, length - 1), weighted.narrow(axis + 1, 0, length - 1)
        gain = 1 + (here * onward_weighted).sum(dim=0).clamp(0, 1)
        links.append(((-EDGES * edge / (edge.mean() + EPS)).exp() * gain).clamp(0, 1))

    def apply(x: Tensor) -> Tensor:
        """(C + L) x."""
        result = trust * x
        for axis, link in enumerate(links, start=1):
            flow = link * x.diff(dim=axis)
            length = x.shape[axis]
            result.narrow(axis, 1, length - 1).add_(flow)
            result.narrow(axis, 0, length - 1).sub_(flow)
        return result

    x = cosines
    residual = trust * cosines - apply(x)
    direction, squared = residual, residual.square().sum()
    for _ in range(STEPS):
        onward = apply(direction)
        step = squared / ((direction * onward).sum() + 1e-12)
        x, residual = x + step * direction, residual - step * onward
        before, squared = squared, residual.square().sum()
        direction = residual + squared / (before + 1e-12) * direction
    return x
