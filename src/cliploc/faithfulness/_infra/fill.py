"""What replaces removed pixels: zero, black, blur, mean, noise, or inpainting; and ROAD's noisy linear imputation."""

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc._imports import install, not_installed
from cliploc.errors import UsageError

BLUR_SIDE, BLUR_SIGMA = 11, 5.0  # RISE's
ROAD_NOISE = 0.01  # standard deviation, in normalised values; Rong 2022
DIRECT, DIAGONAL = 1 / 6, 1 / 12  # weights of a pixel's neighbours; Rong 2022
INPAINT_RADIUS = 3  # pixels
Normalize = Callable[[Tensor], Tensor]
Fill = Callable[[Tensor], Tensor]  # removed `[n, 1, H, W]` bool → what stands there, `[1 or n, 3, H, W]`


def blur_kernel(side: int = BLUR_SIDE, sigma: float = BLUR_SIGMA) -> Tensor:
    """RISE's kernel `[side, side]`: a Gaussian reflected at the edges, so flatter than one cut off."""
    reach = round(4 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = (-(offsets**2) / (2 * sigma**2)).exp()
    weights /= weights.sum()
    places = (offsets.long() + side // 2) % (2 * side)  # the period of a row that is reflected at both ends
    places = torch.where(places < side, places, 2 * side - 1 - places)
    row = torch.zeros(side, dtype=torch.float64).index_add_(0, places, weights)
    return torch.outer(row, row).float()


def blurred(images: Tensor) -> Tensor:
    """Pictures `[n, 3, H, W]` blurred as in RISE: normalised values, with zeros beyond the edges."""
    kernel = blur_kernel().to(images)
    return F.conv2d(images, kernel.expand(3, 1, -1, -1), padding=BLUR_SIDE // 2, groups=3)


def fill_of(kind: str, images: Tensor, normalize: Normalize, seed: int = 0) -> Fill:
    """What replaces pixels of `[1, 3, H, W]`: zero (RISE), black (Chefer), blur, mean, noise, inpaint (Telea 2004)."""
    if kind == "inpaint":
        return lambda removed: _inpainted(images, removed, normalize)
    shape = (1, 3, *images.shape[-2:])
    if kind == "zero":
        made = torch.zeros_like(images)
    elif kind == "black":
        made = normalize(images.new_zeros(shape, dtype=torch.float32)).to(images)
    elif kind == "blur":
        made = blurred(images)
    elif kind == "mean":
        made = images.mean(dim=(-2, -1), keepdim=True).expand_as(images)
    elif kind == "noise":
        drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        made = normalize(drawn.to(images.device)).to(images)
    else:
        raise UsageError(f"expected baseline to be one of zero, black, blur, mean, noise, inpaint, got {kind!r}")
    return lambda _: made


def in_8_bits(images: Tensor, normalize: Normalize) -> npt.NDArray[np.uint8]:
    """A normalised picture `[1, 3, H, W]` as RGB, `[H, W, 3]`."""
    black, white = (
        normalize(torch.full((1, 3, 1, 1), value, device=images.device)).float().to(images.device)
        for value in (0.0, 1.0)
    )
    pixels = ((images.float() - black) / (white - black)).clamp(0, 1).mul(255).round().byte()[0]
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def _inpainted(images: Tensor, removed: Tensor, normalize: Normalize) -> Tensor:
    """The picture with its removed pixels inpainted; grey where all pixels are removed."""
    picture, made = in_8_bits(images, normalize), []
    for mask in removed[:, 0].cpu().numpy():
        if mask.all():
            filled: npt.NDArray[Any] = np.full_like(picture, 128)
        else:
            filled = cv2.inpaint(picture, mask.astype(np.uint8), INPAINT_RADIUS, cv2.INPAINT_TELEA)
        made.append(torch.from_numpy(filled).permute(2, 0, 1))
    return normalize(torch.stack(made).to(images.device).float() / 255).to(images)


def imputed(images: Tensor, removed: Tensor, seed: int = 0, noise: float = ROAD_NOISE) -> Tensor:
    """ROAD's imputation `[1, 3, H, W]`: removed pixels `[H, W]` are means of neighbours plus noise, one system."""
    try:
        from scipy.sparse import csc_matrix
        from scipy.sparse.linalg import splu
    except ImportError as error:
        raise not_installed(error, install("bench", "road", "scipy")) from None
    mask = removed.cpu().numpy()
    count = int(mask.sum())
    if not count:
        return images
    if mask.all():
        return torch.zeros_like(images)
    height, width = mask.shape
    values = images[0].float().cpu().double().numpy()  # [3, H, W]
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(count)
    y, x = mask.nonzero()  # [m]
    total = np.zeros(count)  # of the weights of neighbours inside the picture
    known = np.zeros((count, 3))
    rows, columns, weights = [], [], []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if dy == dx == 0:
                continue
            weight = DIAGONAL if dy and dx else DIRECT
            inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
            own = inside.nonzero()[0]
            of_y, of_x = y[own] + dy, x[own] + dx
            total[own] += weight
            gone = mask[of_y, of_x]
            known[own[~gone]] += weight * values[:, of_y[~gone], of_x[~gone]].T
            rows.append(own[gone])
            columns.append(number[of_y[gone], of_x[gone]])
            weights.append(np.full(int(gone.sum()), -weight))
    own = np.arange(count)
    entries = np.concatenate([*weights, total])
    system = csc_matrix((entries, (np.concatenate([*rows, own]), np.concatenate([*columns, own]))), (count, count))
    # The matrix is symmetric.
    factors = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    solved = torch.from_numpy(factors.solve(known)).float()  # [m, 3]
    if noise and not math.isclose(noise, 0):
        solved += noise * torch.randn(solved.shape, generator=torch.Generator().manual_seed(seed))
    made = images.clone()
    made[0, :, removed.to(images.device)] = solved.T.to(images)
    return made
