"""A box in the middle of the picture, whatever the picture and the name: a baseline without a model."""

import torch
from torch import Tensor

from cliploc.methods import Context, baseline, for_every_prompt

SIDE = 0.5**0.5  # side of the box as a share of the input's side; the box has half of the area


@baseline("centre_box", title="Centre box", threshold=0.5)
def centre_box(ctx: Context) -> Tensor:  # [B, P, H, W] over the input
    """map = 1 in the centred box whose sides are √½ = 0.707 of the input's sides, so half of its area; 0 around it.

    A method that does not beat it has not used the picture. The size is an assumption (objects of interest fill about
    half of a photograph), not tuned. The box lies over the model's input, which is the whole picture unless `resize` is
    "crop" or "pad".

    Example:
        >>> import numpy as np
        >>> from cliploc import Localizer
        >>> found = Localizer(method="centre_box", min_presence=0)(np.zeros((200, 400, 3), np.uint8), ["cat"])
        >>> found.boxes.xyxy.round().tolist()
        [[59.0, 29.0, 341.0, 171.0]]
    """
    y, x = centre_distances(ctx)
    return for_every_prompt(ctx, ((y < SIDE / 2) & (x < SIDE / 2)).float()[None])


def centre_distances(ctx: Context) -> tuple[Tensor, Tensor]:
    """How far each pixel's centre is from the input's centre, in shares of its height `[H, 1]` and width `[1, W]`."""
    height, width = ctx.images.shape[-2:]
    y, x = (
        ((torch.arange(side, device=ctx.images.device, dtype=torch.float32) + 0.5) / side - 0.5).abs()
        for side in (height, width)
    )
    return y[:, None], x[None]
