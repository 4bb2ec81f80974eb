"""Grad-CAM: channels weighted by the mean gradient of the image–text similarity."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.saliency._infra.gradients import map_gradients
from cliploc.saliency._infra.registration import saliency
from cliploc.schema import Context, Needs


@saliency(
    "grad_cam",
    title="Grad-CAM",
    paper="Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization",
    family="gradient",
    towers=("cnn", "vit"),
    needs=Needs(features=(-1,)),
    relu=True,
    threshold=0.1,
)
def grad_cam(ctx: Context) -> Tensor:
    """Gradient-weighted class activation map: map_t = ReLU(Σ_c α_tc A_c), α_tc = mean_hw ∂s_t/∂A_c.

    s_t is the cosine of image and prompt; the logit scale would only multiply the map. Gradients run through the
    tower's head alone: one forward for all prompts. On a ViT, A are the patch tokens that enter the last block (before
    its first layer norm), without the class token. A layer norm's gradient is orthogonal to its input, so a token that
    takes nearly all of the attention tends to a value near 0, and the ReLU may cut it: there, the map is relative.

    The definition is that of `pytorch_grad_cam.GradCAM` and `torchcam.methods.GradCAM`; tests hold the three together.

    Args:
        ctx: features of the last stage (CNN) or patches entering the last block (ViT).

    Returns:
        `[B, P, h, w]` float32, raw: the ReLU follows in the `Localizer`.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer(method="grad_cam")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """

    def weigh(features: Tensor, gradients: Tensor) -> Tensor:
        alpha = gradients.mean(dim=(-2, -1))  # [B, p, C]
        return torch.einsum("bpc,bchw->bphw", alpha, features)

    return map_gradients(ctx, weigh)
