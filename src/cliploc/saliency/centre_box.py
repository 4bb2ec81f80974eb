"""A box in the middle of the picture, whatever the picture and the name: a baseline without a model."""

from __future__ import annotations

from torch import Tensor

from cliploc.method import Context
from cliploc.saliency._infra.fixed import baseline, centre_distances, for_every_name

SIDE = 0.5**0.5  # side of the box as a share of the input's side; the box has half of the area


@baseline("centre_box", title="Centre box", threshold=0.5)
def centre_box(ctx: Context) -> Tensor:
    """map = 1 in the centred box whose sides are √½ = 0.707 of the input's sides, so half of its area; 0 around it.

    The map is the same for every picture and name. A method that does not beat it has not used the picture. The size is
    an assumption (objects of interest fill about half of a photograph); it was not tuned on pictures. Any τ below 1
    gives the same box. It lies over the model's input, which is the whole picture unless `resize` is "crop" or "pad".

    Args:
        ctx: only its sizes are read.

    Returns:
        `[B, P, H, W]` float32 over the input, not the feature grid.

    Example:
        >>> import numpy as np
        >>> from cliploc import Localizer
        >>> found = Localizer(method="centre_box", min_presence=0)(np.zeros((200, 400, 3), np.uint8), ["cat"])
        >>> found.boxes.xyxy.round().tolist()
        [[59.0, 29.0, 341.0, 171.0]]
    """
    y, x = centre_distances(ctx)
    return for_every_name(ctx, ((y < SIDE / 2) & (x < SIDE / 2)).float())
