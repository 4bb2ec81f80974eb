"""Gradients of all prompts' scores at the pixels of altered pictures, through the whole tower."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.method import Context
from cliploc.saliency._infra.gradients import differentiable, each_prompt, jacobian_products, leaf

MOST_GRAPHS = 8  # pictures at once: the whole tower's graph takes 150 MB for one picture on ViT-B/16


def pixel_gradients(
    ctx: Context, alter: Callable[[Tensor, int, int], Tensor], weights: Tensor
) -> Tensor:  # [B, P, 3, H, W]
    """Σ_n w_n · ∂s_t/∂x at versions `alter(picture, first, end)` `[n, 3, H, W]` of each picture; weights `[N]`."""
    together = min(ctx.batch_size, MOST_GRAPHS)
    with differentiable():
        pictures, text = ctx.images.float().clone(), ctx.text.detach().clone()
        sums = pictures.new_zeros(len(pictures), text.shape[1], *pictures.shape[1:])
        left = len(pictures) * len(weights)
        for total, picture, directions in zip(sums, pictures, text, strict=True):
            for first in range(0, len(weights), together):
                last = min(first + together, len(weights))
                versions = leaf(alter(picture, first, last))
                scores = ctx.backbone.encode_image(versions) @ directions.T  # [n, P]
                products = jacobian_products(scores, (versions,), each_prompt(scores), at_once=False)
                for of_prompt, (gradient,) in zip(total, products, strict=True):
                    of_prompt += torch.einsum("n,nchw->chw", weights[first:last], gradient[:, 0])
                if ctx.progress is not None:
                    left -= last - first
                    ctx.progress(last - first, left)
    return sums


def on_grid(ctx: Context, pixels: Tensor) -> Tensor:
    """The mean over the pixels of each cell: `[B, P, H, W]` → `[B, P, h, w]`."""
    return F.adaptive_avg_pool2d(pixels, ctx.trace.grid)
