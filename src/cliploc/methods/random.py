"""Random numbers, whatever the picture and the name: the faithfulness baseline of a map that knows nothing."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, baseline, for_every_prompt

CELLS = 14  # along each side: patches of 16 pixels at 224, about the grids of the towers


@baseline("random", title="Random", threshold=0.5)
def random(ctx: Context, seed: int = 0) -> Tensor:  # [B, P, H, W] over the input
    """map = uniform random numbers on a grid of 14×14 cells, enlarged (bilinear) to the model's input.

    A map whose deletion or insertion area is not better says nothing about what the model uses. It is as smooth as the
    methods' own maps: numbers drawn for each pixel would remove single pixels all over the picture, which confuses a
    model more than any region does. Its threshold was not tuned, as its boxes are of no use.

    Args:
        seed: seed of the random numbers.
    """
    chance = torch.Generator().manual_seed(seed)
    numbers = torch.rand(1, 1, CELLS, CELLS, generator=chance, dtype=torch.float32).to(ctx.images.device)
    heat = F.interpolate(numbers, size=tuple(ctx.images.shape[-2:]), mode="bilinear", align_corners=False)
    return for_every_prompt(ctx, heat[0])
