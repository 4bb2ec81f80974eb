"""Grad-CAM++: each location of a channel is weighted by how strongly it raises the score, so several objects show."""

import torch
from torch import Tensor

from cliploc.methods import Context, FromEnd, Positive, gradient_cam, map_gradients


@gradient_cam(
    "grad_cam_pp",
    title="Grad-CAM++",
    paper="Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks, WACV",
    threshold=0.25,
)
def grad_cam_pp(ctx: Context, temperature: Positive | None = None, block: FromEnd = -1) -> Tensor:  # [B, P, h, w]
    """map_t = Σ_c w_tc A_c, w_tc = Σ_hw α·ReLU(∂S_t/∂A_c), α = ∂S² / (2 ∂S² + Σ_hw A_c · ∂S³) (the paper's Eq. 19).

    The paper differentiates exp(S) of a logit S, whose scale matters to α, so the temperature is part of the method:
    S_t = cosine / temperature. α·ReLU(∂S) is computed as ReLU(∂S) / (2 + Σ A · ReLU(∂S)), without a division by zero.
    The paper assumes A ≥ 0: where a channel's sum is negative, we take 0. Not defined on a ViT (tokens of both signs).

    Peers: `pytorch_grad_cam.GradCAMPlusPlus` adds 1e-6 to the denominator, which matters when gradients are small.
    `torchcam.methods.GradCAMpp` (0.5.0) drops the result of its division: its weights are Σ_hw ∂S²·ReLU(∂S).

    Args:
        temperature: cosines are divided by it; None for the model's own, 1 / logit scale.
        block: the stage, −1 for the last.
    """
    scale = 1 / (temperature or 1 / ctx.backbone.logit_scale)

    def weighted(a: Tensor, g: Tensor) -> Tensor:
        rising = scale * g.relu()  # [B, p, C, h, w]
        total = a.sum(dim=(-2, -1)).clamp(min=0)[:, None, :, None, None]  # [B, 1, C, 1, 1]
        weights = (rising / (2 + total * rising)).sum(dim=(-2, -1))  # [B, p, C]
        return torch.einsum("bpc,bchw->bphw", weights, a)

    return map_gradients(ctx, weighted, block)
