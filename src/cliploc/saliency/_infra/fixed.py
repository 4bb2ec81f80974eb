"""Helpers of the baselines: a map over the model's input that does not depend on the picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cliploc.method import Context
from cliploc.saliency._infra.registration import saliency
from cliploc.tower import Needs


def baseline(name: str, *, title: str, threshold: float) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Registers a method without a model; arguments as for `saliency`."""
    return saliency(
        name,
        title=title,
        paper="no paper: a baseline without a model",
        family="baseline",
        towers=("cnn", "vit"),
        needs=Needs(),
        relu=False,
        threshold=threshold,
        reads_text=False,
        reads_picture=False,
    )


def centre_distances(ctx: Context) -> tuple[Tensor, Tensor]:
    """How far each pixel's centre is from the input's centre, in shares of its height `[H, 1]` and width `[1, W]`."""
    height, width = ctx.images.shape[-2:]
    y, x = (
        ((torch.arange(side, device=ctx.images.device, dtype=torch.float32) + 0.5) / side - 0.5).abs()
        for side in (height, width)
    )
    return y[:, None], x[None]


def for_every_name(ctx: Context, heat: Tensor) -> Tensor:
    """Repeats a map `[H, W]` for every picture and name, `[B, P, H, W]`; a view, which takes no memory."""
    return heat.expand(*ctx.text.shape[:2], *heat.shape)
