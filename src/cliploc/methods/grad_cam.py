"""Grad-CAM: channels weighted by the mean gradient of the image–text similarity."""

import torch
from torch import Tensor

from cliploc.methods._infra.gradients import batched_gradients, block_needs, leaf, map_gradients
from cliploc.methods._infra.method import Context
from cliploc.methods._infra.method_registry import saliency
from cliploc.towers.tower import Needs


@saliency(
    "grad_cam",
    title="Grad-CAM",
    paper="Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization",
    family="gradient",
    towers=("cnn", "vit"),
    needs=block_needs,
    relu=True,
    threshold=0.1,
)
def grad_cam(ctx: Context, block: int = -1) -> Tensor:  # [B, P, h, w]
    """Gradient-weighted class activation map: map_t = ReLU(Σ_c α_tc A_c), α_tc = mean_hw ∂s_t/∂A_c.

    s_t is the cosine of image and prompt; the logit scale would only multiply the map. On a ViT, A are the patch tokens
    that enter the block's attention, after its first layer norm. Before that norm they would be wrong: a layer norm's
    gradient is orthogonal to its centred input, so a token that gets nearly all attention would have no heat.

    The same as `pytorch_grad_cam.GradCAM` and `torchcam.methods.GradCAM` (tests compare the three), on a ViT with
    `target_layers=[visual.transformer.resblocks[-1].ln_1]` and a `reshape_transform` that drops the class token.

    Args:
        block: the stage (CNN) or block (ViT), −1 for the last. Gradients run back to it from the tower's end.
    """
    if ctx.backbone.kind == "cnn":  # A [B, C, h, w], gradients [B, p, C, h, w]
        return map_gradients(ctx, lambda a, g: torch.einsum("bpc,bchw->bphw", g.mean(dim=(-2, -1)), a), block)
    h, w = ctx.trace.grid

    def run() -> tuple[Tensor, Tensor]:
        end = ctx.resume(leaf(ctx.trace.entering[block]), block, Needs(projections=(block,)))
        return end.normed[block], end.embedding  # [B, T, d], [B, D]

    def weigh(tokens: Tensor, gradients: Tensor) -> Tensor:
        alpha = gradients[:, :, -h * w :].mean(dim=2)  # [B, p, d]
        patches = tokens[:, -h * w :].reshape(len(tokens), h, w, -1)  # [B, h, w, d]
        return torch.einsum("bpd,bhwd->bphw", alpha, patches)

    return batched_gradients(ctx, run, weigh)
