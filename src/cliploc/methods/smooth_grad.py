"""SmoothGrad: gradients at the pixels, averaged over noisy copies of the picture."""

import torch
from torch import Tensor

from cliploc.methods import Context, Count, NotNegative, on_grid, pixel_gradients, saliency

SEED = 0


@saliency(
    "smooth_grad",
    title="SmoothGrad",
    paper="Smilkov et al. 2017, SmoothGrad: removing noise by adding noise, arXiv 1706.03825",
    family="gradient",
    threshold=0.3,
)
def smooth_grad(ctx: Context, samples: Count = 50, noise: NotNegative = 0.15) -> Tensor:  # [B, P, h, w]
    """map_t = mean over the cell's pixels of Σ_c |mean_n ∂s_t/∂x (x + ε_n)|, ε_n ~ N(0, σ²), σ = noise·(max x − min x).

    s_t is the cosine. The paper takes 50 samples, a noise of 10 to 20 %, and absolute values, which it draws as pixels;
    the sum over channels is that of the authors' code. We give the mean over the cells of the tower's grid. The noise
    comes from a fixed seed and is the same for all pictures of a size.

    The same as `captum.attr.NoiseTunnel` of `Saliency` with `abs=False` and the same noise, before the absolute value.

    Args:
        samples: how many noisy copies; each is one forward and, for each prompt, one backward pass of the tower.
        noise: σ as a share of the picture's range; 0 gives the plain gradient (Simonyan et al. 2014).
    """
    shape, chance = ctx.images.shape[1:], torch.Generator().manual_seed(SEED)
    draws = torch.randn(samples, *shape, generator=chance, dtype=torch.float32).to(ctx.text.device)

    def noisy(picture: Tensor, first: int, last: int) -> Tensor:
        return picture + noise * (picture.max() - picture.min()) * draws[first:last]

    gradients = pixel_gradients(ctx, noisy, draws.new_full((samples,), 1 / samples))
    with torch.no_grad():
        return on_grid(ctx, gradients.abs().sum(dim=2))
