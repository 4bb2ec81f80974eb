"""A Gaussian in the middle of the picture, whatever the picture and the name: a baseline without a model."""

from __future__ import annotations

from torch import Tensor

from cliploc.method import Context
from cliploc.saliency._infra.fixed import baseline, centre_distances, for_every_name

SIGMA = 0.25  # standard deviation as a share of the input's sides


@baseline("centre_gaussian", title="Centred Gaussian", threshold=0.35)
def centre_gaussian(ctx: Context) -> Tensor:
    """map = exp(−(x² + y²) / 2σ²), with x and y from the centre in shares of the input's width and height, σ = ¼.

    The map is the same for every picture and name. A method that does not beat it has not used the picture. σ is an
    assumption (2σ reach from the centre to each edge); it was not tuned on pictures. The threshold was chosen on the
    118 tuning pictures, as for every method (`tools/choose_thresholds.py`). The map lies over the model's input, which
    is the whole picture unless `resize` is "crop" or "pad".

    Args:
        ctx: only its sizes are read.

    Returns:
        `[B, P, H, W]` float32 over the input, not the feature grid.

    Example:
        >>> import numpy as np
        >>> from cliploc import Localizer
        >>> found = Localizer(method="centre_gaussian", min_presence=0)(np.zeros((200, 400, 3), np.uint8), ["cat"])
        >>> bool(found.heatmaps[0, 100, 200] > 0.99)
        True
    """
    y, x = centre_distances(ctx)
    return for_every_name(ctx, (-(x**2 + y**2) / (2 * SIGMA**2)).exp())
