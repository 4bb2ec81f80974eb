"""Random numbers, whatever the picture and the name: the faithfulness baseline of a map that knows nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.method import Context
from cliploc.saliency._infra.fixed import baseline, for_every_name

CELLS = 14  # along each side: patches of 16 pixels at 224, about the grids of the towers


@baseline("random", title="Random", threshold=0.5)
def random(ctx: Context, seed: int = 0) -> Tensor:
    """map = uniform random numbers on a grid of 14×14 cells, enlarged (bilinear) to the model's input.

    The map is the same for every picture and name. A map whose deletion or insertion area is not better says nothing
    about what the model uses. It is as smooth as the methods' own maps: numbers drawn for each pixel would remove
    single pixels all over the picture, which confuses a model more than any region does. Its threshold was not tuned,
    as its boxes are of no use.

    Args:
        ctx: only its sizes are read.
        seed: seed of the random numbers.

    Returns:
        `[B, P, H, W]` float32 over the input, not the feature grid.

    Example:
        >>> import numpy as np
        >>> from cliploc import Localizer
        >>> found = Localizer(method="random", min_presence=0)(np.zeros((200, 400, 3), np.uint8), ["cat"])
        >>> found.maps.shape
        (1, 224, 224)
    """
    numbers = torch.rand(1, 1, CELLS, CELLS, generator=torch.Generator().manual_seed(seed)).to(ctx.images.device)
    heat = F.interpolate(numbers, size=tuple(ctx.images.shape[-2:]), mode="bilinear", align_corners=False)
    return for_every_name(ctx, heat[0, 0])
