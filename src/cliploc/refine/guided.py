"""Guided filter: edge-aware upsampling, by which the coarse map follows the edges of the photograph."""

import cv2
import numpy as np
import torch
from torch import Tensor

from cliploc.refine import refinement
from cliploc.towers.tower import Backbone

EPS = 1e-3  # colour variance (0–1 values) above which a step is an edge
SAMPLES = 16  # pixels on either side of a window's centre; more hardly change the fitted line
AT_ONCE = 2  # prompts computed together: four coefficients a pixel for each
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # of colours: the entries of a symmetric matrix


def _threshold(backbone: Backbone, tau: float) -> float:
    """Raises τ on a CNN, at most to 0.5: wide windows raise a map's low values; docs/studies/refinement.md."""
    return max(tau, min(0.5, 1 - (1 - tau) ** 2)) if backbone.kind == "cnn" else tau


@refinement(
    "guided",
    title="Guided filter",
    paper="He et al. 2010, Guided Image Filtering, ECCV; He & Sun 2015, Fast Guided Filter",
    on="picture",
    threshold=_threshold,
)
def guided(picture: Tensor, maps: Tensor, cell: tuple[int, int]) -> Tensor:  # [B, P, H, W]
    """In every window the map is a linear function of the picture's colours: map′_i = mean_k(a_k)ᵀ I_i + mean_k(b_k).

    a_k = (Σ_k + ε U)⁻¹ cov_k(I, map), b_k = mean_k(map) − a_kᵀ mean_k(I), U the identity, over windows k of 2·cell + 1
    pixels around pixel i: as wide as the upsampling blurred one cell of the grid. ε is 0.001. Borders are mirrored (the
    paper cuts windows off there); the map is clamped to 0–1.

    The picture has its own resolution, up to 1,024 pixels on its longer side. Where a cell is 32 pixels or more, a and
    b are computed on every second pixel, from 48 on every third and so on, and upsampled (the fast guided filter).
    """
    every = max(1, min(min(cell) // SAMPLES, *maps.shape[-2:]))
    height, width = (  # no wider, as a border cannot be mirrored further than the picture's side
        2 * min(length // every, side // every - 1) + 1 for length, side in zip(cell, maps.shape[-2:], strict=True)
    )
    pairs = zip(picture.float(), maps.float(), strict=True)
    return torch.stack([_filtered(image, heat, every, (height, width)) for image, heat in pairs])


def _filtered(picture: Tensor, maps: Tensor, every: int, window: tuple[int, int]) -> Tensor:
    """Filters the maps `[P, H, W]` of one picture `[3, H, W]`, with a and b of windows of every n-th pixel."""
    hw = (picture.shape[1], picture.shape[2])
    rows, columns = (_sampled(side, every).to(picture.device) for side in hw)
    colours = picture[:, rows][:, :, columns]  # [3, h, w]
    mean = _means(colours, window)
    products = _means(torch.stack([colours[i] * colours[j] for i, j in PAIRS]), window)
    covariance = {pair: entry - mean[pair[0]] * mean[pair[1]] for pair, entry in zip(PAIRS, products, strict=True)}
    inverse = _inverse({(i, j): entry + EPS * (i == j) for (i, j), entry in covariance.items()})  # [3, 3, h, w]
    filtered = torch.empty_like(maps)
    for part, out in zip(torch.split(maps, AT_ONCE), torch.split(filtered, AT_ONCE), strict=True):
        heat = part[:, rows[:, None], columns]  # [p, h, w]
        mean_heat = _means(heat, window)
        with_map = [
            _means(heat * colour, window).addcmul_(mean_heat, mean_colour, value=-1)
            for colour, mean_colour in zip(colours, mean, strict=True)
        ]
        a = [(row[0] * with_map[0]).addcmul_(row[1], with_map[1]).addcmul_(row[2], with_map[2]) for row in inverse]
        b = mean_heat  # 3 + 1 × [p, h, w]
        for coefficient, mean_colour in zip(a, mean, strict=True):
            b.addcmul_(coefficient, mean_colour, value=-1)
        smooth = [_upsampled(_means(coefficient, window), hw) for coefficient in (*a, b)]
        torch.addcmul(smooth[3], smooth[0], picture[0], out=out)
        out.addcmul_(smooth[1], picture[1]).addcmul_(smooth[2], picture[2]).clamp_(0, 1)
    return filtered


def _sampled(side: int, every: int) -> Tensor:
    """The pixels along a side on which a and b are computed, where upsampling assumes them to be."""
    count = max(side // every, 1)
    at = ((2 * torch.arange(count) + 1) * side + count * (1 - every)).div(2 * count, rounding_mode="floor")
    return at.clamp(0, side - 1)


def _inverse(entries: dict[tuple[int, int], Tensor]) -> list[list[Tensor]]:
    """The inverses of symmetric 3×3 matrices, by their cofactors; the entries are those of `PAIRS`."""
    (a, b, c, d, e, f) = (entries[pair] for pair in PAIRS)
    cofactors = [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b]
    determinant = a * cofactors[0] + b * cofactors[1] + c * cofactors[2]
    p, q, r, s, t, u = (cofactor / determinant for cofactor in cofactors)
    return [[p, q, r], [q, s, t], [r, t, u]]


def _means(maps: Tensor, window: tuple[int, int]) -> Tensor:
    """The means over windows, mirrored at the border: `[p, h, w]` → `[p, h, w]`; wide windows cost no more time."""
    means = [cv2.blur(heat, window[::-1], borderType=cv2.BORDER_REFLECT_101) for heat in maps.cpu().numpy()]
    return torch.from_numpy(np.stack(means)).to(maps.device)


def _upsampled(maps: Tensor, hw: tuple[int, int]) -> Tensor:
    if maps.shape[1:] == hw:
        return maps
    larger = [cv2.resize(heat, hw[::-1], interpolation=cv2.INTER_LINEAR) for heat in maps.cpu().numpy()]
    return torch.from_numpy(np.stack(larger)).to(maps.device)  # an eighth of the time of torch
