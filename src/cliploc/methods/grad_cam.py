"""Grad-CAM: channels weighted by the mean gradient of the image–text similarity."""

import torch
from torch import Tensor

from cliploc.methods import Context, FromEnd, gradient_cam, map_gradients, normed_gradients


@gradient_cam(
    "grad_cam",
    title="Grad-CAM",
    paper="Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization",
    towers=("cnn", "vit"),
    threshold=0.1,
)
def grad_cam(ctx: Context, block: FromEnd = -1) -> Tensor:  # [B, P, h, w]
    """Gradient-weighted class activation map: map_t = ReLU(Σ_c α_tc A_c), α_tc = mean_hw ∂s_t/∂A_c.

    s_t is the cosine of image and prompt; the logit scale would only multiply the map. On a ViT, A are the patch tokens
    that enter the block's attention, after its first layer norm. Before that norm they would be wrong: a layer norm's
    gradient is orthogonal to its centred input, so a token that gets nearly all attention would have no heat.

    The same as `pytorch_grad_cam.GradCAM` and `torchcam.methods.GradCAM` (tests compare the three), on a ViT with
    `target_layers=[visual.transformer.resblocks[-1].ln_1]` and a `reshape_transform` that drops the class token.

    Args:
        block: the stage (CNN) or block (ViT), −1 for the last. Gradients run back to it from the tower's end.
    """
    gradients = map_gradients if ctx.backbone.kind == "cnn" else normed_gradients
    return gradients(ctx, lambda a, g: torch.einsum("bpc,bchw->bphw", g.mean(dim=(-2, -1)), a), block)
