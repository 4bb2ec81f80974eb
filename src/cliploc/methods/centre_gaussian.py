"""A Gaussian in the middle of the picture, whatever the picture and the name: a baseline without a model."""

from torch import Tensor

from cliploc.methods import Context, baseline, for_every_prompt
from cliploc.methods.centre_box import centre_distances

SIGMA = 0.25  # standard deviation as a share of the input's sides


@baseline("centre_gaussian", title="Centred Gaussian", threshold=0.35)
def centre_gaussian(ctx: Context) -> Tensor:  # [B, P, H, W] over the input
    """map = exp(−(x² + y²) / 2σ²), with x and y from the centre in shares of the input's width and height, σ = ¼.

    σ is an assumption (2σ reach from the centre to each edge), not tuned; the threshold was chosen on the tuning
    pictures, as for every method. Otherwise as `centre_box`.
    """
    y, x = centre_distances(ctx)
    return for_every_prompt(ctx, (-(x**2 + y**2) / (2 * SIGMA**2)).exp()[None])
