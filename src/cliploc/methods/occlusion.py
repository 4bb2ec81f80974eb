"""Occlusion: a window is hot where it alone scores higher than the picture without it."""

import math
from typing import Annotated, TypeAlias

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, perturbed_embeddings, saliency

Side: TypeAlias = Annotated[float, Meta(ge=0.05, le=1)]  # at least 39×39 windows


@saliency(
    "occlusion",
    title="Occlusion",
    paper="Zeiler & Fergus 2014, Visualizing and Understanding Convolutional Networks, ECCV",
    family="perturbation",
    threshold=0.5,
)
def occlusion(ctx: Context, side: Side = 0.25) -> Tensor:  # [B, P, h, w]
    """map_t = mean over the windows at a place of cos(f(window), g_t) − cos(f(picture without it), g_t).

    A window has `side` times the input's height and width, and overlaps the next by half. The window alone is enlarged
    to the input's size (bilinear); the picture without it has 0 there in normalised space. A place of the feature grid
    takes the mean of the windows over it, weighted by how much of it they cover. The paper has the second term only, on
    class probabilities. The method reads nothing inside the tower: a baseline for methods that do.

    Args:
        side: a window's side as a share of the input's. A quarter makes 49 windows and 98 forward passes; by `mini`, on
            40 of the tuning pictures, it has 0.53 of the boxes right, a half 0.33, each at its best threshold.
    """
    height, width = ctx.images.shape[-2:]
    rows, columns = _spans(height, side), _spans(width, side)
    windows = [(row, column) for row in rows for column in columns]

    def perturb(picture: Tensor, first: int, last: int) -> Tensor:
        """Version 2n is window n alone, version 2n + 1 the picture without it."""
        made = []
        for number in range(first, last):
            (top, bottom), (left, right) = windows[number // 2]
            if number % 2:
                without = picture.clone()
                without[:, top:bottom, left:right] = 0
                made.append(without)
            else:
                window = picture[None, :, top:bottom, left:right]
                made.append(F.interpolate(window, size=(height, width), mode="bilinear", align_corners=False)[0])
        return torch.stack(made)

    embeddings = perturbed_embeddings(ctx, ("occlusion", side, height, width), 2 * len(windows), perturb)
    with torch.no_grad():
        scores = torch.einsum("bnd,bpd->bpn", embeddings, ctx.text)  # [B, P, 2W]
        gained = scores[..., 0::2] - scores[..., 1::2]  # [B, P, W]
        h, w = ctx.trace.grid
        down, across = (_covered(*axis).to(gained) for axis in ((rows, height, h), (columns, width, w)))
        covered = torch.einsum("ah,bw->abhw", down, across).flatten(2).flatten(0, 1)  # [W, h·w]
        maps = gained @ covered / covered.sum(dim=0)
    return maps.reshape(*maps.shape[:2], h, w)


def _spans(length: int, side: float) -> list[tuple[int, int]]:
    """Starts and ends of windows along one side of the input, in pixels, half overlapping."""
    size = max(1, round(side * length))
    count = 1 + math.ceil((length - size) / (size / 2))
    starts = [round(step * (length - size) / max(1, count - 1)) for step in range(count)]
    return [(start, start + size) for start in starts]


def _covered(spans: list[tuple[int, int]], length: int, cells: int) -> Tensor:
    """How much of each cell of the grid each window covers, along one side: `[windows, cells]`."""
    pixels = torch.arange(length)
    inside = torch.stack([(pixels >= start) & (pixels < end) for start, end in spans]).float()  # [windows, length]
    return F.adaptive_avg_pool1d(inside[None], cells)[0]
